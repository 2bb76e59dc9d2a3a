"""Strengths and weaknesses of a method, and when to use it: sentences made by rules.

A sentence appears only where its rule holds, and every sentence names the figure that it rests on.
"""

from dataclasses import dataclass

from quantharm.reporting.format import count, fixed, interval, listing, mean_kl, number, percent, share, size
from quantharm.reporting.judgement import Judgement
from quantharm.reporting.limit_verdicts import largest
from quantharm.reporting.ranking import beaten_by
from quantharm.reporting.results import Results
from quantharm.reporting.verdicts import LEVELS, Verdict, level_of


@dataclass(frozen=True)
class Assessment:
    """All that the report says in words about one method."""

    judged: Judgement
    sentence: str
    strengths: list[str]
    weaknesses: list[str]
    headline: str  # `Use x if`
    conditions: list[str]
    cautions: list[str]


def assess(judged: Judgement, results: Results) -> Assessment:
    strengths, weaknesses = strengths_and_weaknesses(judged, results)
    headline, conditions, cautions = recommendation(judged, results)
    return Assessment(judged, in_short(judged), strengths, weaknesses, headline, conditions, cautions)


def in_short(judged: Judgement) -> str:
    """One sentence a method for the first screen."""
    cell, row, decode = judged.cell, judged.cell.row, judged.decode
    if cell.failed:
        return (
            f"failed {count(len(cell.failed), 'check')} ({listing(cell.failed)}): its figures are shown but not to be "
            "believed, and no verdict rests on them."
        )
    saves = "weights not seen" if cell.served else "saves no memory"
    if not cell.served and cell.saved_bytes > 0:
        saves = f"saves {size(cell.saved_bytes)} ({fixed(row['compression'], 2)}× smaller)"
    speed = {"none": "decoding speed without measurable change", "unknown": f"decoding speed {decode.words}"}.get(
        decode.level, f"decoding {fixed(abs(cell.decode_change[0]), 0)} % {decode.words}"
    )
    if cell.synthetic:
        return f"{saves}, {speed}."
    quality = f"perplexity {percent(row['perplexity_change_percent'])}"
    if judged.perplexity.level == "none":
        quality += f" ({judged.perplexity.words})"
    kl = f"KL {mean_kl(row)} nats ({judged.kl.words})"
    return f"{saves}, {speed}, at {harm_in_a_sentence(judged.harm)}: {quality}, {kl}."


def harm_in_a_sentence(harm: Verdict) -> str:
    """A noun: `low harm`, or `undecided harm (too few prompts …)`."""
    state, _, why = harm.words.partition(": ")
    return f"{state.replace('not judged', 'unjudged')} harm ({why})" if why else state


def strengths_and_weaknesses(judged: Judgement, results: Results) -> tuple[list[str], list[str]]:
    cell, row, reference = judged.cell, judged.cell.row, results.baseline.row
    if cell.failed:
        return [], [f"failed the check {name}" for name in cell.failed]
    strengths: list[str] = []
    weaknesses: list[str] = []

    def say(good: bool, words: str) -> None:
        (strengths if good else weaknesses).append(words)

    loaded = size(row["weight_bytes"])
    if cell.served:
        pass
    elif cell.saved_bytes > 0:
        say(True, f"{fixed(row['compression'], 2)}× smaller in memory ({size(reference['weight_bytes'])} → {loaded})")
    else:
        say(False, f"not smaller in memory ({loaded})")
    perplexity, kl, decode = judged.perplexity, judged.kl, judged.decode
    say(perplexity.level in ("none", *LEVELS[:2]), f"perplexity {perplexity.figure}: {perplexity.words}")
    name = "KL" if kl.level == "none" else "KL divergence"
    say(kl.level in ("none", *LEVELS[:2]), f"{name} {kl.figure}: {kl.words}")
    agreement = row["top1_agreement"]
    enough = agreement >= results.thresholds["top1_agreement"]
    say(enough, f"top-1 agreement with the baseline at {share(agreement, 1)} of positions")
    if decode.level in ("rises", "falls"):
        say(decode.level == "rises", f"decoding is {decode.words}: {decode.figure}")
    lost = reference["succeeded"] - row["succeeded"]
    if row["succeeded"] == row["prompts"]:
        say(True, f"all {count(row['prompts'], 'prompt')} succeeded")
    elif lost > 0:
        say(False, f"{count(lost, 'prompt')} of {row['prompts']} fewer succeeded than with the baseline")
    if row["flips_right_to_wrong"] > row["flips_wrong_to_right"]:
        wrong = count(row["flips_right_to_wrong"], "correct answer")
        back = f"{row['flips_wrong_to_right']} the other way"
        say(False, f"{wrong} of {reference['correct']} became wrong, {back}")
    if worst := far_category(judged, results):
        category, nats, bounds = worst
        say(False, f"largest divergence in {category} (KL {number(nats)} nats {interval(bounds)})".rstrip())
    if better := beaten_by(results, cell.method):
        say(False, f"{listing(better)} is at most as large and measurably closer to the baseline")
    return strengths, weaknesses


def far_category(judged: Judgement, results: Results) -> tuple | None:
    """(category, KL, interval) of the largest KL, where its level is moderate or high."""
    worst = largest(judged.cell.by_category)
    far = worst and judged.kl.level != "none" and level_of(worst[1], results.thresholds["kl_nats"]) in LEVELS[2:]
    return worst if far else None


def recommendation(judged: Judgement, results: Results) -> tuple[str, list[str], list[str]]:
    """(`Use x if`, its conditions, cautions)."""
    cell, row, name, harm, decode = judged.cell, judged.cell.row, judged.method, judged.harm, judged.decode
    if cell.failed:
        return f"Do not use {name}", [], [f"it failed {listing(cell.failed)}: find the cause first"]
    if not cell.served and cell.saved_bytes <= 0 and decode.level != "rises":
        return f"No reason to use {name}", [], ["it is neither smaller nor measurably faster than the baseline"]
    conditions, cautions = [], []
    if cell.served:
        cautions.append("its size, memory and integrity cannot be seen from outside")
    elif cell.saved_bytes > 0:
        whole = results.baseline.weight_bytes
        conditions.append(f"memory is short: it takes {size(row['weight_bytes'])} instead of {size(whole)}")
    if harm.level == "none":
        conditions.append("the answers must not change: no harm was measurable")
    else:
        kl = f"KL {mean_kl(row)} nats"
        conditions.append(f"{harm_in_a_sentence(harm)} is acceptable: perplexity {judged.perplexity.figure}, {kl}")
    if decode.level == "rises":
        conditions.append(f"decoding speed matters: {decode.figure}")
    elif decode.level == "falls":
        conditions.append(f"slower decoding is acceptable: {decode.figure}")
    if worst := far_category(judged, results):
        cautions.append(f"check it on your own data for tasks like {worst[0]}, where its divergence is largest")
    if better := beaten_by(results, name):
        cautions.append(f"prefer {listing(better, 'or')}: at most as large, and measurably closer to the baseline")
    where = {"high": " only where nothing else fits,", "moderate": " with caution"}.get(harm.level, "")
    return f"Use {name}{where} if", conditions, cautions
