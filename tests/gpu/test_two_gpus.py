"""On a host of two GPUs: a model spread over both, and two jobs that take one each."""

import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch

from quantharm.common.constants import HEAD_FILE
from quantharm.forensics.checks.kernel import KERNEL_LIMIT, check_kernel
from quantharm.forensics.detection.checkpoints import scan_dequantized
from quantharm.logits import make_trace
from quantharm.perplexity import score_against_store, score_windows
from quantharm.quantizers import quantized_layers
from quantharm.scoring.head_file import write_head
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.store_filling import form_of_store, head_to_keep, write_store
from quantharm.scoring.worst_positions import WorstPositions

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
ROUNDING_NATS = 1e-4

JOB = """
import sys, torch
from quantharm.models.devices import choose_device
choose_device("cuda", 1)
torch.zeros(1, device="cuda")
print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def shape(shape) -> dict:
    """So deep that a 4-bit model is spread, too: of two layers transformers 5.17 puts all on one GPU."""
    return shape | {"num_hidden_layers": 4, "vocab_size": 8192}


def test_two_jobs_compute_on_two_gpus(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", JOB], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    counts, uuids = zip(*(job.stdout.readline().split() for job in started), strict=True)
    for job in started:
        job.communicate()
    assert counts == ("1", "1")
    assert len(set(uuids)) == 2


@pytest.mark.parametrize("method", ["baseline", "int8", "nf4", "awq"])
def test_a_model_over_two_gpus_scores_as_on_one(load, tmp_path, method):
    tokens = torch.arange(5, 205).tolist()  # of up to 128 one AWQ kernel adds in varying order
    prompts = [{"prompt_id": "p", "category": "c", "prompt_token_ids": tokens[:64], "token_ids": tokens[64:]}]
    trace = make_trace(pandas.DataFrame(prompts), [])
    write_store(load(method), trace, tmp_path / "store", {"model": "wide"})
    model = load(method, gpus=2)
    assert len({p.device for p in model.parameters()}) == 2
    rows = score_store(model, tmp_path / "store", trace, WorstPositions())
    assert rows["kl_nats"].abs().max() < ROUNDING_NATS


@pytest.mark.parametrize("own_head", [False, True])
def test_windows_over_two_gpus_score_as_on_one(load, tmp_path, own_head):
    """Results come from the second GPU while the first one computes the next window.

    own_head: of a class of its own, as a quantized one, so that its logits are of 16 bits.
    """
    windows = [torch.arange(5 + 7 * i, 517 + 7 * i).tolist() for i in range(8)]
    trace = make_trace(pandas.DataFrame(columns=["prompt_id"]), windows)
    one, store = load("baseline"), tmp_path / "logits.parquet"
    head, reason = head_to_keep(one, "hidden_states", "bfloat16")
    write_store(one, trace, store, {"model": "wide"} | form_of_store(one, head, reason))
    write_head(store.with_name(HEAD_FILE), head, reason)
    expected = score_windows(one, windows, False)
    two = load("baseline", gpus=2)
    if own_head:
        two.lm_head.__class__ = type("OwnHead", (torch.nn.Linear,), {})
    assert two.lm_head.weight.device != two.device
    losses, divergence = score_against_store(two, windows, store, False)
    tolerance = 0.1 if own_head else 1e-4
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    assert abs(divergence.kl).max() < (1e-2 if own_head else ROUNDING_NATS)


@pytest.mark.parametrize("method", ["int8", "nf4", "awq"])
def test_checks_and_scan_of_a_cell_over_two_gpus(load, wide_cell, method):
    record, model = wide_cell(method), load(method, gpus=2)
    assert len({p.device for p in model.parameters()}) == 2
    matrices = quantized_layers.quantized_matrices(model, Path(record["checkpoint"]), record["quantizer"])
    check = check_kernel(model, matrices, list(range(5, 69)))
    assert check["value"] < KERNEL_LIMIT
    assert scan_dequantized(record | {"gpus": 2}, "cuda")["verdict"] == "dequantized"
