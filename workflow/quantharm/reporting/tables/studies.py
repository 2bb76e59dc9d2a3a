"""Tables of calibration, and of the studies that run beside the default run, where their results exist."""

from collections.abc import Mapping
from typing import Any

import pandas

from quantharm.common.records.checks import CalibrationEvidence
from quantharm.common.records.studies import CalibrationStudyRecord, NoiseRow
from quantharm.reporting.charts.base import Figure
from quantharm.reporting.charts.studies import calibration_chart, monitor_chart, noise_chart
from quantharm.reporting.format import (
    MISSING,
    listing,
    number,
    percent,
    share,
    share_to_a_tenth,
    signed,
    thousands,
    times,
)
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import METHOD, figure, text
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, name_field, table_of, text_field

SHOWN_RUNS = 20
METHOD_OF_ROW = Column("method", "Method", "left", lambda row: name_field(row["method"]))


def calibration_table(results: Results) -> Table:
    """Calibration samples of the methods that use some, as the check `calibration` found it."""

    def recorded(key: str, label: str, field_of) -> Column:
        """field_of: the field of a method that was calibrated, by what was recorded."""

        def field(cell: Cell) -> Field:
            record = cell.checks.get("calibration")
            if record:
                return field_of(record)
            return text_field("uses none" if key == "samples" else MISSING)

        return Column(key, label, field=field)

    def least_coverage(record: CalibrationEvidence) -> Field:
        covered = record["coverage_by_category"]
        least = min(covered, key=lambda category: covered[category] or 0.0) if covered else None
        return figure_field(covered[least], share, aside=least) if least else text_field(MISSING)

    def template_coverage(record: CalibrationEvidence) -> Field:
        coverage = record["template_coverage"]
        return text_field("the model has none") if coverage is None else figure_field(coverage, share)

    def of_asked(what: str, show):
        return lambda r: figure_field(r[f"{what}_reached"], show, aside=f"of {show(r[f'{what}_asked'])}")

    columns = [
        METHOD,
        recorded("samples", "Samples that reached it", of_asked("samples", str)),
        recorded("tokens", "Tokens that reached it", of_asked("tokens", thousands)),
        recorded(
            "lengths",
            "Tokens per sample",
            lambda r: text_field(f"{r['sample_tokens_min']} to {r['sample_tokens_max']}"),
        ),
        recorded("duplicates", "Repeated samples", lambda r: figure_field(r["duplicate_samples"], str)),
        recorded("distinct_tokens", "Distinct tokens", lambda r: figure_field(r["distinct_tokens"], thousands)),
        recorded("overlaps", "Shared with evaluation text or prompts", lambda r: figure_field(r["overlaps"], str)),
        recorded(
            "loss_ratio",
            "The model's loss on them, against the evaluation text",
            lambda r: figure_field(r["nll_mean_nats"] / r["text_nll_mean_nats"], times),
        ),
        recorded("least_coverage", "Least share of a category's tokens that they hold", least_coverage),
        recorded("template_coverage", "Share of the chat template's tokens", template_coverage),
    ]
    return table_of("calibration", columns, results.methods)


def noise_table(rows: list[NoiseRow]) -> Table:
    """The sweep of `snakemake defense`; rows: of noise_sweep.json."""
    columns = [
        METHOD_OF_ROW,
        figure("sigma_half_widths", "σ, half steps", "{:g}".format),
        figure("codes_changed", "Codes changed", share_to_a_tenth),
    ]
    for kind, name in (("alone", "Noise alone"), ("quantized", "Quantized")):
        change, kl = f"{kind}_perplexity_change_percent", f"{kind}_kl_nats"
        columns += [
            figure(change, f"{name}: perplexity change [95\u00a0%]", percent, bounds=f"{change}_ci95"),
            figure(f"{kl}_mean", f"{name}: KL, nats [95\u00a0%]", bounds=f"{kl}_ci95"),
        ]
    note = (
        "Gaussian noise on the matrices before they are quantized, in half steps of the method's own grid. The price: "
        "what the noise alone does, and what the method does after the same noise. The effect: the share of weights "
        "that round to another code than without noise."
    )
    return table_of("noise", columns, rows, note, "Weight noise")


def calibration_study_table(study: CalibrationStudyRecord) -> Table:
    """`snakemake calibration`; study: calibration_study.json."""
    change, kl = "quantized_perplexity_change_percent", "quantized_kl_nats"
    columns = [
        METHOD_OF_ROW,
        text("samples", "Samples", lambda row: row["text"] or row["corruption"].replace("_", " ")),
        text("seed", "Seed", "seed", align="right"),
        figure("perplexity_change_percent", "Perplexity change [95\u00a0%]", percent, change, f"{change}_ci95"),
        figure("kl_nats_mean", "KL, nats [95\u00a0%]", number, f"{kl}_mean", f"{kl}_ci95"),
        text("faults", "What the checks say of the samples", lambda row: "; ".join(row["faults"]) or "nothing"),
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
    return table_of("calibration-study", columns, study["rows"], note, "Choice of calibration samples")


def monitor_table(history: pandas.DataFrame) -> Table:
    """`snakemake monitor`, the last runs first; history: a row a run."""

    def outcome(run: Mapping[str, Any]) -> Field:
        return text_field("alarm", "fail") if run["alarm"] else text_field("no alarm", "pass")

    columns = [
        text("run", "Run", "run", align="right"),
        text("time", "When (UTC)", "time"),
        Column("outcome", "Outcome", "left", outcome),
        figure("kl_nats", "KL of the draw, nats", aside=lambda run: f"{len(run['prompts'])} prompts"),
        figure("ewma", "EWMA, nats"),
        text("limits", "Limits, nats", lambda run: f"{number(run['low'])} to {number(run['high'])}", align="right"),
        text("checkpoint", "Deployed checkpoint", "checkpoint"),
    ]
    shown = history.iloc[::-1].head(SHOWN_RUNS).to_dict("records")
    note = (
        f"The last {min(SHOWN_RUNS, len(history))} of {len(history)} runs. Each draws new prompts; an alarm means "
        "that the weighted mean of all runs (EWMA) left the limits learned from draws of the approved checkpoint."
    )
    return table_of("monitor", columns, shown, note, "Monitoring of a deployed checkpoint")


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
    """A sentence on how far differences between methods depend on the choice of calibration samples."""
    calibrated = [cell.method for cell in results.methods if cell.checks.get("calibration")]
    known = results.calibration_ranges
    if not calibrated:
        return ""
    if unknown := [method for method in calibrated if method not in known]:
        return (
            f"Of {listing(unknown)}, one choice of calibration samples was measured; how far another would change its "
            "KL is not known here (`snakemake calibration` measures it)."
        )
    ranges = listing([f"{number(known[method])} nats for {method}" for method in calibrated])
    return (
        "Intervals of KL differences are widened by the range of KL over calibration samples that could "
        f"equally have been chosen ({ranges}); a difference within that range ranks no method."
    )
