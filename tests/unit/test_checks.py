"""Each of the nine checks passes on a good cell and fails on a broken one."""

import math

import pytest
import torch

from quantharm import checks
from quantharm.checks import (
    calibration_evidence,
    check_bits_per_weight,
    check_calibration,
    check_consistency,
    check_finite,
    check_kernel,
    check_method_is_real,
    check_reload,
    check_same_text,
    check_self_divergence,
    choose_matrices,
)
from quantharm.models.loading import load_cell
from quantharm.quantizers import quantized_layers
from quantharm.quantizers.formats.activations import llm_int8
from quantharm.scoring.forward import last_hidden_states, output_head

CELLS = ["nf4_cell", "int8_cell", "awq_cell"]
TOKENS = [0, *range(20, 240, 9)]


def damaged_copy(cell):
    """(model, matrices) loaded anew from the cell's files, to be broken."""
    model = load_cell(cell.record, "cpu")
    return model, quantized_layers.quantized_matrices(model, cell.checkpoint, cell.record["quantizer"])


# ---------------------------------------------------------------- self_divergence


@pytest.mark.parametrize(
    ("mean", "status"), [(0.0, "pass"), (5e-7, "pass"), (1e-5, "pass"), (2e-5, "fail"), (math.nan, "fail")]
)
def test_self_divergence(mean, status):
    check = check_self_divergence({"kl_nats": {"mean": mean}})
    assert (check["name"], check["status"], check["limit"]) == ("self_divergence", status, 1e-5)


# ---------------------------------------------------------------- reload


def test_reload_passes_on_two_loads_of_one_checkpoint(nf4_cell):
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


def test_consistency_is_not_asked_of_random_weights():
    wrong = on_text(0.67, 0.0)
    assert check_consistency(wrong | {"synthetic": False})["status"] == "fail"
    check = check_consistency(wrong | {"synthetic": True})
    assert (check["status"], "synthetic weights" in check["explanation"]) == ("skipped", True)


# ---------------------------------------------------------------- method_is_real


@pytest.mark.parametrize("cell", CELLS)
def test_method_is_real_passes(cell, request):
    cell = request.getfixturevalue(cell)
    check = check_method_is_real(cell.record, cell.matrices, cell.model)
    assert (check["status"], check["value"]) == ("pass", 1.0)
    assert cell.record["linear_classes"][0] in check["explanation"]


def test_method_is_real_passes_on_a_baseline_that_is_one(baseline_cell):
    assert check_method_is_real(baseline_cell.record, [], baseline_cell.model)["status"] == "pass"


@pytest.mark.parametrize(
    "kind", ["llama_tied", "mistral", "qwen2", "gemma2", "cohere", "granite", "gpt2", "gpt2_untied"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_taken_for_quantized_in_a_baseline_of_any_kind(tiny, kind, dtype):
    assert quantized_layers.quantized_matrices(tiny(kind, dtype), None, "unquantized") == []


@pytest.mark.parametrize("cell", CELLS)
def test_method_is_real_fails_on_a_quantized_baseline(baseline_cell, cell, request):
    """By how the weights are held: the baseline's module knows no other quantizer. Other checks say so or step back."""
    cell = request.getfixturevalue(cell)
    matrices = quantized_layers.quantized_matrices(cell.model, cell.checkpoint, "unquantized")
    assert {m.name for m in matrices} == {m.name for m in cell.matrices}
    assert sum(m.rows * m.columns for m in matrices) == sum(m.rows * m.columns for m in cell.matrices)
    assert check_method_is_real(baseline_cell.record, matrices, cell.model)["status"] == "fail"
    measured, formula = quantized_layers.bits_per_weight(matrices)
    record = {"bits_per_weight": measured, "bits_per_weight_formula": formula}
    assert check_bits_per_weight(record)["status"] == "fail"
    assert check_kernel(cell.model, matrices, TOKENS)["status"] == "skipped"


class Disguised(torch.nn.Parameter):
    """A class of another library's whose dtype and shape say nothing about what it stores."""


class Packed(torch.nn.Module):
    """A linear layer of another library's that holds its weights in a buffer."""

    in_features, out_features = 64, 128

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(8, 128, dtype=torch.int32))


class Experts(torch.nn.Module):
    """No linear layer at all, but packed codes where a model has weights."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Parameter(torch.zeros(4, 128, 32, dtype=torch.uint8), requires_grad=False)


def plain(weight: torch.Tensor, kind=torch.nn.Parameter) -> torch.nn.Linear:
    linear = torch.nn.Linear(64, 128, bias=False)
    linear.weight = kind(weight, requires_grad=False)
    return linear


@pytest.mark.parametrize(
    "layer",
    [
        lambda weight: plain(weight.to(torch.float8_e4m3fn)),
        lambda weight: plain(weight[:, ::2].to(torch.int8)),
        lambda weight: plain(weight[:, ::4].clone()),
        lambda weight: plain(weight, Disguised),
        lambda weight: Packed(),
        lambda weight: Experts(),
    ],
    ids=[
        "8-bit floats",
        "packed integers",
        "floats that hold packed ones",
        "a class of its own",
        "a buffer",
        "experts",
    ],
)
def test_one_rounded_layer_makes_a_baseline_none(tiny, baseline_cell, layer):
    """Formats that no module here knows."""
    model = tiny("llama", torch.bfloat16)
    mlp = model.model.layers[1].mlp
    mlp.up_proj = layer(mlp.up_proj.weight.detach())
    matrices = quantized_layers.quantized_matrices(model, None, "unquantized")
    assert [m.name for m in matrices] == ["model.layers.1.mlp.up_proj"]
    assert check_method_is_real(baseline_cell.record, matrices, model)["status"] == "fail"


@pytest.mark.parametrize("claimed", ["bitsandbytes_4bit", "bitsandbytes_int8", "awq", "pretrained"])
def test_method_is_real_fails_on_an_unquantized_model(baseline_cell, claimed):
    matrices = quantized_layers.quantized_matrices(baseline_cell.model, baseline_cell.checkpoint, claimed)
    check = check_method_is_real(baseline_cell.record | {"quantizer": claimed}, matrices, baseline_cell.model)
    assert (check["status"], check["value"]) == ("fail", 0.0)


@pytest.mark.parametrize(("cell", "claimed"), [("nf4_cell", "awq"), ("int8_cell", "bitsandbytes_4bit")])
def test_method_is_real_fails_on_another_method_than_claimed(request, cell, claimed):
    """As in a published report whose AWQ column was NF4."""
    cell = request.getfixturevalue(cell)
    matrices = quantized_layers.quantized_matrices(cell.model, cell.checkpoint, claimed)
    assert check_method_is_real({"quantizer": claimed}, matrices, cell.model)["status"] == "fail"


def test_method_is_real_fails_when_the_head_was_quantized(make_cell, reference_source, nf4_cell):
    import bitsandbytes

    model, matrices = damaged_copy(nf4_cell)
    head = bitsandbytes.nn.Linear4bit(256, 8192, bias=False, quant_type="nf4")
    head.weight = bitsandbytes.nn.Params4bit(model.lm_head.weight.float(), requires_grad=False, quant_type="nf4")
    model.lm_head = head.to("cpu")
    matrices = quantized_layers.quantized_matrices(model, nf4_cell.checkpoint, "bitsandbytes_4bit")
    assert len(matrices) == 57
    check = check_method_is_real(nf4_cell.record, matrices, model)
    assert check["status"] == "fail"
    assert "head is quantized" in check["explanation"]


def test_method_is_real_fails_when_half_of_the_layers_were_kept(nf4_cell):
    model, matrices = damaged_copy(nf4_cell)
    for matrix in matrices[:28]:
        parent, _, name = matrix.name.rpartition(".")
        setattr(model.get_submodule(parent), name, torch.nn.Linear(matrix.columns, matrix.rows, bias=False))
    left = quantized_layers.quantized_matrices(model, nf4_cell.checkpoint, "bitsandbytes_4bit")
    check = check_method_is_real(nf4_cell.record, left, model)
    assert check["status"] == "fail"
    assert check["value"] == pytest.approx(0.5)


# ---------------------------------------------------------------- bits_per_weight


@pytest.mark.parametrize("cell", CELLS)
def test_bits_per_weight_passes(cell, request):
    assert check_bits_per_weight(request.getfixturevalue(cell).record)["status"] == "pass"


@pytest.mark.parametrize("factor", [1.04, 0.96, 0.5, 2.0])
def test_bits_per_weight_fails_when_off_by_4_percent(nf4_cell, factor):
    record = nf4_cell.record | {"bits_per_weight": nf4_cell.record["bits_per_weight_formula"] * factor}
    check = check_bits_per_weight(record)
    assert check["status"] == "fail"
    assert check["value"] == pytest.approx(abs(factor - 1))


def test_bits_per_weight_is_skipped_without_quantized_matrices(baseline_cell):
    assert check_bits_per_weight(baseline_cell.record)["status"] == "skipped"


def test_bits_per_weight_sees_scales_that_are_wider_than_the_format(nf4_cell):
    """Blocks of 32 weights where 64 are claimed: measured on the modules, not read from a config."""
    model, _ = damaged_copy(nf4_cell)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            state.absmax = torch.cat([state.absmax, state.absmax, state.absmax])
            assert quantized_layers.stored_tensors(nf4_cell.checkpoint, name)
    matrices = quantized_layers.quantized_matrices(model, nf4_cell.checkpoint, "bitsandbytes_4bit")
    measured, formula = quantized_layers.bits_per_weight(matrices)
    check = check_bits_per_weight({"bits_per_weight": measured, "bits_per_weight_formula": formula})
    assert check["status"] == "fail"


# ---------------------------------------------------------------- kernel


@pytest.mark.parametrize("cell", CELLS)
def test_kernel_passes(cell, request):
    cell = request.getfixturevalue(cell)
    check = check_kernel(cell.model, cell.matrices, TOKENS)
    assert check["status"] == "pass", check
    assert 0 <= check["value"] <= 0.02  # 0 where the products are float32's


def test_kernel_is_skipped_without_quantized_matrices(baseline_cell):
    assert check_kernel(baseline_cell.model, [], TOKENS)["status"] == "skipped"


def swap_rows_of_codes(module):
    codes = module.weight.data
    if codes.dtype == torch.uint8:  # 4 bits: half a row of bytes each
        half = module.in_features // 2
        rows = codes.view(-1, half)
        rows[[3, 100]] = rows[[100, 3]]
        rows[[7, 120]] = rows[[120, 7]]
    else:
        codes[[3, 100, 7, 120]] = codes[[100, 3, 120, 7]]


def scale_an_output(module):
    module.register_forward_hook(lambda _, __, output: output * 1.03)


def shift_an_output(module):
    def rolled(_, __, output):
        return output.roll(1, dims=-1)

    module.register_forward_hook(rolled)


def make_an_output_nan(module):
    module.register_forward_hook(lambda _, __, output: output * math.nan)


@pytest.mark.parametrize("cell", ["nf4_cell", "int8_cell"])
@pytest.mark.parametrize("fault", [swap_rows_of_codes, scale_an_output, shift_an_output, make_an_output_nan])
def test_kernel_fails_on_a_faulty_layer(cell, fault, request):
    model, matrices = damaged_copy(request.getfixturevalue(cell))
    victim = choose_matrices(matrices)[3]
    fault(model.get_submodule(victim.name))
    check = check_kernel(model, matrices, TOKENS)
    assert check["status"] == "fail", check
    assert victim.name in check["explanation"] or fault is make_an_output_nan


@pytest.mark.parametrize("fault", [scale_an_output, shift_an_output])
def test_kernel_fails_on_a_faulty_awq_layer(awq_cell, fault):
    model, matrices = damaged_copy(awq_cell)
    fault(model.get_submodule(choose_matrices(matrices)[3].name))
    assert check_kernel(model, matrices, TOKENS)["status"] == "fail"


def test_kernel_looks_at_every_kind_of_matrix_and_at_several_layers(nf4_cell):
    chosen = [m.name for m in choose_matrices(nf4_cell.matrices)]
    assert len(chosen) == len({name.rsplit(".", 1)[-1] for name in chosen}) == 7
    assert len({name.split(".")[2] for name in chosen}) >= 5


def test_llm_int8_by_hand():
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    inputs = torch.tensor([[1.27, 0.504, 9.0]])
    # column 2 is an outlier and exact; the others are rounded to steps of 0.01: 0.504 → 0.50
    expected = torch.tensor([[1.27 + 18.0, 0.50]])
    torch.testing.assert_close(llm_int8(inputs, 6.0) @ weight.t(), expected)
    # without a threshold the step is 9 / 127 = 0.0709: 1.27 → 18 steps, 0.504 → 7 steps
    expected = torch.tensor([[18 * 9 / 127 + 18.0, 7 * 9 / 127]])
    torch.testing.assert_close(llm_int8(inputs, 0.0) @ weight.t(), expected)


# ---------------------------------------------------------------- finite


def test_finite():
    assert check_finite({"not_finite": 0})["status"] == "pass"
    assert check_finite({"not_finite": 1})["status"] == "fail"


# ---------------------------------------------------------------- consistency


def on_text(kl: float, square: float, standard_error: float = 0.0) -> dict:
    """The part of divergence.json that the check reads."""
    figures = {"kl_nats_mean": kl, "log_perplexity_ratio": 0.01, "squared_delta_nll_mean": square}
    return {"text": figures | {"squared_delta_nll_standard_error": standard_error}}


def test_consistency_allows_for_what_few_tokens_cannot_tell():
    """KL 0.1 is a factor of 4 from half of 0.05, but a standard error of 0.01 cannot tell it from a factor of 3."""
    assert check_consistency(on_text(0.1, 0.05))["status"] == "fail"
    assert check_consistency(on_text(0.1, 0.05, 0.01))["status"] == "pass"
    assert check_consistency(on_text(0.1, 0.05, 0.005))["status"] == "fail"
    assert check_consistency(on_text(0.01, 0.7, 0.01))["status"] == "fail"
    assert check_consistency(on_text(0.01, 0.7, 0.05))["status"] == "pass"


@pytest.mark.parametrize(
    ("kl", "square", "status"),
    [
        (0.05, 0.1, "pass"),
        (0.05, 0.034, "pass"),
        (0.05, 0.033, "fail"),
        (0.05, 2.9, "pass"),
        (0.05, 3.1, "fail"),
        (0.67, 0.06, "fail"),  # from a hand-made report: KL 0.67 nats of an INT8 model that hardly moved
        (1.45, 0.0, "fail"),
        (9e-4, 1e-3, "skipped"),
        (9e-4, 3e-3, "pass"),
        (9e-4, 0.1, "fail"),  # nothing of a KL where the tokens moved
        (math.nan, 0.1, "fail"),
    ],
)
def test_consistency(kl, square, status):
    check = check_consistency(on_text(kl, square))
    assert check["status"] == status
    if square and status != "skipped" and kl == kl:
        assert check["value"] == pytest.approx(2 * kl / square)


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_an_innocent_model_need_not_predict_the_text(sharpness, noise):
    """A model that is overconfident of the text, as chat-tuned ones are, and the same with noise on its logits."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1500, 500, generator=random, dtype=torch.float64)
    tokens = torch.multinomial(logits.softmax(-1), 1, generator=random)
    moved = logits + noise * torch.randn(logits.shape, generator=random, dtype=torch.float64)
    ln_p, ln_q = ((sharpness * x).log_softmax(-1) for x in (logits, moved))
    kl = (ln_p.exp() * (ln_p - ln_q)).sum(-1)
    square = (ln_p - ln_q).gather(1, tokens)[:, 0] ** 2
    figures = (float(square.mean()), float(square.std() / 1500**0.5))
    assert check_consistency(on_text(float(kl.mean()), *figures))["status"] == "pass"
    assert check_consistency(on_text(float(40 * kl.mean()), *figures))["status"] == "fail"
    assert check_consistency(on_text(float(kl.mean()) / 200, *figures))["status"] == "fail"


def test_consistency_of_an_earlier_record_is_skipped():
    text = {"kl_nats_mean": 0.1, "log_perplexity_ratio": 0.1, "log_perplexity_ratio_standard_error": 0.0}
    assert check_consistency({"text": text})["status"] == "skipped"


def test_consistency_is_skipped_without_text_windows():
    assert check_consistency({"text": None})["status"] == "skipped"


# ---------------------------------------------------------------- same_text


def results() -> dict:
    provenance = {"device": "CPU: x", "dtype": "bfloat16", "versions": {"torch": "2.13.0"}, "git_commit": "a"}
    return {
        "perplexity": {
            "dataset_sha256": "d",
            "tokens_sha256": "t",
            "protocol": "concat-2048",
            "perplexity": 7.0,
            "provenance": dict(provenance),
        },
        "generation": {
            "suite_sha256": "s",
            "prompts_per_category": None,
            "max_new_tokens": 100,
            "chat_template": "auto",
            "thinking": False,
            "prompt_tokens_sha256": "i",
            "provenance": dict(provenance),
        },
        "divergence": {"trace_sha256": "r", "provenance": dict(provenance)},
    }


def test_same_text_passes_although_figures_differ():
    cell = results()
    cell["perplexity"]["perplexity"] = 8.0
    cell["perplexity"]["provenance"]["git_commit"] = "b"
    check = check_same_text(cell, results())
    assert (check["status"], check["value"]) == ("pass", 0)


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("perplexity", "dataset_sha256"),
        ("perplexity", "tokens_sha256"),
        ("perplexity", "protocol"),
        ("generation", "suite_sha256"),
        ("generation", "prompts_per_category"),
        ("generation", "max_new_tokens"),
        ("generation", "chat_template"),
        ("generation", "thinking"),
        ("generation", "prompt_tokens_sha256"),
        ("divergence", "trace_sha256"),
    ],
)
def test_same_text_fails_on_each_key(stage, key):
    cell = results()
    cell[stage][key] = "other"
    check = check_same_text(cell, results())
    assert (check["status"], check["value"]) == ("fail", 1)
    assert key.removesuffix("_sha256") in check["explanation"]


@pytest.mark.parametrize("stage", ["perplexity", "generation", "divergence"])
@pytest.mark.parametrize("key", ["device", "dtype", "versions"])
def test_same_text_fails_on_each_environment(stage, key):
    cell = results()
    cell[stage]["provenance"][key] = "other"
    check = check_same_text(cell, results())
    assert check["status"] == "fail"
    assert f"{stage} {key}" in check["explanation"]


# ---------------------------------------------------------------- calibration


EVIDENCE = {
    "samples_asked": 4,
    "samples_reached": 4,
    "tokens_asked": 2048,
    "tokens_reached": 2048,
    "duplicate_samples": 0,
    "overlaps": 0,
    "nll_mean_nats": 4.1,
    "text_nll_mean_nats": 4.0,
}


def test_calibration_passes():
    check = check_calibration(EVIDENCE)
    assert (check["status"], check["value"], check["limit"]) == ("pass", 0, 0)
    assert "4 samples and 2048 tokens" in check["explanation"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples_reached": 3, "tokens_reached": 1536}, "3 of 4 samples reached"),
        ({"tokens_reached": 2047}, "2047 of 2048 tokens reached"),
        ({"samples_reached": 0, "tokens_reached": 0}, "0 of 4 samples"),
        ({"overlaps": 1}, "shared with the evaluation text or the prompts"),
        ({"duplicate_samples": 3}, "75% of the samples repeat another one"),
        ({"distinct_share_min": 0.01}, "1.0% distinct tokens"),
        ({"nll_mean_nats": 8.1}, "2.02 times"),
        ({"nll_mean_nats": 1.9}, "0.47 times"),
    ],
)
def test_calibration_fails_and_says_why(changes, words):
    check = check_calibration(EVIDENCE | changes)
    assert check["status"] == "fail"
    assert words in check["explanation"]


def test_calibration_is_skipped_for_methods_that_use_none(nf4_cell):
    assert calibration_evidence(nf4_cell.record, None, None, None, {}, "", []) is None
    assert check_calibration(None)["status"] == "skipped"


# ---------------------------------------------------------------- all of them


def test_limits_are_the_documented_ones():
    assert checks.SELF_DIVERGENCE_LIMIT == 1e-5
    assert checks.BITS_LIMIT == 0.03
    assert checks.KERNEL_LIMIT == 0.02
    assert (checks.CONSISTENCY_LIMIT, checks.CONSISTENCY_LEAST, checks.CONSISTENCY_FROM) == (3.0, 30.0, 1e-3)


def test_values_that_are_not_finite_can_be_written_as_json(tmp_path):
    from quantharm.common.files import write_json

    check = check_consistency(on_text(1.0, 0.0))
    assert check["value"] == "inf"
    write_json(tmp_path / "checks.json", {"checks": [check]})
