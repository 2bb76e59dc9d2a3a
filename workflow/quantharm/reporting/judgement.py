"""What the figures of one method are called: the verdicts on its perplexity, divergence and speed, and its harm."""

from dataclasses import dataclass, replace

from quantharm.reporting.differences import captured_rate
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.verdicts import (
    Verdict,
    change_verdict,
    harm_verdict,
    kl_verdict,
    not_judged,
    other_hardware_percent,
    perplexity_verdict,
    speed_verdict,
)


@dataclass(frozen=True)
class Judgement:
    """The verdicts on one method."""

    cell: Cell
    perplexity: Verdict
    kl: Verdict
    harm: Verdict
    decode: Verdict
    time: Verdict

    @property
    def method(self) -> str:
        return self.cell.method


def judge(cell: Cell, results: Results) -> Judgement:
    perplexity, kl = perplexity_of(cell, results), kl_of(cell, results)
    harm = harm_verdict(perplexity, kl, cell.failed)
    return Judgement(cell, perplexity, kl, harm, decode_of(cell, results), time_of(cell, results))


def judge_all(results: Results) -> dict[str, Judgement]:
    """{method: its judgement}."""
    return {cell.method: judge(cell, results) for cell in results.methods}


def perplexity_of(cell: Cell, results: Results) -> Verdict:
    """Verdict on the change of the perplexity."""
    verdict = perplexity_verdict(
        cell.row["perplexity_change_percent"],
        cell.row["perplexity_change_percent_ci95"],
        results.thresholds["perplexity_change_percent"],
        other_hardware_percent(results.other_hardware_kl, cell.perplexity["tokens_scored"]),
    )
    return not_judged(verdict) if cell.synthetic else verdict


def kl_of(cell: Cell, results: Results) -> Verdict:
    """Verdict on the mean KL over the prompts."""
    verdict = kl_verdict(
        cell.row["kl_nats_mean"],
        cell.row["kl_nats_ci95"],
        results.noise_floor,
        results.thresholds["noise_floor_factor"],
        results.thresholds["kl_nats"],
        results.other_hardware_kl,
    )
    return not_judged(verdict) if cell.synthetic else verdict


def prefill_of(cell: Cell, results: Results) -> Verdict:
    """Whether prefill takes measurably more or less time than the baseline's."""
    change = change_verdict(*cell.changes["prefill_percent"], "slower", "faster", rule=rule_of(spread_of(results)))
    return steady(change, "prefill_seconds", cell, results)


def time_of(cell: Cell, results: Results) -> Verdict:
    """Whether the time of the prompts changed measurably; as steady as the decode benchmark of the same process."""
    rule = f"paired by prompt: {rule_of(spread_of(results))}"
    change = change_verdict(*cell.changes["seconds_percent"], "slower", "faster", rule=rule)
    return steady(change, "decode_tokens_per_second", cell, results)


def decode_of(cell: Cell, results: Results) -> Verdict:
    """Whether decoding is measurably faster or slower, captured where both cells have that."""
    kind = kind_of(cell, results)
    change = change_verdict(*cell.decode_change, "faster", "slower", rule=rule_of(spread_of(results, cell.decoding)))
    figure = "captured" if cell.decoding == "captured" else "decode_tokens_per_second"
    verdict = steady(change, figure, cell, results)
    return replace(verdict, figure=f"{verdict.figure}, {kind}") if kind else verdict


def steady(change: Verdict, figure: str, cell: Cell, results: Results) -> Verdict:
    """The verdict, unless the timings of the method or of the baseline scatter too much; figure: of the benchmark."""
    speeds = [c.generation["benchmark"] for c in (cell, results.baseline)]
    timings = [captured_rate(speed) if figure == "captured" else speed[figure] for speed in speeds]
    return speed_verdict(change, timings, results.thresholds["unsteady_percent"])


def kind_of(cell: Cell, results: Results) -> str:
    """`captured` or `eager` on a GPU; nothing on a CPU, where decoding is timed in one way."""
    return cell.decoding if results.baseline.generation["provenance"]["device_type"] == "cuda" else ""


def spread_of(results: Results, decoding: str = "eager") -> float:
    """Standard deviation of speed between processes of one model, in percent, by the config."""
    device = results.baseline.generation["provenance"]["device_type"]
    key = f"{device}_captured" if decoding == "captured" else device
    return results.thresholds["speed_process_spread_percent"][key]


def rule_of(spread: float) -> str:
    return (
        "the 95 % interval of the ratio excludes zero change; it counts what two processes of one model differ by "
        f"(standard deviation {spread:g} %)"
    )
