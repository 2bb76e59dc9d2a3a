"""Verdicts on one method: its perplexity, divergence and speed, and its harm."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from quantharm.common.records.parts import Repeated
from quantharm.reporting import verdicts
from quantharm.reporting.change_verdicts import change_verdict, speed_verdict
from quantharm.reporting.differences import decode_spread, prompts_spread, reachable_rate
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.verdicts import Verdict


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
    harm = verdicts.harm_verdict(perplexity, kl, cell.failed)
    return Judgement(cell, perplexity, kl, harm, decode_of(cell, results), time_of(cell, results))


def judge_all(results: Results) -> dict[str, Judgement]:
    """{method: its judgement}."""
    return {cell.method: judge(cell, results) for cell in results.methods}


def perplexity_of(cell: Cell, results: Results) -> Verdict:
    """Verdict on the change of the perplexity."""
    verdict = verdicts.perplexity_verdict(
        cell.row["perplexity_change_percent"],
        cell.row["perplexity_change_percent_ci95"],
        results.thresholds["perplexity_change_percent"],
        verdicts.other_hardware_percent(results.other_hardware_kl, cell.perplexity["tokens_scored"]),
    )
    return as_of(cell, verdict)


def kl_of(cell: Cell, results: Results) -> Verdict:
    """Verdict on the mean KL over the prompts."""
    verdict = verdicts.kl_verdict(
        cell.row["kl_nats_mean"],
        cell.row["kl_nats_ci95"],
        results.noise_floor,
        results.thresholds["noise_floor_factor"],
        results.thresholds["kl_nats"],
        results.other_hardware_kl,
    )
    return as_of(cell, verdict, is_kl=True)


def as_of(cell: Cell, verdict: Verdict, is_kl: bool = False) -> Verdict:
    """A verdict on quality, by what its cell can show: a KL that is a lower bound, random weights."""
    verdict = verdicts.of_lower_bound(verdict) if cell.bounded and is_kl else verdict
    return verdicts.not_judged(verdict) if cell.synthetic else verdict


def believed(cell: Cell, verdict: Verdict) -> Verdict:
    """A verdict, unless it rests on figures that are not to be believed."""
    return Verdict("failed", "not judged: failed checks", "", "") if cell.failed else verdict


def prefill_of(cell: Cell, results: Results) -> Verdict:
    """Whether prefill takes measurably more or less time than the baseline's."""
    spread = spreads_of(results)[device_of(results)]
    change = change_verdict(*cell.changes["prefill_percent"], "slower", "faster", rule=rule_of([spread]))
    return steady(change, lambda c: c.generation["benchmark"]["prefill_seconds"], cell, results)


def time_of(cell: Cell, results: Results) -> Verdict:
    """Whether the time of the prompts changed measurably; as steady as the decode benchmark of the same process."""
    sides = [c.generation for c in (cell, results.baseline)]
    spreads = [prompts_spread(side, device_of(results), spreads_of(results)) for side in sides]
    rule = f"paired by prompt: {rule_of(spreads)}"
    change = change_verdict(*cell.changes["seconds_percent"], "slower", "faster", rule=rule)
    verdict = steady(change, lambda c: reachable_rate(c.generation["benchmark"]), cell, results)
    return with_kind(verdict, kinds(results, *(side["decoding"] for side in sides)))


def decode_of(cell: Cell, results: Results) -> Verdict:
    """Whether a user can have it decode measurably faster or slower: captured where it can be, eager named as such."""
    sides = [c.generation["benchmark"] for c in (cell, results.baseline)]
    spreads = [decode_spread(side, device_of(results), spreads_of(results)) for side in sides]
    change = change_verdict(*cell.decode_change, "faster", "slower", rule=rule_of(spreads))
    verdict = steady(change, lambda c: reachable_rate(c.generation["benchmark"]), cell, results)
    return with_kind(verdict, kind_of(cell, results))


def steady(change: Verdict, timing: Callable[[Cell], Repeated], cell: Cell, results: Results) -> Verdict:
    """The verdict, unless the method or the baseline was timed unsteadily, beside other programs or elsewhere."""
    if cell.served:
        return verdicts.elsewhere(change)
    sides = [cell, results.baseline]
    limits = results.thresholds["unsteady_percent"], results.thresholds["busy_percent"]
    waited = max(map(waited_percent, sides))
    return speed_verdict(change, [timing(c) for c in sides], limits[0], waited, limits[1])


def waited_percent(cell: Cell) -> float:
    """Percent of its time in which the benchmark was ready and other programs had the processors; 0 where unknown."""
    return 100 * (cell.generation["benchmark"].get("processor_wait_share") or 0.0)


def kind_of(cell: Cell, results: Results) -> str:
    """`captured`, `eager` or `eager against captured` on a GPU; nothing on a CPU, which decodes in one way."""
    return kinds(results, cell.decoding, results.baseline.decoding)


def kinds(results: Results, mine: str, reference: str) -> str:
    if device_of(results) != "cuda":
        return ""
    return mine if mine == reference else f"{mine} against {reference}"


def with_kind(verdict: Verdict, kind: str) -> Verdict:
    return replace(verdict, figure=f"{verdict.figure}, {kind}") if kind else verdict


def device_of(results: Results) -> str:
    return results.baseline.generation["provenance"]["device_type"]


def spreads_of(results: Results) -> dict[str, float]:
    """Standard deviation of speed between processes of one model, in percent by device, by the config."""
    return results.thresholds["speed_process_spread_percent"]


def rule_of(spreads: list[float]) -> str:
    """spreads: of the method's processes and of the baseline's, in percent."""
    shown = " and ".join(dict.fromkeys(f"{spread:.2g} %" for spread in spreads))
    return (
        "the 95 % interval of the ratio excludes zero change; it counts what two processes of one model differ by "
        f"(standard deviation {shown})"
    )
