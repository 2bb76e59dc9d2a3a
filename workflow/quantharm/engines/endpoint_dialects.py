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

from quantharm.common.errors import UserError
from quantharm.engines.endpoint_http import RefusedError, Server
from quantharm.engines.endpoint_reading import (
    choice_of,
    meta_info_of,
    require_length,
    require_prompt,
    require_tokens,
    require_whole,
)

Known = dict[int, float]  # {token id: ln q} of one position
FORCED = 1000.0  # added to a logit so that its token is chosen
GREEDY = {
    "temperature": 0.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True)
class PromptLogprobs:
    """vLLM: `prompt_logprobs` of the completions API, by token id."""

    server: Server
    model: str
    name: ClassVar[str] = "prompt_logprobs"
    leaves_out_tokens: ClassVar[bool] = False
    version_path: ClassVar[str] = "/version"

    def scores(self, ids: list[int], first: int, top: int) -> list[Known]:
        question = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top}
        choice = choice_of(self.server.post("/v1/completions", question), self.server, len(ids))
        entries = choice.get("prompt_logprobs")
        if not isinstance(entries, list):
            raise RefusedError("it gives no `prompt_logprobs`")
        require_length(entries, ids, self.server)
        return [{int(token): float(entry["logprob"]) for token, entry in at.items()} for at in entries[first:]]

    def answer(self, ids: list[int], new_tokens: int, to_the_end: bool = False) -> Iterator[list[int]]:
        question = {"model": self.model, "prompt": ids, "max_tokens": new_tokens, "return_token_ids": True, **GREEDY}
        question |= {"ignore_eos": True, "min_tokens": new_tokens} if to_the_end else {}
        seen = 0
        for part in self.server.stream("/v1/completions", question):
            for choice in part.get("choices", []):
                if choice.get("text") and choice.get("token_ids") is None:
                    raise RefusedError("it gives no ids of the tokens that it generates (`return_token_ids`)")
                tokens = [int(token) for token in choice.get("token_ids") or []]
                seen += len(tokens)
                yield tokens
                require_whole(choice.get("finish_reason"), seen, new_tokens, self.server)


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
class Echo:
    """The older completions API: the prompt's tokens come back as texts (`echo`, `logprobs`).

    tokens_of: {text: the one token that reads so}. Probable tokens whose text several tokens share are left out; the
    most probable one must have a text of its own, since it is the server's choice.
    """

    server: Server
    model: str
    tokens_of: dict[str, int]
    name: ClassVar[str] = "echo"
    leaves_out_tokens: ClassVar[bool] = True
    version_path: ClassVar[str] = "/version"

    def scores(self, ids: list[int], first: int, top: int) -> list[Known]:
        question = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0}
        question |= {"echo": True, "logprobs": top}
        choice = choice_of(self.server.post("/v1/completions", question), self.server, len(ids))
        log_probabilities = choice.get("logprobs") or {}
        given, others = log_probabilities.get("token_logprobs"), log_probabilities.get("top_logprobs")
        if not isinstance(given, list) or not isinstance(others, list) or len(given) < len(ids):
            raise RefusedError("it gives no log-probabilities of the prompt (`echo`)")
        known = []
        for i in range(first, len(ids)):
            self.token_of(max(others[i], key=others[i].__getitem__))
            shown = {self.tokens_of[text]: float(value) for text, value in others[i].items() if text in self.tokens_of}
            known.append(shown | {ids[i]: float(given[i])})
        return known

    def answer(self, ids: list[int], new_tokens: int, to_the_end: bool = False) -> Iterator[list[int]]:
        question = {"model": self.model, "prompt": ids, "max_tokens": new_tokens, "logprobs": 1, **GREEDY}
        question |= {"ignore_eos": True} if to_the_end else {}
        seen = 0
        for part in self.server.stream("/v1/completions", question):
            for choice in part.get("choices", []):
                texts = (choice.get("logprobs") or {}).get("tokens") or []
                if choice.get("text") and not texts:
                    raise RefusedError("it does not name the tokens that it generates (`logprobs`)")
                seen += len(texts)
                yield [self.token_of(text) for text in texts]
                require_whole(choice.get("finish_reason"), seen, new_tokens, self.server)

    def token_of(self, text: str) -> int:
        """The one token that reads so; raises UserError where there is none, or several."""
        if text not in self.tokens_of:
            raise UserError(
                f"{self.server.url} names tokens by their text, and {text!r} is no one token; serve the model with "
                "something that gives ids (vLLM, SGLang, llama-server)"
            )
        return self.tokens_of[text]


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
