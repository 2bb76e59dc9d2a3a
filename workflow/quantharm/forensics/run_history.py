"""The runs of a monitor: a row a run, and the control chart over all of them."""

from pathlib import Path

import numpy
import pandas

from quantharm.common import control_chart
from quantharm.common.errors import UserError
from quantharm.common.files import read_parquet

SAME = ("approved_sha256", "trace_sha256", "per_category")  # keys that are equal in all runs of one history
COLUMNS = ["run", "time", "checkpoint", "weights_sha256", *SAME, "prompts", "kl_nats", "other_hardware_kl_nats"]


def read_history(path: Path, same: dict[str, str | int]) -> pandas.DataFrame:
    """The runs so far; raises UserError for a history of another approved checkpoint, store or `per_category`.

    Means over other prompts, or over another number of them, vary by another amount: one chart cannot hold both.
    """
    if not path.is_file():
        return pandas.DataFrame(columns=COLUMNS)
    history = read_parquet(path)
    if missing := set(COLUMNS) - set(history.columns):
        raise UserError(f"{path} is not a monitor's history (no column `{sorted(missing)[0]}`); move it away")
    names = dict(zip(SAME, ("approved checkpoint", "log-prob store", "`monitor.per_category:`"), strict=True))
    for key, name in names.items():
        if (history[key] != same[key]).any():
            raise UserError(f"{path} was kept with another {name}; move it away to begin a new one")
    return history


def charted(history: pandas.DataFrame, limits: control_chart.Limits) -> pandas.DataFrame:
    """The history with ewma, low, high and alarm of each run.

    The limits are wider by the largest effect of other hardware in any run so far, since the running mean remembers it.
    """
    chart = control_chart.chart(history["kl_nats"].to_numpy(float), limits)
    allowed = numpy.maximum.accumulate(history["other_hardware_kl_nats"].to_numpy(float))
    low, high = chart["low"] - allowed, chart["high"] + allowed
    alarm = (chart["ewma"] < low) | (chart["ewma"] > high)
    return history.assign(ewma=chart["ewma"], low=low, high=high, alarm=alarm)
