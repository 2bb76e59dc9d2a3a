"""Norms, biases and embeddings: a damaged number is noticed, factors of channels are not."""

import pytest
import torch
from safetensors.torch import save_file

from quantharm.quantizers.formats.files import headers_of_files
from quantharm.quantizers.plain_tensors import fault_of, faults_of_plain

DAMAGES = {"turned": -1.0, "tripled": 3.0, "lost": 0.0, "an exponent's bit": 2.0**32, "infinite": torch.inf}


def norm() -> torch.Tensor:
    return 1 + 0.2 * torch.randn(64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_number_of_a_norm(damage):
    held = norm().bfloat16()
    assert fault_of(held, norm()) is None
    held[5] *= DAMAGES[damage]
    assert fault_of(held, norm())


def test_factors_of_channels_are_no_damage():
    """AWQ's, of which a few are strong; in Gemma, which multiplies by 1 + weight, they turn signs."""
    factors = torch.exp(torch.randn(64, generator=torch.Generator().manual_seed(1)))
    factors[3] = 300.0
    assert fault_of(norm() / factors, norm()) is None
    assert fault_of((1 + norm() / 10) / factors - 1, norm() / 10) is None
    assert fault_of(norm() / (1 + 0.01 * torch.randn(64)), norm()) is None


def test_numbers_that_are_next_to_nothing_are_not_judged():
    weak = torch.cat([norm(), torch.tensor([1e-6])])
    assert fault_of(torch.cat([norm(), torch.tensor([0.0])]).half(), weak) is None


def test_a_bias_of_zeros_may_have_become_any_number_but_no_infinite_one():
    held = torch.zeros(8, dtype=torch.bfloat16)
    held[2] = 0.3
    assert fault_of(held, torch.zeros(8)) is None
    held[3] = torch.inf
    assert fault_of(held, torch.zeros(8))


def test_an_embedding_is_found_by_its_name_and_a_packed_matrix_is_not_looked_at(tiny, tmp_path):
    model = tiny("llama", torch.bfloat16)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    headers = headers_of_files([tmp_path / "model.safetensors"])
    assert faults_of_plain(model, headers, set()) == []
    model.model.embed_tokens.weight[7, 3] = 1e9
    model.model.layers[1].mlp.up_proj.weight[7, 3] = 1e9
    (fault,) = faults_of_plain(model, headers, {"model.layers.1.mlp.up_proj"})
    assert fault.startswith("model.embed_tokens.weight has numbers that are infinite")
