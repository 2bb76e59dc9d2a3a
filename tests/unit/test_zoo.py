"""Every architecture of the zoo goes through the stages, or is refused in one sentence before anything is evaluated."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import zoo

from quantharm.common.errors import UserError
from quantharm.common.text import context_length
from quantharm.models.language_models import refuse_unless_causal, shape_of
from quantharm.scoring.forward import last_hidden_states, output_head
from quantharm.speed import fixed_cache, static_decoder
from quantharm.speed.benchmark import cache_bytes
from quantharm.speed.decoding import decode_one_token, prefill
from quantharm.speed.trial import try_model

CAUSAL = [name for name in zoo.ZOO if name not in zoo.NOT_CAUSAL]
EVALUATED = ("quantize", "generation", "logits", "perplexity", "divergence")
IDS = [7, 100, 33, 250, 18, 90, 41, 12]


@pytest.mark.parametrize("name", CAUSAL)
def test_architectures(name, tmp_path, monkeypatch, byte_tokenizer):
    """Baseline and NF4 up to the checks, the other methods to the trial of what they made; `make zoo` runs all."""
    run = zoo.Run(name, tmp_path, byte_tokenizer(), monkeypatch)
    assert run.fetch(), run.outcomes
    assert run.cell("baseline", EVALUATED), run.outcomes
    run.cell("nf4", (*EVALUATED, "checks"))
    run.cell("int8", ("quantize",))
    run.cell("awq", ("quantize",))
    assert not [outcome for outcome in run.outcomes.values() if outcome.startswith("FAILED")], run.outcomes
    refused = {
        method: outcome.removeprefix(zoo.REFUSED)
        for (stage, method), outcome in run.outcomes.items()
        if outcome.startswith(zoo.REFUSED)
    }
    expected = zoo.ZOO[name].refused
    by_processor = {method for method, words in expected.items() if words == zoo.CPU_KERNEL}
    assert expected.keys() - by_processor <= refused.keys() <= expected.keys(), run.outcomes
    for method, sentence in refused.items():
        assert expected[method] in sentence
        assert [stage for stage, of in run.outcomes if of == method] == ["quantize"]  # nothing was evaluated
        assert not (run.chain / method / "quantization.json").exists()
        assert "\n" not in sentence
    assert run.failed_checks("nf4") == (set() if "nf4" in refused else set(zoo.ZOO[name].failed))


@pytest.mark.parametrize("name", ["Falcon", "OPT, projected", "BLOOM"])
def test_awq_checkpoints_are_whole(name, tmp_path, monkeypatch, byte_tokenizer):
    """Falcon's activation gets no scales, OPT has linear layers outside its decoder's, BLOOM no rotary positions."""
    run = zoo.Run(name, tmp_path, byte_tokenizer(), monkeypatch)
    assert run.fetch()
    assert run.cell("baseline", EVALUATED), run.outcomes
    assert run.cell("awq", ("quantize", "divergence")), run.outcomes
    assert 0.001 < run.chain.read("awq/divergence.json")["kl_nats"]["mean"] < 0.3


@pytest.mark.parametrize("name", zoo.NOT_CAUSAL)
def test_what_is_no_causal_language_model_is_not_fetched(name, tmp_path, monkeypatch, byte_tokenizer):
    run = zoo.Run(name, tmp_path, byte_tokenizer(), monkeypatch)
    assert not run.fetch()
    sentence = run.outcomes["fetch", zoo.ALL]
    assert sentence.startswith(zoo.REFUSED)
    assert zoo.ZOO[name].model.removeprefix("AutoModel")[:3] in sentence
    assert "only causal language models" in sentence
    assert not run.chain.source.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification",
        ),
        ({"model_type": "qwen2", "architectures": ["Qwen2Model"]}, "Qwen2Model"),
        ({"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}, "Whisper"),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "predicts no next token"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "no stated architecture"),
        ({"model_type": "frobnicator", "architectures": ["Frobnicator"]}, "does not know"),
        ({"architectures": ["LlamaForCausalLM"]}, "type None"),
    ],
)
def test_other_kinds_are_named(settings, words):
    with pytest.raises(UserError, match=words) as refused:
        refuse_unless_causal(settings, "folder", trust_remote_code=False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "llama"},
        {"model_type": "llama", "architectures": ["LLaMAForCausalLM"]},  # as early conversions wrote it
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
        {"model_type": "bart", "architectures": ["BartForCausalLM"], "is_encoder_decoder": False},
    ],
)
def test_causal_language_models_are_taken(settings):
    refuse_unless_causal(settings, "folder", trust_remote_code=False)


def test_own_code_that_is_trusted_is_not_judged_by_its_name():
    settings = {"model_type": "own", "architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    refuse_unless_causal(settings, "folder", trust_remote_code=True)
    with pytest.raises(UserError, match="own"):
        refuse_unless_causal(settings, "folder", trust_remote_code=False)


def test_an_encoder_is_found_out_by_what_it_computes():
    """Its configuration may say nothing: BERT's head for next tokens sees all of them, unless `is_decoder` is set."""
    model = transformers.AutoModelForCausalLM.from_config(zoo.configuration("BERT")).eval()
    with pytest.raises(UserError, match="no cache"):
        try_model(model, [])


def test_a_model_that_sees_later_tokens_is_no_causal_one(tiny):
    model = tiny("llama")
    model.model.layers[0].self_attn.is_causal = False
    model.config._attn_implementation = "eager"
    model.model.config._attn_implementation = "eager"
    softmax = model.model.layers[0].self_attn.forward
    model.model.layers[0].self_attn.forward = lambda *a, **k: softmax(*a, **(k | {"attention_mask": None}))
    with pytest.raises(UserError, match="those after it"):
        try_model(model, [])


@pytest.mark.parametrize("name", ["OPT, projected", "Mamba", "Gemma 3 multimodal", "RWKV", "GPT-NeoX"])
def test_logits_are_the_models_own(name):
    model = zoo.build(name)
    own = model(input_ids=torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(output_head(model)(last_hidden_states(model, IDS)), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "Mamba", "Mamba 2", "LFM2", "Qwen3-Next", "Falcon-H1", "RWKV"])
def test_decoding_token_by_token_gives_the_logits_of_one_pass(name):
    """Whatever a model keeps between tokens: keys and values, windows of them, recurrent states."""
    model = zoo.build(name)
    _, cache = prefill(model, torch.tensor([IDS[:5]]))
    for token in IDS[5:]:
        logits, cache = decode_one_token(model, torch.tensor([[token]]), cache)
    own = model(input_ids=torch.tensor([IDS])).logits[:, -1]
    torch.testing.assert_close(logits, own, rtol=1e-3, atol=1e-3)


def test_bytes_of_recurrent_states_by_hand():
    """Mamba: in each layer a state of 8 and the last 4 inputs of a convolution for each of 128 channels, float32."""
    model = zoo.build("Mamba")
    _, cache = prefill(model, torch.tensor([IDS]))
    assert cache_bytes(cache) == (0, 2 * 128 * (8 + 4) * 4)


def test_bytes_of_a_hybrids_cache_by_hand():
    """LFM2: one layer of keys and values (2 heads of 16), one convolution over the last 3 of 64 channels."""
    model = zoo.build("LFM2")
    _, cache = prefill(model, torch.tensor([IDS]))
    assert cache_bytes(cache) == (len(IDS) * 2 * 2 * 16 * 4, 64 * 3 * 4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Llama", None),
        ("Gemma 3", None),
        ("Gemma 3 multimodal", None),
        ("Mamba", "recurrent"),
        ("RWKV", "recurrent"),
        ("LFM2", "LinearAttentionLayer"),
        ("Qwen3-Next", "LinearAttentionLayer"),
        ("Falcon-H1", "LinearAttention"),
    ],
)
def test_what_a_graph_cannot_hold_has_a_reason(name, reason):
    why = fixed_cache.why_no_fixed_cache(zoo.build(name))
    assert why is None if reason is None else reason in why
    if reason is None:
        assert len(static_decoder.StaticDecoder(zoo.build(name), 16).cache.layers) == 2


@pytest.mark.parametrize(
    ("name", "context"), [("GPT-2", 256), ("Gemma 3 multimodal", 256), ("Mamba", None), ("RWKV", 256)]
)
def test_context_and_shape_of_a_record(name, context, tmp_path):
    """Whatever the configuration calls them: GPT-2 says n_embd, a multimodal one keeps them in text_config."""
    configuration = zoo.configuration(name)
    assert context_length(configuration) == context
    configuration.save_pretrained(tmp_path)
    assert shape_of(tmp_path, False) == {"hidden_size": 64, "layers": 2, "vocabulary": 384, "context": context}


def test_a_library_that_cannot_compute_what_it_made_is_told_with_the_layer(tiny):
    model = tiny("llama")

    def broken(*_):
        raise AssertionError("N must be divisible by block_n")

    model.model.layers[1].mlp.up_proj.forward = broken
    matrix = SimpleNamespace(name="model.layers.1.mlp.up_proj", rows=128, columns=64)
    with pytest.raises(UserError, match=r"divisible by block_n .*model\.layers\.1\.mlp\.up_proj, 128 × 64"):
        try_model(model, [matrix])


def test_a_layer_that_fails_only_when_decoding_is_told_as_well(tiny):
    """Libraries have other kernels for a single token than for many."""
    model = tiny("llama")
    layer = model.model.layers[1].mlp.up_proj
    many = layer.forward

    def not_one(x):
        if x.shape[-2] == 1:
            raise RuntimeError("no kernel for one row")
        return many(x)

    layer.forward = not_one
    matrix = SimpleNamespace(name="model.layers.1.mlp.up_proj", rows=128, columns=64)
    for matrices in ([], [matrix]):
        with pytest.raises(UserError, match="no kernel for one row"):
            try_model(model, matrices)


def test_the_page_says_each_refusal_once():
    words = {
        "A": [zoo.RAN, f"fetch: {zoo.REFUSED}no"],
        "B": [f"fetch: {zoo.REFUSED}no", f"quantize: {zoo.REFUSED}never"],
    }
    lines = zoo.table(words, ["baseline", "nf4"]).splitlines()
    assert lines[2:4] == ["| A | ran | refused [1] |", "| B | refused [1] | refused [2] |"]
    assert lines[-2:] == ["1. fetch: no", "2. quantize: never"]


def test_make_zoo_finds_its_modules():
    root = Path(__file__).parents[2]
    path = re.search(r"PYTHONPATH=(\S+) .* tests/unit/zoo.py", (root / "Makefile").read_text(encoding="utf-8"))[1]
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "tests/unit/zoo.py", "--help"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
