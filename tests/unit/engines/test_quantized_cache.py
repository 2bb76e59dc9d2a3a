"""Scores of transformers through a quantized cache are those of a model that is served with it."""

import importlib.util

import pytest
import torch
import zoo
from tiny_qwen import random_model

from quantharm.common.errors import UserError
from quantharm.config.engines import STEP
from quantharm.engines.quantized_cache import cache_maker, serve_from_cache, states_through_cache
from quantharm.scoring.forward import last_hidden_states
from quantharm.speed.decoding import continue_greedily

needs_quanto = pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.quanto") is None,
    reason="the package optimum-quanto is missing; `make test` installs it from envs/quanto.txt",
)
GIVEN = 24
IDS = torch.randint(5, 8000, (GIVEN + 70,), generator=torch.Generator().manual_seed(2)).tolist()
FP8 = {"backend": "fp8"}
QUANTO = {"backend": "quanto", "bits": 4, "group_size": 32, "residual_tokens": 32}
BACKENDS = [pytest.param(FP8, id="fp8"), pytest.param(QUANTO, id="quanto", marks=needs_quanto)]


@pytest.fixture(scope="module")
def model():
    return random_model()


def one_at_a_time(model, ids: list[int], given: int, cache) -> torch.Tensor:
    """Final hidden states [T, width] of a prompt and then of token after token, as serving makes them."""
    parts = [ids[:given], *([token] for token in ids[given:])]
    run = (model.base_model(input_ids=torch.tensor([p]), past_key_values=cache, use_cache=True) for p in parts)
    return torch.cat([output.last_hidden_state[0] for output in run])


@pytest.mark.parametrize("settings", BACKENDS)
def test_steps_give_what_one_token_at_a_time_gives(model, settings):
    make = cache_maker(model.config, settings)
    served = one_at_a_time(model, IDS, GIVEN, make())
    scored = states_through_cache(model, IDS, GIVEN, make())
    assert torch.allclose(scored, served, atol=1e-4)


@pytest.mark.parametrize("settings", BACKENDS)
def test_one_pass_would_show_nothing_and_steps_do(model, settings):
    make = cache_maker(model.config, settings)
    exact = last_hidden_states(model, IDS)
    assert torch.allclose(states_through_cache(model, IDS, len(IDS), make()), exact, atol=1e-4)
    through = states_through_cache(model, IDS, GIVEN, make())
    assert torch.allclose(through[:GIVEN], exact[:GIVEN], atol=1e-4)
    assert (through[GIVEN + 2 * STEP :] - exact[GIVEN + 2 * STEP :]).abs().max() > 1e-3


def test_a_cell_is_scored_and_answers_through_its_cache():
    plain, cached = random_model(), random_model()
    serve_from_cache(cached, FP8)
    expected = states_through_cache(plain, IDS, GIVEN, cache_maker(plain.config, FP8)())
    assert torch.equal(last_hidden_states(cached, IDS, GIVEN), expected)
    answer = continue_greedily(cached, IDS[:GIVEN], 40, set(), None).token_ids
    states = states_through_cache(plain, IDS[:GIVEN] + answer, GIVEN, cache_maker(plain.config, FP8)())
    assert plain.lm_head(states[GIVEN - 1 : -1]).argmax(-1).tolist() == answer


def test_a_model_without_full_attention_everywhere_is_refused(model):
    config = type(model.config)(**model.config.to_dict() | {"layer_types": ["full_attention", "sliding_attention"]})
    with pytest.raises(UserError, match="cannot be used"):
        cache_maker(config, FP8)


@needs_quanto
def test_groups_that_a_token_does_not_fill_are_refused_before_the_first_prompt():
    """Prompts of some lengths would be whole groups by chance, and the stage end in a traceback at another."""
    with pytest.raises(UserError, match=r"must be a divisor of \(32\)\); set `group_size:` to a divisor"):
        serve_from_cache(random_model(), QUANTO | {"group_size": 64})


@pytest.mark.parametrize("name", ["RWKV", "xLSTM"])
def test_a_model_without_keys_and_values_is_refused(name, monkeypatch):
    """RWKV takes any argument, so that its steps would each begin anew, and its scores say nothing of a cache."""
    monkeypatch.setitem(zoo.ZOO, "xLSTM", zoo.Animal("xLSTMConfig", {"num_heads": 2, "num_blocks": 2}))
    with pytest.raises(UserError, match="keeps recurrent states instead of keys and values"):
        serve_from_cache(zoo.build(name), FP8)
