"""The benchmark of a model behind an address: the times that a user of the server waits, network included.

The server runs on its own hardware, perhaps beside other work, so the report does not compare its times with the
baseline's. Its memory, energy and bytes moved are not measured.
"""

import concurrent.futures
import itertools
import time
from collections.abc import Sequence
from functools import partial

from quantharm.common.errors import UserError
from quantharm.common.medians import describe
from quantharm.common.records.generation import BatchFigures, BatchRecord, BenchmarkRecord, PrefillRecord
from quantharm.speed.batches import MOST_TOKENS, NOT_MEASURED, REPETITIONS
from quantharm.speed.served import ELSEWHERE
from quantharm.speed.timings import fitting_lengths, random_prompt

SHORTEST_STEP = 2e-4  # seconds a token; what comes faster was held back on its way, or waited to be read
Times = tuple[float, float, int, int]  # seconds to an answer's first part and to its last, tokens after the first, all


def time_answer(model, ids: list[int], new_tokens: int) -> Times:
    """The times of one answer of `new_tokens` tokens, if the server gives as many as it is asked for.

    Raises BusyError where it may be asked again.
    """
    begin = time.perf_counter()
    parts = [(time.perf_counter() - begin, len(part)) for part in model.answer(ids, new_tokens, True) if part]
    if not parts:
        raise UserError(
            f"{model.dialect.server.url} was asked for {new_tokens} tokens and gave none; see the server's own log"
        )
    return parts[0][0], parts[-1][0], sum(count for _, count in parts[1:]), sum(count for _, count in parts)


def prompts_of(model, tokens: int) -> itertools.chain[list[int]]:
    """Endless random prompts of `tokens` ids, each with another beginning, so that the server's cache holds none."""
    ids = random_prompt(model, tokens)[0].tolist()
    return itertools.chain.from_iterable([[*ids[i:], *ids[:i]] for i in range(tokens)] for _ in itertools.count())


def benchmark(
    model,
    prompt_tokens: int,
    new_tokens: int,
    repetitions: int,
    seconds: float,
    prefill_tokens: Sequence[int] = (),
    batch_sizes: Sequence[int] = (1,),
) -> BenchmarkRecord:
    """speed.benchmark of a server: prefill is the time to the first token, a batch is answers asked for at once."""
    # a server gives no time without an answer
    prompt_tokens, lengths = fitting_lengths(model, prompt_tokens, new_tokens, prefill_tokens, answered=1)
    prompts = prompts_of(model, prompt_tokens)

    def once() -> Times:
        return model.dialect.server.patiently(partial(time_answer, model, next(prompts), new_tokens))

    once()
    begin = time.perf_counter()
    values: list[Times] = []
    while len(values) < repetitions or time.perf_counter() - begin < seconds:
        values.append(once())
    prefill_seconds, rates = describe([v[0] for v in values]), describe([rate_of([v]) for v in values])
    alone: BatchRecord = {
        "batch_size": 1,
        "prompt_tokens": prompt_tokens,
        **NOT_MEASURED,
        "decoding": "eager",
        "decoding_reason": ELSEWHERE,
        "prefill_seconds": prefill_seconds,
        "decode_tokens_per_second": rates,
        "reason": None,
    }
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repetitions": len(values),
        "processor_wait_share": None,
        "prefill_seconds": prefill_seconds,
        "decode_tokens_per_second": rates,
        "joules_per_new_token": None,
        "prefill": [time_prefill(model, n, repetitions) for n in lengths],
        "captured": {"reason": ELSEWHERE, "compiled": False},
        "batches": [
            alone if size == 1 else time_batch(model, size, prompt_tokens, min(new_tokens, MOST_TOKENS))
            for size in sorted(set(batch_sizes))
        ],
        "host_wait_share": None,
        "roofline": None,
        "energy_reason": ELSEWHERE,
    }


def rate_of(answers: list[Times]) -> float:
    """Tokens a second of answers that were asked for at once, after the first token of any.

    Where tokens come faster than any server decodes them, all tokens over all the time.
    """
    begin, end = min(a[0] for a in answers), max(a[1] for a in answers)
    if any(last - first <= SHORTEST_STEP * after for first, last, after, _ in answers):
        return sum(a[3] for a in answers) / end
    return sum(a[2] for a in answers) / (end - begin)


def time_prefill(model, tokens: int, repetitions: int) -> PrefillRecord:
    """Times to the first token after prompts of `tokens` ids."""
    prompts = prompts_of(model, tokens)
    patiently = model.dialect.server.patiently
    times = [patiently(partial(time_answer, model, next(prompts), 1))[0] for _ in range(repetitions)]
    return {"prompt_tokens": tokens, "seconds": describe(times), "joules": None}


def time_batch(model, size: int, prompt_tokens: int, new_tokens: int) -> BatchRecord:
    """Times of `size` answers asked for at once; the server may work on fewer of them at a time.

    Nulls with the `reason` where it refuses so many.
    """
    reason, figures = None, NOT_MEASURED
    try:
        figures = batch_figures(model, size, prompt_tokens, new_tokens)
    except UserError as error:
        reason = f"the server does not answer so many at once ({error})"
    return {"batch_size": size, "prompt_tokens": prompt_tokens, **figures, "reason": reason}


def batch_figures(model, size: int, prompt_tokens: int, new_tokens: int) -> BatchFigures:
    """Figures of time_batch; raises UserError where an answer fails. A batch is asked for again as a whole."""
    prompts, prefills, rates = prompts_of(model, prompt_tokens), [], []
    with concurrent.futures.ThreadPoolExecutor(size) as pool:

        def once() -> list[Times]:
            asked = [next(prompts) for _ in range(size)]
            return list(pool.map(lambda ids: time_answer(model, ids, new_tokens), asked))

        for _ in range(REPETITIONS):
            answers = model.dialect.server.patiently(once)
            prefills.append(max(a[0] for a in answers))
            rates.append(rate_of(answers))
    return {
        **NOT_MEASURED,
        "decoding": "eager",
        "decoding_reason": ELSEWHERE,
        "prefill_seconds": describe(prefills),
        "decode_tokens_per_second": describe(rates),
    }
