"""One scale that is doubled, halved, negated or lost, in the few bits whose rounding hides its error."""

import pytest
import torch
from test_against_original import CASES, COLUMNS, ROWS, SIZES, original, rounded

from quantharm.quantizers.against_original import FACTOR_LIMIT, worst_part
from quantharm.quantizers.multiplied_parts import multiplied_part

REAL = [case for case in CASES if case[0] == 8 or case[1] != "matrix"]  # 3 bits in one scale lose rows of real models


@pytest.mark.parametrize(("bits", "size"), REAL)
@pytest.mark.parametrize("rescaled", [True, False])
def test_sound_matrices_are_left_in_peace(bits, size, rescaled):
    for seed in range(6):
        assert multiplied_part(rounded(original(seed), bits, SIZES[size]), original(seed), rescaled) is None


FACTORS = [(bits, factor) for bits in (3, 4) for factor in (2.0, 0.5, 0.0, -1.0) if (bits, factor) != (3, 2.0)]


@pytest.mark.parametrize(("bits", "factor"), FACTORS)
@pytest.mark.parametrize("size", [32, 16, COLUMNS])
def test_the_part_is_found_by_how_all_of_it_moved(bits, size, factor):
    weight = original().clamp(-6, 6)
    weight[12] = torch.randn(COLUMNS, generator=torch.Generator().manual_seed(3))
    sound = rounded(weight, bits, size)
    assert multiplied_part(sound, weight, False) is None
    wrong = sound.clone()
    wrong[12, 64 : 64 + min(size, 32)] *= factor
    assert worst_part(wrong, weight).factor < FACTOR_LIMIT  # what its size would tell
    found = multiplied_part(wrong, weight, False)
    assert (found.row, found.column) == (12, 64)
    assert found.gain == pytest.approx(factor, rel=0.2)
    if bits == 4:  # a weighed rounding may shrink a part, or let all of it go
        seen = multiplied_part(wrong, weight, False, weighed=True)
        assert seen == (found if factor in (2.0, -1.0) else None)
    if (bits, size) == (4, 32):
        assert multiplied_part(wrong, weight, True) == found


def test_what_rounding_may_do_is_no_finding():
    """Weights at 0.51 of a step become twice as large, those at 1.49 two thirds, those below a half zero."""
    step = 1 / 7
    part = torch.cat([torch.full((8,), 0.51), torch.full((8,), 1.49), torch.full((16,), 0.4)]) * step
    weight = torch.cat([part, torch.linspace(-1, 1, 96)]).repeat(ROWS, 1)
    assert multiplied_part((weight / step).round() * step, weight, False) is None
    small = torch.cat([torch.full((32,), 0.4 * step), torch.linspace(-1, 1, 96)]).repeat(ROWS, 1)
    assert (small / step).round()[:, :32].eq(0).all()
    assert multiplied_part((small / step).round() * step, small, False) is None


def test_a_level_next_to_zero_is_no_finding():
    """FP4 of bitsandbytes: beside a weight of 1, all below 0.086 become 0.0052."""
    levels = torch.tensor([0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]) / 12
    weight = torch.cat([torch.linspace(0.04, 0.08, 31), torch.linspace(0.165, 1.0, 33)]).repeat(ROWS, 1)
    held = levels[(weight.unsqueeze(-1) - levels).abs().argmin(-1)]
    assert held[:, :31].max() < 0.006 < held[:, 31].min()
    assert multiplied_part(held, weight, False) is None


def test_a_part_that_rises_to_the_lowest_level_is_no_finding():
    """Of a model that was quantized before: all of its weights alike, at 0.6 of the new step."""
    alike = torch.where(torch.arange(32) % 3 == 0, -0.6, 0.6)
    weight = torch.cat([alike, torch.linspace(-7, 7, 96)]).repeat(ROWS, 1)
    assert multiplied_part(weight.round(), weight, False) is None


def test_the_last_part_of_a_row_may_be_short():
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    wrong = weight.clone()
    wrong[3, 32:] *= -1
    assert multiplied_part(weight, weight, False) is None
    assert multiplied_part(wrong, weight, False)[1:3] == (3, 32)


def test_rows_of_next_to_nothing_are_not_judged():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[5] *= 1e-4
    held = weight.clone()
    held[5] *= -1
    assert multiplied_part(held, weight, False) is None


@pytest.mark.parametrize("size", [32, 64, COLUMNS])
def test_two_bits_let_a_third_of_the_largest_weight_go(size):
    """Levels of -2 to 1 steps, a step of two thirds of the largest weight: 16 neighbours may all become zero."""
    lost = 0
    for seed in range(20):
        weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
        groups = weight.unflatten(1, (-1, size))
        step = groups.abs().amax(-1, keepdim=True) / 1.5
        held = ((groups / step).round().clamp(-2, 1) * step).flatten(1)
        parts = held.unflatten(1, (-1, 16)).eq(0).all(-1)
        lost += int((parts & (weight.unflatten(1, (-1, 16)).abs().amax(-1) > weight.abs().amax(1, True) / 4)).sum())
        assert multiplied_part(held, weight, False) is None
    assert lost > 0  # the parts in question occur
