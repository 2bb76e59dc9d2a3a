"""Scoring of a model against the baseline's store: measures of each position, in the order of the store.

KL(p ‖ q) = Σ_v p_v (ln p_v - ln q_v) in nats, p the baseline, q the method, over the whole vocabulary, summed in
float64, with no epsilon.
"""

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
import pandas
import torch

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.scoring.forward import ask_ahead, background_scorer, index_of_largest
from quantharm.scoring.lower_bound import lower_bounds, top_and_target
from quantharm.scoring.paired_logits import Piece, first_targets_of, on_gpu, pieces_of, sequences_of
from quantharm.scoring.vocabulary_sums import vocabulary_sums
from quantharm.scoring.worst_positions import WorstPositions

CHUNK_ELEMENTS = 2**17  # entries worked on at once: few enough for a core's cache, enough to be worth a call
GPU_ELEMENTS = 2**25  # of several prompts, scored by one call on a GPU: 134 MB of float32, which are held four times


def divergences(
    baseline: torch.Tensor,
    logits: torch.Tensor,
    targets: torch.Tensor,
    top_tokens: torch.Tensor,
    known: torch.Tensor | None = None,
    bounded: bool = False,
) -> dict[str, torch.Tensor]:
    """Measures of each position; each value is [n], float64 but for top1_agrees.

    baseline: [n, vocabulary] float32 logits of the baseline, or float16 log-probabilities, normalised here; logits:
    [n, vocabulary] float32 of the method; targets, top_tokens: [n] ids of the tokens that follow and of the baseline's
    first choice. JS is the Jensen-Shannon divergence (Lin 1991), with natural logarithms, at most ln 2. nll is -ln q of
    the target, delta_nll ln p - ln q of it, delta_p q - p.

    known: ids [n, m] of the tokens whose logits are the method's, where it shows no others (lower_bound.NO_TOKEN fills
    a row); the three divergences are then lower bounds. The other logits are to be below those of the known tokens.
    bounded: adds kl_lower_bound_nats, which a server that shows TOP_TOKENS would give, or this one gives.
    """
    step = len(logits) if logits.is_cuda else max(1, CHUNK_ELEMENTS // logits.shape[1])
    chunks = [slice(start, start + step) for start in range(0, len(logits), step)]
    sums = [vocabulary_sums(baseline[chunk], logits[chunk]) for chunk in chunks]
    kl, reverse, js, ln_z_p, ln_z_q, largest = (torch.cat(column) for column in zip(*sums, strict=True))

    ids = torch.stack([targets, top_tokens], dim=-1)
    baseline_target, baseline_top = baseline.gather(-1, ids).double().unbind(-1)
    logit_target, logit_top = logits.gather(-1, ids).double().unbind(-1)
    ln_p_target, ln_q_target = baseline_target - ln_z_p, logit_target - ln_z_q
    extra: dict[str, torch.Tensor] = {}
    if bounded or known is not None:
        shown = top_and_target(logits, targets) if known is None else known
        places = shown.clamp_min(0)
        ln_p, ln_q = baseline.gather(-1, places).double(), logits.gather(-1, places).double()
        bounds = lower_bounds(ln_p - ln_z_p[:, None], ln_q - ln_z_q[:, None], shown, logits.shape[-1])
        extra = {"kl_lower_bound_nats": bounds["kl_nats"]} if bounded else {}
        if known is not None:
            kl, reverse, js = bounds["kl_nats"], bounds["reverse_kl_nats"], bounds["js_nats"]
    return {
        "kl_nats": kl,
        "reverse_kl_nats": reverse,
        "js_nats": js,
        "delta_p": ln_q_target.exp() - ln_p_target.exp(),
        "delta_nll_nats": ln_p_target - ln_q_target,
        "top1_agrees": logit_top == largest,
        "baseline_top1_p": (baseline_top - ln_z_p).exp(),
        "nll_nats": -ln_q_target,
        **extra,
    }


def score(
    pieces: list[Piece], worst: WorstPositions | None = None, bounded: bool = False
) -> tuple[dict[str, numpy.ndarray], list[str], torch.Tensor]:
    """(columns known from the store, names of the measures, measures [names, n] float64) of pieces, as one."""
    device = pieces[0].logits.device
    known = {
        name: numpy.concatenate([piece.of_group(name) for piece in pieces])
        for name in ("prompt_id", "category", "position", "token_id")
    }
    baseline, logits = joined([piece.baseline for piece in pieces]), joined([piece.logits for piece in pieces])
    targets = on_device(known.pop("token_id"), device)
    if pieces[0].group.top_token_id is None:
        top_tokens = index_of_largest(baseline)
    else:
        top_tokens = on_device(numpy.concatenate([piece.of_group("top_token_id") for piece in pieces]), device)
    known_ids = [piece.known for piece in pieces if piece.known is not None]
    measures = divergences(baseline, logits, targets, top_tokens, joined(known_ids) if known_ids else None, bounded)
    if worst is not None:
        worst.offer(measures["kl_nats"], baseline, logits)
    return known, list(measures), torch.stack([column.double() for column in measures.values()])


def on_device(ids: numpy.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(ids.astype(numpy.int64)).to(device, non_blocking=True)


def joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


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


def score_store(model, store: Path, trace: pandas.DataFrame, worst: WorstPositions | None = None) -> pandas.DataFrame:
    """All rows of divergence.parquet, of the trace's prompts; one forward pass a prompt.

    Windows of text that the store has as well are scored with the perplexity. While this thread runs the model, others
    read the next row groups and, on a CPU, score the logits of the last ones. On a GPU nothing waits for what is scored
    before the end: launching the model's kernels is what takes the time.
    """
    scored: list[tuple[dict[str, numpy.ndarray], list[str], torch.Tensor]] = []
    # A call costs a GPU's host more than what it starts. A CPU gains nothing by fewer, and memory by small pieces.
    positions = GPU_ELEMENTS // model.get_output_embeddings().weight.shape[0] if on_gpu(model) else 1
    prompts = trace[trace["category"] != TEXT_CATEGORY]
    sequences = sequences_of(prompts)
    first_targets = first_targets_of(prompts)
    ask_ahead(model, [(sequences[prompt_id], first) for prompt_id, first in first_targets.items()])
    pieces = pieces_of(
        model, store, sequences, lambda _, category: category != TEXT_CATEGORY, first_targets=first_targets
    )
    with background_scorer(model.device) as in_background:
        for batch in batches_of(pieces, positions):
            in_background(score, scored.append, batch, worst, True)
    columns: dict[str, list[numpy.ndarray]] = collections.defaultdict(list)
    for known, names, measures in scored:
        for name, values in (known | dict(zip(names, measures.cpu().numpy(), strict=True))).items():
            columns[name].append(values)
    rows = pandas.DataFrame({name: numpy.concatenate(values) for name, values in columns.items()})
    return rows.astype({"top1_agrees": bool})
