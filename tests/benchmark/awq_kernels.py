"""The kernels for AWQ, a row each: the check `kernel`, distance from the first one, rates. Before them 16 bits.

    PYTHONPATH=workflow python tests/benchmark/awq_kernels.py results/<model>/awq [--backends gemm_triton gemm marlin]
    PYTHONPATH=workflow python tests/benchmark/awq_kernels.py --architecture mistral-7b

Of a cell of the workflow, or of a checkpoint of random codes in a shape, which takes seconds to make. First use
includes compiling, for those that are compiled; a second run on the same machine finds them compiled.
"""

import argparse
import gc
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from decode import TOKENIZER, kernel_table, random_model, rates

from quantharm.common.errors import UserError
from quantharm.common.text import read_text
from quantharm.config.architectures import read_architecture
from quantharm.forensics.checks.kernel import KERNEL_TOKENS, check_kernel
from quantharm.models.devices import choose_device
from quantharm.models.loading import load_cell, load_tokenizer, quiet, read_quantization
from quantharm.models.safety import hash_weights
from quantharm.quantizers import quantized_layers
from quantharm.scoring.forward import last_hidden_states, output_head
from quantharm.speed.benchmark import benchmark
from quantharm.speed.cuda_graph import largest_kl
from quantharm.synthesize import (
    INITIALIZER_RANGE,
    TOKENIZER_FILES,
    empty_model,
    model_configuration,
    random_tensors,
    write_checkpoint,
)

GROUP_SIZE = 128
EIGHT_EIGHTS = -0x77777778  # of an int32: eight codes of 8, the zero point in the middle
CODES_DEVIATION = 4.61  # of the numbers 0 to 15

COLUMNS = (
    "backend",
    "class",
    "check `kernel`",
    "KL to the first, nats",
    "load, s",
    "eager, tokens/s",
    "captured, tokens/s",
    "captured and compiled, tokens/s",
    "share of copy bandwidth",
)


def measured(model, compile_too: bool, kernels: bool) -> tuple[str, ...]:
    figures = rates(benchmark(model, 256, 64, 5, 1.0, compile_too=compile_too))
    if kernels:
        print(kernel_table(model), flush=True)
    return figures


def packed(tensors: Iterator[tuple[str, torch.Tensor]], quantized: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same tensors, but for the quantized ones random codes in AWQ's layout, of weights with a like deviation."""
    for name, tensor in tensors:
        if name not in quantized:
            yield name, tensor
            continue
        rows, columns = tensor.shape
        layer = name.removesuffix(".weight")
        whole = {"dtype": torch.int32, "device": tensor.device}
        yield f"{layer}.qweight", torch.randint(-(2**31), 2**31, (columns, rows // 8), **whole)
        yield f"{layer}.qzeros", torch.full((columns // GROUP_SIZE, rows // 8), EIGHT_EIGHTS, **whole)
        scale = INITIALIZER_RANGE / CODES_DEVIATION
        yield f"{layer}.scales", torch.full((columns // GROUP_SIZE, rows), scale, device=tensor.device).half()


def random_cell(architecture: str, folder: Path, device: str) -> dict[str, Any]:
    """A quantization record of a checkpoint of random codes."""
    model = empty_model(model_configuration(read_architecture(architecture), TOKENIZER), "bfloat16")
    head = model.get_output_embeddings()
    quantized = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    model.config.quantization_config = {"quant_method": "awq", "version": "gemm", "bits": 4, "zero_point": True}
    model.config.quantization_config |= {"group_size": GROUP_SIZE}
    write_checkpoint(model, packed(random_tensors(model, device, 0), quantized), folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / name, folder / name)
    return {
        "checkpoint": str(folder),
        "weight_files": hash_weights(folder),
        "quantizer": "awq",
        "settings": {},
        "dtype": "bfloat16",
        "source": {"path": str(folder), "allow_pickle": False, "trust_remote_code": False},
    }


def scored(model, tokens: list[int]) -> torch.Tensor:
    return output_head(model)(last_hidden_states(model, tokens)).cpu()


def row(record: dict, backend: str, tokens: list[int], reference: list[torch.Tensor], *how: bool) -> list[str]:
    try:
        begin = time.perf_counter()
        settings = record["settings"] | {"backend": backend}
        model = load_cell(record | {"settings": settings, "gpus": 1}, choose_device("auto", 1))
        logits = scored(model, tokens)
        seconds = time.perf_counter() - begin
    except (UserError, RuntimeError, ImportError, ValueError) as error:
        return [backend, "–", f"cannot be loaded: {str(error).splitlines()[0][:90]}", *["–"] * (len(COLUMNS) - 3)]
    reference.append(logits)
    matrices = quantized_layers.quantized_matrices(model, Path(record["checkpoint"]), record["quantizer"])
    kernel = type(model.get_submodule(matrices[0].name)).__name__
    check = check_kernel(model, matrices, tokens)
    said = f"{check['status']}, {check['value']:.4f}"
    return [backend, kernel, said, f"{largest_kl(reference[0], logits):.1e}", f"{seconds:.0f}", *measured(model, *how)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path, nargs="?", help="results folder of an AWQ cell")
    parser.add_argument("--architecture", help="instead: name of a known shape, or a config.json")
    parser.add_argument("--backends", nargs="+", default=["gemm_triton", "gemm", "exllama_v2", "marlin"])
    parser.add_argument("--compile", action="store_true", help="a captured step after torch.compile, too")
    parser.add_argument("--kernels", action="store_true", help="where a captured step spends its time, before each row")
    arguments = parser.parse_args()
    if not arguments.cell and not arguments.architecture:
        parser.error("name a cell's folder or an --architecture")
    quiet()
    torch.set_grad_enabled(False)
    print(f"| {' | '.join(COLUMNS)} |\n|{'--|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        measure(arguments, Path(folder))


def measure(arguments, folder: Path) -> None:
    how = arguments.compile, arguments.kernels
    device = choose_device("auto", 1)
    if arguments.cell:
        record = read_quantization(arguments.cell / "quantization.json")
        plain = load_cell(read_quantization(arguments.cell.parent / "baseline" / "quantization.json"), device)
    else:
        record = random_cell(arguments.architecture, folder, device)
        plain = random_model(model_configuration(read_architecture(arguments.architecture), TOKENIZER), device)
    tokens = load_tokenizer(record["source"])(read_text(Path("data/evaluation.txt"))[:4000])["input_ids"]
    print(f"| {' | '.join(['16 bits', 'Linear', '–', '–', '–', *measured(plain, *how)])} |", flush=True)
    del plain
    reference: list[torch.Tensor] = []
    for backend in arguments.backends:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print(f"| {' | '.join(row(record, backend, tokens[:KERNEL_TOKENS], reference, *how))} |", flush=True)


if __name__ == "__main__":
    main()
