"""bitsandbytes: LLM.int8, NF4 and FP4. The formats are described where they are made."""

from pathlib import Path

METHODS = ("bitsandbytes",)


def inspect(name: str, module, checkpoint: Path):
    from quantharm.quantizers import bitsandbytes_4bit, bitsandbytes_int8

    return bitsandbytes_4bit.inspect(name, module, checkpoint) or bitsandbytes_int8.inspect(name, module, checkpoint)


def compute_in_float32(model) -> None:
    from quantharm.quantizers import bitsandbytes_4bit

    bitsandbytes_4bit.compute_in_float32(model)
