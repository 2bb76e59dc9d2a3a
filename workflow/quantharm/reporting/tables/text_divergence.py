"""The divergence on the evaluation text, in the statistics that llama.cpp's `--kl-divergence` prints."""

from collections.abc import Callable, Mapping
from typing import Any

from quantharm.common.records.perplexity import KlOfBin
from quantharm.reporting.format import count, share
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import METHOD, figure, kl_by_method
from quantharm.reporting.tables.table import Column, Field, Table, table_of


def percent_of(value: float) -> str:
    """A share to three decimals of a percent, as llama.cpp shows it."""
    return share(value, 3).replace("-", "−")


def of_text(key: str, inner: str | None = None) -> Callable[[Cell], Any]:
    """A figure of perplexity.json with its interval; None where the cell was not compared along the text."""

    def value(cell: Cell) -> Any:
        record: Mapping[str, Any] = cell.perplexity
        figure = record.get(key)
        if inner is None or figure is None:
            return figure, record.get(f"{key}_ci95")
        return figure[inner], figure.get("ci95") if inner == "mean" else None

    return value


def text_divergence_table(results: Results) -> Table:
    def ratio(cell: Cell) -> Any:
        text = cell.perplexity.get("text")
        return (text["log_perplexity_ratio"], text["log_perplexity_ratio_ci95"]) if text else (None, None)

    columns = [
        METHOD,
        figure("kl_nats_mean", "Mean KLD, nats [95\u00a0%]", of=of_text("kl_nats", "mean")),
        *(
            figure(f"kl_nats_{key}", label, of=of_text("kl_nats", key))
            for key, label in {
                "median": "Median KLD",
                "p90": "90\u00a0%",
                "p99": "99\u00a0%",
                "p99_9": "99.9\u00a0%",
                "max": "Maximum",
            }.items()
        ),
        figure("delta_p_mean", "Mean Δp [95\u00a0%]", percent_of, of_text("delta_p", "mean")),
        figure("delta_p_rms", "RMS Δp", percent_of, of_text("delta_p", "rms")),
        figure("top1_agreement", "Same top p [95\u00a0%]", percent_of, of_text("top1_agreement")),
        figure("log_perplexity_ratio", "ln(PPL / baseline) [95\u00a0%]", of=ratio),
    ]
    text = results.baseline.perplexity.get("text")
    compared = f"{text['positions']:,} positions of {count(text['windows'], 'window')}" if text else "no window"
    note = (
        f"Over {compared} of the text, in the pass that gave the perplexity; quantiles over positions, intervals over "
        "windows. The statistics are those of llama.cpp's --kl-divergence, with KL from the baseline to the method and "
        "Δp of the text's own token. llama.cpp scores the second half of windows of 512 tokens by default, and its ± "
        "is a standard error over tokens: compare figures of equal windows."
    )
    return table_of("text-divergence", columns, results.cells, note)


def context_depth_table(results: Results) -> Table:
    """KL on the text by place in the window: how many tokens of context stand before what is predicted."""
    places = [(b["low"], b["high"]) for b in results.baseline.perplexity["kl_by_position"] or []]

    def at(place: tuple[float, float]) -> str:
        low, last = int(place[0]), int(place[1]) - 1
        return f"{low:,}" if low == last else f"{low:,} to {last:,}"

    def same(cell: Cell, place: tuple[float, float]) -> KlOfBin | None:
        return next((b for b in cell.perplexity["kl_by_position"] or [] if (b["low"], b["high"]) == place), None)

    columns = [
        Column("tokens_before", "Tokens before", "left", lambda place: Field(at(place), place[0], header=True)),
        *kl_by_method(results.methods, same),
    ]
    note = "Means over positions, intervals over windows; a protocol with `window_tokens: 4096` shows long contexts."
    return table_of("context-depth", columns, places, note)
