"""The kernels of an AWQ checkpoint, a row each: the check `kernel`, distance from the first one, rates.

    PYTHONPATH=workflow python tests/benchmark/awq_kernels.py results/<model>/awq [--backends gemm_triton gemm marlin]

First use includes compiling, for those that are compiled; a second run on the same machine finds them compiled.
"""

import argparse
import gc
import time
from pathlib import Path

import torch
from decode import kernel_table

from quantharm import linears
from quantharm.captured import largest_kl
from quantharm.checks import KERNEL_TOKENS, check_kernel
from quantharm.errors import UserError
from quantharm.models import load_cell, load_tokenizer, quiet, read_quantization
from quantharm.scoring import last_hidden_states, output_head
from quantharm.speed import benchmark
from quantharm.text import read_text

COLUMNS = (
    "backend",
    "class",
    "check `kernel`",
    "KL to the first, nats",
    "load, s",
    "eager, tokens/s",
    "captured, tokens/s",
)


def row(record: dict, backend: str, tokens: list[int], reference: list[torch.Tensor], kernels: bool) -> list[str]:
    begin = time.perf_counter()
    try:
        model = load_cell(record | {"settings": record["settings"] | {"backend": backend}}, "cuda")
        logits = output_head(model)(last_hidden_states(model, tokens)).cpu()
    except (UserError, RuntimeError, ImportError, ValueError) as error:
        return [backend, "–", f"cannot be loaded: {str(error).splitlines()[0][:90]}", "–", "–", "–", "–"]
    seconds = time.perf_counter() - begin
    reference.append(logits)
    matrices = linears.quantized_matrices(model, Path(record["checkpoint"]), record["quantizer"])
    kernel = type(model.get_submodule(matrices[0].name)).__name__
    check = check_kernel(model, matrices, tokens)
    speed = benchmark(model, 256, 64, 5, 1.0)
    captured = speed["captured"]
    rate = captured["reason"] if "reason" in captured else f"{captured['decode_tokens_per_second']['median']:.1f}"
    if kernels:
        print(kernel_table(model))
    return [
        backend,
        kernel,
        f"{check['status']}, {check['value']:.4f}",
        f"{largest_kl(reference[0], logits):.1e}",
        f"{seconds:.0f}",
        f"{speed['decode_tokens_per_second']['median']:.1f}",
        rate,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path, help="results folder of an AWQ cell")
    parser.add_argument("--backends", nargs="+", default=["gemm_triton", "gemm", "exllama_v2", "marlin"])
    parser.add_argument("--kernels", action="store_true", help="where a captured step spends its time, before each row")
    arguments = parser.parse_args()
    quiet()
    record = read_quantization(arguments.cell / "quantization.json") | {"gpus": 1}
    tokenizer = load_tokenizer(record["source"])
    tokens = tokenizer(read_text(Path("data/evaluation.txt"))[:4000])["input_ids"][:KERNEL_TOKENS]
    reference: list[torch.Tensor] = []
    print(f"| {' | '.join(COLUMNS)} |\n|{'--|' * len(COLUMNS)}", flush=True)
    for backend in arguments.backends:
        print(f"| {' | '.join(row(record, backend, tokens, reference, arguments.kernels))} |", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
