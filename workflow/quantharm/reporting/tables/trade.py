"""What a saved byte costs: ΔPPL for each GB (or MB) saved, one method's price against another's, and the whole."""

from itertools import combinations
from typing import Any

import numpy

from quantharm.common.statistics import jackknife_interval
from quantharm.reporting.format import fixed, number, percent, share, signed, size, size_unit
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results, window_losses
from quantharm.reporting.tables.columns import METHOD
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, name_cell, text_cell, transposed


def is_measurable(bounds: list[float] | None) -> bool:
    """Whether a 95 % interval lies on one side of zero."""
    return bounds is not None and not bounds[0] <= 0 <= bounds[1]


def per_saved(value: float | None, saved: float) -> float | None:
    """value for each unit saved; None when nothing was saved."""
    return None if value is None or saved <= 0 else value / saved


def trade_off_table(results: Results, thresholds: dict[str, Any]) -> Table:
    scale, unit = size_unit(results.baseline.row["weight_bytes"])
    front = front_of(results)
    rows = []
    for cell in results.methods:
        row = cell.row
        saved = row["saved_bytes"] / scale
        bounds = row["perplexity_change_percent_ci95"]
        measurable = is_measurable(bounds)
        price = per_saved(row["perplexity_change_percent"], saved)
        rows.append(
            [
                name_cell(cell.method, cell.failed),
                figure_cell(saved, lambda v: fixed(v, 3)),
                figure_cell(row["compression"], lambda v: f"{fixed(v, 2)}×"),
                figure_cell(row["perplexity_change_percent"], percent, bounds),
                figure_cell(
                    price,
                    lambda v: percent(v, 3),
                    [b / saved for b in bounds] if bounds and saved > 0 else None,
                    "" if measurable or bounds is None else "no measurable price",
                ),
                figure_cell(per_saved(row["kl_nats_mean"], saved)),
                front_cell(cell, results, front),
            ]
        )
    columns = [
        METHOD,
        Column(f"saved_{unit.lower()}", f"Saved, {unit}"),
        Column("compression", "Compression"),
        Column("perplexity_change_percent", "Perplexity change [95\u00a0%]"),
        Column(f"perplexity_change_percent_per_{unit.lower()}", f"Perplexity change for each {unit} saved [95\u00a0%]"),
        Column(f"kl_nats_per_{unit.lower()}", f"KL, nats for each {unit} saved"),
        Column("pareto", "On the Pareto front", "left"),
    ]
    note = (
        "On the front: no other method of this run is at most as large and measurably closer to the baseline "
        "(paired difference in KL, corrected for the number of pairs). Methods with failed checks are left out."
    )
    if results.synthetic:  # who is on the front is a judgement of quality
        columns, rows, note = columns[:-1], [row[:-1] for row in rows], ""
    return Table("trade-off", f"The price of each {unit} saved", columns, rows, note)


def is_closer(results: Results, first: str, second: str) -> bool:
    """Whether the first's KL is measurably smaller than the second's.

    The baseline is the reference: it is closer than a method whose KL, with its interval, is above what says nothing.
    """
    if second == results.baseline.method:
        return False
    if first == results.baseline.method:
        row = next(cell.row for cell in results.methods if cell.method == second)
        return row["kl_nats_ci95"] is not None and row["kl_nats_ci95"][0] > results.least_kl
    difference = results.kl_differences[first, second]
    return difference.measurable and difference.nats < 0


def beaten_by(results: Results, method: str) -> list[str]:
    """Methods at most as large as this one and measurably closer to the baseline; failed ones do not count."""
    weights = {cell.method: cell.row["weight_bytes"] for cell in results.cells if not cell.failed}
    if method not in weights:
        return []
    return [m for m, w in weights.items() if m != method and w <= weights[method] and is_closer(results, m, method)]


def front_of(results: Results) -> list[str]:
    """Methods that passed their checks and are not beaten, by size."""
    believed = sorted((c for c in results.cells if not c.failed), key=lambda c: c.row["weight_bytes"])
    return [cell.method for cell in believed if not beaten_by(results, cell.method)]


def front_cell(cell: MethodCell, results: Results, front: list[str]) -> Cell:
    if cell.failed:
        return text_cell("left out: failed checks", "failed")
    if cell.method in front:
        return text_cell("yes", "pass")
    return text_cell(f"no: {', '.join(beaten_by(results, cell.method))} is at most as large and measurably closer")


def price_ratio(first: MethodCell, second: MethodCell, baseline: MethodCell) -> tuple[float, list[float]] | None:
    """How many times as much ΔPPL `first` pays for each byte saved as `second`, paired over windows.

    The interval is a jackknife's on a logarithmic scale. None unless both pay a measurable price, whichever window is
    left out, and save something: the ratio of two noises means nothing.
    """
    for cell in (first, second):
        bounds = cell.row["perplexity_change_percent_ci95"]
        if cell.row["saved_bytes"] <= 0 or not is_measurable(bounds) or bounds[0] <= 0:
            return None
    reference = window_losses(baseline)
    targets = reference["targets"].to_numpy(float)
    losses = [(window_losses(c)["nll_sum_nats"] - reference["nll_sum_nats"]).to_numpy() for c in (first, second)]
    over = targets.sum()

    def log_ratio(one, other, count):
        prices = [numpy.expm1(total / count) for total in (one, other)]
        return numpy.log(prices[0] / first.row["saved_bytes"]) - numpy.log(prices[1] / second.row["saved_bytes"])

    estimate = log_ratio(*(loss.sum() for loss in losses), over)
    with numpy.errstate(invalid="ignore", divide="ignore"):  # without one window a price may vanish
        left_out = log_ratio(*(loss.sum() - loss for loss in losses), over - targets)
    if not numpy.isfinite(left_out).all():
        return None
    return float(numpy.exp(estimate)), [float(b) for b in numpy.exp(jackknife_interval(left_out, estimate, targets))]


def trade_off_pairs_table(results: Results) -> Table:
    """Each pair of methods, the dearer one first, on the same windows and the same prompts."""
    _, unit = size_unit(results.baseline.row["weight_bytes"])
    rows = []
    for pair in combinations([c for c in results.methods if not c.failed], 2):
        found = price_ratio(*pair, results.baseline)
        if found and found[0] < 1:
            pair, found = pair[::-1], price_ratio(*pair[::-1], results.baseline)
        first, second = pair
        if not found:
            words = "no comparison: one of the two pays no measurable price, or saves nothing"
        elif found[1][0] <= 1 <= found[1][1]:
            words = f"no measurable difference in price for each {unit} saved"
        else:
            words = f"{first.method} pays {number(found[0])} times as much perplexity as {second.method}"
        shown = figure_cell(*(found[0], lambda v: f"{number(v)}×", found[1])) if found else text_cell("–")
        difference = results.kl_differences[first.method, second.method]
        closer = "no measurable difference in KL"
        if difference.measurable:
            closer = f"{(second if difference.nats > 0 else first).method} is measurably closer to the baseline"
        apart = figure_cell(difference.nats, lambda v: signed(v, 4), difference.ci95)
        names = [name_cell(first.method, first.failed), text_cell(second.method)]
        rows.append([*names, shown, text_cell(words), apart, text_cell(closer)])
    columns = [
        METHOD,
        Column("other", "Against", "left"),
        Column("price_ratio", "Price ratio [95\u00a0%]"),
        Column("words", f"For each {unit} saved", "left"),
        Column("kl_nats_difference", "KL difference, nats [95\u00a0%, paired]"),
        Column("closer", "Closer", "left"),
    ]
    note = (
        "Intervals are of one pair; a method is called closer where the difference also passes Holm's correction for "
        f"all {len(rows)} pairs."
    )
    return Table(
        "trade-off-pairs", "One method's price against another's", columns, rows, note if len(rows) > 1 else ""
    )


def overall_table(results: Results, best_use: dict[str, str]) -> Table:
    """The overall table: a figure a row, a method a column; changes against the baseline in brackets."""
    lines = []
    reference = results.baseline.row
    captured = any(cell.row["captured_decode_tokens_per_second_median"] for cell in results.cells)
    for cell in results.cells:
        row = cell.row
        own = cell is results.baseline
        changes = {} if own else cell.changes

        def against(change, decimals=1, own=own):
            return "" if own else f"({percent(change, decimals)})"

        tokens = 100 * (row["tokens_per_second"] / reference["tokens_per_second"] - 1)
        weight = 100 * (row["weight_bytes"] / reference["weight_bytes"] - 1)
        lines.append(
            [
                name_cell(cell.method, cell.failed),
                figure_cell(
                    row["perplexity"],
                    lambda v: fixed(v, 2),
                    aside="" if own else against(row["perplexity_change_percent"], 2),
                ),
                figure_cell(row["kl_nats_mean"]),
                figure_cell(row["top1_agreement"], lambda v: share(v, 1)),
                figure_cell(
                    row["seconds_mean"], lambda v: f"{number(v)} s", aside=against(row["seconds_change_percent"])
                ),
                figure_cell(
                    row["new_tokens_mean"],
                    lambda v: f"{fixed(v, 1)} tokens",
                    aside="" if own else f"({signed(changes['new_tokens'][0], 1)})",
                ),
                figure_cell(row["succeeded"] / row["prompts"], share),
                Cell(size(row["weight_bytes"]), row["weight_bytes"], aside=against(weight)),
                figure_cell(row["compression"], lambda v: f"{fixed(v, 2)}×"),
                figure_cell(row["tokens_per_second"], lambda v: fixed(v, 1), aside=against(tokens)),
                figure_cell(
                    row["decode_tokens_per_second_median"],
                    lambda v: fixed(v, 1),
                    aside="" if own else against(changes["decode_percent"][0]),
                ),
                *(
                    [
                        figure_cell(
                            row["captured_decode_tokens_per_second_median"],
                            lambda v: fixed(v, 1),
                            aside=against(changes["captured_decode_percent"][0])
                            if "captured_decode_percent" in changes
                            else "",
                        )
                    ]
                    if captured
                    else []
                ),
                text_cell(best_use[cell.method]),
            ]
        )
    labels = {
        "perplexity": "Perplexity",
        "kl_nats_mean": "Mean KL, nats",
        "top1_agreement": "Same first choice",
        "seconds_mean": "Time a prompt",
        "new_tokens_mean": "Response length",
        "success_share": "Success",
        "weight_bytes": "Weights loaded",
        "compression": "Compression",
        "tokens_per_second": "Tokens per second, prompts",
        "decode_tokens_per_second": "Tokens per second, decode benchmark" + (", eager" if captured else ""),
        **({"captured_decode_tokens_per_second": "Tokens per second, decode benchmark, captured"} if captured else {}),
        "best_use": "Best use",
    }
    columns = [METHOD, *[Column(key, label) for key, label in labels.items()]]
    table = Table("overall", "Overall performance", columns, lines, "In brackets: the change from the baseline.")
    return transposed(table, Column("figure", "Figure", "left"))
