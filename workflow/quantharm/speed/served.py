"""Answers of a model behind an address, with the times that a user of the server waits, network included."""

import itertools
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from quantharm.common.errors import UserError
from quantharm.common.files import read_json, write_json
from quantharm.common.text import context_length
from quantharm.speed.decoding import Continuation, Stopped, never, why_ended

ELSEWHERE = "it decodes behind an address"


def is_served(model) -> bool:
    """Whether a model is behind an address."""
    return hasattr(model, "answer")


def answers(
    model, prompts: list[list[int]], new_tokens: int, eos_token_ids: set[int], stopped: Stopped = never
) -> list[Continuation]:
    """One greedy answer a prompt, one after the other; answers kept by a stopped run are not asked for again."""
    model.dialect.server.patiently(lambda: list(model.answer(prompts[0], 1)))  # a warm-up
    files = [(ids, model.file_of_answer(ids, new_tokens)) for ids in prompts]
    shown = tqdm(files, desc="generation", unit="prompt", mininterval=5)
    return [answer_to(model, ids, new_tokens, eos_token_ids, stopped, path) for ids, path in shown]


def answer_to(
    model, ids: list[int], new_tokens: int, eos_token_ids: set[int], stopped: Stopped, path: Path
) -> Continuation:
    """At most `new_tokens` tokens after a prompt; path: of the file that keeps the answer."""
    if path.is_file():
        kept = Continuation(**read_json(path)["answer"])
        # Two tasks may ask one question with other stop words: an answer that those of the first ended is half a one.
        if kept.stop_reason != "stopped" or stopped(kept.token_ids):
            return kept
    ask = partial(ask_for_answer, model, ids, new_tokens, eos_token_ids, stopped)
    answer = model.dialect.server.patiently(ask)
    write_json(path, {"answer": vars(answer)})
    return answer


def ask_for_answer(model, ids: list[int], new_tokens: int, eos_token_ids: set[int], stopped: Stopped) -> Continuation:
    """answer_to() without its file; its times are those of this one question.

    Raises UserError where the server gives more than it is asked for, and BusyError where it may be asked again.
    """
    context = context_length(model.config)
    room = new_tokens if context is None else min(new_tokens, context - len(ids))
    begin = time.perf_counter()
    tokens, reason, first = [], "length" if room == new_tokens else "context", None
    for token in itertools.chain.from_iterable(model.answer(ids, room)):
        first = first or time.perf_counter() - begin
        tokens.append(token)
        if ended := why_ended(tokens, eos_token_ids, stopped):
            reason = ended
            break
    seconds = time.perf_counter() - begin
    if len(tokens) > room:
        raise UserError(
            f"{model.dialect.server.url} was asked for {room} tokens and gave {len(tokens)}; serve the model with "
            "another server"
        )
    if reason in ("length", "context") and len(tokens) < room:  # the server does not send the token that ended it
        tokens, reason = [*tokens, min(eos_token_ids)] if eos_token_ids else tokens, "end_of_sequence"
    return Continuation(tokens, reason, seconds, first or seconds, True)
