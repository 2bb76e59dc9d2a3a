"""How servers are asked for log-probabilities of given tokens, and for greedy answers: a class a dialect.

`scores(ids, first, top)` gives for each position from `first` on {token id: ln q}: the `top` most probable tokens and
the one that stands there. `answer(ids, new_tokens, to_the_end)` gives lists of tokens as they come; with `to_the_end`
end-of-sequence tokens do not stop it. Both raise RefusedError where the server does not speak the dialect, UserError
where it did something else to the tokens than it was asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from quantharm.common.errors import UserError
from quantharm.engines.endpoint_http import RefusedError, Server

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
        for part in self.server.stream("/v1/completions", question):
            for choice in part.get("choices", []):
                if choice.get("text") and choice.get("token_ids") is None:
                    raise RefusedError("it gives no ids of the tokens that it generates (`return_token_ids`)")
                yield choice.get("token_ids") or []


@dataclass(frozen=True)
class Generate:
    """SGLang: its own `/generate`."""

    server: Server
    model: str
    name: ClassVar[str] = "generate"
    version_path: ClassVar[str] = "/get_server_info"

    def scores(self, ids: list[int], first: int, top: int) -> list[Known]:
        question = {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top,
        }
        told = told_of(self.server.post("/generate", question))
        given, others = told.get("input_token_logprobs"), told.get("input_top_logprobs")
        if not isinstance(given, list) or not isinstance(others, list):
            raise RefusedError("it gives no `input_top_logprobs`")
        require_length(given, ids, self.server)
        require_length(others, ids, self.server)
        changed = [i for i, entry in enumerate(given) if int(entry[1]) != ids[i]]
        if changed:
            raise changed_tokens(self.server, changed[0], ids[changed[0]], int(given[changed[0]][1]))
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


@dataclass(frozen=True)
class Echo:
    """The completions API as it was: the prompt's tokens come back as texts (`echo`, `logprobs`).

    tokens_of: {text: the token that alone reads so}. Of the most probable tokens those count whose text is one
    token's; the first of them must be, or nobody could say what the server would choose.
    """

    server: Server
    model: str
    tokens_of: dict[str, int]
    name: ClassVar[str] = "echo"
    version_path: ClassVar[str] = "/version"

    def scores(self, ids: list[int], first: int, top: int) -> list[Known]:
        question = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0}
        question |= {"echo": True, "logprobs": top}
        told = choice_of(self.server.post("/v1/completions", question), self.server, len(ids)).get("logprobs") or {}
        given, others = told.get("token_logprobs"), told.get("top_logprobs")
        if not isinstance(given, list) or not isinstance(others, list) or len(given) < len(ids):
            raise RefusedError("it gives no log-probabilities of the prompt (`echo`)")
        known = []
        for i in range(first, len(ids)):
            chosen = max(others[i], key=others[i].__getitem__)
            if chosen not in self.tokens_of:
                raise UserError(
                    f"{self.server.url} names tokens by their text, and {chosen!r} at position {i} is no one token: "
                    "serve the model with something that gives ids (vLLM, SGLang, llama-server)"
                )
            shown = {self.tokens_of[text]: float(value) for text, value in others[i].items() if text in self.tokens_of}
            known.append(shown | {ids[i]: float(given[i])})
        return known

    def answer(self, ids: list[int], new_tokens: int, to_the_end: bool = False) -> Iterator[list[int]]:
        question = {"model": self.model, "prompt": ids, "max_tokens": new_tokens, "logprobs": 1, **GREEDY}
        question |= {"ignore_eos": True} if to_the_end else {}
        for part in self.server.stream("/v1/completions", question):
            for choice in part.get("choices", []):
                texts = (choice.get("logprobs") or {}).get("tokens") or []
                unknown = [text for text in texts if text not in self.tokens_of]
                if unknown:
                    raise UserError(
                        f"{self.server.url} gives its answers as text only, and {unknown[0]!r} is no one token"
                    )
                yield [self.tokens_of[text] for text in texts]


@dataclass(frozen=True)
class PositionByPosition:
    """llama.cpp's llama-server: the next token's distribution, once for each position; the prompt stays in its cache.

    The token that stands at the position is made the chosen one, whose log-probability the server always tells; what
    it tells is of the logits before that.
    """

    server: Server
    model: str
    name: ClassVar[str] = "position by position"
    version_path: ClassVar[str] = "/props"

    def scores(self, ids: list[int], first: int, top: int) -> list[Known]:
        return [self.score(ids[:i], ids[i], top) for i in range(first, len(ids))]

    def score(self, before: list[int], token: int, top: int) -> Known:
        question = {
            "prompt": before,
            "n_predict": 1,
            "n_probs": top,
            "logit_bias": [[token, FORCED]],
            "temperature": 0.0,
            "cache_prompt": True,
            **self.named(),
        }
        told = self.server.post("/completion", question)
        require_prompt(told, before, self.server)
        parts = told.get("completion_probabilities")
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
        question = {"prompt": ids, "n_predict": new_tokens, "temperature": 0.0, "return_tokens": True, **self.named()}
        question |= {"repeat_penalty": 1.0, "cache_prompt": False, "ignore_eos": to_the_end}
        for part in self.server.stream("/completion", question):
            if part.get("stop"):
                require_prompt(part, ids, self.server)
            if part.get("content") and "tokens" not in part:
                raise RefusedError("it gives no ids of the tokens that it generates (`return_tokens`)")
            yield [int(token) for token in part.get("tokens", [])]

    def named(self) -> dict[str, str]:
        """For a server that holds several models."""
        return {"model": self.model}


def told_of(answer: Any) -> dict[str, Any]:
    told = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(told, dict):
        raise RefusedError("it gives no `meta_info`")
    return told


def choice_of(answer: Any, server: Server, tokens: int) -> dict[str, Any]:
    """The one choice of a completion; raises UserError where the prompt had another number of tokens there."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise RefusedError("it gives no completion")
    read = (answer.get("usage") or {}).get("prompt_tokens")
    if read is not None and read != tokens:
        raise other_length(server, tokens, read)
    return choices[0]


def require_length(entries: list, ids: list[int], server: Server) -> None:
    if len(entries) != len(ids):
        raise other_length(server, len(ids), len(entries))


def require_prompt(told: dict[str, Any], ids: list[int], server: Server) -> None:
    """Raises UserError unless llama-server read the whole prompt as it was given."""
    read = told.get("tokens_evaluated", len(ids))
    if told.get("truncated") or read != len(ids):
        raise other_length(server, len(ids), read)


def other_length(server: Server, asked: int, read: int) -> UserError:
    return UserError(
        f"{server.url} was given {asked} tokens and read {read}: it cuts or adds tokens; serve the model with a "
        "context that holds them, and without anything that it puts in front"
    )


def changed_tokens(server: Server, position: int, given: int, read: int) -> UserError:
    return UserError(
        f"{server.url} was given token {given} at position {position} and read token {read}: it does not take token "
        "ids as they are"
    )
