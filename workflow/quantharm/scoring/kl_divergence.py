"""Scoring of a model against a log-prob store: measures of each position, in the order of the store.

KL(p ‖ q) = Σ_v p_v (ln p_v - ln q_v) in nats, p the baseline, q the method, over the whole vocabulary, summed in
float64, with no epsilon.
"""

import collections
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import pandas
import torch
from tqdm import tqdm

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.scoring.forward import (
    background_scorer,
    check_ids,
    last_hidden_states,
    output_head,
    positions_at_once,
    slices_of,
)
from quantharm.scoring.stored_logits import Positions, read_store
from quantharm.scoring.worst_positions import WorstPositions

READERS_FOR_GPU = 4  # it scores positions faster than one thread can read and verify them
CHUNK_ELEMENTS = 2**17  # entries worked on at once: few enough for a core's cache, enough to be worth a call


def divergences(
    stored: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, top_tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Measures of each position; each value is [n], float64 but for top1_agrees.

    stored: [n, vocabulary] float16 log-probabilities of the baseline, renormalised here; logits: [n, vocabulary]
    float32 of the method; targets, top_tokens: [n] ids of the tokens that follow and of the baseline's first choice.
    JS is the Jensen-Shannon divergence (Lin 1991), with natural logarithms, at most ln 2. delta_nll is ln p - ln q of
    the target, delta_p is q - p of it.
    """
    step = len(logits) if logits.is_cuda else max(1, CHUNK_ELEMENTS // logits.shape[1])
    chunks = [slice(start, start + step) for start in range(0, len(logits), step)]
    sums = [vocabulary_sums(stored[chunk], logits[chunk]) for chunk in chunks]
    kl, reverse, js, ln_sum_p, ln_sum_q, largest = (torch.cat(column) for column in zip(*sums, strict=True))

    ids = torch.stack([targets, top_tokens], dim=-1)
    stored_target, stored_top = stored.gather(-1, ids).double().unbind(-1)
    logit_target, logit_top = logits.gather(-1, ids).double().unbind(-1)
    ln_p_target, ln_q_target = stored_target - ln_sum_p, logit_target - largest - ln_sum_q
    return {
        "kl_nats": kl,
        "reverse_kl_nats": reverse,
        "js_nats": js,
        "delta_p": ln_q_target.exp() - ln_p_target.exp(),
        "delta_nll_nats": ln_p_target - ln_q_target,
        "top1_agrees": logit_top == largest,
        "baseline_top1_p": (stored_top - ln_sum_p).exp(),
    }


def vocabulary_sums(stored: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sums over the vocabulary: (KL, reverse KL, JS, ln Σ e^stored, ln Σ e^(logits - largest), largest logit).

    Each [n] float64. Elementwise work is float32, sums are float64. Σ p ln(p / q) itself adds large terms of both signs
    that cancel: float32 is off by 1e-6 nats there, and can fall below zero. Since p and q each sum to 1, KL is also
    Σ (p ln(p / q) - p + q), whose terms are never negative and vanish with ln(p / q), so that a rounding error, of an
    entry or of a normaliser, enters only times the difference between p and q. Of float64 throughout it is within
    1e-8 nats + 3e-7 of the divergence.
    """
    work = torch.promote_types(logits.dtype, torch.float32)
    largest = logits.amax(-1, keepdim=True)
    ln_p, ln_q = stored.to(work, copy=True), logits.to(work) - largest  # each but for its row's constant
    p, q = ln_p.exp(), ln_q.exp()
    sum_p, sum_q = row_sums(p), row_sums(q)
    ln_sum_p, ln_sum_q = sum_p.log(), sum_q.log()
    p.mul_((1 / sum_p).to(work))
    q.mul_((1 / sum_q).to(work))
    log_ratio = ln_p.sub_(ln_q).sub_((ln_sum_p - ln_sum_q).to(work))  # ln(p / q)
    distance = log_ratio.abs()
    larger, smaller = torch.maximum(p, q), torch.minimum(p, q)
    moved = larger.mul_((-distance).expm1_()).neg_()  # |p - q|, exact where p and q are close
    gained = torch.copysign(moved, log_ratio).neg_()  # q - p
    kl = row_sums(torch.addcmul(gained, p, log_ratio))
    reverse = -row_sums(torch.addcmul(gained, q, log_ratio))
    # JS = ½ Σ (p ln(p / m) + q ln(q / m)) with m = (p + q) / 2; the larger of p and q is m (1 + |p - q| / (p + q))
    both = p.add_(q)
    share = moved.div_(both.clamp_min(torch.finfo(work).tiny))  # where both are 0, 0 and not 0 / 0
    js = row_sums(both.mul_(share.log1p_()).sub_(smaller.mul_(distance))) / 2
    return tuple(column[:, 0] for column in (kl, reverse, js, ln_sum_p, ln_sum_q, largest.double()))


def row_sums(values: torch.Tensor) -> torch.Tensor:
    """Σ over the vocabulary, [n, 1] float64."""
    return values.sum(-1, keepdim=True, dtype=torch.float64)


@dataclass(frozen=True)
class Piece:
    """Positions of one row group of the store, and the method's logits there."""

    group: Positions
    part: slice
    logits: torch.Tensor  # [n, vocabulary] float32

    def of_group(self, name: str) -> numpy.ndarray:
        """Of each position: a column of the group, or the same word n times."""
        value = getattr(self.group, name)
        return numpy.repeat(value, len(self.logits)) if isinstance(value, str) else value[self.part]


def score(pieces: list[Piece], worst: WorstPositions) -> tuple[dict[str, numpy.ndarray], list[str], torch.Tensor]:
    """(columns known from the store, names of the measures, measures [names, n] float64) of pieces, as one.

    Natural text is not offered to `worst`, which shows what the method does to answers.
    """
    device = pieces[0].logits.device
    known = {
        name: numpy.concatenate([piece.of_group(name) for piece in pieces])
        for name in ("prompt_id", "category", "position", "token_id", "top_token_id")
    }
    answers = known["category"] != TEXT_CATEGORY
    ids = numpy.stack([known.pop("token_id"), known.pop("top_token_id"), answers]).astype(numpy.int64)
    targets, top_tokens, counted = torch.from_numpy(ids).to(device, non_blocking=True)
    stored = joined([p.group.log_probabilities[p.part].to(device, non_blocking=True) for p in pieces])
    logits = joined([piece.logits for piece in pieces])
    figures = divergences(stored, logits, targets, top_tokens)
    worst.offer(figures["kl_nats"], counted.bool(), stored, logits)
    return known, list(figures), torch.stack([column.double() for column in figures.values()])


def joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def read_ahead(model, store: Path) -> Iterator[Positions]:
    """The store's row groups, read by as many threads as the model's device wants beside its forward passes."""
    on_gpu = model.device.type == "cuda"
    return read_store(store, readers=READERS_FOR_GPU if on_gpu else 1, pinned=on_gpu)


def pieces_of(model, store: Path, trace: pandas.DataFrame) -> Iterator[Piece]:
    """The store's positions in order, with the model's logits from one forward pass a prompt."""
    head = output_head(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    sequences = {row.prompt_id: list(map(int, row.token_ids)) for row in trace.itertuples()}
    current, hidden = None, torch.empty(0)
    with tqdm(total=len(sequences), desc="divergence", unit="prompt", mininterval=5) as progress:
        for group in read_ahead(model, store):
            if group.prompt_id not in sequences:
                raise UserError(f"the log-prob store {store} has {group.prompt_id}, which the trace lacks; delete both")
            ids = sequences[group.prompt_id]
            if group.prompt_id != current:
                check_ids(model, ids)
                hidden, current = last_hidden_states(model, ids), group.prompt_id  # [T, width]
                progress.update()
            first, last = group.position[0], group.position[-1]
            if ids[first : last + 1] != group.token_id.tolist():
                raise UserError(f"the log-prob store {store} has other tokens than the trace in {current}; delete both")
            states = hidden[first - 1 : last]  # those that predict the group's tokens
            for part in slices_of(len(states), vocabulary):
                yield Piece(group, part, head(states[part]))


def batches_of(pieces: Iterable[Piece], positions: int) -> Iterator[list[Piece]]:
    """Consecutive pieces, as many as have no more than so many positions: scoring costs by the call, too."""
    batch: list[Piece] = []
    for piece in pieces:
        if batch and sum(len(p.logits) for p in [*batch, piece]) > positions:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def score_store(model, store: Path, trace: pandas.DataFrame, worst: WorstPositions) -> pandas.DataFrame:
    """All rows of divergence.parquet; one forward pass a prompt.

    While this thread runs the model, others read the next row groups and, on a CPU, score the logits of the last ones.
    On a GPU nothing waits for what is scored before the end: launching the model's kernels is what takes the time.
    """
    scored: list[tuple[dict[str, numpy.ndarray], list[str], torch.Tensor]] = []
    # A call costs a GPU's host more than what it starts. A CPU gains nothing by fewer, and memory by small pieces.
    on_gpu = model.device.type == "cuda"
    positions = positions_at_once(model.get_output_embeddings().weight.shape[0]) if on_gpu else 1
    with background_scorer(model.device) as in_background:
        for batch in batches_of(pieces_of(model, store, trace), positions):
            in_background(score, scored.append, batch, worst)
    columns: dict[str, list[numpy.ndarray]] = collections.defaultdict(list)
    for known, names, measures in scored:
        for name, values in (known | dict(zip(names, measures.cpu().numpy(), strict=True))).items():
            columns[name].append(values)
    rows = pandas.DataFrame({name: numpy.concatenate(values) for name, values in columns.items()})
    return rows.astype({"top1_agrees": bool})
