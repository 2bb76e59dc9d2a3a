"""A GGUF file in llama.cpp against the same weights in transformers."""

import importlib.util

import pytest
import torch
from gguf_writer import BUILT_IN
from tiny_qwen import random_model, write_gguf
from transformers import AutoTokenizer

from quantharm.common.errors import UserError
from quantharm.engines.llama_cpp import check_vocabulary, open_cell
from quantharm.engines.llama_model import MOST_TOKENS, LlamaCppModel
from quantharm.models.safety import hash_weights
from quantharm.scoring.forward import last_hidden_states, output_head
from quantharm.speed.batches import batch_benchmark
from quantharm.speed.decoding import continue_greedily, decode_one_token, prefill
from quantharm.speed.device_meters import EnergyMeter
from quantharm.speed.served import answers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="the package xllamacpp is missing; `make test` installs it from envs/llama-cpp.txt",
)
EXACT = {"keys": "f32", "values": "f32"}


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(model, path)
    return path


def served(path, model, kv_cache=EXACT) -> LlamaCppModel:
    return LlamaCppModel(path, model.config, threads=1, kv_cache=kv_cache, device="cpu")


def ids_of(count: int) -> list[int]:
    return torch.randint(5, 8000, (count,), generator=torch.Generator().manual_seed(1)).tolist()


def kl(model, other, ids: list[int]) -> torch.Tensor:
    """Of each position, float64."""
    first, second = (
        output_head(each)(last_hidden_states(each, ids)).double().log_softmax(-1) for each in (model, other)
    )
    return (first.exp() * (first - second)).sum(-1)


def test_scores_are_those_of_transformers(model, file):
    engine = served(file, model)
    for count in (1, 40, MOST_TOKENS + 30):  # the last in two calls
        assert kl(model, engine, ids_of(count)).max() < 1e-5  # 3e-8 in front: its angles gather rounding errors


def test_a_sequence_does_not_see_the_one_before(model, file):
    engine = served(file, model)
    last_hidden_states(engine, ids_of(100))
    assert kl(model, engine, ids_of(40)).max() < 1e-6


def test_a_long_sequence_gets_the_room_it_needs(model, file, monkeypatch):
    monkeypatch.setattr("quantharm.engines.llama_model.FIRST_CONTEXT", 64)
    monkeypatch.setattr("quantharm.engines.llama_model.MORE_TOKENS", 16)
    engine = served(file, model)
    assert kl(model, engine, ids_of(200)).max() < 1e-6


def test_answers_are_those_of_transformers(model, file):
    ids = ids_of(20)
    mine, theirs = (continue_greedily(each, ids, 24, set(), 4096) for each in (served(file, model), model))
    assert mine.token_ids == theirs.token_ids
    assert mine.stop_reason == "length"


def test_a_quantized_cache_is_read_by_every_score(model, file):
    exact, coarse = served(file, model), served(file, model, {"keys": "q4_0", "values": "q4_0"})
    ids = ids_of(64)
    assert kl(model, exact, ids).mean() < 1e-6
    assert kl(model, coarse, ids).mean() > 1e-5
    assert coarse.cache_bytes() < 0.3 * exact.cache_bytes()


def test_sequences_of_a_batch_do_not_see_each_other(model, file, monkeypatch):
    monkeypatch.setattr("quantharm.engines.llama_model.MOST_TOKENS", 50)  # of 3 × 40: sequences are cut where calls end
    engine = served(file, model)
    prompts = torch.tensor([ids_of(120)[40 * i : 40 * (i + 1)] for i in range(3)])
    logits, cache = prefill(engine, prompts)
    steps = [logits, decode_one_token(engine, torch.tensor([[7], [8], [9]]), cache)[0]]
    alone = model(input_ids=torch.cat([prompts, torch.tensor([[7], [8], [9]])], 1)).logits[:, -2:].log_softmax(-1)
    assert torch.allclose(torch.stack(steps, 1).log_softmax(-1), alone, atol=5e-3)
    assert engine.cache_bytes() > 2.9 * 41 * 2 * 2 * 32 * 4
    assert kl(model, engine, ids_of(40)).max() < 1e-6  # one sequence again


def test_larger_batches_are_timed(model, file):
    record = batch_benchmark(served(file, model), torch.tensor([[5, 6, 7]] * 8), 3, EnergyMeter(torch.device("cpu")))
    assert (record["batch_size"], record["reason"], record["decoding"]) == (8, None, "eager")
    assert record["decode_tokens_per_second"]["median"] > 0


def test_the_files_tokens_are_compared_with_the_tokenizers(model, file):
    engine, tokenizer = served(file, model), AutoTokenizer.from_pretrained(BUILT_IN)
    check_vocabulary(engine, tokenizer)
    tokenizer.add_tokens(["<another>"])
    with pytest.raises(UserError, match="not a file of this model"):
        check_vocabulary(engine, tokenizer)


def test_another_models_tokens_are_refused(model, file, monkeypatch):
    engine, tokenizer = served(file, model), AutoTokenizer.from_pretrained(BUILT_IN)
    own = engine.token_text
    monkeypatch.setattr(engine, "token_text", lambda token: "other" if token == 4321 else own(token))
    with pytest.raises(UserError, match="token 4321 is 'other'"):
        check_vocabulary(engine, tokenizer)


@pytest.mark.parametrize("content", [b"", b"{}", b"GGUF" + bytes(60)])
def test_a_damaged_file_ends_in_one_sentence(model, tmp_path, content):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot load"):
        served(path, model)


@pytest.mark.parametrize("named", ["the file", "its folder"])
def test_a_cell_is_opened_from_a_file_or_its_folder(model, file, tmp_path, named):
    record = {
        "checkpoint": str(file if named == "the file" else file.parent),
        "weight_files": hash_weights(file.parent),
        "settings": {"engine": "llama.cpp", "kv_cache": EXACT},
        "source": {"path": str(BUILT_IN), "trust_remote_code": False},
    }
    assert kl(model, open_cell(record, "cpu"), ids_of(20)).max() < 1e-6
    with pytest.raises(UserError, match="reads GGUF files"):
        open_cell(record | {"checkpoint": str(tmp_path), "weight_files": []}, "cpu")


def test_an_answer_ends_where_the_baselines_does(model, file, tmp_path):
    """A model that chats names several tokens in its generation config, its file one."""
    for path in BUILT_IN.glob("*.json"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    record = {"checkpoint": str(file), "weight_files": hash_weights(file.parent), "settings": {"kv_cache": EXACT}}
    engine = open_cell(record | {"source": {"path": str(tmp_path), "trust_remote_code": False}}, "cpu")
    assert set(engine.generation_config.eos_token_id) == {7, 9, model.config.eos_token_id}


def test_a_cache_that_does_not_fit_the_heads_is_told_apart_from_memory(tmp_path):
    narrow = random_model(num_attention_heads=4)  # 16 wide, half a block of q8_0
    write_gguf(narrow, tmp_path / "narrow.gguf")
    with pytest.raises(UserError, match=r"n_embd_head_k=16\); choose other types for `kv_cache:`"):
        served(tmp_path / "narrow.gguf", narrow, {"keys": "q8_0"})


def test_the_same_file_through_its_server(model, file, tmp_path):
    """llama.cpp's own server on the loopback, asked position by position."""
    import xllamacpp

    from quantharm.engines import endpoint

    asked = xllamacpp.CommonParams()
    asked.model.path, asked.model_alias, asked.n_ctx, asked.n_parallel = str(file), {"mine"}, 512, 2
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    asked.port, asked.warmup = 0, False
    server = xllamacpp.Server(asked)
    settings = {"engine": "openai", "url": server.listening_address, "model": "mine", "api_key_variable": None}
    settings |= {"top_tokens": 20, "concurrency": 2, "timeout_seconds": 60, "retries": 1}
    source = {"path": str(BUILT_IN), "trust_remote_code": False}
    record = {"settings": settings, "source": source, "checkpoint": str(tmp_path / "checkpoint")}
    through = endpoint.open_cell(record, "cpu")
    assert (through.dialect.name, through.top_tokens) == ("position by position", 20)
    ids = ids_of(24)
    states = last_hidden_states(through, ids)[:-1]
    exact = output_head(model)(last_hidden_states(model, ids))[:-1].double().log_softmax(-1)
    shown = output_head(through)(states).double().gather(-1, known := through.known_tokens(states).clamp_min(0))
    assert torch.allclose(shown[:, :20], exact.gather(-1, known)[:, :20], atol=2e-3)  # its cache is in float16
    assert (known == torch.tensor(ids[1:])[:, None]).any(-1).all()
    [answer] = answers(through, [ids], 8, set())
    assert answer.token_ids == continue_greedily(served(file, model), ids, 8, set(), 4096).token_ids
    through.dialect.score(ids_of(255), 7, 20)  # its context of 256 tokens is full then
    with pytest.raises(UserError, match="context") as raised:
        last_hidden_states(through, ids_of(300))
    assert "300" in str(raised.value) or "299" in str(raised.value)


def test_what_it_is_stands_in_its_description(model, file):
    description = served(file, model).description()
    assert description["name"] == "llama.cpp"
    assert description["package"].startswith("xllamacpp ")
    assert description["kv_cache"] == EXACT
