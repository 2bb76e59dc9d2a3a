"""Wrong scales in a file: noticed wherever they are, and sound matrices of every kind of scale left in peace."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from quantharm.forensics.checks.weights import check_stored_weights
from quantharm.quantizers import against_original
from quantharm.quantizers.against_original import FACTOR_LIMIT, worst_part
from quantharm.quantizers.formats.files import headers_of_files
from quantharm.quantizers.multiplied_parts import multiplied_part
from quantharm.quantizers.original_weights import original_weight, pairs_of

ROWS, COLUMNS = 64, 256
UNWEIGHED = {"quantizer": "torchao"}


def original(seed: int = 0) -> torch.Tensor:
    """Heavy tails, rows and columns of uneven strength, and a column of nothing but zeros."""
    torch.manual_seed(seed)
    weight = torch.distributions.StudentT(4.0).sample((ROWS, COLUMNS))
    weight = weight * torch.exp(0.5 * torch.randn(ROWS, 1)) * torch.exp(0.5 * torch.randn(1, COLUMNS))
    weight[:, 7] = 0
    return weight


def rounded(weight: torch.Tensor, bits: int, size: int) -> torch.Tensor:
    """To the nearest of 2^bits - 1 integers around zero, a scale for each `size` weights."""
    groups, largest = weight.reshape(-1, size), 2 ** (bits - 1) - 1
    scale = groups.abs().amax(1, keepdim=True) / largest
    return ((groups / scale).round() * scale).reshape(weight.shape)


SIZES = {"group": 32, "row": COLUMNS, "matrix": ROWS * COLUMNS}
CASES = [(bits, size) for bits in (3, 4, 8) for size in SIZES]


@pytest.mark.parametrize(("bits", "size"), CASES)
def test_sound_matrices_are_left_in_peace(bits, size):
    part = worst_part(rounded(original(), bits, SIZES[size]), original())
    assert part.factor < FACTOR_LIMIT / 1.5
    assert 0.8 < part.matrix_gain < 1.2
    assert part.cosine > 0.7


@pytest.mark.parametrize("kept", [0, 3])
def test_weights_that_a_calibration_let_go_are_no_fault(kept):
    """As an importance matrix lets go of what no text excites: SmolLM2's down_proj in Q6_K held 0.578 of a part."""
    weight = rounded(original(), 8, 32)
    strong = int(original().reshape(ROWS, -1, 32).norm(dim=2).median(1).values.argmax())
    part = weight[strong, 64:96]
    part[part.abs() < part.abs().sort(descending=True).values[kept - 1] if kept else ...] = 0
    assert worst_part(weight, original()).factor > FACTOR_LIMIT
    assert worst_part(weight, original(), weighed=True).factor < FACTOR_LIMIT
    assert multiplied_part(weight, original(), rescaled=False, weighed=True) is None
    assert (multiplied_part(weight, original(), rescaled=False) is None) == bool(kept)
    for factor in (8.0, 0.5, -1.0):  # while a wrong scale is one there, too
        weight[strong, 64:96] = factor * original()[strong, 64:96]
        assert worst_part(weight, original(), weighed=True).factor > FACTOR_LIMIT


@pytest.mark.parametrize(
    ("bits", "size", "factor"),
    [(4, "group", 8.0), (8, "group", -1.0), (4, "group", math.nan), (4, "row", 8.0), (8, "matrix", 8.0)],
)
def test_one_wrong_scale_is_found_where_it_is(bits, size, factor):
    weight = rounded(original(), bits, SIZES[size])
    strong = int(original().reshape(ROWS, -1, 32).norm(dim=2).median(1).values.argmax())  # not a row that rounds to 0
    weight[strong, 64:96] *= factor
    part = worst_part(weight, original())
    assert part.factor > FACTOR_LIMIT
    assert (part.row, part.column) == (strong, 64)
    if factor > 0:
        assert part.gain == pytest.approx(factor, rel=0.2)


def test_by_hand():
    """Errors of 0.1 in each of three parts and 0.8 in the fourth, all weights 1."""
    weight = torch.ones(1, 128)
    dequantized = weight + torch.tensor([0.1, 0.1, 0.8, -0.1]).repeat_interleave(32)
    part = worst_part(dequantized, weight)
    assert part.factor == pytest.approx(8)
    assert (part.row, part.column, part.gain) == (0, 64, pytest.approx(1.8))
    assert part.matrix_gain == pytest.approx(math.sqrt((1.1**2 + 1.1**2 + 1.8**2 + 0.9**2) / 4))


def test_channels_that_were_rescaled_hide_no_wrong_scale():
    """As AWQ does: input channels by factors of their own, output channels by those of the next matrix."""
    torch.manual_seed(1)
    rescaled = original() * torch.exp(0.5 * torch.randn(1, COLUMNS)) * torch.exp(torch.randn(ROWS, 1))
    sound = rounded(rescaled, 4, 32)
    again = against_original.without_factors(sound, original())
    assert worst_part(sound, again).factor < FACTOR_LIMIT / 1.5
    strong = int(original()[:, 32:64].norm(dim=1).argmax())
    sound[strong, 32:64] *= 8
    part = worst_part(sound, against_original.without_factors(sound, original()))
    assert part.factor > FACTOR_LIMIT
    assert (part.row, part.column) == (strong, 32)


# ---------------------------------------------------------------- the check


@pytest.fixture
def judged(tmp_path):
    """judged(**matrices): the check of dequantized matrices whose originals lie in a folder."""
    names = ("a", "b", "c")
    save_file({f"{n}.weight": original(i) for i, n in enumerate(names)}, tmp_path / "model.safetensors")
    save_file({}, tmp_path / "empty.safetensors")

    def judge(**changed):
        made = {n: rounded(original(i), 4, 32) for i, n in enumerate(names)} | changed
        matrices = [
            SimpleNamespace(name=n, rows=ROWS, columns=COLUMNS, dequantize=lambda m=m: m, column_order=None)
            for n, m in made.items()
        ]
        return check_stored_weights(torch.nn.Module(), matrices, tmp_path, UNWEIGHED)

    return judge


def test_a_sound_checkpoint_passes(judged):
    check = judged()
    assert check["status"] == "pass"
    assert check["explanation"].endswith("in 3 matrices")
    assert judged(d=original(3))["explanation"].endswith("in 3 of 4 matrices")  # the original has none of that name


def test_what_is_wrong_is_named(judged):
    wrong = rounded(original(1), 4, 32)
    wrong[5, 96:128] *= 8
    check = judged(b=wrong)
    assert check["status"] == "fail"
    assert "row 5 of b, 32 columns from 96 on" in check["explanation"]
    doubled = rounded(original(1), 4, 32)
    doubled[5, 96:128] *= 2
    check = judged(b=doubled)
    assert (check["status"], check["value"] < FACTOR_LIMIT) == ("fail", True)
    assert "row 5 of b, 32 columns from 96 on in the order of its groups, is 2" in check["explanation"]
    assert "b is 8.08 times the original's" in judged(b=8 * rounded(original(1), 4, 32))["explanation"]
    other = judged(b=rounded(original(9), 4, 32))
    assert other["status"] == "fail"
    assert "b is nothing like the original's" in other["explanation"]


def test_matrices_of_another_basis_cannot_be_compared(judged):
    turned = {n: original(9 + i) for i, n in enumerate("abc")}
    check = judged(**turned)
    assert check["status"] == "skipped"
    assert "3 of 3 matrices are nothing like the original's" in check["explanation"]


def test_experts_are_found_however_they_are_stored(tmp_path):
    experts = torch.randn(2, 8, 4)
    turned = torch.randn(2, 4, 8)
    tensors = {
        "x.mlp.experts.gate_up_proj": experts,
        "y.block_sparse_moe.experts.1.w3.weight": experts[0].clone(),
        "z.mlp.experts.gate_up_proj": turned,
        "z.mlp.experts.gate_up_proj_bias": torch.zeros(2, 8),
        "w.weight": experts[0].t().contiguous(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    headers = headers_of_files([tmp_path / "model.safetensors"])
    assert torch.equal(original_weight(headers, "x.mlp.experts.1.up_proj", 4, 4), experts[1, 4:])
    assert torch.equal(original_weight(headers, "y.mlp.experts.1.up_proj", 8, 4), experts[0])
    assert torch.equal(original_weight(headers, "z.mlp.experts.1.gate_proj", 4, 4), turned[1].t()[:4])
    assert torch.equal(original_weight(headers, "w", 8, 4), experts[0])
    assert original_weight(headers, "v", 8, 4) is None


def test_whether_channels_were_rescaled_is_told_by_the_norms(tmp_path):
    save_file({"a.weight": original(), "norm.weight": torch.ones(COLUMNS)}, tmp_path / "model.safetensors")
    factors = torch.exp(torch.randn(COLUMNS, generator=torch.Generator().manual_seed(2)))
    made = rounded(original() * factors, 8, 32)
    matrix = SimpleNamespace(name="a", rows=ROWS, columns=COLUMNS, dequantize=lambda: made, column_order=None)

    def status(norm: torch.Tensor) -> str:
        model = torch.nn.Module()
        model.norm = torch.nn.Module()
        model.norm.weight = torch.nn.Parameter(norm)
        return check_stored_weights(model, [matrix], tmp_path, UNWEIGHED)["status"]

    assert status(1 / factors) == "pass"
    assert status(torch.ones(COLUMNS)) != "pass"


@pytest.mark.parametrize(
    ("quantizer", "calibrated", "method", "weighed"),
    [
        ("gguf", True, None, True),
        ("gguf", False, None, False),
        ("gptq", True, None, True),
        ("awq", True, None, False),
        ("pretrained", False, "gptq", True),
        ("pretrained", False, "awq", False),
        ("pretrained", False, "fp8", False),
        ("pretrained", False, "auto-round", True),
        ("pretrained", False, "compressed-tensors", True),
    ],
)
def test_which_methods_may_let_weights_go(tmp_path, quantizer, calibrated, method, weighed):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    record = {"quantizer": quantizer, "checkpoint": str(tmp_path), "bits_per_weight": 4.5}
    record |= {"calibration": {}} if calibrated else {}
    assert against_original.rounding_was_weighed(record) == weighed
    in_bytes = record | {"bits_per_weight": 8.1}
    assert against_original.rounding_was_weighed(in_bytes) == (weighed and method in (None, "gptq"))


def test_beside_a_gpu_threads_read_the_same_pairs(tmp_path):
    """Without gradients, as in the thread that loads; nothing here asks for a GPU."""
    save_file({f"m{i}.weight": original(i) for i in range(6)}, tmp_path / "model.safetensors")
    learned, made = torch.nn.Parameter(torch.ones(1)), [original(i) for i in range(7)]
    matrices = [
        SimpleNamespace(name=f"m{i}", rows=ROWS, columns=COLUMNS, dequantize=lambda m=m: m * learned, column_order=None)
        for i, m in enumerate(made)
    ]
    matrices[2].column_order = lambda: torch.arange(COLUMNS).flip(0)
    threads = torch.get_num_threads()
    both = [list(pairs_of(torch.nn.Module(), matrices, tmp_path, torch.device(name))) for name in ("cpu", "cuda")]
    assert torch.get_num_threads() == threads
    assert [pair is None for pair in both[1]] == [False] * 6 + [True]  # of the last there is no original
    for here, there in zip(both[0][:6], both[1][:6], strict=True):
        assert torch.equal(here.dequantized, there.dequantized)
        assert torch.equal(here.original, there.original)
        assert not there.dequantized.requires_grad
    assert torch.equal(both[1][2].dequantized, original(2).flip(1))
