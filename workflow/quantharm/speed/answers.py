"""Answers to a prompt suite: by the captured step where its answers pass their check, else eagerly.

One graph decodes all answers. Prompts are read into its cache by graphs of their own where many share a length
(prompt_reader.py), else eagerly. All graphs are compared with eager decoding before the first answer. Afterwards one
ordinary forward pass over each prompt and its answer must choose the same tokens. It may choose another token only
where two logits tie: by rounding, or by no more than eager decoding and one pass differ by on the first answer, since
their kernels add in other orders; or where eager decoding of that answer chooses the same. Where an answer fails, all
prompts are answered again, eagerly, and the record gives the reason.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from quantharm.common.errors import UserError, first_line
from quantharm.common.memory import forget_device_peaks, memory_bytes
from quantharm.common.records.generation import AnswersCheck
from quantharm.common.records.parts import Memory
from quantharm.common.text import context_length
from quantharm.scoring.forward import last_hidden_states, output_head, slices_of
from quantharm.speed import served
from quantharm.speed.cuda_graph import beyond_ties, captured_decoder, eager_logits
from quantharm.speed.decoding import Continuation, Stopped, continue_greedily, decode_one_token, never, prefill
from quantharm.speed.prompt_reader import prompt_reader
from quantharm.speed.static_decoder import WARM_UP_STEPS, StaticDecoder

CAPTURED, EAGER = "captured", "eager"
VERIFIED_STEPS = 16  # compared with eager decoding before the first answer
NOISE_STEPS = 32  # of the first answer, on which the noise is measured
RIVALS = 10  # most probable tokens, among which a choice is made
WARM_UP_TOKENS = 4
LARGEST_NOISE = 0.5  # logits; where two kernels differ by more, no more than this is a tie


@dataclass(frozen=True)
class Answers:
    """One greedy continuation a prompt, and how they were decoded."""

    continuations: list[Continuation]
    decoding: str  # captured or eager
    reason: str | None  # why they are not captured
    check: AnswersCheck | None  # of captured ones
    memory: Memory | None  # while answering; None of a model behind an address


def answer_suite(
    model, prompts: list[list[int]], new_tokens: int, eos_token_ids: set[int], stopped: Stopped = never
) -> Answers:
    """Greedy answers of at most `new_tokens` tokens to prompts of token ids, batch 1, in their order.

    stopped: ends an answer before its end-of-sequence token. A warm-up comes before the first answer.
    """
    if served.is_served(model):
        continuations = served.answers(model, prompts, new_tokens, eos_token_ids, stopped)
        return Answers(continuations, EAGER, served.ELSEWHERE, None, None)
    context = context_length(model.config)
    decoder, reason = suite_decoder(model, prompts, new_tokens, context)
    if decoder is not None:
        reader = prompt_reader(decoder, prompts)
        continuations, memory = timed_answers(
            model,
            prompts,
            lambda ids, tokens: decoder.continue_greedily(ids, tokens, eos_token_ids, context, stopped, reader.read),
            new_tokens,
        )
        try:
            check = check_answers(model, prompts, continuations)
            check["prompts_read"] = reader.record(prompts)
            return Answers(continuations, CAPTURED, None, check, memory)
        except (UserError, torch.OutOfMemoryError) as error:
            reason = first_line(error)
            del decoder, reader
    continuations, memory = timed_answers(
        model,
        prompts,
        lambda ids, tokens: continue_greedily(model, ids, tokens, eos_token_ids, context, stopped),
        new_tokens,
    )
    return Answers(continuations, EAGER, reason, None, memory)


def suite_decoder(
    model, prompts: list[list[int]], new_tokens: int, context: int | None
) -> tuple[StaticDecoder | None, str | None]:
    """(a captured decoder for all prompts, None), or (None, the reason why there is none)."""
    if new_tokens < 2:
        return None, "an answer of one token takes no decoding step"
    longest = max(prompts, key=len)
    length = len(longest) + new_tokens
    steps = min(VERIFIED_STEPS, new_tokens - 1)
    if context:
        length = min(length, context)
        longest = longest[: context - max(steps, WARM_UP_STEPS + 1)]  # leaves room for capturing and checking
    device = model.get_input_embeddings().weight.device
    if not longest:
        return None, f"the model's context of {context} leaves no room for a check"
    decoder, check = captured_decoder(model, torch.tensor([longest], device=device), steps, length=length)
    return decoder, None if decoder is not None else check


def timed_answers(
    model, prompts: list[list[int]], answer: Callable[[list[int], int], Continuation], new_tokens: int
) -> tuple[list[Continuation], Memory]:
    """(answers, memory while answering), without the warm-up."""
    device = model.get_input_embeddings().weight.device.type
    answer(prompts[0], min(WARM_UP_TOKENS, new_tokens))
    forget_device_peaks(device)
    shown = tqdm(prompts, desc="generation", unit="prompt", mininterval=5)
    return [answer(ids, new_tokens) for ids in shown], memory_bytes(device)


def check_answers(model, prompts: list[list[int]], continuations: list[Continuation]) -> AnswersCheck:
    """Compares captured answers with the choices of one forward pass over each prompt and its answer.

    Raises UserError where the pass chooses other tokens, or gives finite logits where the answer's were not.
    """
    head = output_head(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    noise = noise_of_eager_decoding(model, head, prompts[0], continuations[0].token_ids[:NOISE_STEPS])
    check: AnswersCheck = {"tokens": 0, "same_tokens": 0, "same_tokens_but_ties": 0, "logit_noise": noise}
    for ids, continuation in zip(prompts, continuations, strict=True):
        hidden = last_hidden_states(model, [*ids, *continuation.token_ids])[len(ids) - 1 :]  # [tokens + 1, width]
        if not continuation.finite and torch.isfinite(head(hidden[-1:])).all():
            raise UserError(
                "captured decoding gave logits that are not finite where one forward pass gives finite ones"
            )
        tokens = torch.tensor(continuation.token_ids, device=hidden.device, dtype=torch.long)
        wrong = 0
        for part in slices_of(len(tokens), vocabulary):
            logits, chosen = head(hidden[part]), tokens[part].to(hidden.device)
            check["same_tokens"] += int((logits.argmax(-1) == chosen).sum())
            wrong += beyond_ties(chosen.to(logits.device), logits, noise)
        if wrong:
            wrong = beyond_ties_of_eager_decoding(model, ids, tokens, noise)
        check["tokens"] += len(tokens)
        check["same_tokens_but_ties"] += len(tokens) - wrong
    wrong = check["tokens"] - check["same_tokens_but_ties"]
    if wrong:
        raise UserError(
            f"captured decoding chose other tokens than one forward pass over the answers, and than eager decoding, in "
            f"{wrong} of {check['tokens']} places"
        )
    return check


def beyond_ties_of_eager_decoding(model, ids: list[int], tokens: torch.Tensor, noise: float) -> int:
    """The number of an answer's tokens that eager decoding after the same tokens does not choose either, but for ties.

    One pass may differ from both ways of decoding by more on this answer than on the one whose noise was measured. In a
    tie logits are as near as rounding, `noise`, or what two attention kernels differ by at this place of this answer.
    """
    prompt = torch.tensor([ids], device=tokens.device)
    logits, cache = prefill(model, prompt)
    with sdpa_kernel(SDPBackend.MATH):
        other, other_cache = prefill(model, prompt)
    wrong = 0
    for place, token in enumerate(tokens):
        if place:
            fed = tokens[place - 1].view(1, 1)
            logits, cache = decode_one_token(model, fed, cache)
            with sdpa_kernel(SDPBackend.MATH):
                other, other_cache = decode_one_token(model, fed, other_cache)
        of_kernels = min(change_of_lead(logits[0].float(), other[0].float()), LARGEST_NOISE)
        wrong += beyond_ties(token.view(1).to(logits.device), logits, max(noise, of_kernels))
    return wrong


def noise_of_eager_decoding(model, head, ids: list[int], tokens: list[int]) -> float:
    """The change of lead between one forward pass over a prompt and `tokens` and eager decoding."""
    if not tokens:
        return 0.0
    device = model.get_input_embeddings().weight.device
    fed = torch.tensor(tokens, device=device).view(-1, 1)
    stepwise = eager_logits(model, torch.tensor([ids], device=device), fed)[1:, 0].float()
    at_once = head(last_hidden_states(model, [*ids, *tokens])[len(ids) :])
    return change_of_lead(at_once.to(stepwise.device), stepwise)


def change_of_lead(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest change of the lead that the first choice of `one` has over one of its nearest rivals.

    one, other: logits [..., vocabulary]. A shift of all logits, or of unlikely ones, changes no choice.
    """
    rivals = one.topk(min(RIVALS, one.shape[-1]), -1).indices  # the first choice in front
    shifts = (other - one).gather(-1, rivals)
    change = float((shifts - shifts[..., :1]).abs().max())
    return change if math.isfinite(change) else 0.0
