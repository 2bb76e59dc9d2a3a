"""Labels of many points: apart from each other, as near to their points as that allows."""

import numpy
import pandas
import pytest
from scipy.optimize import minimize

from quantharm.reporting.charts import crowd
from quantharm.reporting.charts.marks import marked


@pytest.mark.parametrize("seed", range(3))
def test_heights_are_spread_by_least_squares(seed):
    heights = sorted(numpy.random.default_rng(seed).normal(0, 2, 6))
    apart = {"type": "ineq", "fun": lambda h: numpy.diff(h) - 1}
    best = minimize(lambda h: ((h - heights) ** 2).sum(), numpy.arange(6.0), constraints=apart, tol=1e-10)
    assert crowd.spread(heights, 1.0) == pytest.approx(best.x, abs=1e-4)


def test_labels_stand_right_of_their_group_and_apart():
    data = pandas.DataFrame({"size": [4.0, 4.1, 4.2, 9.0], "value": [1.0, 1.0, 1.01, 5.0]})
    placed = crowd.labelled(data, [0.0, 10.0], float, float, 10.0)
    assert list(placed["label_x"]) == pytest.approx([4.45, 4.45, 4.45, 9.25])
    heights = sorted(placed["label_y"][:3])
    assert numpy.diff(heights).min() == pytest.approx(crowd.LABEL_PIXELS / crowd.HEIGHT * 10)
    assert heights[1] == pytest.approx(numpy.mean([1, 1, 1.01]))
    assert placed["label_y"][3] == 5.0


def test_a_panel_holds_zero_and_negative_changes():
    rows = [
        {"method": f"m{i}", "size": 4.0 + i, "value": v, "low": v - 0.1, "high": v + 0.1, "front": i < 2}
        for i, v in enumerate([30.0, 0.3, 0.0, -0.2])
    ]
    chart = crowd.panel(rows, "Change, %", "MB", 0.1, marked([row["method"] for row in rows])).to_dict()
    low, high = chart["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low < -0.3
    assert high > 30.1
    assert 0.0 in chart["layer"][0]["encoding"]["y"]["axis"]["values"]
    assert crowd.ticks(-0.2, 5, 0.1) == pytest.approx([0, 0.1, 0.3, 1, 3, -0.1])
