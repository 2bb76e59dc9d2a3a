"""Sums over the vocabulary of two models' distributions; on a GPU in one kernel, where Triton can compile it."""

import functools
from collections.abc import Callable

import torch

Sums = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


def vocabulary_sums(baseline: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(KL, reverse KL, JS, ln Σ e^baseline, ln Σ e^logits, largest logit), each [n] float64, of [n, vocabulary]."""
    if logits.is_cuda and logits.dtype == torch.float32:
        return fastest_on_gpu(logits.device)(baseline, logits)
    return sums_by_torch(baseline, logits)


@functools.cache
def fastest_on_gpu(device: torch.device) -> Sums:
    """The fused kernel where it compiles (Triton needs a C compiler) and agrees; else PyTorch's own operations.

    They are 72 readings and writings of the logits, a seventh of what a forward pass of a 7B model takes; the fused
    kernel reads them three times.
    """
    try:
        from quantharm.scoring.fused_sums import sums_by_triton

        few = torch.linspace(-9, 9, 2 * 3000, device=device).view(2, 3000)
        pairs = zip(sums_by_triton(few, few.flip(1)), sums_by_torch(few, few.flip(1)), strict=True)
        return sums_by_triton if all(torch.allclose(a, b, rtol=1e-6) for a, b in pairs) else sums_by_torch
    except Exception:  # no Triton, no compiler, a GPU that it does not know
        return sums_by_torch


def sums_by_torch(baseline: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """vocabulary_sums by PyTorch's operations.

    Elementwise work is float32, sums are float64. Σ p ln(p / q) itself adds large terms of both signs that cancel:
    float32 is off by 1e-6 nats there, and can fall below zero. Since p and q each sum to 1, KL is also
    Σ (p ln(p / q) - p + q), whose terms are never negative and vanish with ln(p / q), so that a rounding error, of an
    entry or of a normaliser, enters only times the difference between p and q. Of float64 throughout it is within
    1e-8 nats + 3e-7 of the divergence; of equal logits it is exactly 0.
    """
    work = torch.promote_types(logits.dtype, torch.float32)
    baseline, logits = baseline.to(work), logits.to(work)
    largest_p, largest = baseline.amax(-1, keepdim=True), logits.amax(-1, keepdim=True)
    ln_p, ln_q = baseline - largest_p, logits - largest  # each but for its row's constant
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
    ln_z_p, ln_z_q = ln_sum_p + largest_p.double(), ln_sum_q + largest.double()
    return tuple(column[:, 0] for column in (kl, reverse, js, ln_z_p, ln_z_q, largest.double()))


def row_sums(values: torch.Tensor) -> torch.Tensor:
    """Σ over the vocabulary, [n, 1] float64."""
    return values.sum(-1, keepdim=True, dtype=torch.float64)
