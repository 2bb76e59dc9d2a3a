"""Tables of calibration, and of the studies that run beside the default run, where their results exist."""

from typing import Any

import pandas

from quantharm.reporting.charts.base import Figure
from quantharm.reporting.charts.studies import calibration_chart, monitor_chart, noise_chart
from quantharm.reporting.format import MISSING, fixed, listing, number, percent, share, signed
from quantharm.reporting.results import Results
from quantharm.reporting.tables.columns import METHOD
from quantharm.reporting.tables.table import Column, Table, figure_cell, name_cell, text_cell

SHOWN_RUNS = 20


def calibration_table(results: Results) -> Table:
    """What the methods that calibrate were calibrated on, as the check `calibration` found it."""
    rows = []
    for cell in results.methods:
        found = cell.checks.get("calibration")
        if not found:
            rows.append([name_cell(cell.method, cell.failed), text_cell("uses none"), *[text_cell(MISSING)] * 8])
            continue
        covered = found["coverage_by_category"]
        least = min(covered, key=covered.get) if covered else None
        template = found["template_coverage"]
        rows.append(
            [
                name_cell(cell.method, cell.failed),
                figure_cell(found["samples_reached"], str, aside=f"of {found['samples_asked']}"),
                figure_cell(found["tokens_reached"], lambda v: f"{v:,}", aside=f"of {found['tokens_asked']:,}"),
                text_cell(f"{found['sample_tokens_min']} to {found['sample_tokens_max']}"),
                figure_cell(found["duplicate_samples"], str),
                figure_cell(found["distinct_tokens"], lambda v: f"{v:,}"),
                figure_cell(found["overlaps"], str),
                figure_cell(found["nll_mean_nats"] / found["text_nll_mean_nats"], lambda v: f"{fixed(v, 2)}×"),
                figure_cell(covered[least], share, aside=least) if least else text_cell(MISSING),
                text_cell("the model has none") if template is None else figure_cell(template, share),
            ]
        )
    columns = [
        METHOD,
        Column("samples", "Samples that reached it"),
        Column("tokens", "Tokens that reached it"),
        Column("lengths", "Tokens a sample"),
        Column("duplicates", "Repeated samples"),
        Column("distinct_tokens", "Distinct tokens"),
        Column("overlaps", "Shared with evaluation text or prompts"),
        Column("loss_ratio", "The model's loss on them, against the evaluation text"),
        Column("least_coverage", "Least share of a category's tokens that they hold"),
        Column("template_coverage", "Share of the chat template's tokens"),
    ]
    return Table("calibration", "Calibration", columns, rows)


def noise_table(rows: list[dict[str, Any]]) -> Table:
    """The sweep of `snakemake defense`; rows: of noise_sweep.json."""
    lines = []
    for row in rows:
        figures = [
            figure_cell(row[f"{kind}_{key}"], show, row[f"{kind}_{key.removesuffix('_mean')}_ci95"])
            for kind in ("alone", "quantized")
            for key, show in (("perplexity_change_percent", percent), ("kl_nats_mean", number))
        ]
        sigma = figure_cell(row["sigma_half_widths"], lambda v: f"{v:g}")
        lines.append(
            [name_cell(row["method"]), sigma, figure_cell(row["codes_changed"], lambda v: share(v, 1)), *figures]
        )
    columns = [
        METHOD,
        Column("sigma_half_widths", "σ, half-widths"),
        Column("codes_changed", "Codes changed"),
        Column("alone_perplexity_change_percent", "Noise alone: perplexity change [95\u00a0%]"),
        Column("alone_kl_nats_mean", "Noise alone: KL, nats [95\u00a0%]"),
        Column("quantized_perplexity_change_percent", "Quantized: perplexity change [95\u00a0%]"),
        Column("quantized_kl_nats_mean", "Quantized: KL, nats [95\u00a0%]"),
    ]
    note = (
        "Gaussian noise on the matrices before they are quantized, in half-widths of the method's own grid. The price: "
        "what the noise alone does, and what the method does after the same noise. The effect: the share of weights "
        "that round to another code than without noise."
    )
    return Table("noise", "Weight noise", columns, lines, note)


def calibration_study_table(study: dict[str, Any]) -> Table:
    """`snakemake calibration`; study: calibration_study.json."""
    rows = [
        [
            name_cell(row["method"]),
            text_cell(row["text"] or row["corruption"].replace("_", " ")),
            text_cell(str(row["seed"])),
            figure_cell(
                row["quantized_perplexity_change_percent"], percent, row["quantized_perplexity_change_percent_ci95"]
            ),
            figure_cell(row["quantized_kl_nats_mean"], number, row["quantized_kl_nats_ci95"]),
            text_cell("; ".join(row["faults"]) or "nothing"),
        ]
        for row in study["rows"]
    ]
    columns = [
        METHOD,
        Column("samples", "Samples", "left"),
        Column("seed", "Seed"),
        Column("perplexity_change_percent", "Perplexity change [95\u00a0%]"),
        Column("kl_nats_mean", "KL, nats [95\u00a0%]"),
        Column("faults", "What the checks say of the samples", "left"),
    ]
    spreads = [
        f"{method}: KL {number(spread['mean'])} nats over {spread['cells']} honest choices, "
        f"range {number(spread['range'])}"
        for method, spread in study["spread_kl_nats"].items()
    ]
    ranks = [
        f"{c['method']} − {c['other']}: {signed(c['difference_nats'], 4)} nats, "
        + ("larger than that range" if c["ranked"] else "inside that range, so the two are not ranked")
        for c in study["comparisons"]
    ]
    return Table(
        "calibration-study", "Choice of calibration samples", columns, rows, ". ".join([*spreads, *ranks]) + "."
    )


def monitor_table(history: pandas.DataFrame) -> Table:
    """`snakemake monitor`, the last runs first; history: a row a run."""
    rows = [
        [
            text_cell(str(run.run)),
            text_cell(str(run.time)),
            text_cell("alarm" if run.alarm else "no alarm", "fail" if run.alarm else "pass"),
            figure_cell(run.kl_nats, number, aside=f"{len(run.prompts)} prompts"),
            figure_cell(run.ewma, number),
            text_cell(f"{number(run.low)} to {number(run.high)}"),
            text_cell(str(run.checkpoint)),
        ]
        for run in history.iloc[::-1].head(SHOWN_RUNS).itertuples()
    ]
    columns = [
        Column("run", "Run"),
        Column("time", "When (UTC)", "left"),
        Column("outcome", "Outcome", "left"),
        Column("kl_nats", "KL of the draw, nats"),
        Column("ewma", "EWMA, nats"),
        Column("limits", "Limits, nats"),
        Column("checkpoint", "Deployed checkpoint", "left"),
    ]
    note = (
        f"The last {min(SHOWN_RUNS, len(history))} of {len(history)} runs. Each draws prompts anew; an alarm is a "
        "weighted mean of all runs (EWMA) that leaves limits learned from such draws of the approved checkpoint."
    )
    return Table("monitor", "Monitoring of a deployed checkpoint", columns, rows, note)


def studies(results: Results) -> list[tuple[Table, Figure]]:
    """The studies whose results lie in the model's folder."""
    found = []
    if rows := results.noise_study:
        found.append((noise_table(rows), noise_chart(rows)))
    if study := results.calibration_study:
        found.append((calibration_study_table(study), calibration_chart(study["rows"], study["kl_nats_mean"])))
    if results.monitor_history is not None:
        found.append((monitor_table(results.monitor_history), monitor_chart(results.monitor_history, results.model)))
    return found


def calibration_caveat(results: Results) -> str:
    """How far differences between methods depend on the calibration samples that were chosen."""
    calibrated = [cell.method for cell in results.methods if cell.checks.get("calibration")]
    known = results.calibration_ranges
    if not calibrated:
        return ""
    if unknown := [method for method in calibrated if method not in known]:
        return (
            f"Of {listing(unknown)}, one choice of calibration samples was measured; how far another would move its KL "
            "is not known here (`snakemake calibration` measures it)."
        )
    ranges = listing([f"{number(known[method])} nats for {method}" for method in calibrated])
    return (
        "Intervals of KL differences are widened by the range of KL over calibration samples that could have been "
        f"chosen with equal right ({ranges}), so a difference inside it ranks no method."
    )
