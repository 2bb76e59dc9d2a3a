"""The cell of a model behind an address: the server answers, serves the model, and speaks a dialect known here.

Its dialect is the first of endpoint_dialects.py in which it gives log-probabilities of given tokens. Every stage that
asks a server begins with one sentence, because one that was started again may serve other weights under the same name.
"""

import collections
from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.common.records.quantization import CheckpointRecord
from quantharm.engines.endpoint_dialects import Dialect, Echo, Generate, PositionByPosition, PromptLogprobs
from quantharm.engines.endpoint_http import RefusedError, Server, key_of
from quantharm.engines.endpoint_model import EndpointModel
from quantharm.engines.endpoint_reading import as_dialect
from quantharm.engines.stated_ends import stated_eos_token_ids

PROBE = "The capital of France is Paris, and the capital of Italy is Rome."
FEWER = (20, 10, 5, 2, 1)  # top tokens that are asked for where a server shows no more
NOT_FOUND = 404
TOO_MANY = (400, 422)  # statuses with which servers refuse to show so many tokens
FOLDER = "answered"  # beside a cell's checkpoint
OTHER_WEIGHTS = 0.1  # nats a token, from which two answers about one sentence are those of two models …
NOISE_FACTOR = 5  # … unless a server differs from itself by so large a part of it


def find_dialect(server: Server, model: str, tokenizer, top_tokens: int) -> tuple[Dialect, int]:
    """(the dialect that a server speaks, how many tokens it shows of a position, at most `top_tokens`).

    Raises UserError where it gives no log-probabilities of given tokens.
    """
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    dialects: list[Dialect] = [
        PromptLogprobs(server, model),
        Generate(server, model),
        Echo(server, model, single_tokens(tokenizer)),
        PositionByPosition(server, model),
    ]
    reasons, has_paths = [], False
    for dialect in dialects:
        for top in dict.fromkeys([top_tokens, *(fewer for fewer in FEWER if fewer < top_tokens)]):
            try:
                with as_dialect():
                    known = dialect.scores(ids, len(ids) - 1, top)
                    shown = len(known[0])
                    if top > 1 and list(known[0]) == ids[-1:]:
                        raise RefusedError("it shows no tokens beside the given one")
            except RefusedError as error:
                refuse_wrong_key(server, error)
                reasons.append(f"{dialect.name}: {error}")
                has_paths = has_paths or error.status != NOT_FOUND
                if error.status not in TOO_MANY:
                    break
                continue
            return dialect, top if shown >= top else max(1, shown - 1)  # the token itself is one
    first_of_each = [next(r for r in reasons if r.startswith(f"{dialect.name}:")) for dialect in dialects]
    remedy = "" if has_paths else "correct `url` of the method, under which it has none of the paths asked for, or "
    raise UserError(
        f"{server.url} gives no log-probabilities of given tokens; {remedy}serve the model with vLLM, SGLang, "
        "llama-server or another server of the completions API that takes token ids "
        f"({'; '.join(first_of_each)})"
    )


def refuse_wrong_key(server: Server, error: RefusedError) -> None:
    """Raises UserError where a server refused the key, or that there is none."""
    if error.status in (401, 403):
        raise UserError(
            f"{server.url} does not accept the key ({error}); correct the environment variable that "
            "`api_key_variable` names, or name one"
        ) from None


def single_tokens(tokenizer) -> dict[str, int]:
    """{text: the one token that reads so}, without the texts that several tokens have."""
    ids = sorted(tokenizer.get_vocab().values())
    texts = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    uses = collections.Counter(texts)
    return {text: token for text, token in zip(texts, ids, strict=True) if uses[text] == 1}


def require_model(server: Server, model: str) -> None:
    """Raises UserError where a server lists its models and this one is not among them."""
    try:
        answer = server.get("/v1/models")
    except RefusedError as error:
        refuse_wrong_key(server, error)
        return
    listed = answer.get("data") if isinstance(answer, dict) else None
    entries = listed if isinstance(listed, list) else []
    served = [entry["id"] for entry in entries if isinstance(entry, dict) and "id" in entry]
    if served and model not in served:
        raise UserError(f"{server.url} serves no model {model!r}; it serves {', '.join(map(str, served[:5]))}")


def require_same_weights(record: CheckpointRecord, model: EndpointModel, ids: list[int]) -> None:
    """Raises UserError where a server answers otherwise than when the cell's record was made.

    ids: of a sentence that it was asked about just now. Records made before it was are taken as they are.
    """
    now, before = model.probe_nll_nats, model.known_by
    if before is None or len(before) != len(now):
        return
    difference = mean_difference(now, before)
    if difference > OTHER_WEIGHTS and difference > NOISE_FACTOR * mean_difference(now, model.probe(ids)):
        made = Path(record["checkpoint"]).with_name("quantization.json")
        raise UserError(
            f"{model.dialect.server.url} serves other weights now than when {record['model']} × {record['method']} was "
            f"first asked: its log-probabilities of one sentence differ by {difference:.2f} nats a token; serve the "
            f"earlier ones, or delete {made} to evaluate the new ones"
        )


def mean_difference(first: list[float], second: list[float]) -> float:
    """Mean of |a - b|."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def open_cell(record: CheckpointRecord, device: str) -> EndpointModel:
    """The model of a cell; raises UserError where the server does not answer, shows too little, or changed weights."""
    from quantharm.models.loading import load_config, load_tokenizer

    settings, source = record["settings"], record["source"]
    url = settings["url"].rstrip("/").removesuffix("/v1")
    key = key_of(settings["api_key_variable"])
    server = Server(url, key, settings["timeout_seconds"], settings["retries"])
    require_model(server, settings["model"])
    config, tokenizer = load_config(source), load_tokenizer(source)
    dialect, top_tokens = find_dialect(server, settings["model"], tokenizer, settings["top_tokens"])
    folder = Path(record["checkpoint"]).parent / FOLDER
    eos_token_ids = stated_eos_token_ids(source["path"], config)
    known_by = record.get("probe_nll_nats")
    model = EndpointModel(dialect, config, eos_token_ids, top_tokens, settings["concurrency"], folder, known_by)
    ids = tokenizer(PROBE)["input_ids"]  # with the tokens in front that the model is used to
    model.probe_nll_nats = model.probe(ids)
    require_same_weights(record, model, ids)
    return model
