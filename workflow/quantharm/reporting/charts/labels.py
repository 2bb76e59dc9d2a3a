"""Places for the labels of points, so that no label covers another one, a point or an interval.

Lengths are pixels, heights count upwards. Points that are near from left to right share a column of labels to the right
of them, each as near to its point's height as the others allow. A column that would cover something is joined with the
next one to the right.
"""

from typing import NamedTuple

FONT_SIZE = 11
LABEL_HEIGHT = 15
LETTER_WIDTH = 0.55 * FONT_SIZE  # more than the mean of Helvetica's small letters
GAP = 24  # points farther apart have columns of their own
AWAY, ABOVE = 18, 9  # from a column's last point to its labels, and from a point to its own: the front runs between
HALF_POINT = 6  # of a point's width and height


class Point(NamedTuple):
    """A point on its interval, and the text of its label."""

    x: float
    y: float
    low: float
    high: float
    label: str


class Place(NamedTuple):
    """The left end of a label, at half its height."""

    x: float
    y: float


def places(points: list[Point]) -> list[Place]:
    """The place of each point's label."""
    columns = columns_of([point.x for point in points])
    while True:
        placed = {i: place for column in columns for i, place in labels_of(points, column).items()}
        covering = (k for k, column in enumerate(columns[:-1]) if covers(points, placed, column, columns[k + 1 :]))
        if (k := next(covering, None)) is None:
            return [placed[i] for i in range(len(points))]
        columns[k : k + 2] = [columns[k] + columns[k + 1]]


def columns_of(x: list[float]) -> list[list[int]]:
    """The points from left to right, in groups that a gap separates."""
    columns: list[list[int]] = []
    for i in sorted(range(len(x)), key=lambda i: x[i]):
        if columns and x[i] - x[columns[-1][-1]] <= GAP:
            columns[-1].append(i)
        else:
            columns.append([i])
    return columns


def labels_of(points: list[Point], column: list[int]) -> dict[int, Place]:
    """The place of each label of a column."""
    upwards = sorted(column, key=lambda i: points[i].y)
    heights = spread([points[i].y + ABOVE for i in upwards], LABEL_HEIGHT)
    right = max(points[i].x for i in column) + AWAY
    return {i: Place(right, height) for i, height in zip(upwards, heights, strict=True)}


def spread(heights: list[float], least: float) -> list[float]:
    """The ascending heights moved as little as possible (least squares) to lie at least `least` apart.

    By pooling neighbours that are too near around their mean.
    """
    pools: list[tuple[float, int]] = []  # (sum of heights less what is due to the order, members)
    for i, height in enumerate(heights):
        pools.append((height - i * least, 1))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, members = pools.pop()
            pools[-1] = (pools[-1][0] + total, pools[-1][1] + members)
    means = [total / members for total, members in pools for _ in range(members)]
    return [mean + i * least for i, mean in enumerate(means)]


def covers(points: list[Point], placed: dict[int, Place], column: list[int], later: list[list[int]]) -> bool:
    """Whether a label of a column covers a point, an interval or a label of the columns to its right."""
    others = [i for other in later for i in other]
    for place, label in ((placed[i], points[i].label) for i in column):
        end, half = place.x + len(label) * LETTER_WIDTH, LABEL_HEIGHT / 2
        for point, its_label in ((points[i], placed[i]) for i in others):
            beside = point.x - HALF_POINT < end and point.x + HALF_POINT > place.x
            high, low = max(point.high, point.y + HALF_POINT), min(point.low, point.y - HALF_POINT)
            if beside and low - half < place.y < high + half:
                return True
            if its_label.x < end and abs(its_label.y - place.y) < LABEL_HEIGHT:
                return True
    return False
