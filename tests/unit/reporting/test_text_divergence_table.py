"""The divergence on the text in the report: the statistics of perplexity.json, and their absence."""

import numpy

from quantharm.reporting.charts.base import to_svg
from quantharm.reporting.charts.divergence import text_divergence_chart
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.table import frame, markdown_table
from quantharm.reporting.tables.text_divergence import text_divergence_table
from quantharm.scoring.text_divergence import NOT_COMPARED, TextDivergence


def figures_of(scale: float) -> dict:
    generator = numpy.random.default_rng(0)
    text = TextDivergence(6, 100)
    for window in range(6):
        kl = scale * generator.exponential(1.0, 100)
        values = dict.fromkeys(("kl_nats", "reverse_kl_nats", "js_nats", "delta_nll_nats"), kl)
        values |= {"delta_p": -kl / 2, "top1_agrees": kl < 2 * scale, "baseline_top1_p": generator.random(100)}
        text.add(window, numpy.arange(1, 101), values)
    return dict(text.figures())


def results(*perplexities: dict) -> Results:
    cells = [
        Cell(name, {}, {}, perplexity, {}, {}, {"failed": []}, None, None)
        for name, perplexity in zip(("baseline", "nf4"), perplexities, strict=False)
    ]
    return Results("m", None, cells, {})


def test_the_table_holds_the_statistics_of_perplexity_json():
    figures = figures_of(0.01)
    table = text_divergence_table(results(figures_of(0.0), figures))
    row = frame(table).iloc[1]
    for name in ("median", "p90", "p99", "p99_9", "max"):
        assert row[f"kl_nats_{name}"] == figures["kl_nats"][name]
    assert row["kl_nats_mean"] == figures["kl_nats"]["mean"]
    assert [row["kl_nats_mean_ci95_low"], row["kl_nats_mean_ci95_high"]] == figures["kl_nats"]["ci95"]
    assert row["delta_p_mean"] == figures["delta_p"]["mean"] < 0
    assert row["delta_p_rms"] == figures["delta_p"]["rms"]
    assert row["top1_agreement"] == figures["top1_agreement"]
    assert [row["top1_agreement_ci95_low"], row["top1_agreement_ci95_high"]] == figures["top1_agreement_ci95"]
    assert row["log_perplexity_ratio"] == figures["text"]["log_perplexity_ratio"]
    shown = markdown_table(table).replace("\u202f", " ").replace("\u00a0", " ")
    assert "Over 600 positions of 6 windows of the text" in shown
    assert f"{100 * figures['delta_p']['rms']:.3f} %" in shown
    assert f"−{-100 * figures['delta_p']['mean']:.3f} %" in shown


def test_the_chart_says_where_the_method_is_far_from_the_baseline():
    figures = figures_of(0.01)
    chart = text_divergence_chart(results(figures_of(0.0), figures))
    last = figures["kl_by_position"][-1]["kl_nats_mean"]
    assert f"nf4: {last:.3g} nats at the end of a window"[:20] in chart.alternative
    assert ">nf4</text>" in to_svg(chart)  # which line is whose


def test_a_run_without_windows_of_the_text_says_so():
    """`text_windows: 0`, or a record of an earlier version."""
    for nothing in (dict(NOT_COMPARED), {}):
        made = results(nothing, nothing)
        assert "no window of the text" in markdown_table(text_divergence_table(made))
        assert "No method was compared" in text_divergence_chart(made).caption
        assert to_svg(text_divergence_chart(made)).startswith("<svg")
