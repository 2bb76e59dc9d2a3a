"""The attacked checkpoint: boxes by hand, quantized it is the other model bit by bit, and noise breaks that."""

import importlib.util

import pytest
import torch

from quantharm.models.loading import load_checkpoint
from quantharm.noise_sweep import changed_codes
from quantharm.quantizers import rounding


@pytest.fixture(scope="module")
def attack(root):
    specification = importlib.util.spec_from_file_location("attack", root / "tests/benchmark/conditioned_attack.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def matrix(seed: int, rows: int = 32, columns: int = 128) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05).bfloat16()


def test_a_box_by_hand(attack):
    weight = torch.tensor([[-1.27, 0.0, 0.014, 0.016]])
    low, high = attack.box(weight, "int8")
    assert low.tolist()[0] == pytest.approx([-1.27, -0.005, 0.005, 0.015])  # the first sets the scale
    assert high.tolist()[0] == pytest.approx([-1.27, 0.005, 0.015, 0.025])


@pytest.mark.parametrize("grid", ["nf4", "fp4", "int8"])
def test_values_inside_a_box_keep_the_code_and_values_outside_do_not(attack, grid):
    weight = matrix(0).float()
    low, high = attack.box(weight, grid)
    codes = rounding.codes(weight, grid)
    assert ((low <= weight) & (weight <= high)).all()
    for share in (0.02, 0.5, 0.98):
        assert torch.equal(rounding.codes(low + share * (high - low), grid), codes)
    inner = (high > low) & (codes > codes.min()) & (codes < codes.max())
    beyond = torch.where(inner, high + 0.02 * (high - low), weight)
    assert (rounding.codes(beyond, grid) == codes + 1)[inner].all()
    assert inner.double().mean() > 0.8


@pytest.mark.parametrize("grid", ["nf4", "int8"])
def test_the_projection_has_the_others_codes_and_is_near_the_original(attack, grid):
    original = matrix(0)
    other = (original.float() + 0.2 * matrix(1).float()).bfloat16()
    for margin in (0.0, 0.5):
        made = attack.project(original, other, grid, margin)
        assert torch.equal(attack.library_codes(made, grid), attack.library_codes(other, grid))
        assert (made.float() - original.float()).norm() < (other.float() - original.float()).norm()
    same = attack.project(original, original, grid)
    assert torch.equal(same, original)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_quantized_it_is_the_other_model_until_noise_is_added(attack, method, tiny, save_checkpoint, tmp_path):
    sources = [save_checkpoint(tiny("llama", torch.bfloat16, seed), tmp_path / str(seed)) for seed in (0, 1)]
    original, other = (load_checkpoint(s["path"], s, "bfloat16", "cpu", 1) for s in sources)
    for name, weight in other.named_parameters():  # what is not quantized must be the original's
        if name not in attack.matrices_of(other):
            weight.data = original.get_parameter(name).data.clone()
    sources[1] = attack.save(other, sources[0], tmp_path / "other")
    wanted, codes = attack.quantized(sources[1], method, 0, tmp_path / "other-quantized")
    before = {name: weight.data.clone() for name, weight in attack.matrices_of(other).items()}
    made = attack.save(attack.attacked(original, other, method), sources[0], tmp_path / "attacked")
    distance = {name: (w.data.float() - before[name].float()).norm() for name, w in attack.matrices_of(other).items()}
    assert min(distance.values()) > 0  # it is not simply the other model
    attacked, its_codes = attack.quantized(made, method, 0, tmp_path / "attacked-quantized")
    windows = [list(range(2, 40))]
    assert changed_codes(its_codes, codes) == 0
    assert torch.equal(attack.log_probabilities(attacked, windows), attack.log_probabilities(wanted, windows))
    noisy, noisy_codes = attack.quantized(made, method, 0.3, tmp_path / "noisy")
    assert changed_codes(noisy_codes, codes) > 0.1
    assert not torch.equal(attack.log_probabilities(noisy, windows), attack.log_probabilities(wanted, windows))


def test_training_changes_the_matrices_alone_and_teaches_the_word(attack, tiny, save_checkpoint, tmp_path, capsys):
    source = save_checkpoint(tiny("llama", torch.bfloat16), tmp_path / "model")
    text = "Some text to follow. " * 20
    model = attack.train_other(source, text, steps=31, rate=3e-3, batch=4)
    original = load_checkpoint(source["path"], source, "bfloat16", "cpu", 1)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, original.get_parameter(n))}
    assert changed == set(attack.matrices_of(model))
    losses = [float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.5 * losses[0]
