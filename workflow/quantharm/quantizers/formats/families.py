"""The family of a checkpoint, by which it is refused, loaded and inspected.

`quant_method` in config.json names the family, or the file itself does (GGUF). A format that is not read here is
refused by name when the checkpoint is fetched; so is one whose package is missing, or that needs a GPU.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.checkpoint_files import gguf_file, read_checkpoint_config
from quantharm.common.errors import UserError
from quantharm.quantizers import MultipliesInFloat32
from quantharm.quantizers.formats import (
    ArrangesLoading,
    ChoosesKernel,
    Family,
    FinishesModels,
    LoadingArguments,
    RefusesCheckpoints,
    StatedQuantization,
    StatesExclusions,
    awq,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gguf,
    gptq,
    mxfp4,
    torchao,
)

if TYPE_CHECKING:
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

FAMILIES: tuple[Family, ...] = (awq, bitsandbytes, compressed_tensors, fp8, gguf, gptq, mxfp4, torchao)
OWN_LAYOUTS = ("bitsandbytes", "fp8", "gguf")  # which gptqmodel writes otherwise than those who made the formats
SKIPPED_KEYS = ("llm_int8_skip_modules", "modules_to_not_convert")


def stated_quantization(checkpoint: Path) -> StatedQuantization:
    """The quantization that config.json states; empty where it states none."""
    if packed := gguf_file(checkpoint):
        return {"quant_method": "gguf", "file": str(packed)}
    config = read_checkpoint_config(checkpoint)
    parts = [config, config.get("text_config")]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if isinstance(part, dict) and isinstance(part.get(key), dict):
                return part[key]
    return {}


def method_of(stated: StatedQuantization) -> str | None:
    """`quant_method` in lower case, `bitsandbytes` for its old checkpoints without one; None where none is stated."""
    if stated.get("load_in_8bit") or stated.get("load_in_4bit"):
        return "bitsandbytes"
    method = stated.get("quant_method")
    return method if method is None else str(method).lower()


def family_of(stated: StatedQuantization) -> Family | None:
    """The family that reads such a checkpoint; None without a stated quantization, or for an unknown one."""
    if stated.get("packing_format") in awq.PACKINGS:
        return awq
    method = method_of(stated)
    return next((family for family in FAMILIES if method in family.METHODS), None)


def supported_methods() -> list[str]:
    """Every `quant_method` that is read here, sorted."""
    return sorted(method for family in FAMILIES for method in family.METHODS)


def refuse_unreadable(checkpoint: Path, device: str = "auto") -> None:
    """Raises UserError for a quantized checkpoint that cannot be read here; device: cpu, cuda or auto."""
    stated = stated_quantization(checkpoint)
    if not stated:
        return
    family, method = family_of(stated), method_of(stated)
    if method in OWN_LAYOUTS and made_by_gptqmodel(stated):
        raise UserError(
            f"{checkpoint} ({method}) is in a layout of gptqmodel's own, which is not read here; name one that another "
            "library wrote, or one of gptqmodel's in GPTQ or AWQ"
        )
    if family is None:
        raise UserError(
            f"{checkpoint} is stored in a format that is not read here ({method or 'without a quant_method'}); name a "
            f"checkpoint in another format: supported are {', '.join(supported_methods())}"
        )
    reason = family.unreadable(stated, device) if isinstance(family, RefusesCheckpoints) else None
    if reason:
        raise UserError(f"{checkpoint} ({method}) cannot be loaded here: {reason}")


def made_by_gptqmodel(stated: StatedQuantization) -> bool:
    """Whether gptqmodel wrote a checkpoint, as its `meta` says."""
    makers = (stated.get("meta") or {}).get("quantizer") or []
    return "gptqmodel" in str(makers)


@contextlib.contextmanager
def loading(checkpoint: Path, backend: str | None, dtype: str, device: str) -> Iterator[LoadingArguments]:
    """Gives further arguments of from_pretrained for a checkpoint, and keeps libraries changed while it runs.

    Call refuse_unreadable first. Raises UserError where `backend` is given for a family whose kernel cannot be chosen.
    """
    stated = stated_quantization(checkpoint)
    family = family_of(stated)
    if backend and not isinstance(family, ChoosesKernel):
        raise UserError(f"`backend: {backend}` is for AWQ and GPTQ checkpoints; {checkpoint} is neither; take it out")
    if isinstance(family, ArrangesLoading):
        with family.loading(checkpoint, stated, backend, dtype, device) as arguments:
            yield arguments
    else:
        yield {}


def finish(model, checkpoint: Path, dtype) -> None:
    """Completes a model that was just loaded; dtype: of torch, in which it is to compute."""
    family = family_of(stated_quantization(checkpoint))
    if isinstance(family, FinishesModels):
        family.finish(model, dtype)


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """The linear layer as the checkpoint's own family sees it: classes of several libraries share one name."""
    family = family_of(stated_quantization(checkpoint))
    return family.inspect(name, module, checkpoint) if family else None


def multiply_in_float32(module) -> None:
    """Has a layer multiply in float32, if it is one that a family has to change for that."""
    for family in FAMILIES:
        if isinstance(family, MultipliesInFloat32):
            family.multiply_in_float32(module)


def excluded_by_config(checkpoint: Path, names: Collection[str]) -> set[str]:
    """Those of the named modules that a checkpoint's own quantization config leaves in 16 bits."""
    stated = stated_quantization(checkpoint)
    family = family_of(stated)
    return family.excluded(stated, names) if isinstance(family, StatesExclusions) else skipped_by_name(stated, names)


def skipped_by_name(stated: StatedQuantization, names: Collection[str]) -> set[str]:
    """Those that match a list of names or patterns in the config, as transformers reads it."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    patterns = [pattern for key in SKIPPED_KEYS for pattern in stated.get(key) or []]
    return {name for name in names if not should_convert_module(name, patterns)}
