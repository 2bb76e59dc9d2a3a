"""A model behind an address, as the stages see a model: token ids in, log-probabilities of a few tokens out.

Which dialect the server speaks is found by asking it (endpoint_dialects.py). Sequences are asked for several at a time.
Each answer is kept in a file until its stage is finished, so a server that dies, or a run that is stopped, costs one
sequence. The weights are not seen: no size, memory or check of them is measured.
"""

import concurrent.futures
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch

from quantharm.common.errors import UserError
from quantharm.common.files import read_json, write_json
from quantharm.common.records.parts import EngineRecord
from quantharm.common.records.quantization import CheckpointRecord
from quantharm.common.text import language_config
from quantharm.engines.endpoint_dialects import Echo, Generate, Known, PositionByPosition, PromptLogprobs
from quantharm.engines.endpoint_http import RefusedError, Server, key_of
from quantharm.scoring.lower_bound import NO_TOKEN, ROUNDING

PROBE = "The capital of France is Paris, and the capital of Italy is Rome."
FEWER = (20, 10, 5, 2, 1)  # top tokens that are asked for where a server shows no more
SUM_TOLERANCE = 1e-3  # of the probabilities that a server shows of one position, above 1
FOLDER = "answered"  # beside a cell's checkpoint
Dialect = PromptLogprobs | Generate | Echo | PositionByPosition


class EndpointModel:
    """A server's model. Not a torch module: it has what the stages ask a model for.

    Its states are what the server showed of each position, [T, 2 (K + 1)] float64: ids (NO_TOKEN where there are
    fewer), then their log-probabilities.
    """

    dtype = "unknown"  # what the server multiplies in

    def __init__(
        self, dialect: Dialect, config, ends: list[int], top_tokens: int, concurrency: int, folder: Path
    ) -> None:
        """ends: tokens that end an answer; folder: where answers are kept until their stage is finished."""
        self.dialect, self.config, self.top_tokens, self.folder = dialect, config, top_tokens, folder
        self.device = torch.device("cpu")
        self.vocabulary_size = language_config(config).vocab_size
        self.generation_config = SimpleNamespace(eos_token_id=ends)
        self.pool = concurrent.futures.ThreadPoolExecutor(concurrency)
        self.asked: dict[tuple[int, ...], tuple[int, concurrent.futures.Future]] = {}
        self.used: list[Path] = []

    def ask_ahead(self, sequences: list[tuple[list[int], int]]) -> None:
        """Begins to ask for sequences: (ids, first position that is wanted)."""
        for ids, first in sequences:
            self.asked[tuple(ids)] = first, self.pool.submit(self.shown, ids, first)

    def own_states(self, ids: list[int], given: int) -> torch.Tensor:
        """[T, 2 (K + 1)]: row t tells of position t + 1; nothing is known of the first rows, nor of the last."""
        key = tuple(ids)
        first, answer = self.asked.pop(key, (1, None))
        try:
            known = answer.result() if answer else self.shown(ids, first)
        except BaseException:
            for _, waiting in self.asked.values():  # those that have begun end, and are kept
                waiting.cancel()
            raise
        width = self.top_tokens + 1
        states: numpy.ndarray = numpy.full((len(ids), 2, width), [[NO_TOKEN], [-math.inf]], dtype=numpy.float64)
        for position, entries in enumerate(known, first):
            states[position - 1, 0, : len(entries)] = list(entries)
            states[position - 1, 1, : len(entries)] = list(entries.values())
        return torch.from_numpy(states.reshape(len(ids), -1))

    def shown(self, ids: list[int], first: int) -> list[Known]:
        """What the server shows of a sequence's positions from `first` on; asked once, then read from its file."""
        path = self.folder / f"{sha256_of(['scores', self.top_tokens, first, ids])}.json"
        self.used.append(path)
        if path.is_file():
            return [dict(zip(tokens, values, strict=True)) for tokens, values in read_json(path)["known"]]
        known = [
            checked(k, ids[i], self) for i, k in enumerate(self.dialect.scores(ids, first, self.top_tokens), first)
        ]
        if len(known) != len(ids) - first:
            raise UserError(f"{self.dialect.server.url} told of {len(known)} positions instead of {len(ids) - first}")
        write_json(path, {"known": [[list(k), list(k.values())] for k in known]})
        return known

    def own_logits(self, states: torch.Tensor) -> torch.Tensor:
        """[n, vocabulary] float32: log-probabilities of shown tokens; what is left of 1 is spread over the others."""
        ids, values = states.view(len(states), 2, -1).unbind(1)
        known = ids != NO_TOKEN
        left = (1 - values.exp().sum(-1, keepdim=True)).clamp_min(ROUNDING)
        others = (self.vocabulary_size - known.sum(-1, keepdim=True)).clamp_min(1)
        logits = (left / others).log().float().expand(len(states), self.vocabulary_size).contiguous()
        rows, places = known.nonzero(as_tuple=True)
        logits[rows, ids[rows, places].long()] = values[rows, places].float()
        return logits

    def known_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """Ids [n, K + 1] of the tokens that the server shows of each position."""
        return states.view(len(states), 2, -1)[:, 0].long()

    def answer(self, ids: list[int], new_tokens: int, to_the_end: bool = False) -> Iterator[list[int]]:
        """Greedy tokens as they come; to_the_end: end-of-sequence tokens do not stop it."""
        return self.dialect.answer(ids, new_tokens, to_the_end)

    def kept(self, ids: list[int], new_tokens: int) -> Path:
        """The file that keeps an answer until the stage is finished."""
        path = self.folder / f"{sha256_of(['answer', new_tokens, ids])}.json"
        self.used.append(path)
        return path

    def finished(self) -> None:
        """The stage has written its results: what it asked is not kept any longer, so that a new run asks anew."""
        for path in self.used:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            shutil.rmtree(self.folder, ignore_errors=True)

    def get_input_embeddings(self) -> SimpleNamespace:
        """Something with as many rows as the vocabulary, which is what the stages ask of it."""
        return SimpleNamespace(weight=torch.empty(self.vocabulary_size, 0))

    get_output_embeddings = get_input_embeddings

    def description(self) -> EngineRecord:
        """What the engine is, as far as it says: for the record of a cell."""
        return {
            "name": "openai",
            "version": version_of(self.dialect),
            "url": self.dialect.server.url,
            "model": self.dialect.model,
            "dialect": self.dialect.name,
            "top_tokens": self.top_tokens,
        }


def sha256_of(what: list[Any]) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def checked(known: Known, token: int, model: EndpointModel) -> Known:
    """The log-probabilities of one position; raises UserError where they are none."""
    url = model.dialect.server.url
    if token not in known:
        raise UserError(f"{url} does not tell of token {token}, which stands there: it changes tokens, or has others")
    if not all(value <= SUM_TOLERANCE for value in known.values()):  # NaN, too
        raise UserError(f"{url} gives log-probabilities that are none: {max(known.values())}")
    if sum(map(math.exp, known.values())) > 1 + SUM_TOLERANCE:
        raise UserError(f"{url} gives probabilities of one position that sum to more than 1")
    if not 0 <= min(known) <= max(known) < model.vocabulary_size:
        raise UserError(
            f"{url} knows token {max(known)}, the model has {model.vocabulary_size}: it serves another model"
        )
    most = model.top_tokens + 1
    shown = dict(sorted(known.items(), key=lambda entry: -entry[1])[:most])
    return shown if token in shown else dict(list(shown.items())[: most - 1]) | {token: known[token]}


def version_of(dialect: Dialect) -> str | None:
    """What a server says of its own version."""
    try:
        told = dialect.server.get(dialect.version_path)
    except UserError:
        return None
    version = told.get("version") or told.get("build_info") if isinstance(told, dict) else None
    return dialect.server.shown(str(version)) if version else None


def find_dialect(server: Server, model: str, tokenizer, top_tokens: int) -> tuple[Dialect, int]:
    """(the dialect that a server speaks, the tokens that it shows of a position, at most `top_tokens`).

    Raises UserError where it tells no log-probabilities of given tokens.
    """
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    dialects: list[Dialect] = [
        PromptLogprobs(server, model),
        Generate(server, model),
        Echo(server, model, single_tokens(tokenizer)),
        PositionByPosition(server, model),
    ]
    reasons = []
    for dialect in dialects:
        for top in dict.fromkeys([top_tokens, *(fewer for fewer in FEWER if fewer < top_tokens)]):
            try:
                known = dialect.scores(ids, len(ids) - 1, top)
            except RefusedError as error:
                reasons.append(f"{dialect.name}: {error}")
                if "400" not in str(error) and "422" not in str(error):
                    break
                continue
            return dialect, top if len(known[0]) >= top else max(1, len(known[0]) - 1)  # the token itself is one
    first_of_each = [next(r for r in reasons if r.startswith(f"{d.name}:")) for d in dialects]
    raise UserError(
        f"{server.url} tells no log-probabilities of given tokens; serve the model with vLLM, SGLang, llama-server or "
        f"another server of the completions API that takes token ids ({'; '.join(first_of_each)})"
    )


def single_tokens(tokenizer) -> dict[str, int]:
    """{text: token}, without the texts that several tokens have."""
    ids = sorted(tokenizer.get_vocab().values())
    texts = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    seen: dict[str, int | None] = {}
    for text, i in zip(texts, ids, strict=True):
        seen[text] = None if text in seen else i
    return {text: i for text, i in seen.items() if i is not None}


def require_model(server: Server, model: str) -> None:
    """Raises UserError where a server lists its models and this one is not among them."""
    try:
        told = server.get("/v1/models")
    except RefusedError as error:
        if " 401" in str(error) or " 403" in str(error):
            raise UserError(f"{server.url} does not accept the key: {error}") from None
        return
    listed = [entry.get("id") for entry in told.get("data") or []] if isinstance(told, dict) else []
    if listed and model not in listed:
        raise UserError(f"{server.url} serves no model {model!r}; it serves {', '.join(map(str, listed[:5]))}")


def open_cell(record: CheckpointRecord, device: str) -> EndpointModel:
    """The model of a cell; raises UserError where the server does not answer, or shows too little."""
    from transformers import AutoConfig

    from quantharm.models.loading import load_tokenizer

    settings, source = record["settings"], record["source"]
    url = settings["url"].rstrip("/").removesuffix("/v1")
    key = key_of(settings["api_key_variable"])
    server = Server(url, key, settings["timeout_seconds"], settings["retries"])
    require_model(server, settings["model"])
    config = AutoConfig.from_pretrained(
        source["path"], trust_remote_code=source["trust_remote_code"], local_files_only=True
    )
    dialect, top = find_dialect(server, settings["model"], load_tokenizer(source), settings["top_tokens"])
    folder = Path(record["checkpoint"]).parent / FOLDER
    return EndpointModel(dialect, config, end_tokens(source["path"], config), top, settings["concurrency"], folder)


def end_tokens(folder: str, config) -> list[int]:
    """Tokens that end an answer of the model itself, as transformers reads them off its folder."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:
        ends = language_config(config).eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
