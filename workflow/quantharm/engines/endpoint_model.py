"""A model behind an address, as the stages see a model: token ids in, log-probabilities of a few tokens out.

Sequences are asked for several at a time. Each answer is kept in a file until its stage is finished, so a server that
dies, or a run that is stopped, costs one sequence. The weights are not seen: no size, memory or check of them is
measured.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch

from quantharm.common.errors import UserError
from quantharm.common.files import read_json, write_json
from quantharm.common.records.parts import EngineRecord
from quantharm.common.text import language_config
from quantharm.engines.endpoint_dialects import Dialect
from quantharm.engines.endpoint_http import RefusedError
from quantharm.engines.endpoint_reading import Known, as_dialect, checked, require_known
from quantharm.scoring.lower_bound import NO_TOKEN, ROUNDING

MOST_NATS = 1000.0  # of a token in the probe, since a record holds no infinite number
TOO_LONG = (400, 413, 422)  # statuses with which servers refuse sequences that their context does not hold


class EndpointModel:
    """A server's model. Not a torch module: it has the attributes and methods that the stages use of a model.

    Its states are the tokens that the server shows of each position, at most K = `top_tokens` and the given one:
    [T, 2 (K + 1)] float64, their ids (NO_TOKEN where there are fewer), then their log-probabilities in nats.
    """

    dtype = "unknown"  # that the server multiplies in

    def __init__(
        self,
        dialect: Dialect,
        config,
        eos_token_ids: list[int],
        top_tokens: int,
        concurrency: int,
        folder: Path,
        known_by: list[float] | None = None,
    ) -> None:
        """folder: for the answers until their stage is finished; known_by: the record's -ln q of a sentence."""
        self.dialect, self.config, self.top_tokens, self.folder = dialect, config, top_tokens, folder
        self.device = torch.device("cpu")
        self.vocabulary_size = language_config(config).vocab_size
        self.generation_config = SimpleNamespace(eos_token_id=eos_token_ids)
        self.pool = concurrent.futures.ThreadPoolExecutor(concurrency)
        self.asked: dict[tuple[int, ...], tuple[int, concurrent.futures.Future]] = {}
        self.used: list[Path] = []
        self.known_by = known_by
        self.probe_nll_nats: list[float] = []  # what the server says of the sentence now
        self.kept: list[Path] = []  # of those used, those that hold scores given to a stage that was stopped

    def ask_ahead(self, sequences: list[tuple[list[int], int]]) -> None:
        """Begins to ask for sequences: (token ids, first position that is wanted)."""
        for ids, first in sequences:
            self.asked[tuple(ids)] = first, self.pool.submit(self.known_from, ids, first)

    def own_states(self, ids: list[int], given: int) -> torch.Tensor:
        """[T, 2 (K + 1)]: row t holds the tokens shown of position t + 1.

        Rows before the first position that was asked for, and the last row, hold none. `given` is of no use here.
        """
        first, answer = self.asked.pop(tuple(ids), (1, None))
        try:
            known = answer.result() if answer else self.known_from(ids, first)
        except BaseException:
            for _, waiting in self.asked.values():  # questions on their way are answered yet, and kept
                waiting.cancel()
            raise
        width = self.top_tokens + 1
        states: numpy.ndarray = numpy.full((len(ids), 2, width), [[NO_TOKEN], [-math.inf]], dtype=numpy.float64)
        for position, entries in enumerate(known, first):
            states[position - 1, 0, : len(entries)] = list(entries)
            states[position - 1, 1, : len(entries)] = list(entries.values())
        return torch.from_numpy(states.reshape(len(ids), -1))

    def known_from(self, ids: list[int], first: int) -> list[Known]:
        """{token id: ln q} of a sequence's positions from `first` on; asked once, then read from a file."""
        path = self.file_of("scores", self.top_tokens, first, ids)
        if path.is_file():
            self.kept.append(path)
            return [dict(zip(tokens, values, strict=True)) for tokens, values in read_json(path)["known"]]
        known = self.asked_from(ids, first)
        write_json(path, {"known": [[list(entries), list(entries.values())] for entries in known]})
        return known

    def asked_from(self, ids: list[int], first: int) -> list[Known]:
        """As known_from, asked each time."""
        with self.refusals(len(ids)), as_dialect():
            scores = self.dialect.scores(ids, first, self.top_tokens)
        server, may_lack = self.dialect.server, self.dialect.leaves_out_tokens
        known = [
            checked(entries, ids[position], server, self.top_tokens, self.vocabulary_size, may_lack)
            for position, entries in enumerate(scores, first)
        ]
        if len(known) != len(ids) - first:
            raise UserError(
                f"{server.url} gives log-probabilities of {len(known)} positions instead of "
                f"{len(ids) - first}; serve the model with another server"
            )
        return known

    def probe(self, ids: list[int]) -> list[float]:
        """-ln q of the tokens after the first, nats; at most MOST_NATS."""
        known = zip(ids[1:], self.asked_from(ids, 1), strict=True)
        return [min(-entries[token], MOST_NATS) for token, entries in known]

    def own_logits(self, states: torch.Tensor) -> torch.Tensor:
        """[n, vocabulary] float32: log-probabilities of the shown tokens; the others share the rest evenly."""
        ids, values = states.view(len(states), 2, -1).unbind(1)
        known = ids != NO_TOKEN
        left = (1 - values.exp().sum(-1, keepdim=True)).clamp_min(ROUNDING)
        others = (self.vocabulary_size - known.sum(-1, keepdim=True)).clamp_min(1)
        logits = (left / others).log().float().expand(len(states), self.vocabulary_size).contiguous()
        rows, places = known.nonzero(as_tuple=True)
        logits[rows, ids[rows, places].long()] = values[rows, places].float()
        return logits

    def known_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """Ids [n, K + 1] of the tokens that the server shows of each position; NO_TOKEN fills the rest of a row."""
        return states.view(len(states), 2, -1)[:, 0].long()

    def answer(self, ids: list[int], new_tokens: int, to_the_end: bool = False) -> Iterator[list[int]]:
        """Greedy tokens as they come; to_the_end: as many as `new_tokens`, past end-of-sequence tokens.

        Raises BusyError where the answer may be asked for again, from its beginning (Server.patiently).
        """
        with self.refusals(len(ids) + new_tokens), as_dialect():
            for tokens in self.dialect.answer(ids, new_tokens, to_the_end):
                require_known(tokens, self.dialect.server, self.vocabulary_size)
                yield tokens

    @contextlib.contextmanager
    def refusals(self, tokens: int) -> Iterator[None]:
        """Within the block a server's refusal says which server it is, and what may help; tokens: of the question."""
        try:
            yield
        except RefusedError as error:
            remedy = "see the server's own log, or serve the model with another server or release"
            if error.status in TOO_LONG:
                remedy = (
                    "if that is its context, serve the model with a longer one, or lower `window_tokens:`, "
                    "`max_new_tokens:` or `benchmark:` of the protocol"
                )
            raise UserError(
                f"{self.dialect.server.url} spoke the dialect {self.dialect.name!r} when it was tried, and now refuses "
                f"a question of {tokens} tokens: {error}; {remedy}"
            ) from None

    def file_of_answer(self, ids: list[int], new_tokens: int) -> Path:
        """The file that keeps an answer until the stage is finished."""
        return self.file_of("answer", new_tokens, ids)

    def file_of(self, *question: object) -> Path:
        """The file of one question to this server and its weights: others' answers, left by a stopped run, are none."""
        server = [self.dialect.server.url, self.dialect.model, self.dialect.name, self.known_by]
        path = self.folder / f"{sha256_of([*server, *question])}.json"
        self.used.append(path)
        return path

    def finished(self) -> None:
        """Deletes the kept answers, since the stage has written its results: a new run asks anew."""
        for path in self.used:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            shutil.rmtree(self.folder, ignore_errors=True)

    def get_input_embeddings(self) -> SimpleNamespace:
        """A stand-in whose weight has as many rows as the vocabulary: the stages look at no more of it."""
        return SimpleNamespace(weight=torch.empty(self.vocabulary_size, 0))

    get_output_embeddings = get_input_embeddings

    def description(self) -> EngineRecord:
        """The engine as far as the server describes it, for the records of a cell."""
        return {
            "name": "openai",
            "version": version_of_server(self.dialect),
            "url": self.dialect.server.url,
            "model": self.dialect.model,
            "dialect": self.dialect.name,
            "top_tokens": self.top_tokens,
        }


def sha256_of(question: list[object]) -> str:
    """The name of the file that keeps the answer to a question."""
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()


def version_of_server(dialect: Dialect) -> str | None:
    """The version that a server states; None where it states none."""
    try:
        answer = dialect.server.get(dialect.version_path)
    except UserError:
        return None
    version = answer.get("version") or answer.get("build_info") if isinstance(answer, dict) else None
    return dialect.server.one_line(str(version)) if version else None
