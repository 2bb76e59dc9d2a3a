"""Endings of answers: in a loop, cut off, or much sooner than the baseline's; seen from LONG_TOKENS tokens on."""

from typing import TypedDict

import numpy

from quantharm.common.records.summary import AnswerEndings
from quantharm.common.shares import paired_share_interval, share_interval
from quantharm.common.statistics import Bounds

LONG_TOKENS = 1_000  # fewer new tokens end before most loops begin
SHORTEST_LOOP = 24  # tokens
FEWEST_CYCLES = 3
EARLY = 0.5  # of the baseline's tokens
CUT_OFF = ("length", "context")  # stop reasons of an answer that did not end by itself


class GivenAnswer(TypedDict):
    """The parts of an answer that its ending depends on."""

    token_ids: list[int]
    stop_reason: str


def loop_start(token_ids: list[int]) -> int | None:
    """Index of the first token of the loop that an answer ends in; None where it ends in none.

    A loop is an end of the answer of at least SHORTEST_LOOP tokens in which one cycle of any length stands at least
    FEWEST_CYCLES times in a row, the last perhaps in part. A greedy answer never leaves an exact cycle. Text that
    changes from cycle to cycle, as a number that counts up, is no loop.
    """
    tokens = numpy.asarray(token_ids)
    n, first = len(tokens), None
    for cycle in range(1, n // FEWEST_CYCLES + 1):
        repeats = tokens[cycle:] == tokens[:-cycle]
        differing = numpy.flatnonzero(~repeats)
        start = int(differing[-1]) + 1 if len(differing) else 0
        if n - start >= max(SHORTEST_LOOP, FEWEST_CYCLES * cycle) and (first is None or start < first):
            first = start
    return first


def ended_early(tokens: int, stop_reason: str, baseline_tokens: int) -> bool:
    """Whether an answer ended by itself with less than EARLY of the tokens of the baseline's to the same prompt."""
    return stop_reason not in CUT_OFF and tokens < EARLY * baseline_tokens


def added(mine: list[bool], reference: list[bool]) -> tuple[float, Bounds]:
    """(increase of a share over the baseline's on the same prompts, its 95 % interval)."""
    gained = sum(a and not b for a, b in zip(mine, reference, strict=True))
    lost = sum(b and not a for a, b in zip(mine, reference, strict=True))
    return (gained - lost) / len(mine), paired_share_interval(gained, lost, len(mine))


def endings(mine: list[GivenAnswer], reference: list[GivenAnswer]) -> AnswerEndings:
    """Numbers and shares of answers by how they end; mine, reference: answers to the same prompts in one order."""
    loops = [[loop_start(list(answer["token_ids"])) for answer in side] for side in (mine, reference)]
    looping, looping_before = ([start is not None for start in side] for side in loops)
    cut, cut_before = ([answer["stop_reason"] in CUT_OFF for answer in side] for side in (mine, reference))
    early = [
        ended_early(len(a["token_ids"]), a["stop_reason"], len(b["token_ids"]))
        for a, b in zip(mine, reference, strict=True)
    ]
    starts = [start for start in loops[0] if start is not None]
    loops_added, loops_added_ci95 = added(looping, looping_before)
    cut_added, cut_added_ci95 = added(cut, cut_before)
    return {
        "answers_looping": sum(looping),
        "answers_looping_share_ci95": share_interval(sum(looping), len(mine)),
        "answers_looping_added_share": loops_added,
        "answers_looping_added_share_ci95": loops_added_ci95,
        "loop_start_token_median": float(numpy.median(starts)) if starts else None,
        "answers_cut_off": sum(cut),
        "answers_cut_off_share_ci95": share_interval(sum(cut), len(mine)),
        "answers_cut_off_added_share": cut_added,
        "answers_cut_off_added_share_ci95": cut_added_ci95,
        "answers_ended_early": sum(early),
        "answers_ended_early_share_ci95": share_interval(sum(early), len(mine)),
    }
