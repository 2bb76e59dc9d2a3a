"""Perplexity against a bare transformers loop and against autoawq's own evaluation."""

import importlib
import math
import re
import sys
import types

import pytest
import torch
import transformers

from quantharm.common.text import token_windows
from quantharm.perplexity import score_windows


def perplexity_of(losses: torch.Tensor) -> float:
    return math.exp(losses.double().mean())


def bare_loop(model, windows) -> float:
    """As a user would write it: the model's own loss with labels."""
    losses = [float(model(input_ids=w, labels=w).loss) for w in (torch.tensor([ids]) for ids in windows)]
    return math.exp(sum(losses) / len(losses))


@pytest.fixture(scope="module")
def windows(reference_tokenizer, evaluation_text):
    return token_windows(reference_tokenizer, evaluation_text, 256)[:4]


def test_perplexity_of_the_reference_model_equals_a_bare_loop(reference_model, windows):
    ours = perplexity_of(score_windows(reference_model, windows, progress=False))
    assert ours == pytest.approx(bare_loop(reference_model, windows), rel=1e-4)
    assert 5 < ours < 200  # a trained model, on text it has not seen


@pytest.mark.parametrize("kind", ["llama_tied", "qwen2", "gpt2", "gemma2", "granite"])
def test_perplexity_of_each_architecture_equals_a_bare_loop(tiny, kind):
    model = tiny(kind)
    generator = torch.Generator().manual_seed(1)
    windows = torch.randint(0, 384, (3, 100), generator=generator).tolist()
    assert perplexity_of(score_windows(model, windows, False)) == pytest.approx(bare_loop(model, windows), rel=1e-4)


def test_each_window_is_scored_on_all_tokens_but_its_first(reference_model, windows):
    losses = score_windows(reference_model, windows, progress=False)
    assert losses.shape == (4, 255)
    assert losses.dtype == torch.float32
    logits = reference_model(torch.tensor([windows[2]])).logits[0].double()
    by_hand = -logits.log_softmax(-1)[100, windows[2][101]]
    assert losses[2, 100].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_windows_do_not_see_each_other(reference_model, windows):
    alone = score_windows(reference_model, windows[1:2], progress=False)
    together = score_windows(reference_model, windows[:2], progress=False)
    torch.testing.assert_close(together[1], alone[0], rtol=1e-6, atol=1e-6)


@pytest.fixture
def autoawq_evaluation(monkeypatch, evaluation_text):
    """autoawq's module, offline: the packages that it imports for other tasks are empty, the data set is our text."""
    for name in ("lm_eval", "lm_eval.tasks", "evaluate"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lm_eval"].evaluator = None
    sys.modules["lm_eval.tasks"].initialize_tasks = None
    sys.modules["evaluate"].load = None
    for name in [m for m in sys.modules if m.startswith("awq.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("awq.evaluation.eval_utils")
    rows = evaluation_text[:14_000].split("\n\n")
    monkeypatch.setattr(module, "load_dataset", lambda *_, **__: {"text": rows})
    return module, "\n\n".join(rows)


@pytest.mark.slow
def test_perplexity_equals_autoawqs_own(autoawq_evaluation, byte_tokenizer, tiny):
    module, text = autoawq_evaluation
    tokenizer, model = byte_tokenizer(bos=True), tiny("llama", max_position_embeddings=2048)
    windows = token_windows(tokenizer, text, 2048)
    assert len(windows) >= 5
    theirs = module.evaluate_perplexity(model, tokenizer)
    ours = perplexity_of(score_windows(model, windows, progress=False))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_reference_model_loads_as_its_card_says(root):
    """Offline, by the plain call that any user would make."""
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "data" / "reference-model")
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == pytest.approx(10e6, rel=0.1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "data" / "reference-model")
    assert len(tokenizer) <= model.config.vocab_size


@pytest.mark.slow
def test_reference_model_has_the_perplexity_that_its_card_states(
    root, baseline_cell, reference_tokenizer, evaluation_text
):
    card = root / "data" / "reference-model" / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    stated = re.search(r"perplexity on data/evaluation\.txt: ([\d.]+)", text)
    if stated is None:
        pytest.skip("data/reference-model/README.md states no `perplexity on data/evaluation.txt: …` yet")
    windows = token_windows(reference_tokenizer, evaluation_text, 1024)
    measured = perplexity_of(score_windows(baseline_cell.model, windows, progress=False))
    assert measured == pytest.approx(float(stated[1].rstrip(".")), rel=0.005)
