"""Tables of calibration, and of the studies that run beside the default run, where their results exist."""

from functools import partial
from typing import Any

import pandas

from quantharm.reporting.charts.base import Figure
from quantharm.reporting.charts.studies import calibration_chart, monitor_chart, noise_chart
from quantharm.reporting.format import MISSING, fixed, listing, number, percent, share, signed
from quantharm.reporting.results import Results
from quantharm.reporting.tables.columns import METHOD
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, name_cell, table_of, text_cell

SHOWN_RUNS = 20


def calibration_table(results: Results) -> Table:
    """What the methods that calibrate were calibrated on, as the check `calibration` found it."""
    rows = []
    for cell in results.methods:
        recorded = cell.checks.get("calibration")
        if not recorded:
            rows.append([name_cell(cell.method, cell.failed), text_cell("uses none"), *[text_cell(MISSING)] * 8])
            continue
        covered = recorded["coverage_by_category"]
        least = min(covered, key=covered.get) if covered else None
        template = recorded["template_coverage"]
        rows.append(
            [
                name_cell(cell.method, cell.failed),
                figure_cell(recorded["samples_reached"], str, aside=f"of {recorded['samples_asked']}"),
                figure_cell(recorded["tokens_reached"], lambda v: f"{v:,}", aside=f"of {recorded['tokens_asked']:,}"),
                text_cell(f"{recorded['sample_tokens_min']} to {recorded['sample_tokens_max']}"),
                figure_cell(recorded["duplicate_samples"], str),
                figure_cell(recorded["distinct_tokens"], lambda v: f"{v:,}"),
                figure_cell(recorded["overlaps"], str),
                figure_cell(recorded["nll_mean_nats"] / recorded["text_nll_mean_nats"], lambda v: f"{fixed(v, 2)}×"),
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


def row_figure(key: str, label: str, show=number, bounds: str | None = None, of: str | None = None) -> Column:
    """A figure of a study's row under its key (`of`, where the column has another), and the key of its interval."""
    return Column(key, label, cell=lambda row: figure_cell(row[of or key], show, bounds and row[bounds]))


def noise_table(rows: list[dict[str, Any]]) -> Table:
    """The sweep of `snakemake defense`; rows: of noise_sweep.json."""
    columns = [
        Column("method", "Method", "left", lambda row: name_cell(row["method"])),
        Column(
            "sigma_half_widths", "σ, half-widths", cell=lambda row: figure_cell(row["sigma_half_widths"], "{:g}".format)
        ),
        Column(
            "codes_changed",
            "Codes changed",
            cell=lambda row: figure_cell(row["codes_changed"], partial(share, decimals=1)),
        ),
    ]
    for kind, name in (("alone", "Noise alone"), ("quantized", "Quantized")):
        change, kl = f"{kind}_perplexity_change_percent", f"{kind}_kl_nats"
        columns += [
            row_figure(change, f"{name}: perplexity change [95\u00a0%]", percent, f"{change}_ci95"),
            row_figure(f"{kl}_mean", f"{name}: KL, nats [95\u00a0%]", number, f"{kl}_ci95"),
        ]
    note = (
        "Gaussian noise on the matrices before they are quantized, in half-widths of the method's own grid. The price: "
        "what the noise alone does, and what the method does after the same noise. The effect: the share of weights "
        "that round to another code than without noise."
    )
    return table_of("noise", "Weight noise", columns, rows, note)


def calibration_study_table(study: dict[str, Any]) -> Table:
    """`snakemake calibration`; study: calibration_study.json."""
    change, kl = "quantized_perplexity_change_percent", "quantized_kl_nats"

    def samples(row: dict[str, Any]) -> Cell:
        return text_cell(row["text"] or row["corruption"].replace("_", " "))

    columns = [
        Column("method", "Method", "left", lambda row: name_cell(row["method"])),
        Column("samples", "Samples", "left", samples),
        Column("seed", "Seed", cell=lambda row: text_cell(str(row["seed"]))),
        row_figure("perplexity_change_percent", "Perplexity change [95\u00a0%]", percent, f"{change}_ci95", change),
        row_figure("kl_nats_mean", "KL, nats [95\u00a0%]", number, f"{kl}_ci95", f"{kl}_mean"),
        Column(
            "faults",
            "What the checks say of the samples",
            "left",
            lambda row: text_cell("; ".join(row["faults"]) or "nothing"),
        ),
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
    note = ". ".join([*spreads, *ranks]) + "."
    return table_of("calibration-study", "Choice of calibration samples", columns, study["rows"], note)


def monitor_table(history: pandas.DataFrame) -> Table:
    """`snakemake monitor`, the last runs first; history: a row a run."""

    def outcome(run) -> Cell:
        return text_cell("alarm", "fail") if run.alarm else text_cell("no alarm", "pass")

    columns = [
        Column("run", "Run", cell=lambda run: text_cell(str(run.run))),
        Column("time", "When (UTC)", "left", lambda run: text_cell(str(run.time))),
        Column("outcome", "Outcome", "left", outcome),
        Column(
            "kl_nats",
            "KL of the draw, nats",
            cell=lambda run: figure_cell(run.kl_nats, number, aside=f"{len(run.prompts)} prompts"),
        ),
        Column("ewma", "EWMA, nats", cell=lambda run: figure_cell(run.ewma)),
        Column("limits", "Limits, nats", cell=lambda run: text_cell(f"{number(run.low)} to {number(run.high)}")),
        Column("checkpoint", "Deployed checkpoint", "left", lambda run: text_cell(str(run.checkpoint))),
    ]
    shown = history.iloc[::-1].head(SHOWN_RUNS).itertuples()
    note = (
        f"The last {min(SHOWN_RUNS, len(history))} of {len(history)} runs. Each draws prompts anew; an alarm is a "
        "weighted mean of all runs (EWMA) that leaves limits learned from such draws of the approved checkpoint."
    )
    return table_of("monitor", "Monitoring of a deployed checkpoint", columns, shown, note)


def studies(results: Results) -> list[tuple[Table, Figure]]:
    """The studies whose results lie in the model's folder."""
    made = []
    if rows := results.noise_study:
        made.append((noise_table(rows), noise_chart(rows)))
    if study := results.calibration_study:
        made.append((calibration_study_table(study), calibration_chart(study["rows"], study["kl_nats_mean"])))
    if results.monitor_history is not None:
        made.append((monitor_table(results.monitor_history), monitor_chart(results.monitor_history, results.model)))
    return made


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
