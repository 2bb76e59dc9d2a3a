"""The part of a server's answer that holds its figures, and whether the server read the tokens that it was given.

Figures of other tokens than the given ones would look like those of a bad model, so they end the stage.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

from quantharm.common.errors import UserError, first_line
from quantharm.engines.endpoint_http import BusyError, Json, RefusedError, Server

Known = dict[int, float]  # {token id: ln q} of one position
SUM_TOLERANCE = 1e-3  # of the probabilities that a server shows of one position, above 1
NO_ROOM = ("length", "limit")  # words for an answer that was cut where it was as long as it may be
GIVEN_UP = ("abort", "error")
OTHER_FORM = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@contextlib.contextmanager
def as_dialect() -> Iterator[None]:
    """Within the block what is not in the form of a dialect raises RefusedError."""
    try:
        yield
    except OTHER_FORM as error:
        raise RefusedError(f"what it sends has another form ({type(error).__name__}: {first_line(error)})") from None


def meta_info_of(answer: Any) -> Json:
    """The figures beside an answer of SGLang."""
    meta_info = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(meta_info, dict):
        raise RefusedError("it gives no `meta_info`")
    return meta_info


def choice_of(answer: Any, server: Server, tokens: int) -> Json:
    """The one choice of a completion; raises UserError where the server read another number of tokens."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise RefusedError("it gives no completion")
    read = (answer.get("usage") or {}).get("prompt_tokens")
    if read is not None and read != tokens:
        raise other_length(server, tokens, read)
    return choices[0]


def require_length(entries: list[Any], ids: list[int], server: Server) -> None:
    """Raises UserError unless a server gives an entry a token."""
    if len(entries) != len(ids):
        raise other_length(server, len(ids), len(entries))


def require_prompt(answer: Json, ids: list[int], server: Server) -> None:
    """Raises UserError unless llama-server read the whole prompt as it was given.

    Its `truncated` also says that the context is full now, which no answer of one token minds.
    """
    read = answer.get("tokens_evaluated", len(ids))
    if read != len(ids):
        raise other_length(server, len(ids), read)


def other_length(server: Server, asked: int, read: int) -> UserError:
    """The message for a server that read another number of tokens than it was given."""
    return UserError(
        f"{server.url} was given {asked} tokens and read {read}: it cuts or adds tokens; serve the model with a "
        "context that holds them, and without anything that it puts in front"
    )


def require_tokens(read: list[int], ids: list[int], server: Server) -> None:
    """Raises UserError where a server read other tokens than it was given."""
    for position, (token, given) in enumerate(zip(read, ids, strict=True)):
        if token != given:
            raise UserError(
                f"{server.url} was given token {given} at position {position} and read token {token}: it does not take "
                "token ids as they are; serve the model with another server"
            )


def require_whole(reason: str | None, given: int, asked: int, server: Server) -> None:
    """Raises UserError for an answer that the server cut short, BusyError for one that it gave up.

    reason: its word for the answer's end, None where it goes on; given, asked: tokens.
    """
    if reason in GIVEN_UP:
        raise BusyError(f"it gave an answer up after {given} of {asked} tokens ({reason})")
    if reason in NO_ROOM and given < asked:
        raise UserError(
            f"{server.url} was asked for {asked} tokens and cut its answer after {given} ({reason}); serve the model "
            "with a longer context, or lower `max_new_tokens:` and `benchmark:` of the protocol"
        )


def require_known(tokens: Iterable[int], server: Server, vocabulary: int) -> None:
    """Raises UserError for a token that a model with so many does not have."""
    strange = [token for token in tokens if not 0 <= token < vocabulary]
    if strange:
        raise UserError(
            f"{server.url} knows token {strange[0]}, the model has {vocabulary}: it serves another model; correct "
            "`url` or `model` of the method"
        )


def checked(known: Known, token: int, server: Server, top_tokens: int, vocabulary: int, may_lack: bool) -> Known:
    """The K most probable tokens of one position and `token`, the one given there, or K + 1 where it is among them.

    top_tokens: K; vocabulary: of the model; may_lack: whether the dialect leaves out tokens, so fewer are no fault.
    Raises UserError where the server's figures are no log-probabilities of this model's tokens, or may lack the first
    choice.
    """
    if token not in known:
        raise UserError(
            f"{server.url} gives no log-probability of token {token}, which it was given: it changes tokens or has "
            "others; serve the model that `models:` names"
        )
    wrong = [value for value in known.values() if not value <= SUM_TOLERANCE]  # NaN, too
    if wrong:
        raise UserError(
            f"{server.url} gives a log-probability of {wrong[0]}, which is none; serve the model with another server"
        )
    shown_share = sum(map(math.exp, known.values()))
    if shown_share > 1 + SUM_TOLERANCE:
        raise UserError(
            f"{server.url} gives probabilities of one position that sum to more than 1; serve the model with another "
            "server"
        )
    require_known(known, server, vocabulary)
    fewer = len(known) < top_tokens and not may_lack
    if fewer and math.exp(max(known.values())) < 1 - shown_share:
        raise UserError(
            f"{server.url} shows {len(known)} tokens of a position instead of {top_tokens}, so that its first choice "
            "may not be among them; lower `top_tokens` of the method, or serve the model with another server"
        )
    most = top_tokens + 1
    shown = dict(sorted(known.items(), key=lambda entry: -entry[1])[:most])
    return shown if token in shown else dict(list(shown.items())[: most - 1]) | {token: known[token]}
