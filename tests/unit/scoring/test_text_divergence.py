"""Divergence on the text: by hand, against whole models in float64, and by numpy on what was scored."""

import copy
import math

import numpy
import pandas
import pytest
import scipy.special
import scipy.stats
import torch

from quantharm.common.constants import HEAD_FILE
from quantharm.common.errors import UserError
from quantharm.logits import make_trace
from quantharm.perplexity import score_against_store, score_windows
from quantharm.scoring.head_file import write_head
from quantharm.scoring.store_filling import form_of_store, head_to_keep, write_store
from quantharm.scoring.text_divergence import CONFIDENCE_EDGES, NOT_COMPARED, TextDivergence, position_edges

WINDOWS = torch.randint(2, 380, (5, 41), generator=torch.Generator().manual_seed(0)).tolist()
NO_ANSWERS = pandas.DataFrame({"prompt_id": [], "category": [], "token_ids": [], "prompt_token_ids": []})


def measures(kl, **others) -> dict[str, numpy.ndarray]:
    kl = numpy.asarray(kl, dtype=float)
    names = ("reverse_kl_nats", "js_nats", "delta_p", "delta_nll_nats", "top1_agrees", "baseline_top1_p")
    return {"kl_nats": kl} | {name: numpy.zeros(len(kl)) for name in names} | {
        name: numpy.asarray(values, dtype=float) for name, values in others.items()
    }  # fmt: skip


def test_figures_by_hand():
    text = TextDivergence(2, 3)
    text.add(
        0,
        numpy.array([1, 2]),
        measures([1.0, 2.0], delta_p=[0.1, -0.3], top1_agrees=[1, 0], baseline_top1_p=[0.95, 0.05]),
    )
    text.add(0, numpy.array([3]), measures([3.0], delta_nll_nats=[0.6], top1_agrees=[1], baseline_top1_p=[1.0]))
    text.add(
        1,
        numpy.array([1, 2, 3]),
        measures([5.0, 5.0, 8.0], delta_nll_nats=[0.0, -0.3, 0.3], baseline_top1_p=[0.9, 0.09, 0.1]),
    )
    record = text.figures()
    assert list(record) == list(NOT_COMPARED)
    assert record["kl_nats"]["mean"] == 4.0
    assert record["kl_nats"]["ci95"] is None  # two windows
    assert (record["kl_nats"]["median"], record["kl_nats"]["max"]) == (4.0, 8.0)
    assert record["top1_agreement"] == pytest.approx(2 / 6)
    assert record["delta_p"]["mean"] == pytest.approx(-0.2 / 6)
    assert record["delta_p"]["rms"] == pytest.approx(math.sqrt((0.01 + 0.09) / 6))
    assert record["text"]["log_perplexity_ratio"] == pytest.approx(0.6 / 6)
    assert record["text"]["squared_delta_nll_mean"] == pytest.approx((0.36 + 0.09 + 0.09) / 6)
    rows = text.rows()
    assert rows["kl_nats_mean"].tolist() == [2.0, 6.0]
    assert rows["kl_nats_max"].tolist() == [3.0, 8.0]
    assert rows["top1_agreement"].tolist() == pytest.approx([2 / 3, 0.0])
    by_position = [(b["low"], b["high"], b["positions"], b["kl_nats_mean"]) for b in record["kl_by_position"]]
    assert by_position == [(1, 2, 2, 3.0), (2, 4, 4, 4.5)]
    by_confidence = {round(b["low"], 1): (b["positions"], b["kl_nats_mean"]) for b in record["kl_by_baseline_top1_p"]}
    assert by_confidence == {0.0: (2, 3.5), 0.1: (1, 8.0), 0.9: (3, 3.0)}


@pytest.mark.parametrize(
    ("targets", "edges"), [(1, [1, 2]), (3, [1, 2, 4]), (4, [1, 2, 4, 5]), (2047, [2**k for k in range(12)])]
)
def test_positions_are_binned_by_powers_of_two(targets, edges):
    assert position_edges(targets).tolist() == edges


def test_whole_figures_equal_numpy_and_scipy_on_the_same_values():
    generator = numpy.random.default_rng(0)
    shape = (9, 300)
    kl, p1 = generator.exponential(0.02, shape), generator.random(shape)
    delta_p, delta_nll, top1 = (
        generator.normal(0, 0.02, shape),
        generator.normal(0.01, 0.1, shape),
        generator.random(shape) < 0.9,
    )
    text = TextDivergence(*shape)
    for w in range(9):
        for part in numpy.array_split(numpy.arange(300), 4):
            others = {"delta_p": delta_p, "delta_nll_nats": delta_nll, "top1_agrees": top1, "baseline_top1_p": p1}
            text.add(w, part + 1, measures(kl[w, part], **{name: values[w, part] for name, values in others.items()}))
    record = text.figures()
    for name, q in {"median": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "max": 1.0}.items():
        assert record["kl_nats"][name] == pytest.approx(numpy.quantile(kl, q), rel=1e-6)
        assert name == "p90" or record["delta_p"][name] == pytest.approx(numpy.quantile(delta_p, q), rel=1e-6, abs=1e-9)
    means = kl.mean(1)
    assert record["kl_nats"]["mean"] == pytest.approx(means.mean())
    low, high = record["kl_nats"]["ci95"]
    t = scipy.stats.t.interval(0.95, 8, means.mean(), scipy.stats.sem(means))
    assert (low, high) == (pytest.approx(t[0], rel=0.05), pytest.approx(t[1], rel=0.05))
    ratio = scipy.stats.t.interval(0.95, 8, delta_nll.mean(), scipy.stats.sem(delta_nll.mean(1)))
    assert record["text"]["log_perplexity_ratio_ci95"] == pytest.approx(ratio, rel=1e-6)
    assert record["text"]["log_perplexity_ratio_standard_error"] == pytest.approx(
        max(scipy.stats.sem(delta_nll.mean(1)), scipy.stats.sem(delta_nll.ravel())), rel=1e-9
    )
    squares = delta_nll**2
    assert record["text"]["squared_delta_nll_standard_error"] == pytest.approx(
        max(scipy.stats.sem(squares.mean(1)), scipy.stats.sem(squares.ravel())), rel=1e-9
    )
    for k, one in enumerate(record["kl_by_baseline_top1_p"]):
        inside = (p1 >= CONFIDENCE_EDGES[k]) & (p1 < CONFIDENCE_EDGES[k + 1])
        assert one["positions"] == inside.sum()
        assert one["kl_nats_mean"] == pytest.approx(kl[inside].mean())
        assert one["ci95"][0] < one["kl_nats_mean"] < one["ci95"][1]
    assert sum(b["positions"] for b in record["kl_by_position"]) == kl.size


def test_windows_that_differ_make_the_standard_error_larger_than_of_single_tokens():
    text = TextDivergence(4, 50)
    shifts = numpy.array([0.0, 0.2, 0.4, 0.6])
    for w, shift in enumerate(shifts):
        text.add(w, numpy.arange(1, 51), measures(numpy.ones(50), delta_nll_nats=numpy.full(50, shift)))
    assert text.figures()["text"]["log_perplexity_ratio_standard_error"] == pytest.approx(scipy.stats.sem(shifts))


def test_values_that_cannot_be_are_refused():
    for value, words in (
        (math.nan, "1 of 6 tokens have a NaN or infinite divergence"),
        (-2e-6, "below zero by more than"),
    ):
        text = TextDivergence(2, 3)
        text.add(1, numpy.array([1, 2, 3]), measures([0.1, value, 0.1]))
        with pytest.raises(UserError, match=words):
            text.check("m × nf4")
    text.add(1, numpy.array([2]), measures([-1e-7]))
    text.check("m × nf4")


# ---------------------------------------------------------------- with models


@pytest.fixture(scope="module")
def pair(tiny):
    """A model, and it with noise like a quantizer's."""
    model = tiny("llama")
    noisy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in noisy.named_parameters():
        if "proj" in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std() * 0.3)
    return model, noisy


@pytest.fixture(scope="module", params=["hidden_states", "log_probabilities"])
def store(request, pair, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "logits.parquet"
    head, reason = head_to_keep(pair[0], request.param, "float32")
    trace = make_trace(NO_ANSWERS, WINDOWS)
    write_store(pair[0], trace, path, {"model": "m"} | form_of_store(pair[0], head, reason))
    write_head(path.with_name(HEAD_FILE), head, reason)
    return path, request.param == "hidden_states"


def test_one_pass_gives_perplexity_and_divergence_as_two_whole_models_do(pair, store):
    path, is_exact = store
    losses, divergence = score_against_store(pair[1], WINDOWS, path, progress=False)
    torch.testing.assert_close(losses, score_windows(pair[1], WINDOWS, progress=False), rtol=1e-6, atol=1e-6)
    p, q = (
        torch.stack([model(torch.tensor([ids])).logits[0, :-1] for ids in WINDOWS]).double().numpy() for model in pair
    )
    p, q = (scipy.special.softmax(x, axis=-1) for x in (p, q))
    kl = scipy.special.rel_entr(p, q).sum(-1)
    assert 1e-3 < kl.mean() < 2
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if is_exact else {"rtol": 2e-3, "atol": 1e-4}
    numpy.testing.assert_allclose(divergence.kl, kl, **tolerance)
    targets = numpy.array(WINDOWS)[:, 1:, None]
    delta_p = (numpy.take_along_axis(q, targets, -1) - numpy.take_along_axis(p, targets, -1))[..., 0]
    numpy.testing.assert_allclose(divergence.delta_p, delta_p, **tolerance)
    record = divergence.figures()
    assert record["top1_agreement"] == (p.argmax(-1) == q.argmax(-1)).mean()
    ln = numpy.log(numpy.take_along_axis(p, targets, -1)) - numpy.log(numpy.take_along_axis(q, targets, -1))
    assert record["text"]["log_perplexity_ratio"] == pytest.approx(ln.mean(), abs=1e-5 if is_exact else 1e-3)
    confidence = numpy.digitize(p.max(-1), CONFIDENCE_EDGES) - 1
    counts = {round(b["low"], 1): b["positions"] for b in record["kl_by_baseline_top1_p"]}
    if is_exact:
        assert counts == {round(k / 10, 1): int((confidence == k).sum()) for k in numpy.unique(confidence)}


def test_a_model_does_not_diverge_from_itself(pair, store):
    path, is_exact = store
    _, divergence = score_against_store(pair[0], WINDOWS, path, progress=False)
    assert divergence.kl.max() == 0 if is_exact else divergence.kl.max() < 2e-6
    if is_exact:
        record = divergence.figures()
        assert record["kl_nats"] == dict.fromkeys(record["kl_nats"], 0.0) | {"ci95": [0.0, 0.0]}
        assert record["top1_agreement"] == 1.0
        assert record["delta_p"]["rms"] == 0


def test_memory_does_not_grow_with_the_vocabulary_and_eight_bytes_with_a_position():
    small, large = (TextDivergence(windows, 100) for windows in (10, 1010))

    def held(text: TextDivergence) -> int:
        arrays = [text.kl, text.delta_p, *text.sums.values(), *text.bin_sums.values(), *text.bin_counts.values()]
        return sum(a.nbytes for a in arrays)

    assert held(large) - held(small) < 1000 * 100 * 12
