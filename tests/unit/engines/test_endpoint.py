"""A model behind an address: what it shows is the model's own, and what a server does wrong ends in one sentence."""

import contextlib
import itertools
import json
import math
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_server import KEY, Fake, Raw, serving
from gguf_writer import BUILT_IN
from transformers import AutoModelForCausalLM, AutoTokenizer

from quantharm.common.errors import UserError
from quantharm.engines import endpoint, endpoint_http, endpoint_model
from quantharm.engines.endpoint import open_cell
from quantharm.engines.endpoint_model import EndpointModel
from quantharm.models.loading import load_tokenizer
from quantharm.scoring.forward import ask_ahead, known_tokens, last_hidden_states, output_head
from quantharm.scoring.kl_divergence import divergences
from quantharm.speed import served, served_benchmark
from quantharm.speed.decoding import continue_greedily

DIALECTS = ["prompt_logprobs", "echo", "generate", "position"]
IDS = [5, 80, 33, 120, 64, 9, 200, 41, 77, 101, 18, 60]


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny, save_checkpoint):
    return save_checkpoint(tiny("llama", vocab_size=258), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(source):
    return AutoModelForCausalLM.from_pretrained(source["path"], dtype=torch.float32)


def pause_by(sleep, monkeypatch) -> None:
    """This module's pauses alone: other threads of the process sleep as ever."""
    monkeypatch.setattr(endpoint_http, "time", SimpleNamespace(sleep=sleep))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    pause_by(lambda seconds: None, monkeypatch)


def record_of(url: str, source: dict, folder: Path, **changed) -> dict:
    settings = {"engine": "openai", "url": url, "model": "tiny", "api_key_variable": None, "top_tokens": 20}
    settings |= {"concurrency": 3, "timeout_seconds": 10, "retries": 1}
    names = {"model": "tiny", "method": "served"}
    return {**names, "settings": settings | changed, "source": source, "checkpoint": str(folder / "checkpoint")}


@pytest.fixture
def opened(model, source, tmp_path):
    """opened(dialect, change, most=…, **settings): (the model behind a server's address, the server)."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:

        def start(dialect: str = "prompt_logprobs", change=None, most: int = 1000, read=range(258), **settings):
            fake = Fake(model, dialect, change, most)
            # Half of the tokens of a tokenizer of bytes read alike.
            patch.setattr(endpoint, "single_tokens", lambda _: {f"<{i}>": i for i in read})
            url = stack.enter_context(serving(fake))
            return open_cell(record_of(url, source, tmp_path, **settings), "cpu"), fake

        yield start


def measures(engine, model, ids=IDS) -> dict[str, torch.Tensor]:
    """Of positions 1 …, with the model itself as the baseline but for a tilt, so that they differ."""
    exact = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    baseline = exact + 0.3 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(3))
    states = last_hidden_states(engine, ids)[:-1]
    logits, targets = output_head(engine)(states), torch.tensor(ids[1:])
    shown = divergences(baseline, logits, targets, baseline.argmax(-1), known_tokens(engine, states), bounded=True)
    return {"shown": shown, "exact": divergences(baseline, exact, targets, baseline.argmax(-1), bounded=True)}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_likelihoods_and_first_choices_are_exact_and_kl_is_a_bound(dialect, opened, model):
    engine, _ = opened(dialect)
    assert engine.dialect.name.startswith(dialect)
    both = measures(engine, model)
    shown, exact = both["shown"], both["exact"]
    for name in ("nll_nats", "delta_nll_nats", "delta_p"):
        assert torch.allclose(shown[name], exact[name], atol=2e-5), name
    assert torch.equal(shown["top1_agrees"], exact["top1_agrees"])
    for name in ("kl_nats", "reverse_kl_nats", "js_nats"):
        assert (shown[name] <= exact[name] + 1e-7).all(), name
    assert (shown["kl_nats"] > 0.3 * exact["kl_nats"]).all()
    assert torch.allclose(shown["kl_nats"], exact["kl_lower_bound_nats"], atol=2e-5)  # as calibrated


def test_a_server_that_shows_the_whole_vocabulary_gives_kl_itself(opened, model):
    both = measures(opened(top_tokens=258)[0], model)
    assert torch.allclose(both["shown"]["kl_nats"], both["exact"]["kl_nats"], atol=1e-5)


def test_fewer_tokens_are_asked_for_where_a_server_shows_fewer(opened):
    assert opened(most=5)[0].top_tokens == 5


@pytest.mark.parametrize("dialect", DIALECTS)
def test_answers_are_greedy_and_kept_until_the_stage_is_finished(dialect, opened, model):
    engine, fake = opened(dialect)
    expected = continue_greedily(model, IDS, 6, {1}, 128)
    [answer] = served.answers(engine, [IDS], 6, {1})
    assert answer.token_ids == expected.token_ids
    assert (answer.stop_reason, answer.finite) == (expected.stop_reason, True)
    asked = len(fake.questions)
    assert served.answers(engine, [IDS], 6, {1}) == [answer]
    assert len(fake.questions) == asked + 1  # the warm-up
    engine.finished()
    assert not engine.folder.exists()


def test_an_answer_that_other_stop_words_ended_is_not_read_as_whole(opened):
    """Two tasks may ask the same question."""
    engine, fake = opened()
    [cut] = served.answers(engine, [IDS], 6, {1}, lambda tokens: len(tokens) == 2)
    [whole] = served.answers(engine, [IDS], 6, {1})
    assert (len(cut.token_ids), cut.stop_reason) == (2, "stopped")
    assert len(whole.token_ids) > 2
    assert whole.token_ids[:2] == cut.token_ids
    asked = len(fake.questions)
    assert served.answers(engine, [IDS], 6, {1}) == [whole]
    assert len(fake.questions) == asked + 1  # the warm-up


def test_an_end_that_is_not_sent_is_added(opened):
    engine, _ = opened(change=lambda path, question, answer: answer[:2] if isinstance(answer, list) else answer)
    [answer] = served.answers(engine, [IDS], 6, {1})
    assert (len(answer.token_ids), answer.token_ids[-1], answer.stop_reason) == (3, 1, "end_of_sequence")


def test_times_are_those_of_the_answers(opened):
    engine, fake = opened()
    speed = served_benchmark.benchmark(engine, 8, 4, 2, 0.0, [4], [1, 2])
    assert speed["prefill_seconds"]["median"] > 0
    assert len(speed["decode_tokens_per_second"]["values"]) == 2
    assert [(b["batch_size"], len(b["prefill_seconds"]["values"])) for b in speed["batches"]] == [(1, 2), (2, 6)]
    assert speed["roofline"] is None
    assert speed["captured"]["reason"]
    prompts = [tuple(question["prompt"]) for _, question in fake.questions if question.get("ignore_eos")]
    assert len(set(prompts)) > len(prompts) / 2  # else a server answers from its cache


# ---- what servers do wrong ----


@pytest.fixture
def probed(model, source, tmp_path, monkeypatch):
    """probed(dialect, change): (the server, the record of a cell on it that has been asked once)."""
    monkeypatch.setattr(endpoint, "single_tokens", lambda _: {f"<{i}>": i for i in range(258)})
    with contextlib.ExitStack() as stack:

        def start(dialect: str = "prompt_logprobs", change=None):
            fake = Fake(model, dialect, change)
            record = record_of(stack.enter_context(serving(fake)), source, tmp_path)
            return fake, record | {"probe_nll_nats": open_cell(record, "cpu").probe_nll_nats}

        yield start


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_server_that_was_started_again_with_other_weights_is_told(dialect, probed, source):
    fake, record = probed(dialect)
    ids = load_tokenizer(source)(endpoint.PROBE)["input_ids"]
    first = record["probe_nll_nats"]
    assert first == pytest.approx((-fake.log_probabilities(ids)[range(len(ids) - 1), ids[1:]]).tolist(), abs=1e-5)
    record["probe_nll_nats"] = [nll + 0.09 for nll in first]  # as much as rounding may do
    open_cell(record, "cpu")
    record["probe_nll_nats"] = [nll + 0.11 * (-1) ** i for i, nll in enumerate(first)]  # whose mean is the same
    with pytest.raises(UserError, match=r"serves other weights now than when tiny × served .* 0\.11 nats a token"):
        open_cell(record, "cpu")


def test_a_server_that_differs_from_itself_is_not_accused(probed):
    shifts = itertools.cycle([0.0, 0.1, 0.2])

    def unsteady(path, question, answer):
        if not question.get("prompt_logprobs"):
            return answer
        shift = next(shifts)
        for entries in answer["choices"][0]["prompt_logprobs"][1:]:
            for entry in entries.values():
                entry["logprob"] -= shift
        return answer

    _, record = probed(change=unsteady)
    record["probe_nll_nats"] = [nll + 0.3 for nll in record["probe_nll_nats"]]
    open_cell(record, "cpu")
    record["probe_nll_nats"] = [nll + 3.0 for nll in record["probe_nll_nats"]]
    with pytest.raises(UserError, match="serves other weights"):
        open_cell(record, "cpu")


def test_a_token_that_a_server_rules_out_is_a_number_in_the_record(probed):
    def change(path, question, answer):
        if question.get("prompt_logprobs"):
            for entries in answer["choices"][0]["prompt_logprobs"][1:]:
                entries[next(iter(entries))]["logprob"] = -math.inf
        return answer

    _, record = probed(change=change)
    assert json.loads(json.dumps(record["probe_nll_nats"], allow_nan=False))
    assert endpoint_model.MOST_NATS in record["probe_nll_nats"]
    open_cell(record, "cpu")


def test_answers_of_other_weights_that_a_stopped_stage_left_are_not_read(probed, tiny):
    """The record was deleted, as the message says, and made anew."""
    fake, record = probed()
    known = open_cell(record, "cpu").own_states(IDS, 1)
    asked = len(fake.questions)
    fake.model = tiny("llama", seed=9, vocab_size=258)
    unknown = {name: value for name, value in record.items() if name != "probe_nll_nats"}
    anew = record | {"probe_nll_nats": open_cell(unknown, "cpu").probe_nll_nats}
    again = open_cell(anew, "cpu").own_states(IDS, 1)
    assert len(fake.questions) > asked
    assert not torch.equal(known, again)
    assert torch.equal(again, open_cell(anew, "cpu").own_states(IDS, 1))


def test_other_weights_differ_by_more_than_other_arithmetic():
    """Of the built-in model: bfloat16 in place of float32 against weights rounded to five bits in groups of 64."""
    ids = AutoTokenizer.from_pretrained(BUILT_IN)(endpoint.PROBE)["input_ids"]
    exact, in_bfloat16, rounded = (
        AutoModelForCausalLM.from_pretrained(BUILT_IN, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float32)
    )
    for linear in (each for each in rounded.model.modules() if isinstance(each, torch.nn.Linear)):
        groups = linear.weight.data.view(-1, 64)
        step = groups.abs().amax(-1, keepdim=True) / 15
        linear.weight.data = ((groups / step).round() * step).view_as(linear.weight)
    of_each = [-Fake(m, "").log_probabilities(ids)[range(len(ids) - 1), ids[1:]] for m in (exact, in_bfloat16, rounded)]
    arithmetic, weights = (float((other - of_each[0]).abs().mean()) for other in of_each[1:])
    assert arithmetic < endpoint.OTHER_WEIGHTS / 4  # 0.013
    assert weights > 1.4 * endpoint.OTHER_WEIGHTS  # 0.16


def at_position(change):
    """A change of what is told of the last position that was asked for."""

    def changed(path, question, answer):
        if isinstance(answer, dict) and "choices" in answer and answer["choices"][0].get("prompt_logprobs"):
            change(answer["choices"][0]["prompt_logprobs"][-1])
        return answer

    return changed


def truncated(path, question, answer):
    if "usage" in answer and len(question["prompt"]) == len(IDS):
        answer["usage"]["prompt_tokens"] -= 2
    return answer


def without_own(entries):
    entries.clear()
    entries |= {"3": {"logprob": -0.5}}


def unnormalised(entries):
    entries |= {str(token): {"logprob": -0.1} for token in (7, 8, 9)}


def not_a_number(entries):
    entries |= {next(iter(entries)): {"logprob": math.nan}}


def other_vocabulary(entries):
    entries |= {"90000": {"logprob": -9.0}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (truncated, "was given 12 tokens and read 10"),
        (at_position(without_own), "it changes tokens or has others"),
        (at_position(unnormalised), "sum to more than 1"),
        (at_position(not_a_number), "a log-probability of nan, which is none"),
        (at_position(other_vocabulary), "it serves another model"),
        (lambda p, q, a: {"choices": [{"text": ""}]} if "prompt" in q else a, "gives no log-probabilities of given"),
        (lambda p, q, a: (302, {"Location": "http://other.example/"}, {}), "302"),
        (lambda p, q, a: (401, {}, {"error": {"message": f"wrong key {KEY}"}}), "does not accept the key"),
        (lambda p, q, a: (401, {}, {}) if p != "/v1/models" else a, "does not accept the key"),
        (lambda p, q, a: (404, {}, {}), "; correct `url` of the method, under which it has none"),
        (lambda p, q, a: {"data": [{"id": "others"}]} if p == "/v1/models" else a, "serves no model 'tiny'"),
        (lambda p, q, a: (503, {}, {"error": f"loading, {KEY}"}) if p != "/v1/models" else a, "does not answer"),
        (lambda p, q, a: None, "does not answer"),
    ],
)
def test_what_a_server_does_wrong_ends_in_one_sentence_without_the_key(change, words, opened, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    with pytest.raises(UserError) as raised:
        last_hidden_states(opened(change=change, api_key_variable="THE_KEY")[0], IDS)
    message = str(raised.value)
    assert words in message
    assert KEY not in message
    assert "\n" not in message


def test_texts_that_are_no_one_token_are_refused(opened):
    with pytest.raises(UserError, match="is no one token"):
        last_hidden_states(opened("echo", read=range(0, 258, 2))[0], IDS)


def test_a_generating_server_that_changes_tokens_is_seen(opened):
    def changed(path, question, answer):
        if "meta_info" in answer and question["input_ids"] == IDS:
            answer["meta_info"]["input_token_logprobs"][4][1] = 6
        return answer

    with pytest.raises(UserError, match="given token 64 at position 4 and read token 6"):
        last_hidden_states(opened("generate", changed)[0], IDS)


def test_no_server_at_an_address_ends_in_one_sentence(source, tmp_path):
    with pytest.raises(UserError, match=r"does not answer .*asked 2 times"):
        open_cell(record_of("http://127.0.0.1:9", source, tmp_path), "cpu")


def test_a_key_that_is_not_set_is_asked_for_by_its_name(source, tmp_path, monkeypatch):
    monkeypatch.delenv("THE_KEY", raising=False)
    with pytest.raises(UserError, match="environment variable THE_KEY"):
        open_cell(record_of("http://127.0.0.1:9", source, tmp_path, api_key_variable="THE_KEY"), "cpu")


def test_the_key_goes_to_the_server_and_stands_nowhere_else(opened, monkeypatch, tmp_path):
    monkeypatch.setenv("THE_KEY", KEY)
    engine, fake = opened(api_key_variable="THE_KEY")
    last_hidden_states(engine, IDS)
    assert set(fake.headers) == {f"Bearer {KEY}"}
    assert KEY not in repr(engine.dialect) + json.dumps(engine.description())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text(encoding="utf-8")]


def test_a_busy_server_is_asked_again_when_it_says(opened, monkeypatch):
    waited, busy = [], [1]

    def once_busy(path, question, answer):
        return (429, {"Retry-After": "7"}, {}) if question.get("prompt") == IDS and busy and busy.pop() else answer

    pause_by(waited.append, monkeypatch)
    assert last_hidden_states(opened(change=once_busy)[0], IDS).shape == (12, 42)
    assert waited == [7.0]


def test_what_was_answered_before_a_server_died_is_not_asked_again(opened):
    sequences = [[i, *IDS] for i in range(10, 16)]
    left = [3]  # sequences that it answers before it dies

    def dying(path, question, answer):
        if len(question.get("prompt", [])) != 13:
            return answer
        left[0] -= 1
        return answer if left[0] >= 0 else None

    engine, fake = opened(change=dying, concurrency=1)
    ask_ahead(engine, [(ids, 4) for ids in sequences])
    with pytest.raises(UserError, match="what it answered before is kept"):
        list(map(partial(last_hidden_states, engine), sequences))
    engine.pool.shutdown()
    left[0] = 1000
    again = EndpointModel(engine.dialect, engine.config, [], engine.top_tokens, 2, engine.folder)
    before = len(fake.questions)
    ask_ahead(again, [(ids, 4) for ids in sequences])
    states = [last_hidden_states(again, ids) for ids in sequences]
    assert len(fake.questions) - before == 3
    assert len(again.kept) == 3
    assert all((s[3:-1, 0] >= 0).all() and (s[:3, 0] < 0).all() for s in states)
    again.finished()
    assert not engine.folder.exists()


@pytest.mark.parametrize("changed", [{"url": "http://elsewhere"}, {"model": "another"}, {"dialect": "echo"}])
def test_answers_of_another_server_are_not_read(changed, opened):
    """A stopped run leaves them; the entry in the config may name another server when it goes on."""
    engine, _ = opened()
    last_hidden_states(engine, IDS)
    dialect = engine.dialect
    other = SimpleNamespace(
        server=SimpleNamespace(url=changed.get("url", dialect.server.url)),
        model=changed.get("model", dialect.model),
        name=changed.get("dialect", dialect.name),
    )
    same, another = (EndpointModel(d, engine.config, [], engine.top_tokens, 2, engine.folder) for d in (dialect, other))
    question = ("scores", engine.top_tokens, 1, IDS)
    assert same.file_of(*question).is_file()
    assert not another.file_of(*question).is_file()
    assert same.file_of_answer(IDS, 6) != another.file_of_answer(IDS, 6)


# ---- what a server does once, or half-way ----

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def chunked(*parts: str) -> bytes:
    """A body in chunks, without the last one, which is empty."""
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(f"{len(p):x}\r\n{p}\r\n".encode() for p in parts)


def once(fault):
    """A change that gives `fault` in place of the first answer about IDS, and the answer itself from then on."""
    left = [fault]

    def changed(path, question, answer):
        asked = question.get("prompt") or question.get("input_ids")
        return left.pop() if asked == IDS and left else answer

    return changed


PARTS = [f'data: {{"choices": [{{"text": "x", "token_ids": [{i}]}}]}}\n\n' for i in (40, 41)]
TOLD = 'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
CUT_SCORES = {
    "no length": Raw(HEAD + b'\r\n{"choices": [{"prompt_log'),
    "a wrong length": Raw(HEAD + b'Content-Length: 900\r\n\r\n{"choices": [{"prompt_log'),
    "chunks": Raw(chunked('{"choices": [{"prompt_log')),
    "no chunk's length": Raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
    "an error": (500, {}, {"error": "once"}),
}
CUT_ANSWERS = {
    "after two parts": Raw(HEAD + b"\r\n" + "".join(PARTS).encode()),
    "in a chunk": Raw(chunked(*PARTS)),
    "with an error": Raw(HEAD + b"\r\n" + "".join([*PARTS, TOLD, "data: [DONE]\n\n"]).encode()),
    "too busy": (429, {"Retry-After": "3"}, {}),
    "given up": [{"choices": [{"text": "x", "token_ids": [40], "finish_reason": "abort"}]}],
}


@pytest.mark.parametrize("fault", CUT_SCORES)
def test_scores_that_break_off_are_asked_for_again(fault, opened, model):
    states = last_hidden_states(opened(change=once(CUT_SCORES[fault]))[0], IDS)
    assert torch.equal(states, last_hidden_states(opened()[0], IDS))


@pytest.mark.parametrize("fault", CUT_ANSWERS)
def test_an_answer_that_breaks_off_is_no_end_of_sequence(fault, opened, model):
    """A part of it would be read as a short answer, with an end that the model did not give."""
    expected = continue_greedily(model, IDS, 6, {1}, 128).token_ids
    engine, fake = opened(change=once(CUT_ANSWERS[fault]))
    fake.questions.clear()
    answer = served.answer_to(engine, IDS, 6, {1}, served.never, engine.file_of_answer(IDS, 6))
    assert answer.token_ids == expected
    assert len(fake.questions) == 2


def test_an_answer_that_always_breaks_off_ends_in_one_sentence(opened):
    cut = CUT_ANSWERS["with an error"]
    engine, _ = opened(change=lambda p, q, a: cut if q.get("stream") else a)
    with pytest.raises(UserError, match=r"does not answer \(it broke an answer off: out of memory; asked 2 times\)"):
        served.answers(engine, [IDS], 6, {1})


WORDS_FOR_LENGTH = {
    "prompt_logprobs": {"choices": [{"text": "", "token_ids": [], "finish_reason": "length"}]},
    "generate": {"output_ids": [40, 41], "meta_info": {"finish_reason": {"type": "length", "length": 2}}},
    "echo": {"choices": [{"text": "", "logprobs": {"tokens": []}, "finish_reason": "length"}]},
    "position": {"content": "", "tokens": [], "stop": True, "stop_type": "limit"},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_a_short_context_cuts_is_no_end_of_sequence(dialect, opened):
    def cut(path, question, answer):
        return [*answer[:2], WORDS_FOR_LENGTH[dialect]] if isinstance(answer, list) and len(answer) > 2 else answer

    with pytest.raises(UserError, match=r"asked for 6 tokens and cut its answer after 2 .* longer context"):
        served.answers(opened(dialect, cut)[0], [IDS], 6, {1})


@pytest.mark.parametrize("token", [258, -1])
def test_an_answer_in_tokens_of_another_model_is_none(token, opened):
    answer = [{"choices": [{"text": "x", "token_ids": [40, token]}]}]
    with pytest.raises(UserError, match=f"knows token {token}, the model has 258: it serves another model"):
        list(opened(change=lambda p, q, a: answer if q.get("stream") else a)[0].answer(IDS, 6))


def nothing_else(entries):
    token = str(IDS[-1])
    entries |= {token: {"logprob": -3.0}}
    for other in set(entries) - {token}:
        del entries[other]


def changed_entry(value):
    return at_position(lambda entries: entries.update({next(iter(entries)): value}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_entry({"logprob": None}), r"has another form \(TypeError"),
        (changed_entry({"log_prob": -1.0}), r"has another form \(KeyError"),
        (changed_entry([-1.0]), "has another form"),
        (lambda p, q, a: {**a, "usage": "12"} if "prompt" in q and len(q["prompt"]) == 12 else a, "has another form"),
        (
            lambda p, q, a: (400, {}, {"error": "context is 8"}) if len(q.get("prompt", ())) == 12 else a,
            "refuses a question of 12 tokens: .* answered 400: context is 8; .* lower `window_tokens:`",
        ),
        (lambda p, q, a: {"data": ["tiny", 7, None]} if p == "/v1/models" else nothing_left(q, a), "1 tokens .* of 20"),
        (lambda p, q, a: (307, {"Location": f"http://o.example/?{KEY}"}, {}), "on to http://o.example/\\?…, where the"),
    ],
)
def test_what_no_dialect_has_ends_in_one_sentence(change, words, opened, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    with pytest.raises(UserError, match=words) as raised:
        last_hidden_states(opened(change=change, api_key_variable="THE_KEY")[0], IDS)
    assert KEY not in str(raised.value)


def nothing_left(question, answer):
    """Of the last position of IDS the given token alone."""
    return at_position(nothing_else)("", question, answer) if question.get("prompt") == IDS else answer


def test_a_number_that_is_none_is_named_itself(opened):
    def last_is_none(entries):
        entries |= {[*entries][-1]: {"logprob": math.nan}}

    with pytest.raises(UserError, match="log-probability of nan"):
        last_hidden_states(opened(change=at_position(last_is_none))[0], IDS)


def test_a_batch_that_a_server_refuses_has_a_reason_and_the_others_their_times(opened, monkeypatch):
    """The server answers two of twelve."""
    at_once, arrived, ask_all = threading.Event(), itertools.count(), served_benchmark.time_batch

    def limited(path, question, answer):
        return (429, {}, {"error": "too many"}) if at_once.is_set() and next(arrived) % 12 >= 2 else answer

    def time_batch(*arguments):
        at_once.set()
        return ask_all(*arguments)

    monkeypatch.setattr(served_benchmark, "time_batch", time_batch)
    engine, _ = opened(change=limited)
    sizes = {b["batch_size"]: b for b in served_benchmark.benchmark(engine, 1, 4, 2, 0.0, [128], [1, 12])["batches"]}
    assert sizes[1]["reason"] is None
    assert "too many" in sizes[12]["reason"]
    assert sizes[12]["decode_tokens_per_second"] is None


def test_lengths_leave_the_server_room_for_a_token(opened):
    engine, fake = opened()
    speed = served_benchmark.benchmark(engine, 8, 4, 2, 0.0, [4, 128, 2000])
    assert [p["prompt_tokens"] for p in speed["prefill"]] == [4, 127]
    assert max(len(question.get("prompt", ())) for _, question in fake.questions) == 127


def test_an_answer_in_one_piece_has_the_rate_of_its_whole_time():
    assert served_benchmark.rate_of([(2.0, 2.0, 0, 32)]) == 16.0
    assert served_benchmark.rate_of([(2.0, 2.001, 31, 32)]) == pytest.approx(32 / 2.001)
    assert served_benchmark.rate_of([(0.01, 0.0105, 7, 8)]) == pytest.approx(8 / 0.0105)
    assert served_benchmark.rate_of([(2.0, 2.031, 31, 32)]) == pytest.approx(1000)
    assert served_benchmark.rate_of([(1.0, 3.0, 30, 31), (0.5, 2.5, 30, 31)]) == 24.0
