"""Divergences by hand on three tokens, against scipy and torch, and through a store against two models at once."""

import copy
import dataclasses
import math
import shutil
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import scipy.special
import scipy.stats
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from quantharm.common.constants import HEAD_FILE, TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.common.text import token_windows
from quantharm.logits import make_trace
from quantharm.perplexity import score_against_store
from quantharm.scoring import head_file, kl_divergence, paired_logits, store_filling
from quantharm.scoring.divergence_figures import check_values, summarise
from quantharm.scoring.forward import last_hidden_states, output_head
from quantharm.scoring.head_file import write_head
from quantharm.scoring.output_heads import OutputHead, plain_head
from quantharm.scoring.paired_logits import Piece, ahead_until, baseline_head, first_targets_of, pieces_of, sequences_of
from quantharm.scoring.shared_tokens import require_tokens
from quantharm.scoring.store_filling import form_of_store, head_to_keep, target_logits, write_store
from quantharm.scoring.store_writer import StoreWriter
from quantharm.scoring.stored_logits import read_store
from quantharm.scoring.worst_positions import WorstPositions

MEASURES = ["kl_nats", "reverse_kl_nats", "js_nats", "delta_p", "delta_nll_nats", "top1_agrees", "baseline_top1_p"]
MEASURES += ["nll_nats"]


def divergences(stored: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """The measures, with the baseline's first choice read off what is stored; float64 logits give all of float64."""
    return kl_divergence.divergences(stored, logits, targets, stored.argmax(-1))


def of(p, q, target=0) -> dict[str, float]:
    """The measures of one position with probabilities p and q, the baseline's in float64."""
    ln_p, ln_q = (torch.tensor([x], dtype=torch.float64).log() for x in (p, q))
    return {key: value.item() for key, value in divergences(ln_p, ln_q, torch.tensor([target])).items()}


def random_logits(seed: int, positions: int, vocabulary: int, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, vocabulary, generator=generator) * scale


def test_all_measures_by_hand_on_three_tokens():
    p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    m = of(p, q, target=1)
    assert m["kl_nats"] == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-12)
    assert m["reverse_kl_nats"] == pytest.approx(0.25 * math.log(2), rel=1e-12)
    # The middle is (3/8, 3/8, 1/4).
    js = 0.5 * (0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)) * 2
    assert m["js_nats"] == pytest.approx(js, rel=1e-12)
    assert m["delta_p"] == pytest.approx(0.25, rel=1e-12)  # the target gained a quarter
    assert m["delta_nll_nats"] == pytest.approx(-math.log(2), rel=1e-12)  # and costs ln 2 less
    assert m["top1_agrees"] is False
    assert m["baseline_top1_p"] == pytest.approx(0.5, rel=1e-12)


def test_kl_is_directed_from_baseline_to_method():
    p, q = [0.9, 0.05, 0.03, 0.02], [0.4, 0.3, 0.2, 0.1]
    forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    backward = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert abs(forward - backward) > 0.1
    assert of(p, q)["kl_nats"] == pytest.approx(forward, rel=1e-12)
    assert of(p, q)["reverse_kl_nats"] == pytest.approx(backward, rel=1e-12)


def test_kl_is_zero_for_equal_distributions():
    m = of([0.7, 0.2, 0.1], [0.7, 0.2, 0.1])
    assert m["top1_agrees"] is True
    for key in ("kl_nats", "reverse_kl_nats", "js_nats", "delta_p", "delta_nll_nats"):
        assert abs(m[key]) < 1e-15, key


def test_a_constant_added_to_all_logits_changes_nothing():
    logits = random_logits(0, 5, 50, 3.0)
    targets = torch.arange(5)
    ours = divergences(logits.double() + 7, logits.double() - 11, targets)
    assert ours["kl_nats"].abs().max() < 1e-13


@pytest.mark.parametrize("vocabulary", [7, 384, 32_000])
@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_measures_equal_scipy_and_torch(vocabulary, scale, dtype, tolerance):
    a, b = random_logits(1, 6, vocabulary, scale), random_logits(2, 6, vocabulary, scale)
    targets = torch.arange(6)
    ours = divergences(a.to(dtype), b.to(dtype), targets)
    p, q = (scipy.special.softmax(x.double().numpy(), axis=1) for x in (a, b))
    expected = {
        "kl_nats": scipy.special.rel_entr(p, q).sum(1),
        "reverse_kl_nats": scipy.special.rel_entr(q, p).sum(1),
        "js_nats": scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2,
        "delta_p": (q - p)[range(6), range(6)],
        "delta_nll_nats": numpy.log(p / q)[range(6), range(6)],
        "top1_agrees": p.argmax(1) == q.argmax(1),
        "baseline_top1_p": p.max(1),
        "nll_nats": -numpy.log(q)[range(6), range(6)],
    }
    assert set(ours) == set(MEASURES)
    for key in MEASURES:
        numpy.testing.assert_allclose(ours[key].numpy(), expected[key], rtol=tolerance, atol=1e-13, err_msg=key)
    by_torch = torch.nn.functional.kl_div(
        b.double().log_softmax(-1), a.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(ours["kl_nats"], by_torch, rtol=tolerance, atol=1e-13)


def test_jensen_shannon_is_at_most_ln_2_and_reaches_it():
    a = torch.full((1, 10), -60.0)
    b = a.clone()
    a[0, 2], b[0, 7] = 0.0, 0.0
    apart = divergences(a, b, torch.tensor([2]))["js_nats"].item()
    assert apart == pytest.approx(math.log(2), abs=1e-7)
    assert apart <= math.log(2) + 1e-7
    some = divergences(random_logits(3, 64, 100, 9.0), random_logits(4, 64, 100, 9.0), torch.zeros(64, dtype=int))
    assert (some["js_nats"] <= math.log(2) + 1e-7).all()
    assert (some["js_nats"] > 0).all()


@pytest.mark.parametrize("peak", [18.0, 24.0, 60.0])
@pytest.mark.parametrize("vocabulary", [384, 151_936])
def test_float16_store_has_an_error_floor_below_a_millionth_of_a_nat(peak, vocabulary):
    logits = random_logits(5, 16, vocabulary, 2.0)
    logits[:, 3] += peak
    stored = logits.log_softmax(-1).half()
    floor = divergences(stored, logits, torch.full((16,), 3))["kl_nats"]
    assert floor.max() < 1e-6
    assert floor.min() > -1e-9


def test_error_floor_of_a_flat_distribution_is_what_rounding_predicts():
    # Log-probabilities between -16 and -8 are 2⁻⁷ apart: an error of variance 2⁻¹⁴ / 12 costs half of it as KL.
    logits = random_logits(5, 16, 151_936, 2.0)
    floor = divergences(logits.log_softmax(-1).half(), logits, torch.zeros(16, dtype=int))["kl_nats"]
    assert 0 < floor.mean() < 2**-14 / 24


def test_without_renormalising_the_floor_would_be_a_thousand_times_higher():
    logits = random_logits(6, 16, 32_000, 3.0)
    stored = logits.log_softmax(-1).half().double()
    naive = (stored.exp() * (stored - logits.double().log_softmax(-1))).sum(-1).abs().mean()
    assert naive > 1e-5  # what the renormalisation is for


def test_padded_vocabulary_entries_that_neither_model_uses_do_not_matter():
    a, b = random_logits(7, 4, 300, 2.0), random_logits(8, 4, 300, 2.0)
    pad = torch.full((4, 84), -1e4)
    targets = torch.tensor([1, 2, 3, 4])
    plain = divergences(a.log_softmax(-1).half(), b, targets)
    padded = divergences(torch.cat([a, pad], 1).log_softmax(-1).half(), torch.cat([b, pad], 1), targets)
    for key in MEASURES:
        torch.testing.assert_close(padded[key], plain[key], rtol=1e-12, atol=1e-15)


def rows(**columns) -> pandas.DataFrame:
    count = len(next(iter(columns.values())))
    base = {
        "prompt_id": ["p"] * count,
        "category": ["c"] * count,
        "position": range(count),
        "kl_nats": 0.1,
        "reverse_kl_nats": 0.2,
        "js_nats": 0.05,
        "delta_p": 0.0,
        "delta_nll_nats": 0.0,
        "top1_agrees": True,
        "baseline_top1_p": 0.5,
    }
    return pandas.DataFrame(base | columns, index=range(count))


@pytest.mark.parametrize("column", ["kl_nats", "reverse_kl_nats", "js_nats"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(column, value):
    table = rows(**{column: [0.1, value]})
    with pytest.raises(UserError, match=r"m × nf4: 1 of 2 positions have a NaN or infinite divergence.* p at 1;"):
        check_values(table, "m × nf4")


def test_negative_kl_is_refused_and_rounding_is_not():
    with pytest.raises(UserError, match=r"below zero"):
        check_values(rows(kl_nats=[0.1, -2e-6]), "m × nf4")
    check_values(rows(kl_nats=[0.1, -1e-7]), "m × nf4")


def test_nan_logits_reach_check_values():
    logits = random_logits(9, 3, 20, 1.0)
    broken = logits.clone()
    broken[1, 4] = math.nan
    measures = divergences(logits, broken, torch.tensor([0, 1, 2]))
    assert measures["kl_nats"].isnan().tolist() == [False, True, False]


def test_summary_is_the_mean_of_category_means_of_prompt_means():
    table = rows(
        prompt_id=["a1", "a1", "a1", "a2", "b1"],
        category=["A", "A", "A", "A", "B"],
        kl_nats=[1.0, 2.0, 3.0, 4.0, 7.0],
        reverse_kl_nats=[2.0, 2.0, 2.0, 4.0, 1.0],
        js_nats=[0.1, 0.1, 0.1, 0.3, 0.4],
        top1_agrees=[True, False, False, True, False],
        delta_p=[0.3, -0.3, 0.0, 0.4, 0.0],
    )
    result = summarise(table)
    # prompts: 2, 4, 7; categories: 3 and 7; overall 5. The positions' own mean would be 3.4.
    assert result["kl_nats"]["mean"] == 5.0
    assert result["kl_nats"]["ci95"] is None  # B has one prompt
    assert result["reverse_kl_nats_mean"] == ((2 + 4) / 2 + 1) / 2
    assert result["js_nats_mean"] == pytest.approx(((0.1 + 0.3) / 2 + 0.4) / 2)
    assert result["top1_agreement"] == pytest.approx(((1 / 3 + 1) / 2 + 0) / 2)
    assert result["kl_nats"]["median"] == 3.0
    assert result["kl_nats"]["max"] == 7.0
    assert result["kl_nats"]["p90"] == pytest.approx(numpy.quantile([1, 2, 3, 4, 7], 0.9))
    assert result["kl_nats"]["p99_9"] == pytest.approx(numpy.quantile([1, 2, 3, 4, 7], 0.999))
    assert result["delta_p"]["mean"] == pytest.approx(0.4 / 5)
    assert result["delta_p"]["rms"] == pytest.approx(math.sqrt((0.09 + 0.09 + 0.16) / 5))
    assert result["positions"] == 5
    assert result["by_category"]["A"]["kl_nats_mean"] == 3.0
    assert result["by_category"]["A"]["prompts"] == 2
    assert result["by_category"]["A"]["positions"] == 4
    assert list(result["by_category"]) == ["A", "B"]
    assert result["text"] is None


def test_figures_of_the_text_stand_beside_the_categories_and_outside_their_mean():
    of_text = {"windows": 9, "positions": 90, "kl_nats_mean": 200.0, "top1_agreement": 0.25}
    perplexity = {"kl_nats": {"mean": 200.0, "ci95": [100.0, 300.0]}, "text": of_text}
    result = summarise(rows(kl_nats=[0.1, 0.2]), perplexity)
    assert result["kl_nats"]["mean"] == pytest.approx(0.15)
    assert result["positions"] == 2
    assert result["text"] == of_text
    assert result["by_category"]["text"] == {
        "kl_nats_mean": 200.0,
        "ci95": [100.0, 300.0],
        "top1_agreement": 0.25,
        "prompts": 9,
        "positions": 90,
    }


def test_summary_without_text_windows():
    assert summarise(rows(kl_nats=[0.1, 0.2]), {"kl_nats": None, "text": None})["text"] is None


@pytest.fixture(scope="module")
def trace(reference_tokenizer, evaluation_text):
    generation = pandas.DataFrame(
        {
            "prompt_id": ["x-01", "x-02", "x-03"],
            "category": ["X", "X", "Y"],
            "prompt_token_ids": [reference_tokenizer(t)["input_ids"] for t in ("Count to", "The sea is", "Once upon")],
            "token_ids": [[300, 301, 302, 303, 304], list(range(77, 377)), []],  # the second is scored in two slices
        }
    )
    windows = token_windows(reference_tokenizer, evaluation_text, 300)[:2]
    return make_trace(generation, windows)


def write_reference_store(path, model, trace):
    head = output_head(model)
    with StoreWriter(path, model.config.vocab_size, {}) as store:
        for row in trace.itertuples():
            for positions, logits in target_logits(model, head, row.token_ids, row.first_target):
                targets = [row.token_ids[p] for p in positions]
                store.write(row.prompt_id, row.category, positions, targets, logits.log_softmax(-1))
    return path


def score_store(model, store, trace):
    return kl_divergence.score_store(model, store, trace, WorstPositions())


def direct(baseline, method, trace, function):
    """function(ln p, ln q) position by position from the logits of two whole models, float64, no store."""
    values = []
    for row in trace[trace.category != "text"].itertuples():
        ids = torch.tensor([row.token_ids])
        a, b = (
            model(ids).logits[0, row.first_target - 1 : -1].double().log_softmax(-1) for model in (baseline, method)
        )
        values += function(a, b).tolist()
    return numpy.array(values)


def kl(a, b):
    return (a.exp() * (a - b)).sum(-1)


def rounded(function):
    """With the baseline's log-probabilities as 2 bytes can hold them."""
    return lambda a, b: function(a.float().half().double().log_softmax(-1), b)


def assert_same_divergence(scored, exact, with_rounding):
    """The same at each position up to what 2 bytes an entry cost, which is less than a thousandth of the mean.

    Where two ways of adding up a logit differ in the last bit, an entry may round to the neighbouring 2-byte number.
    """
    numpy.testing.assert_allclose(scored, with_rounding, rtol=2e-3, atol=1e-4)
    assert numpy.median(abs(scored / with_rounding - 1)) < 1e-4
    numpy.testing.assert_allclose(scored, exact, rtol=0.02, atol=1e-4)
    assert scored.mean() == pytest.approx(exact.mean(), rel=1e-3)


@pytest.fixture(scope="module")
def store(tmp_path_factory, reference_model, trace):
    return write_reference_store(tmp_path_factory.mktemp("store") / "logits.parquet", reference_model, trace)


def test_trace_leaves_out_prompts_without_an_answer(trace):
    assert trace["prompt_id"].tolist() == ["x-01", "x-02", "text-01", "text-02"]
    assert trace["token_ids"][0][trace["first_target"][0] :] == [300, 301, 302, 303, 304]


def test_score_store_equals_kl_of_two_models_at_once(store, trace, reference_model):
    noisy = copy.deepcopy(reference_model)
    torch.manual_seed(0)
    for name, parameter in noisy.named_parameters():
        if "proj" in name:
            parameter.add_(torch.randn_like(parameter) * 0.05 * parameter.std())
    scored = score_store(noisy, store, trace)
    expected = direct(reference_model, noisy, trace, kl)
    assert 1e-3 < expected.mean() < 1.0  # a perturbation like a quantizer's
    assert len(scored) == 5 + 300  # the windows of the text are left to the perplexity
    assert_same_divergence(scored["kl_nats"], expected, direct(reference_model, noisy, trace, rounded(kl)))
    reverse = direct(reference_model, noisy, trace, rounded(lambda a, b: kl(b, a)))
    numpy.testing.assert_allclose(scored["reverse_kl_nats"], reverse, rtol=2e-3, atol=1e-4)


def test_score_store_of_nf4_equals_kl_of_two_models_at_once(store, trace, reference_model, nf4_cell):
    scored = score_store(nf4_cell.model, store, trace)
    head = output_head(nf4_cell.model)  # bfloat16 logits are too coarse to compare with: the float32 head

    class WithFloat32Head:
        def __call__(self, ids):
            hidden = nf4_cell.model.base_model(input_ids=ids).last_hidden_state[0]
            return type("Output", (), {"logits": head(hidden).unsqueeze(0)})

    both = reference_model, WithFloat32Head()
    assert_same_divergence(scored["kl_nats"], direct(*both, trace, kl), direct(*both, trace, rounded(kl)))
    assert 1e-3 < scored["kl_nats"].mean() < 0.5


def test_baseline_against_its_own_store_is_the_noise_floor(store, trace, reference_model):
    scored = score_store(reference_model, store, trace)
    assert scored["kl_nats"].abs().max() < 2e-6
    assert scored["top1_agrees"].mean() > 0.99
    assert list(scored.columns) == ["prompt_id", "category", "position", *MEASURES, "kl_lower_bound_nats"]


def test_positions_are_those_of_the_predicted_tokens(store, trace, reference_model):
    scored = score_store(reference_model, store, trace)
    first = trace["first_target"][0]
    assert scored[scored.prompt_id == "x-01"]["position"].tolist() == list(range(first, first + 5))
    first = trace["first_target"][1]
    assert scored[scored.prompt_id == "x-02"]["position"].tolist() == list(range(first, first + 300))


def test_positions_scored_together_give_what_each_row_group_gives_alone(store, trace, reference_model, monkeypatch):
    """As a GPU scores them; a CPU takes each row group alone."""
    alone, batches = score_store(reference_model, store, trace), kl_divergence.batches_of
    monkeypatch.setattr(kl_divergence, "batches_of", lambda pieces, _: batches(pieces, 256))
    pandas.testing.assert_frame_equal(score_store(reference_model, store, trace), alone)


@pytest.mark.parametrize("sizes", [[5, 2, 256, 43, 256, 43], [256], [1] * 600, [300]])
def test_batches_hold_all_pieces_in_order_and_no_more_positions_than_may_be(sizes):
    pieces = [Piece(None, slice(i, i + 1), None, torch.empty(n, 1)) for i, n in enumerate(sizes)]
    batches = list(kl_divergence.batches_of(iter(pieces), 256))
    assert [p.part.start for batch in batches for p in batch] == list(range(len(sizes)))
    counts = [sum(len(p.logits) for p in batch) for batch in batches]
    assert all(n <= 256 or len(batch) == 1 for n, batch in zip(counts, batches, strict=True))
    assert all(a + len(b[0].logits) > 256 for a, b in zip(counts, batches[1:], strict=False))  # none could take more


def test_a_store_of_other_tokens_is_refused(store, trace, reference_model):
    other = trace.copy()
    other["token_ids"] = [list(ids) for ids in trace["token_ids"]]
    other["token_ids"][1][-1] += 1
    with pytest.raises(UserError, match=r"other tokens than the trace in x-02"):
        score_store(reference_model, store, other)


def test_a_store_that_lacks_a_prompt_of_the_trace_is_refused(store, trace, reference_model):
    more = pandas.concat([trace, trace[:1].assign(prompt_id="x-09")])
    with pytest.raises(UserError, match=r"logits\.parquet lacks x-09; delete it"):
        score_store(reference_model, store, more)


def test_a_store_with_a_prompt_that_the_trace_lacks_is_refused(store, trace, reference_model):
    with pytest.raises(UserError, match=r"has x-01, which the trace lacks"):
        score_store(reference_model, store, trace[trace.prompt_id != "x-01"])


def rewritten(store, path, change):
    """The store as another program may write it: `change` takes its row groups and gives others."""
    file = pyarrow.parquet.ParquetFile(store)
    with pyarrow.parquet.ParquetWriter(path, file.schema_arrow, compression="none") as writer:
        for table in change([file.read_row_group(i) for i in range(file.num_row_groups)]):
            writer.write_table(table)
    return path


def without_entries(table, column: int):
    field = table.schema.field(column)
    return table.set_column(column, field, pyarrow.nulls(len(table), field.type))


EDITS = {
    "a prompt twice": (lambda groups: [groups[0], *groups], "position 4 of x-01 where 9 follows"),
    "a prompt at the end again": (lambda groups: [*groups, groups[0]], "position 4 of x-01 where 9 follows"),
    "without first rows": (lambda groups: [t.slice(2) for t in groups], "position 6 of x-01 where 4 follows"),
    "without last rows": (lambda groups: [groups[0].slice(0, 3), *groups[1:]], "lacks x-01 from position 7 on"),
    "without a row": (lambda groups: [t.take([0, 1, 3]) for t in groups], "not consecutive"),
    "without half a prompt": (lambda groups: [t for t in groups if t["position"][0].as_py() < 250], "lacks x-02 from"),
    "without positions": (lambda groups: [without_entries(t, 2) for t in groups], "a row lacks an entry"),
    "without figures": (lambda groups: [without_entries(t, 5) for t in groups], "a row lacks an entry"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_store_that_was_edited_gives_no_figure(edit, store, trace, reference_model, tmp_path):
    change, words = EDITS[edit]
    edited = rewritten(store, tmp_path / "edited.parquet", change)
    with pytest.raises(UserError, match=words) as caught:
        score_store(reference_model, edited, trace)
    assert "delete it and run the same command again" in str(caught.value)


def test_a_window_that_lacks_positions_has_no_loss(store, trace, reference_model, tmp_path):
    """Of a position that no row scores nothing is known, not even that it is zero."""
    windows = [list(ids) for ids in trace[trace.category == "text"].token_ids]
    edited = rewritten(store, tmp_path / "edited.parquet", lambda groups: groups[:-1])
    with pytest.raises(UserError, match=r"lacks text-02 from position \d+ on"):
        score_against_store(reference_model, windows, edited, progress=False)


@pytest.mark.parametrize(("rows", "of_baseline"), [(7, 0), (0, 5), (3, 9)])
@pytest.mark.parametrize("form", ["hidden_states", "log_probabilities"])
def test_padding_of_a_vocabulary_is_left_out(tiny, tmp_path, rows, of_baseline, form):
    """Rows of an output head that the tokenizer does not know, in other numbers than the baseline's."""
    plain, padded = {}, {}
    for name, more, seed in (("method", rows, 1), ("baseline", of_baseline, 0)):
        plain[name] = tiny("llama", seed=seed)
        padded[name] = copy.deepcopy(plain[name])
        padded[name].resize_token_embeddings(384 + more, mean_resizing=False)
    trace = pandas.DataFrame({"prompt_id": ["a"], "category": "C", "token_ids": [[*range(3, 60)]], "first_target": 10})
    fill(tmp_path, padded["baseline"], trace, form)
    scored = score_store(padded["method"], tmp_path / "logits.parquet", trace)
    p, q = (
        m(torch.tensor([trace.token_ids[0]])).logits[0, 9:-1, :384].double()
        for m in (plain["baseline"], plain["method"])
    )
    if min(rows, of_baseline) == 0:
        tolerance = 1e-6 if form == "hidden_states" else 2e-3
        numpy.testing.assert_allclose(scored["kl_nats"], kl(p.log_softmax(-1), q.log_softmax(-1)), rtol=tolerance)
    names = SimpleNamespace(get_vocab=lambda: {"<a>": 0, "<last>": 383})
    require_tokens(padded["method"], names, tmp_path / "logits.parquet", "m × x")
    names = SimpleNamespace(get_vocab=lambda: {"<a>": 0, "<last>": 384 + max(rows, of_baseline) - 1})
    with pytest.raises(UserError, match=f"m × x has {384 + rows} tokens and the baseline {384 + of_baseline}"):
        require_tokens(padded["method"], names, tmp_path / "logits.parquet", "m × x")


# ---------------------------------------------------------------- a store of hidden states


@pytest.fixture(scope="module")
def exact_store(tmp_path_factory, reference_model, trace):
    return fill(tmp_path_factory.mktemp("exact"), reference_model, trace)


def fill(folder, model, trace, form="hidden_states"):
    """A store as the stage `logits` fills it, its output head beside it."""
    head, reason = head_to_keep(model, form, "bfloat16")
    metadata = {"model": "m"} | form_of_store(model, head, reason)
    write_store(model, trace, folder / "logits.parquet", metadata)
    write_head(folder / HEAD_FILE, head, reason)
    return folder / "logits.parquet"


def test_self_divergence_is_exactly_zero(exact_store, trace, reference_model):
    scored = score_store(reference_model, exact_store, trace)
    for column in ("kl_nats", "reverse_kl_nats", "js_nats", "delta_p", "delta_nll_nats"):
        assert (scored[column] == 0).all(), column
    assert scored["top1_agrees"].all()


class Waits(TorchDispatchMode):
    """Counts the numbers that Python asks of tensors: for each a GPU's host waits until all before it is computed."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.numbers += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(keywords or {}))


def test_no_pass_waits_for_the_one_before(tiny, tmp_path):
    """Else a GPU idles until its host has launched the next one's first layers."""
    model, waits = tiny("mistral"), []
    for count in (1, 5):
        ids = torch.randint(2, 250, (2 * count, 20), generator=torch.Generator().manual_seed(1)).tolist()
        generation = {"prompt_id": [f"p{i}" for i in range(count)], "category": "C"}
        generation |= {
            "prompt_token_ids": [row[:8] for row in ids[:count]],
            "token_ids": [row[8:] for row in ids[:count]],
        }
        trace = make_trace(pandas.DataFrame(generation), ids[count:])
        (tmp_path / str(count)).mkdir()
        store = fill(tmp_path / str(count), model, trace)
        with Waits() as counted:
            score_store(model, store, trace)
            score_against_store(model, ids[count:], store, progress=False)
        waits.append(counted.numbers)
    assert waits[0] == waits[1] > 0  # those of the start


def test_scoring_waits_for_nothing(store, trace, reference_model):
    pieces = list(pieces_of(reference_model, store, sequences_of(trace), first_targets=first_targets_of(trace)))
    worst = WorstPositions()
    with Waits() as counted:
        for half in (pieces[:2], pieces[2:]):
            kl_divergence.score(half, worst, bounded=True)
    assert counted.numbers == 0


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gemma2", "cohere", "granite", "gpt2_untied"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_figures_are_those_of_two_models_at_once(tiny, tmp_path, kind, dtype):
    """Scales, soft caps and tied heads; the method's own head differs as well, as a quantized one would."""
    model = tiny(kind, dtype)
    if model.config.tie_word_embeddings:  # or what goes in would drown what the layers add to it
        model.get_output_embeddings().weight.div_(10)
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    for parameter in other.parameters():
        if parameter.ndim == 2:
            noise = torch.randn(parameter.shape, generator=generator) * parameter.float().std() * 0.3
            parameter.add_(noise.to(dtype))
    ids = torch.randint(2, 250, (2, 40), generator=generator).tolist()
    trace = pandas.DataFrame({"prompt_id": ["a", "b"], "category": "C", "token_ids": ids, "first_target": 10})
    scored = score_store(other, fill(tmp_path, model, trace), trace)
    expected = []
    for row in trace.itertuples():
        p, q = (
            output_head(m)(last_hidden_states(m, row.token_ids)[9:-1]).double().log_softmax(-1) for m in (model, other)
        )
        expected += kl(p, q).tolist()
    numpy.testing.assert_allclose(scored["kl_nats"], expected, rtol=1e-6, atol=1e-8)
    assert scored["kl_nats"].mean() > 1e-5


def test_the_baselines_own_head_makes_its_logits(exact_store, trace, reference_model):
    """Not the method's: here they differ by a factor, and nothing else does."""
    sharper = copy.deepcopy(reference_model)
    sharper.get_output_embeddings().weight.mul_(2.0)
    scored = score_store(sharper, exact_store, trace)
    head = output_head(reference_model)
    p = [
        head(last_hidden_states(reference_model, row.token_ids)[row.first_target - 1 : -1])
        for row in trace[:2].itertuples()
    ]
    p = torch.cat(p).double()
    numpy.testing.assert_allclose(scored["kl_nats"], kl(p.log_softmax(-1), (2 * p).log_softmax(-1)), rtol=1e-5)


def test_the_baselines_head_lies_where_the_methods_logits_are(tmp_path):
    """On the last of several GPUs, also where the method's own head is quantized; here `meta` is the last one."""

    class Quantized(torch.nn.Linear):
        pass

    kept = OutputHead(torch.randn(7, 4), None, 1.0, None)
    write_head(tmp_path / HEAD_FILE, kept)
    with StoreWriter(
        tmp_path / "logits.parquet",
        7,
        {"hidden_states": {"width": 4, "dtype": "float32"}, "output_head": kept.described()},
    ):
        pass
    model = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(model_type="llama"))
    model.get_output_embeddings = lambda: Quantized(4, 7, device="meta")
    from_states, _ = baseline_head(model, lambda states: states, tmp_path / "logits.parquet")
    assert from_states(torch.ones(2, 4)).device.type == "meta"


def test_a_store_without_its_head_or_with_another_is_refused(exact_store, trace, reference_model, tmp_path):
    copied = shutil.copy(exact_store, tmp_path / "logits.parquet")
    with pytest.raises(UserError, match=r"output_head\.safetensors does not exist: the store beside it holds hidden"):
        score_store(reference_model, copied, trace)
    other = plain_head(reference_model)
    write_head(tmp_path / HEAD_FILE, dataclasses.replace(other, softcap=30.0))
    with pytest.raises(UserError, match=r"is not the output head that its store was filled with"):
        score_store(reference_model, copied, trace)


def test_passes_are_launched_while_the_head_is_read(monkeypatch):
    """So many as AHEAD allows; after that each is given as it is launched."""
    monkeypatch.setattr(paired_logits, "AHEAD", 30)
    launched, begun = [], Future()

    def passes():
        for i in range(6):
            launched.append(i)
            yield i, torch.zeros(12, 4)

    given = ahead_until(begun, passes())
    assert next(given)[0] == 0
    assert launched == [0, 1, 2]
    begun.set_result(None)
    assert [group for group, _ in given] == [1, 2, 3, 4, 5]
    assert launched == [0, 1, 2, 3, 4, 5]
    launched.clear()
    for group, _ in ahead_until(begun, passes()):
        assert launched[-1] == group


@pytest.mark.parametrize("waiting", [0, 2**14])
def test_beside_a_gpu_the_head_is_read_by_a_thread(exact_store, trace, reference_model, monkeypatch, waiting):
    """With the same figures; nothing here asks for a GPU."""
    threads = []

    def read(*arguments):
        threads.append(threading.get_ident())
        return baseline_head(*arguments)

    monkeypatch.setattr(paired_logits, "AHEAD", waiting)
    monkeypatch.setattr(paired_logits, "baseline_head", read)
    noisy = copy.deepcopy(reference_model)
    noisy.model.layers[0].mlp.down_proj.weight.mul_(1.05)
    sequences, firsts = sequences_of(trace), first_targets_of(trace)

    def pieces():
        return list(pieces_of(noisy, exact_store, sequences, first_targets=firsts))

    here = pieces()
    monkeypatch.setattr(paired_logits, "on_gpu", lambda _: True)
    monkeypatch.setattr(paired_logits, "read_ahead", lambda _, store, wanted: read_store(store, wanted=wanted))
    there = pieces()
    assert threads[0] == threading.get_ident() != threads[1]
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.baseline, other.baseline)
        assert torch.equal(one.logits, other.logits)
        assert not other.baseline.requires_grad


def test_beside_a_gpu_one_thread_reads_states_and_four_read_log_probabilities(
    store, exact_store, reference_model, monkeypatch
):
    """Each takes the interpreter from the thread that launches kernels."""
    readers = []
    monkeypatch.setattr(paired_logits, "read_store", lambda _, number, *rest: readers.append(number))
    for gpu in (False, True):
        monkeypatch.setattr(paired_logits, "on_gpu", lambda _, gpu=gpu: gpu)
        for path in (exact_store, store):
            paired_logits.read_ahead(reference_model, path)
    assert readers == [1, 1, 1, 4]


def test_the_store_is_filled_with_the_cores_that_read_it(
    trace, reference_model, tmp_path, monkeypatch, set_num_threads
):
    """One of two for prompts, both for windows: another number may add in another order."""
    used: list[tuple[int, int]] = []

    def states(model, ids, *given):
        used.append((len(ids), torch.get_num_threads()))
        return last_hidden_states(model, ids, *given)

    set_num_threads(2)
    monkeypatch.setattr(store_filling, "last_hidden_states", states)
    path = fill(tmp_path, reference_model, trace)
    filled = used[-len(trace) :]  # after a trial
    assert [cores for _, cores in filled] == [1, 1, 2, 2]
    used.clear()
    monkeypatch.setattr(paired_logits, "last_hidden_states", states)
    score_store(reference_model, path, trace)
    windows = [list(map(int, ids)) for ids in trace[trace["category"] == TEXT_CATEGORY]["token_ids"]]
    score_against_store(reference_model, windows, path, progress=False)
    assert used == filled


def test_an_error_leaves_nothing_open(exact_store, trace, reference_model, monkeypatch):
    """Also while its traceback holds the frames that it came through."""
    ended = []

    def read(*arguments):
        try:
            yield from read_store(arguments[1], wanted=arguments[2])
        finally:
            ended.append("reading")

    def begin(*arguments):
        failed = Future()
        failed.set_exception(UserError("another head"))
        return failed

    monkeypatch.setattr(paired_logits, "read_ahead", read)
    monkeypatch.setattr(paired_logits, "begin", begin)
    with pytest.raises(UserError, match="another head") as caught:
        list(pieces_of(reference_model, exact_store, sequences_of(trace), first_targets=first_targets_of(trace)))
    assert ended == ["reading"], caught


class AtOnce:
    """A pool whose work is done when it is handed over."""

    def __init__(self, threads):
        pass

    def submit(self, work):
        future = Future()
        try:
            future.set_result(work())
        except UserError as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait):
        pass


@pytest.mark.parametrize("compared_at_once", [False, True])
def test_a_head_of_other_numbers_is_refused_at_the_end_or_before(
    exact_store, trace, reference_model, tmp_path, monkeypatch, compared_at_once
):
    """Its sha256 is compared beside the passes, which end as soon as it is known to be another."""
    copied = shutil.copy(exact_store, tmp_path / "logits.parquet")
    with safe_open(exact_store.with_name(HEAD_FILE), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["weight"][3, 5] += 1
    save_file(tensors, tmp_path / HEAD_FILE)
    passes = []
    sharper = copy.deepcopy(reference_model)
    sharper.get_output_embeddings().weight.mul_(2.0)
    sharper.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    if compared_at_once:
        monkeypatch.setattr(head_file, "ThreadPoolExecutor", AtOnce)
    with pytest.raises(UserError, match=r"is not the output head that its store was filled with"):
        score_store(sharper, copied, trace)
    assert len(passes) <= 2 if compared_at_once else passes


def in_float64(stored: torch.Tensor, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """By definition, with code that shares nothing with the package's."""
    ln_p, ln_q = stored.double().log_softmax(-1), logits.double().log_softmax(-1)
    ln_m = torch.logaddexp(ln_p, ln_q) - math.log(2)
    return {
        "kl_nats": kl(ln_p, ln_q),
        "reverse_kl_nats": kl(ln_q, ln_p),
        "js_nats": (kl(ln_p, ln_m) + kl(ln_q, ln_m)) / 2,
        "delta_nll_nats": (ln_p - ln_q)[:, 0],
    }


def logits_of(shape: str, vocabulary: int) -> torch.Tensor:
    """[4, vocabulary] float32: natural, all but flat, or with one token that takes nearly everything."""
    scale, peak = {"natural": (4.0, 0.0), "flat": (1e-4, 0.0), "peaked": (2.0, 24.0)}[shape]
    logits = random_logits(1, 4, vocabulary, scale) + 17.3
    logits[:, 3] += peak
    return logits


@pytest.mark.parametrize("vocabulary", [384, 50_257, 262_144])
@pytest.mark.parametrize("shape", ["natural", "flat", "peaked"])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.05, 5.0])
def test_float32_entries_are_as_good_as_float64(vocabulary, shape, noise):
    """The path of production, from no divergence at all (the baseline's own store) to several nats."""
    logits = logits_of(shape, vocabulary)
    stored, targets = logits.log_softmax(-1).half(), torch.zeros(4, dtype=int)
    method = logits + noise * random_logits(2, 4, vocabulary, 1.0)
    exact = in_float64(stored, method)
    fast = kl_divergence.divergences(stored, method, targets, stored.argmax(-1))
    for measure in ("kl_nats", "reverse_kl_nats", "js_nats"):
        assert fast[measure].dtype == torch.float64
        error = (fast[measure] - exact[measure]).abs()
        assert (error <= 1e-8 + 3e-7 * exact[measure]).all(), measure
        assert (fast[measure] >= 0).all(), measure
    assert (fast["delta_nll_nats"] - exact["delta_nll_nats"]).abs().max() < 5e-7
    assert torch.equal(fast["top1_agrees"], stored.argmax(-1) == method.argmax(-1))


@pytest.mark.parametrize("vocabulary", [151_936, 262_144])
def test_a_large_vocabulary_never_diverges_from_itself_by_less_than_nothing(vocabulary):
    """Where ln p and ln q are large and alike, adding up p (ln p - ln q) in float32 gives sums below zero."""
    for seed in range(8):
        logits = random_logits(seed, 16, vocabulary, 1e-3) + 11.1
        stored = logits.log_softmax(-1)  # unrounded: the divergence is zero up to rounding
        measures = kl_divergence.divergences(stored, logits, torch.zeros(16, dtype=int), stored.argmax(-1))
        for measure in ("kl_nats", "reverse_kl_nats", "js_nats"):
            assert (measures[measure] >= 0).all(), measure
            assert (measures[measure] < 1e-11).all(), measure


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_are_computed_with_in_float32(dtype):
    logits = logits_of("natural", 50_257).to(dtype)
    stored, targets = logits_of("natural", 50_257).log_softmax(-1).half(), torch.zeros(4, dtype=int)
    fast = kl_divergence.divergences(stored, logits, targets, stored.argmax(-1))
    exact = in_float64(stored, logits)
    torch.testing.assert_close(fast["kl_nats"], exact["kl_nats"], rtol=3e-7, atol=1e-8)
