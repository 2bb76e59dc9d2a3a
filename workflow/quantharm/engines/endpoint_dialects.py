"""The dialects in which servers are asked for log-probabilities of given tokens and for greedy answers, a class each.

`scores(ids, first, top)` gives {token id: ln q} for each position from `first` on: of the `top` most probable tokens
and of the token given there. `answer(ids, new_tokens, to_the_end)` gives lists of tokens as they come; with
`to_the_end` as many as were asked for, past end-of-sequence tokens. Both raise RefusedError where the server does not
speak the dialect, and UserError where it cut, added or changed tokens. What a server sends in another form than its
dialect's raises KeyError, TypeError and the like, which the caller turns into a sentence (endpoint_reading.as_dialect).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from quantharm.engines.endpoint_completions import Echo, PromptLogprobs
from quantharm.engines.endpoint_http import RefusedError, Server
from quantharm.engines.endpoint_reading import (
    Known,
    meta_info_of,
    require_length,
    require_prompt,
    require_tokens,
    require_whole,
)

FORCED = 1000.0  # added to a logit so that its token is chosen


@dataclass(frozen=True)
class Generate:
    """SGLang: its own `/generate`."""

    server: Server
    model: str
    name: ClassVar[str] = "generate"
    leaves_out_tokens: ClassVar[bool] = False
    version_path: ClassVar[str] = "/get_server_info"

    def scores(self, ids: list[int], first: int, top: int) -> list[Known]:
        question = {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top,
        }
        figures = meta_info_of(self.server.post("/generate", question))
        given, others = figures.get("input_token_logprobs"), figures.get("input_top_logprobs")
        if not isinstance(given, list) or not isinstance(others, list):
            raise RefusedError("it gives no `input_top_logprobs`")
        require_length(given, ids, self.server)
        require_length(others, ids, self.server)
        require_tokens([int(entry[1]) for entry in given], ids, self.server)
        return [{int(entry[1]): float(entry[0]) for entry in [*others[i], given[i]]} for i in range(first, len(ids))]

    def answer(self, ids: list[int], new_tokens: int, to_the_end: bool = False) -> Iterator[list[int]]:
        sampling = {"max_new_tokens": new_tokens, "temperature": 0.0, "ignore_eos": to_the_end}
        seen = 0
        for part in self.server.stream("/generate", {"input_ids": ids, "sampling_params": sampling}):
            tokens = part.get("output_ids")
            if tokens is None:
                raise RefusedError("it gives no ids of the tokens that it generates")
            yield [int(token) for token in tokens[seen:]]  # all of them so far, with each part
            seen = len(tokens)
            reason = (part.get("meta_info") or {}).get("finish_reason") or {}
            require_whole(reason.get("type"), seen, new_tokens, self.server)


@dataclass(frozen=True)
class PositionByPosition:
    """llama.cpp's llama-server: the next token's distribution, a question a position; the prompt stays in its cache.

    A bias makes the server choose the token given there, since it always gives the log-probability of its choice; the
    figures are those of the logits before the bias.
    """

    server: Server
    model: str
    name: ClassVar[str] = "position by position"
    leaves_out_tokens: ClassVar[bool] = False
    version_path: ClassVar[str] = "/props"

    def scores(self, ids: list[int], first: int, top: int) -> list[Known]:
        """The last position is asked for first: a context that is too short for it is told at once."""
        if first >= len(ids):
            return []
        last = self.score(ids[:-1], ids[-1], top)
        return [*(self.score(ids[:i], ids[i], top) for i in range(first, len(ids) - 1)), last]

    def score(self, before: list[int], token: int, top: int) -> Known:
        question = {
            "prompt": before,
            "n_predict": 1,
            "n_probs": top,
            "logit_bias": [[token, FORCED]],
            "temperature": 0.0,
            "cache_prompt": True,
            "model": self.model,  # for a server that holds several
        }
        answer = self.server.post("/completion", question)
        require_prompt(answer, before, self.server)
        parts = answer.get("completion_probabilities")
        if not isinstance(parts, list) or len(parts) != 1 or "top_logprobs" not in parts[0]:
            raise RefusedError("it gives no `completion_probabilities`")
        chosen = parts[0]
        if int(chosen["id"]) != token:
            raise RefusedError(
                "it does not let a token be chosen (`logit_bias`), so its log-probability cannot be asked for"
            )
        shown = {int(entry["id"]): float(entry["logprob"]) for entry in chosen["top_logprobs"]}
        return {token: float(chosen["logprob"])} | shown

    def answer(self, ids: list[int], new_tokens: int, to_the_end: bool = False) -> Iterator[list[int]]:
        question = {
            "prompt": ids,
            "n_predict": new_tokens,
            "temperature": 0.0,
            "return_tokens": True,
            "model": self.model,  # for a server that holds several
        }
        question |= {"repeat_penalty": 1.0, "cache_prompt": False, "ignore_eos": to_the_end}
        seen = 0
        for part in self.server.stream("/completion", question):
            if part.get("stop"):
                require_prompt(part, ids, self.server)
            if part.get("content") and "tokens" not in part:
                raise RefusedError("it gives no ids of the tokens that it generates (`return_tokens`)")
            tokens = [int(token) for token in part.get("tokens", [])]
            seen += len(tokens)
            yield tokens
            require_whole(part.get("stop_type"), seen, new_tokens, self.server)


Dialect = PromptLogprobs | Generate | Echo | PositionByPosition
