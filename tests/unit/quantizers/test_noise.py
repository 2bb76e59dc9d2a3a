"""Weight noise: its size, what it touches, what the cells that carry it are, and the sweep over it."""

import json
import shutil

import pandas
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import kstest

from quantharm import noise_sweep
from quantharm.common.errors import UserError
from quantharm.forensics.checks.weights import check_bits_per_weight, check_method_is_real
from quantharm.models.source import describe
from quantharm.quantizers import noise, rounding
from quantharm.reporting.charts.studies import noise_chart

SETTINGS = {"sigma": 0.3, "relative_to": "half_step", "target": None, "seed": 0}


def weights_in(folder) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


@pytest.fixture(scope="module")
def tiny_source(tiny, save_checkpoint, tmp_path_factory):
    return save_checkpoint(tiny("llama", torch.bfloat16), tmp_path_factory.mktemp("tiny"))


# ---------------------------------------------------------------- grids


def test_half_steps_by_hand():
    weight = torch.zeros(2, 64)
    weight[0, 3], weight[0, 5], weight[1, 0] = -2.54, 1.0, 5.08
    assert rounding.half_steps(weight, "int8")[:, 0].tolist() == pytest.approx([0.01, 0.02])
    assert rounding.half_steps(weight, "nf4")[:, 7].tolist() == pytest.approx([2.54 / 15, 5.08 / 15])
    assert rounding.half_steps(weight, "fp4")[0, 0].item() == pytest.approx(2.54 / 14)  # 15 levels: 0 is there twice
    assert rounding.half_steps(weight, "int4-32")[0].tolist() == pytest.approx([3.54 / 30] * 32 + [0.0] * 32)


def test_codes_by_hand():
    weight = torch.tensor([[-1.27, 0.0, 0.014, 0.016, 1.0, 0.5]])
    assert rounding.codes(weight, "int8").tolist() == [[-127, 0, 1, 2, 100, 50]]
    weight = torch.linspace(-1.0, 0.5, 64).reshape(1, 64)  # scale 0.1, zero 10: from -10 to 5
    assert rounding.codes(weight, "int4-64")[0, [0, -1]].tolist() == [-10, 5]


@pytest.mark.parametrize(
    ("cell", "grid", "agreement", "farthest"), [("nf4_cell", "nf4", 1.0, 0), ("int8_cell", "int8", 0.95, 1)]
)
def test_codes_are_those_that_the_library_stores(cell, grid, agreement, farthest, request, reference_weights):
    differences = []
    for matrix in request.getfixturevalue(cell).matrices:
        weight = reference_weights[f"{matrix.name}.weight"]
        alive = rounding.half_steps(weight, grid) > 1e-6  # float16 holds nothing of units whose weights decayed to 1e-9
        differences.append((rounding.codes(weight, grid).long() - matrix.codes().long())[alive])
    differences = torch.cat(differences)
    assert len(differences) > 0.9 * 6_291_456
    assert (differences == 0).double().mean() >= agreement
    assert differences.abs().max() == farthest  # int8 is multiplied in 16 bits on a CPU: ties fall to either side


# ---------------------------------------------------------------- the noise


@pytest.mark.parametrize("grid", ["nf4", "int8", "int4-64"])
def test_noise_is_normal_with_sigma_half_widths(grid, reference_weights):
    name = "model.layers.3.mlp.up_proj.weight"
    weight = reference_weights[name]
    units = noise.noise_for(weight, name, SETTINGS, grid) / rounding.half_steps(weight, grid)
    units = units[rounding.half_steps(weight, grid) > 0]
    assert kstest(units.double().numpy() / 0.3, "norm").pvalue > 0.01
    absolute = noise.noise_for(weight, name, SETTINGS | {"sigma": 1e-3, "relative_to": "absolute"}, None)
    assert kstest(absolute.double().flatten().numpy() / 1e-3, "norm").pvalue > 0.01


def test_only_the_matrices_that_would_be_quantized_change(reference_source, reference_weights, tmp_path):
    record = noise.write_noisy(reference_source, SETTINGS, "nf4", tmp_path)
    noisy = weights_in(tmp_path)
    changed = {name for name in reference_weights if not torch.equal(noisy[name], reference_weights[name])}
    assert len(changed) == record["matrices"] == 56
    assert all("_proj" in name for name in changed)
    assert noisy.keys() == reference_weights.keys()
    squares = sum(float((noisy[n].double() - reference_weights[n].double()).square().sum()) for n in changed)
    # rounding to bfloat16 adds a little to the noise that was drawn
    assert (squares / record["weights"]) ** 0.5 == pytest.approx(record["noise_rms"], rel=0.02)
    norms = sum(float(reference_weights[n].double().square().sum()) for n in changed)
    assert record["relative_change"] == pytest.approx((squares / norms) ** 0.5, rel=0.02)
    differing = sum(
        int((rounding.codes(noisy[n], "nf4") != rounding.codes(reference_weights[n], "nf4")).sum()) for n in changed
    )
    assert record["codes_changed"] == differing / record["weights"] > 0.1
    assert (tmp_path / "tokenizer.json").read_bytes() == open(f"{reference_source['path']}/tokenizer.json", "rb").read()


def test_the_seed_decides_and_not_the_cut_into_files(tiny, byte_tokenizer, tmp_path):
    model = tiny("llama", torch.bfloat16)
    sources = []
    for name, size in (("one", "5GB"), ("many", "50KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        byte_tokenizer().save_pretrained(tmp_path / name)
        sources.append(describe("tiny", name, tmp_path / name, None, False, False))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    noisy = []
    for i, (source, seed) in enumerate([(sources[0], 0), (sources[1], 0), (sources[0], 1)]):
        (tmp_path / str(i)).mkdir()
        noise.write_noisy(source, SETTINGS | {"seed": seed}, "nf4", tmp_path / str(i))
        noisy.append(weights_in(tmp_path / str(i)))
    key = "model.layers.1.mlp.up_proj.weight"
    assert all(torch.equal(noisy[0][name], noisy[1][name]) for name in noisy[0])
    assert not torch.equal(noisy[0][key], noisy[2][key])
    first = (
        noisy[0]["model.layers.0.mlp.up_proj.weight"]
        - weights_in(tmp_path / "one")["model.layers.0.mlp.up_proj.weight"]
    )
    second = noisy[0][key] - weights_in(tmp_path / "one")[key]
    assert not torch.equal(first, second)  # equal shapes, noise of their own


# ---------------------------------------------------------------- cells


def test_a_quantized_cell_with_noise_is_still_its_method(make_cell, tiny_source):
    settings = {"quant_type": "nf4", "double_quantization": True}
    plain = make_cell(tiny_source, "bitsandbytes_4bit", settings)
    noisy = make_cell(tiny_source, "bitsandbytes_4bit", settings | {"noise": SETTINGS | {"sigma": 1.0}})
    assert noisy.record["noise"]["target"] == "nf4"
    assert noisy.record["bits_per_weight"] == plain.record["bits_per_weight"]
    assert check_bits_per_weight(noisy.record)["status"] == "pass"
    assert check_method_is_real(noisy.record, noisy.matrices, noisy.model)["status"] == "pass"
    assert noisy.record["source"] == tiny_source  # of the model, not of the copy with noise, which is gone
    assert [p.name for p in noisy.checkpoint.parent.iterdir()] == ["checkpoint"]
    changed = noise_sweep.changed_codes(*({m.name: m.codes() for m in cell.matrices} for cell in (noisy, plain)))
    assert changed == pytest.approx(noisy.record["noise"]["codes_changed"], abs=0.02)


def test_noise_alone_is_a_checkpoint_of_its_own_in_16_bits(make_cell, tiny_source):
    cell = make_cell(tiny_source, "unquantized", {"noise": SETTINGS | {"target": "int8"}})
    assert str(cell.checkpoint) != tiny_source["path"]
    assert cell.record["bits_per_weight"] is None
    assert check_method_is_real(cell.record, cell.matrices, cell.model)["status"] == "pass"
    assert cell.record["noise"]["target"] == "int8"
    before = weights_in(tmp := cell.checkpoint), json.loads((tmp / "config.json").read_text())
    assert "quantization_config" not in before[1]


def test_the_noise_of_a_cell_and_of_noise_alone_is_the_same(make_cell, tiny_source):
    alone = make_cell(tiny_source, "unquantized", {"noise": SETTINGS | {"target": "int8", "sigma": 1.0}})
    quantized = make_cell(tiny_source, "bitsandbytes_int8", {"threshold": 6.0, "noise": SETTINGS | {"sigma": 1.0}})
    weights = weights_in(alone.checkpoint)
    for matrix in quantized.matrices:
        weight = weights[f"{matrix.name}.weight"].float()
        error = (matrix.dequantize() - weight).abs() / rounding.half_steps(weight, "int8")
        assert error.max() < 1.05, matrix.name  # rounded from the noisy weight, and from nothing else


def test_a_checkpoint_without_safetensors_is_refused(tiny_source, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_source["path"], folder)
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="noise can be added to no other format"):
        noise.write_noisy(tiny_source | {"path": str(folder), "allow_pickle": True}, SETTINGS, "nf4", tmp_path)


def test_a_checkpoint_that_lacks_a_matrix_is_refused(tiny_source, tmp_path):
    folder, output = tmp_path / "less", tmp_path / "output"
    shutil.copytree(tiny_source["path"], folder)
    output.mkdir()
    from safetensors.torch import save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="13 of the 14 matrices"):
        noise.write_noisy(tiny_source | {"path": str(folder)}, SETTINGS, "nf4", output)


def test_files_that_are_not_loaded_are_not_copied(tiny_source, tmp_path):
    """They would carry the original weights into the noisy checkpoint."""
    folder, output = tmp_path / "m", tmp_path / "noisy"
    shutil.copytree(tiny_source["path"], folder)
    output.mkdir()
    for name in ("consolidated.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"weights")
    noise.write_noisy(tiny_source | {"path": str(folder)}, SETTINGS, "nf4", output)
    assert {p.name for p in output.iterdir()} == {p.name for p in folder.iterdir()} - {
        "consolidated.safetensors",
        "pytorch_model.bin",
    }


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_get_noise_however_they_are_stored(save_checkpoint, tmp_path, stacked):
    """Mixtral stores them one by one; transformers would also load one tensor a layer."""
    import transformers
    from safetensors.torch import save_file

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.MixtralConfig(**shape, num_attention_heads=2, num_key_value_heads=2, num_local_experts=4)
    source = save_checkpoint(transformers.AutoModelForCausalLM.from_config(config), tmp_path / "m")
    if stacked:
        path = tmp_path / "m" / "model.safetensors"
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
        save_file({k: t.clone() for k, t in model.state_dict().items()}, path, metadata={"format": "pt"})
    before = weights_in(tmp_path / "m")
    output = tmp_path / "noisy"
    output.mkdir()
    record = noise.write_noisy(source, SETTINGS | {"sigma": 1.0}, "int8", output)
    after = weights_in(output)
    attention, experts, router = 4 * 32 * 32, 4 * 3 * 32 * 64, 4 * 32
    assert record["weights"] == attention + experts + router
    assert record["matrices"] == 5 + (2 if stacked else 12)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == record["matrices"]
    assert not {name for name in changed if "norm" in name or "embed" in name or "lm_head" in name}
    assert record["codes_changed"] > 0.3  # of a normal move by half a step: 0.5 and more


def test_noise_is_measured_by_the_rows_that_are_rounded(tiny, save_checkpoint, tmp_path):
    """GPT-2 stores its matrices [inputs, outputs]; a row of int8 is an output."""
    source = save_checkpoint(tiny("gpt2"), tmp_path / "m")
    name = "transformer.h.0.mlp.c_fc.weight"  # [64, 256]
    weight = weights_in(tmp_path / "m")[name]
    weight[:, 7] *= 100.0
    noise_of = noise.noise_for(weight, name, SETTINGS | {"sigma": 1.0}, "int8", by_input=True)
    steps = weight.abs().amax(0) / 254  # by hand, of each output
    assert (noise_of / steps).std() == pytest.approx(1.0, abs=0.05)
    assert noise_of[:, 7].std() > 20 * noise_of[:, 8].std()
    (tmp_path / "noisy").mkdir()
    assert noise.write_noisy(source, SETTINGS, "int8", tmp_path / "noisy")["matrices"] == 8


# ---------------------------------------------------------------- the sweep


def write_cell(folder, nll: list[float], kl: float) -> None:
    folder.mkdir(parents=True)
    pandas.DataFrame({"window": [0, 1], "nll_sum_nats": nll, "targets": [100, 100]}).to_parquet(
        folder / "perplexity.parquet"
    )
    record = {"kl_nats": {"mean": kl, "ci95": [kl / 2, kl * 2]}, "top1_agreement": 1 - kl}
    (folder / "divergence.json").write_text(json.dumps(record))
    record = dict.fromkeys(("model", "method", "quantizer", "checkpoint", "gpus"), "x") | {
        "source": {},
        "method": folder.name,
    }
    (folder / "quantization.json").write_text(json.dumps(record | {"noise": {"noise_rms": 0.002}}))


def test_the_sweep_reports_price_and_effect(tmp_path, monkeypatch):
    model = tmp_path / "m"
    for name, nll, kl in [
        ("baseline", [300.0, 310.0], 0.0),
        ("q", [302.0, 312.0], 0.02),
        ("noise-0.3-nf4", [301.0, 311.0], 0.01),
        ("q+noise-0.3", [304.0, 314.0], 0.04),
    ]:
        write_cell(model / name, nll, kl)
    codes = {"q": torch.tensor([[1, 2], [3, 4]]), "q+noise-0.3": torch.tensor([[1, 2], [3, 5]])}
    monkeypatch.setattr(noise_sweep, "codes_of", lambda record: {"a": codes[record["method"]]})
    cells = [{"method": "q", "sigma": 0.3, "alone": "noise-0.3-nf4", "quantized": "q+noise-0.3"}]
    plain, noisy = noise_sweep.sweep_rows(model, cells)
    assert (plain["sigma_half_widths"], plain["codes_changed"], plain["alone_kl_nats_mean"]) == (0.0, 0.0, 0.0)
    # by hand: exp(8 / 200) - 1, exp(2 / 200) - 1, exp(4 / 200) - 1
    assert noisy["quantized_perplexity_change_percent"] == pytest.approx(4.0810774)
    assert noisy["alone_perplexity_change_percent"] == pytest.approx(1.0050167)
    assert plain["quantized_perplexity_change_percent"] == pytest.approx(2.0201340)
    assert (noisy["codes_changed"], noisy["noise_rms"], noisy["quantized_kl_nats_mean"]) == (0.25, 0.002, 0.04)
    assert "σ, half steps" in noise_chart([plain, noisy]).chart.to_json(ensure_ascii=False)


def test_codes_of_different_matrices_are_not_compared():
    with pytest.raises(UserError, match="different matrices"):
        noise_sweep.changed_codes({"a": torch.ones(1)}, {"b": torch.ones(1)})
    assert noise_sweep.changed_codes({}, {}) is None
