"""Labels of points: apart from each other and from every point, as near to their own as that allows."""

import itertools

import numpy
import pytest
from scipy.optimize import minimize

from quantharm.reporting.charts import against_size, labels
from quantharm.reporting.charts.labels import Place, Point, places
from quantharm.reporting.charts.marks import marked


@pytest.mark.parametrize("seed", range(3))
def test_heights_are_spread_by_least_squares(seed):
    heights = sorted(numpy.random.default_rng(seed).normal(0, 2, 6))
    apart = {"type": "ineq", "fun": lambda h: numpy.diff(h) - 1}
    best = minimize(lambda h: ((h - heights) ** 2).sum(), numpy.arange(6.0), constraints=apart, tol=1e-10)
    assert labels.spread(heights, 1.0) == pytest.approx(best.x, abs=1e-4)


def point(x: float, y: float, label: str = "nf4", half: float = 0.0) -> Point:
    return Point(x, y, y - half, y + half, label)


def test_labels_stand_right_of_their_column_and_apart():
    *column, alone = places([point(40, 100), point(41, 100), point(42, 101), point(300, 50)])
    assert {place.x for place in column} == {42 + labels.AWAY}
    heights = sorted(place.y for place in column)
    assert list(numpy.diff(heights)) == pytest.approx([labels.LABEL_HEIGHT] * 2)
    assert heights[1] == pytest.approx(numpy.mean([100, 100, 101]) + labels.ABOVE)
    assert alone == Place(300 + labels.AWAY, 50 + labels.ABOVE)


@pytest.mark.parametrize(
    ("other", "joined"),
    [
        (point(100, 109), True),  # the label would lie on the point
        (point(100, 300, half=195), True),  # and here on its interval
        (point(100, 20, half=95), True),
        (point(100, 300), False),
        (point(200, 109), False),  # beyond the label's end
    ],
)
def test_a_label_that_would_cover_a_point_stands_right_of_it(other, joined):
    label, _ = places([point(40, 100, "a-long-name-of"), other])
    assert label.x == (other if joined else point(40, 100)).x + labels.AWAY


def test_a_label_that_would_cover_a_label_stands_beside_it():
    a, b = places([point(40, 100, "long" * 10), point(80, 88)])
    assert (a.x, b.x) == (80 + labels.AWAY,) * 2
    assert abs(a.y - b.y) >= labels.LABEL_HEIGHT - 1e-9


def boxes(points: list[Point], placed: list[Place]) -> tuple[list, list]:
    """(left, right, bottom, top) of each label, and of each point with its interval."""
    width, half = labels.LETTER_WIDTH, labels.LABEL_HEIGHT / 2
    texts = [
        (at.x, at.x + width * len(p.label), at.y - half, at.y + half) for p, at in zip(points, placed, strict=True)
    ]
    r = labels.HALF_POINT
    return texts, [(p.x - r, p.x + r, min(p.low, p.y - r), max(p.high, p.y + r)) for p in points]


def overlap(a: tuple, b: tuple) -> bool:
    return min(a[1], b[1]) - max(a[0], b[0]) > 1e-6 and min(a[3], b[3]) - max(a[2], b[2]) > 1e-6


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_covered(seed):
    random = numpy.random.default_rng(seed)
    n = int(random.integers(1, 40))
    sizes = random.choice([60, 75, 240, 260, 600], n) + random.normal(0, 8, n)
    heights, halves = random.exponential(80, n), random.exponential(10, n)
    points = [
        point(x, y, "m" * int(random.integers(2, 23)), half) for x, y, half in zip(sizes, heights, halves, strict=True)
    ]
    texts, drawn = boxes(points, places(points))
    assert not any(overlap(a, b) for a, b in itertools.combinations(texts, 2))
    assert not any(overlap(a, b) for a in texts for b in drawn)


def rows_of(values: list[float], sizes: list[float]) -> list[dict]:
    return [
        {"method": f"m{i}", "size": size, "value": v, "low": v - 0.1, "high": v + 0.1, "front": i < 2}
        for i, (v, size) in enumerate(zip(values, sizes, strict=True))
    ]


def drawn(rows: list[dict]) -> tuple[dict, dict]:
    """(a panel's specification, the axis of quality in it)."""
    chart = against_size.panel(rows, "Change, %", "MB", marked([row["method"] for row in rows]), 0.1).to_dict()
    return chart, chart["layer"][0]["encoding"]["y"]


@pytest.mark.parametrize("more", [0, 20])
def test_a_panel_holds_zero_and_negative_changes(more):
    _, y = drawn(rows_of([30.0, 0.3, 0.0, -0.2] + [1.0] * more, [4.0, 5.0, 6.0, 7.0] + [8.0] * more))
    low, high = y["scale"]["domain"]
    assert low < -0.3
    assert high > 30.1
    assert y["scale"].get("type") == ("symlog" if more else None)
    assert ("values" in y["axis"]) == bool(more)
    assert against_size.ticks(-0.2, 5, 0.1) == pytest.approx([0, 0.1, 0.3, 1, 3, -0.1])


@pytest.mark.parametrize("n", [2, 12, 13, 60])
def test_labels_are_a_line_apart_on_the_page_however_many_there_are(n):
    """The panel grows by what the labels need beyond it; all points are alike."""
    chart, y = drawn(rows_of([1.0] * n, [5.0] * n))
    low, high = (stretched(bound, n) for bound in y["scale"]["domain"])
    every = max(chart["datasets"].values(), key=len)  # the other holds the front alone
    heights = sorted((stretched(row["label_y"], n) - low) / (high - low) * chart["height"] for row in every)
    assert numpy.diff(heights).min() == pytest.approx(labels.LABEL_HEIGHT)
    assert heights[0] >= labels.LABEL_HEIGHT / 2 - 1e-6
    assert heights[-1] <= chart["height"] - labels.LABEL_HEIGHT / 2 + 1e-6


def stretched(value: float, n: int) -> float:
    """A symmetric logarithm, linear up to 0.1, where the panel has many methods."""
    return value if n <= against_size.MANY else float(numpy.sign(value) * numpy.log(1 + abs(value) / 0.1))


def test_a_baseline_alone_has_a_panel():
    row = {"method": "baseline", "size": 5.0, "value": 0.0, "low": 0.0, "high": 0.0, "front": True}
    low, high = drawn([row])[1]["scale"]["domain"]
    assert low < 0 < high
