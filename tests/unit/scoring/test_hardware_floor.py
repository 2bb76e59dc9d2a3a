"""What rounding and 8-bit weights change, against models that were really loaded or changed that way."""

import copy

import numpy
import pandas
import pytest
import torch
from scipy.special import log_softmax, rel_entr

from quantharm.scoring import hardware_floor
from quantharm.scoring.forward import last_hidden_states

IDS = torch.randint(2, 380, (3, 30), generator=torch.Generator().manual_seed(0)).tolist()
TRACE = pandas.DataFrame(
    {
        "prompt_id": ["a", "b", "text-01"],
        "category": ["Code", "Code", "text"],
        "token_ids": IDS,
        "first_target": [10, 20, 1],
    }
)


def logits_of(model, row) -> numpy.ndarray:
    """[targets, vocabulary] float64, the head in float64."""
    states = last_hidden_states(model, row.token_ids)[row.first_target - 1 : -1]
    return (states.double() @ model.get_output_embeddings().weight.double().t()).numpy()


def divergence_by_scipy(model, other) -> float:
    means = []
    for row in TRACE.iloc[:2].itertuples():
        p, q = (numpy.exp(log_softmax(logits_of(m, row), -1)) for m in (model, other))
        means.append(rel_entr(p, q).sum(-1).mean())
    return float(numpy.mean(means))


def test_near_distributions_are_compared_in_float64():
    random = torch.Generator().manual_seed(1)
    p = torch.randn(3, 5000, generator=random)
    q = p + 1e-4 * torch.randn(3, 5000, generator=random)
    exact = [numpy.exp(log_softmax(x.numpy().astype(numpy.float64), -1)) for x in (p, q)]
    expected = rel_entr(*exact).sum(-1)
    assert (expected < 1e-8).all()  # less than float32 tells of sums near 1
    assert hardware_floor.kl_nats(p, q).numpy() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2_untied"])
def test_rounding_is_the_distance_from_the_model_in_float32(tiny, kind):
    model = tiny(kind, torch.bfloat16)
    floor = hardware_floor.measure_floor(model, TRACE, "text")
    wide = copy.deepcopy(model).float()
    wide.get_output_embeddings().weight.data = model.get_output_embeddings().weight.data
    assert floor["rounding_kl_nats"] > 1e-6
    assert floor["rounding_kl_nats"] == pytest.approx(divergence_by_scipy(model, wide), rel=1e-2)
    assert (floor["prompts"], floor["reason"]) == (2, None)  # text is left out


def test_eight_bits_are_those_of_a_model_whose_weights_were_rounded(tiny):
    model = tiny("llama")
    floor = hardware_floor.measure_floor(model, TRACE, "text")
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        if "proj" in name:
            weight = parameter.numpy().astype(numpy.float64)
            scale = abs(weight).max(1, keepdims=True) / 127
            parameter.data = torch.from_numpy((numpy.round(weight / scale) * scale).astype(numpy.float32))
    assert floor["eight_bit_kl_nats"] == pytest.approx(divergence_by_scipy(model, other), rel=1e-2)
    assert floor["eight_bit_kl_nats"] > 1e-8
    assert floor["rounding_kl_nats"] == 0.0  # of float32: below any limit


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_afterwards(tiny, fails):
    model = tiny("llama", torch.bfloat16)
    before = {name: (p.data_ptr(), p.dtype, p.clone()) for name, p in model.named_parameters()}
    calls = 0

    def replace(module, parameter):
        nonlocal calls
        calls += 1
        return torch.ones(3, 3) if fails and calls == 9 else parameter.data.float()

    try:
        with hardware_floor.parameters_replaced(model.base_model, replace):
            last_hidden_states(model, IDS[0])
    except RuntimeError:
        assert fails
    assert calls >= 9
    for name, parameter in model.named_parameters():
        address, dtype, value = before[name]
        assert (parameter.data_ptr(), parameter.dtype) == (address, dtype)
        assert torch.equal(parameter, value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_measured_says_why(tiny, monkeypatch):
    def one_dtype_only(*_):
        raise RuntimeError("expected scalar type BFloat16 but found Float\nand more")

    monkeypatch.setattr(hardware_floor, "widened", one_dtype_only)
    floor = hardware_floor.measure_floor(tiny("llama", torch.bfloat16), TRACE, "text")
    assert floor["rounding_kl_nats"] is None
    assert floor["eight_bit_kl_nats"] > 0
    assert floor["reason"] == "expected scalar type BFloat16 but found Float"


def test_prompts_are_spread_over_the_trace():
    rows = pandas.DataFrame({"prompt_id": [f"p{i}" for i in range(20)], "category": ["Code"] * 18 + ["text"] * 2})
    chosen = [row.prompt_id for row in hardware_floor.chosen_rows(rows, "text")]
    assert chosen == ["p0", "p2", "p4", "p6", "p9", "p11", "p13", "p15"]
    assert [r.prompt_id for r in hardware_floor.chosen_rows(rows[18:], "text")] == ["p18", "p19"]
