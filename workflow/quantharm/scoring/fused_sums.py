"""vocabulary_sums as one GPU kernel: a program a row, which reads both models' logits three times.

The arithmetic is that of vocabulary_sums.sums_by_torch: elementwise in float32, sums in float64.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

BLOCK = 1024  # entries of a row worked on at once
NUMBERS = 6  # of a row: KL, reverse KL, JS, ln Σ e^baseline, ln Σ e^logits, largest logit


@triton.jit
def sum_rows(baseline, logits, sums, rows, vocabulary, baseline_stride, logits_stride, block: tl.constexpr):
    """sums [NUMBERS, rows] of baseline [rows, vocabulary] and logits [rows, vocabulary]."""
    row = tl.program_id(0).to(tl.int64)
    baseline += row * baseline_stride
    logits += row * logits_stride
    lanes = tl.arange(0, block)

    top_p = tl.full([block], float("-inf"), tl.float32)
    top_q = tl.full([block], float("-inf"), tl.float32)
    for start in range(0, vocabulary, block):
        inside = start + lanes < vocabulary
        x = tl.load(baseline + start + lanes, inside, float("-inf")).to(tl.float32)
        y = tl.load(logits + start + lanes, inside, float("-inf"))
        top_p, top_q = tl.maximum(top_p, x), tl.maximum(top_q, y)
    largest_p, largest_q = tl.max(top_p, 0), tl.max(top_q, 0)

    part_p = tl.zeros([block], tl.float64)
    part_q = tl.zeros([block], tl.float64)
    for start in range(0, vocabulary, block):
        inside = start + lanes < vocabulary
        x = tl.load(baseline + start + lanes, inside, float("-inf")).to(tl.float32)
        y = tl.load(logits + start + lanes, inside, float("-inf"))
        part_p += libdevice.exp(x - largest_p).to(tl.float64)
        part_q += libdevice.exp(y - largest_q).to(tl.float64)
    sum_p, sum_q = tl.sum(part_p, 0), tl.sum(part_q, 0)
    ln_sum_p, ln_sum_q = libdevice.log(sum_p), libdevice.log(sum_q)
    scale_p, scale_q = (1 / sum_p).to(tl.float32), (1 / sum_q).to(tl.float32)
    ln_of_sums = (ln_sum_p - ln_sum_q).to(tl.float32)

    kl = tl.zeros([block], tl.float64)
    reverse = tl.zeros([block], tl.float64)
    js = tl.zeros([block], tl.float64)
    for start in range(0, vocabulary, block):
        inside = start + lanes < vocabulary
        x = tl.load(baseline + start + lanes, inside, 0.0).to(tl.float32)
        y = tl.load(logits + start + lanes, inside, 0.0)
        ln_p, ln_q = x - largest_p, y - largest_q  # each but for its row's constant
        p, q = libdevice.exp(ln_p) * scale_p, libdevice.exp(ln_q) * scale_q
        log_ratio = (ln_p - ln_q) - ln_of_sums  # ln(p / q)
        distance = tl.abs(log_ratio)
        moved = -tl.maximum(p, q) * libdevice.expm1(-distance)  # |p - q|, exact where p and q are close
        gained = tl.where(log_ratio > 0, -moved, moved)  # q - p
        both = p + q
        share = moved / tl.maximum(both, 1.17549435e-38)
        shared = both * libdevice.log1p(share) - tl.minimum(p, q) * distance
        kl += tl.where(inside, gained + p * log_ratio, 0.0).to(tl.float64)
        reverse += tl.where(inside, gained + q * log_ratio, 0.0).to(tl.float64)
        js += tl.where(inside, shared, 0.0).to(tl.float64)
    tl.store(sums + row, tl.sum(kl, 0))
    tl.store(sums + rows + row, -tl.sum(reverse, 0))
    tl.store(sums + 2 * rows + row, tl.sum(js, 0) / 2)
    tl.store(sums + 3 * rows + row, ln_sum_p + largest_p)
    tl.store(sums + 4 * rows + row, ln_sum_q + largest_q)
    tl.store(sums + 5 * rows + row, largest_q.to(tl.float64))


def sums_by_triton(baseline: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """vocabulary_sums of tensors on a GPU: baseline [n, vocabulary] floats, logits [n, vocabulary] float32."""
    baseline, logits = (t if t.stride(-1) == 1 else t.contiguous() for t in (baseline, logits))
    rows, vocabulary = logits.shape
    sums = torch.empty((NUMBERS, rows), dtype=torch.float64, device=logits.device)
    with torch.cuda.device(logits.device):
        sum_rows[(rows,)](baseline, logits, sums, rows, vocabulary, baseline.stride(0), logits.stride(0), block=BLOCK)
    return tuple(sums)
