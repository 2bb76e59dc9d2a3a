"""Output heads: from final hidden states to logits in float32, of a loaded model or of a store (head_file.py).

bfloat16 logits near 20 are 0.06 to 0.13 apart, more than the differences that are measured here. On CUDA the product
reads the stored weights and accumulates in float32; elsewhere a float32 copy of the head is made once. The scale and
the soft cap that some architectures apply to their logits are part of the head.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from quantharm.common.records.logits import HeadDescription, HeadSettings
from quantharm.common.text import language_config

ROWS_AT_ONCE = 4096  # of a head's weights
# Keys of configurations, as architectures of transformers name what they do to their logits.
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling",)
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
MULTIPLIES_BY_DIVISORS = ("hyperclovax",)  # model types
LEAVES_FACTORS_UNUSED = ("mpt",)
Logits = Callable[[torch.Tensor], torch.Tensor]  # hidden states [n, width] → logits [n, vocabulary] float32


@dataclass(frozen=True)
class OutputHead:
    """logits = softcap × tanh(scale × (weight · state + bias) / softcap), without the soft cap where it is None."""

    weight: torch.Tensor  # [vocabulary, width]
    bias: torch.Tensor | None  # [vocabulary]
    scale: float
    softcap: float | None

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def settings(self) -> HeadSettings:
        """The settings beside the tensors; the hash covers both."""
        dtype = str(self.weight.dtype).removeprefix("torch.")
        return {
            "dtype": dtype,
            "shape": list(self.weight.shape),
            "bias": self.bias is not None,
            "scale": self.scale,
            "softcap": self.softcap,
        }

    def sha256(self) -> str:
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for tensor in self.tensors().values():
            digest.update(memoryview(bytes_of(tensor)))
        return digest.hexdigest()

    def described(self) -> HeadDescription:
        """The settings and the hash, as a store's metadata hold them."""
        return {**self.settings(), "sha256": self.sha256()}


def bytes_of(tensor: torch.Tensor):
    """A tensor's own bytes as a flat numpy array."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def after_the_head(model) -> tuple[float, float | None]:
    """(scale, soft cap) that an architecture applies to its logits."""
    config = language_config(model.config)

    def stated(keys: tuple[str, ...]) -> float | None:
        return next((value for key in keys if (value := getattr(config, key, None))), None)

    factor = None if config.model_type in LEAVES_FACTORS_UNUSED else stated(FACTORS)
    divisor = stated(DIVISORS) or 1
    return factor or (divisor if config.model_type in MULTIPLIES_BY_DIVISORS else 1 / divisor), stated(SOFT_CAPS)


def plain_head(model) -> OutputHead | None:
    """The head of a model where it is one matrix of floats; None where it is quantized or a module of its own kind."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or type(head.weight) not in (torch.nn.Parameter, torch.Tensor):
        return None
    if getattr(getattr(head, "quantization_scheme", None), "input_activations", None):
        return None  # compressed-tensors unpacked its weight, and rounds its inputs
    return OutputHead(head.weight.data, None if head.bias is None else head.bias.data, *after_the_head(model))


def logits_of(head: OutputHead) -> Logits:
    """The function of a head from hidden states to logits; weights on a GPU stay there."""
    weight = head.weight
    if weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16):
        transposed = weight.t()

        def product(hidden: torch.Tensor) -> torch.Tensor:
            return torch.mm(hidden.to(transposed), transposed, out_dtype=torch.float32)
    else:
        wide = weight.float()
        # Factors that are bfloat16 numbers may be multiplied as such: exact, and faster where the CPU can.
        precision = "bf16" if weight.dtype == torch.bfloat16 else "ieee"

        def product(hidden: torch.Tensor) -> torch.Tensor:
            with float32_products(precision if hidden.dtype == torch.bfloat16 else "ieee"):
                return hidden.to(wide.device).float() @ wide.t()

    bias = None if head.bias is None else head.bias.float()
    return scaled_and_capped(
        product if bias is None else lambda hidden: product(hidden) + bias, head.scale, head.softcap
    )


def logits_of_module(model) -> Logits:
    """The same for a head of a class of its own, such as a quantized one, whose own kernel is measured."""
    head, device = model.get_output_embeddings(), device_of_head(model)
    return scaled_and_capped(lambda hidden: head(hidden.to(device)).float(), *after_the_head(model))


def device_of_head(model) -> torch.device:
    """The device of a model's logits: that of its head, which need not be the model's first."""
    head = model.get_output_embeddings()
    held = [*head.parameters(), *head.buffers()] if isinstance(head, torch.nn.Module) else []
    return held[0].device if held else model.device


def scaled_and_capped(product: Logits, scale: float, softcap: float | None) -> Logits:
    """`product`, scaled and softly capped."""

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        values = product(hidden)
        values = values if scale == 1 else values * scale
        return softcap * torch.tanh(values / softcap) if softcap else values

    return logits


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Within the block, float32 matrix products on a CPU round their factors to bfloat16 (`bf16`) or not (`ieee`)."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def narrowed(head: OutputHead, dtype: torch.dtype) -> OutputHead:
    """The head in `dtype` where that is lossless, as for a bfloat16 model held in float32; else the head unchanged."""
    narrow = head.weight.to(dtype)
    lossless = all(
        torch.equal(n.to(w.dtype), w) for n, w in zip(*(row_slices(t) for t in (narrow, head.weight)), strict=True)
    )
    return replace(head, weight=narrow) if lossless else head


def on(head: OutputHead, device: torch.device) -> OutputHead:
    """The head on a device."""
    return replace(head, weight=head.weight.to(device), bias=None if head.bias is None else head.bias.to(device))


def row_slices(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Slices of rows, so that looking at a head or comparing two takes little memory beside them."""
    return weight.split(ROWS_AT_ONCE)


def is_same(first: OutputHead, second: OutputHead) -> bool:
    """Whether two heads hold the same numbers, so that they give the same logits; dtypes and devices may differ."""
    if (first.scale, first.softcap) != (second.scale, second.softcap) or first.weight.shape != second.weight.shape:
        return False
    if (first.bias is None) != (second.bias is None):
        return False
    pairs = list(zip(row_slices(first.weight), row_slices(second.weight), strict=True))
    pairs += [] if first.bias is None or second.bias is None else [(first.bias, second.bias)]
    return all(torch.equal(a.float(), b.to(a.device).float()) for a, b in pairs)
