"""Two loads of one checkpoint give the same logits; other logits fail the check."""

import math

import pytest
import torch

from quantharm.forensics.checks.logits import check_reload
from quantharm.scoring.forward import last_hidden_states, output_head

TOKENS = [0, *range(20, 240, 9)]


def test_reload_passes_on_two_loads_of_one_checkpoint(nf4_cell, damaged_copy):
    logits = []
    for _ in range(2):
        model, _ = damaged_copy(nf4_cell)
        logits.append(output_head(model)(last_hidden_states(model, TOKENS)))
    check = check_reload(*logits, "cpu")
    assert (check["status"], check["value"], check["limit"]) == ("pass", 0.0, 0.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_reload_fails_on_other_logits(device):
    first = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    assert check_reload(first, first.clone(), device)["status"] == "pass"
    other = first.clone()
    other[2, 7] += 0.1
    assert check_reload(first, other, device)["status"] == "fail"
    other[2, 7] = math.nan
    assert check_reload(first, other, device)["status"] == "fail"


def test_reload_allows_rounding_on_a_gpu_only():
    first = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    second = first + 1e-5 * torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    assert check_reload(first, second, "cuda")["status"] == "pass"
    assert check_reload(first, second, "cpu")["status"] == "fail"


@pytest.mark.parametrize(
    ("noise", "difference", "status"),  # as multiples of a change of 1e-4 nats or so
    [(0.0, 1.0, "fail"), (1.0, 1.0, "pass"), (1.0, 30.0, "fail"), (100.0, 100.0, "fail")],
)
def test_reload_allows_what_passes_of_one_load_differ_by(noise, difference, status):
    generator = torch.Generator().manual_seed(0)
    first, change = torch.randn(5, 100, generator=generator), torch.randn(5, 100, generator=generator) * 0.014
    check = check_reload(first, first + difference * change, "cuda", first + noise * change)
    assert check["status"] == status, check
