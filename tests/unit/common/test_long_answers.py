"""How answers end: loops by a search of every start and cycle, shares and their intervals by simulation."""

import numpy
import pytest

from quantharm.common.answers import (
    FEWEST_CYCLES,
    SHORTEST_LOOP,
    added,
    ended_early,
    endings,
    loop_start,
)
from quantharm.common.shares import share_interval


def by_search(tokens: list[int]) -> int | None:
    """The definition, word by word: the first start from which the rest is one cycle over and over."""
    n = len(tokens)
    for start in range(n):
        rest = tokens[start:]
        for cycle in range(1, n):
            whole = len(rest) >= max(SHORTEST_LOOP, FEWEST_CYCLES * cycle)
            if whole and all(rest[i] == rest[i % cycle] for i in range(len(rest))):
                return start
    return None


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ([], None),
        ([1] * 23, None),  # too short
        ([1] * 24, 0),
        ([7, 8, 9] + [1, 2] * 12, 3),
        ([9] * 100 + [1, 2, 3], None),  # it got out
        (list(range(50)) * 3, 0),
        ([99, *list(range(50)) * 3, 0, 1, 2], 1),  # the last cycle in part
        (list(range(50)) * 2, None),  # twice may be a refrain
        (list(range(200)), None),
        ([x for i in range(40) for x in (5, 6, i)], None),  # a number that counts up
        ([1, 2] * 12 + [0], None),  # and then an end
    ],
)
def test_loops(tokens, start):
    assert loop_start(tokens) == start
    assert by_search(tokens) == start


def test_loops_of_random_answers_are_those_of_the_definition():
    random = numpy.random.default_rng(1)
    found = 0
    for _ in range(200):
        head = random.integers(0, 3, random.integers(0, 20)).tolist()
        cycle = random.integers(0, 3, random.integers(1, 20)).tolist()
        tokens = head + cycle * int(random.integers(1, 6)) + cycle[: random.integers(0, len(cycle) + 1)]
        assert loop_start(tokens) == by_search(tokens), tokens
        found += loop_start(tokens) is not None
    assert 40 < found < 180


def test_an_answer_ends_early_only_by_itself():
    assert ended_early(49, "end_of_sequence", 100)
    assert not ended_early(50, "end_of_sequence", 100)
    assert not ended_early(10, "length", 100)
    assert not ended_early(10, "context", 100)


def test_endings_by_hand():
    loop, whole, short = [1, 2] * 20, list(range(40)), [5, 6, 7]

    def answer(tokens, reason):
        return {"token_ids": tokens, "stop_reason": reason}

    reference = [answer(whole, "end_of_sequence")] * 3 + [answer(loop, "length")]
    mine = [
        answer(loop, "length"),
        answer(short, "end_of_sequence"),
        answer(whole, "length"),
        answer(whole, "end_of_sequence"),
    ]
    found = endings(mine, reference)
    assert (found["answers_looping"], found["answers_cut_off"], found["answers_ended_early"]) == (1, 2, 1)
    assert found["answers_looping_added_share"] == 0  # one more, one fewer
    assert found["answers_cut_off_added_share"] == 0.25
    assert found["loop_start_token_median"] == 0
    low, high = found["answers_cut_off_added_share_ci95"]
    assert low < 0.25 < high
    same = endings(reference, reference)
    assert same["answers_looping_added_share"] == 0
    assert same["answers_ended_early"] == 0


def test_the_intervals_of_shares_and_of_their_change_cover():
    random = numpy.random.default_rng(2)
    prompts, sets = 24, 2_000
    before = random.random((sets, prompts)) < 0.3
    now = numpy.where(random.random((sets, prompts)) < 0.2, random.random((sets, prompts)) < 0.8, before)
    truth = 0.2 * 0.8 + 0.8 * 0.3 - 0.3
    bounds = [added(list(a), list(b))[1] for a, b in zip(now, before, strict=True)]
    assert numpy.mean([low <= truth <= high for low, high in bounds]) >= 0.93
    shares = {part: share_interval(part, prompts) for part in range(prompts + 1)}
    assert numpy.mean([shares[part][0] <= 0.3 <= shares[part][1] for part in before.sum(1).tolist()]) >= 0.95
