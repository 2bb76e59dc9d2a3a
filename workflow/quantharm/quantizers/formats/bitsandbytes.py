"""bitsandbytes: LLM.int8, NF4 and FP4, whose layouts the quantizers' modules describe.

Those modules are loaded by name, not imported: fetch imports this file, and would run again after each edit of them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.quantizers import quantizer_named

if TYPE_CHECKING:
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("bitsandbytes",)


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    makers = [quantizer_named(maker) for maker in ("bitsandbytes_4bit", "bitsandbytes_int8")]
    return makers[0].inspect(name, module, checkpoint) or makers[1].inspect(name, module, checkpoint)


def multiply_in_float32(module) -> None:
    four_bits: Any = quantizer_named("bitsandbytes_4bit")
    four_bits.multiply_in_float32(module)
