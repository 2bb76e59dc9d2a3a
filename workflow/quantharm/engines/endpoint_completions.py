"""The dialects of the completions API (`/v1/completions`), as endpoint_dialects.py says what a dialect does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from quantharm.common.errors import UserError
from quantharm.engines.endpoint_http import RefusedError, Server
from quantharm.engines.endpoint_reading import Known, choice_of, require_length, require_whole

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
