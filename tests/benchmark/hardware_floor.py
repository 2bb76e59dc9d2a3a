"""How far a model's next-token distributions move with the hardware, and how far with the mildest quantizations.

    PYTHONPATH=workflow python tests/benchmark/hardware_floor.py MODEL STORE [--device cuda] [--dtype bfloat16]

MODEL is a checkpoint folder. STORE (safetensors) holds token ids and float32 log-probabilities over the vocabulary; it
is made where there is none, so that a second machine, or a GPU, is compared with the store of the first. Each way to
run the model has a process of its own: instruction sets and threads on a CPU, the attention implementation, matrix
products without oneDNN, a wider dtype; then weights rounded to 8 and 4 bits, here and in the plainest instruction set.
Writes a row for each: KL(store ‖ way) in nats. Needs torch, transformers and safetensors; `--text` may name other text.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

TEXT = Path(__file__).resolve().parents[2] / "data" / "evaluation.txt"
SEQUENCES, TOKENS, FIRST_SCORED = 16, 160, 32
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
NO_AVX = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
AVX512 = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}
CPU_WAYS = {
    "AVX2": AVX2,
    "no AVX": NO_AVX,
    "AVX-512 without 16-bit instructions": AVX512,
    "2 threads": {"OMP_NUM_THREADS": "2"},
}
ROUNDINGS = {"8 bits, rows": (8, None), "8 bits, groups of 128": (8, 128), "4 bits, groups of 128": (4, 128)}


def rounded(weight, bits: int, size: int | None):
    """Nearest integers times one scale a row or group; weight: [rows, columns]."""
    groups = weight.float().reshape(-1, size if size and weight.shape[1] % size == 0 else weight.shape[1])
    largest = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(1, keepdim=True).clamp_min(1e-12) / largest
    return ((groups / scale).round() * scale).reshape(weight.shape).to(weight.dtype)


def log_probabilities(arguments, ids: list[list[int]]):
    """[positions, vocabulary] float32 of what follows each token from FIRST_SCORED on."""
    import torch
    from transformers import AutoModelForCausalLM

    from quantharm.scoring.forward import last_hidden_states, output_head

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, arguments.dtype), attn_implementation=arguments.attention
    )
    model = model.to(arguments.device).eval()
    head = model.get_output_embeddings()
    if arguments.rounding:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.weight.data = rounded(module.weight, *ROUNDINGS[arguments.rounding])
    with torch.backends.mkldnn.flags(enabled=not arguments.without_onednn):
        finished = output_head(model)
        rows = [finished(last_hidden_states(model, sequence)[FIRST_SCORED:]).log_softmax(-1) for sequence in ids]
    return torch.cat(rows).float().cpu()


def make_store(arguments, path: Path) -> None:
    from safetensors.torch import save_file
    from torch import tensor
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(arguments.model)(arguments.text.read_text(encoding="utf-8"))["input_ids"]
    ids = [tokens[i * TOKENS : (i + 1) * TOKENS] for i in range(SEQUENCES)]
    metadata = {"machine": machine(arguments.device), "dtype": arguments.dtype}
    save_file({"ids": tensor(ids), "log_probabilities": log_probabilities(arguments, ids)}, path, metadata=metadata)


def machine(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} {cpu_name()}"


def cpu_name() -> str:
    from quantharm.common.provenance import cpu_name

    return cpu_name()


def compare(arguments) -> dict:
    """Of one way, in this process: mean, 99th percentile and largest KL, and how many first choices agree."""
    from safetensors.torch import load_file

    stored = load_file(arguments.store)
    computed = log_probabilities(arguments, stored["ids"].tolist())
    kl, agrees = [], 0
    for ln_p, ln_q in zip(stored["log_probabilities"].split(64), computed.split(64), strict=True):
        p, q = ln_p.double().log_softmax(-1), ln_q.double().log_softmax(-1)
        kl += (p.exp() * (p - q)).sum(-1).tolist()
        agrees += int((ln_p.argmax(-1) == ln_q.argmax(-1)).sum())
    kl.sort()
    return {
        "kl_nats_mean": sum(kl) / len(kl),
        "kl_nats_p99": kl[int(0.99 * len(kl))],
        "kl_nats_max": kl[-1],
        "top1_agreement": agrees / len(kl),
        "positions": len(kl),
    }


def ways(arguments) -> list[tuple[str, list[str], dict[str, str]]]:
    """(name, options, environment variables) of each way that this device has."""
    listed: list[tuple[str, list[str], dict[str, str]]] = [("the same again", [], {})]
    if arguments.device == "cpu":
        listed += [(name, [], variables) for name, variables in CPU_WAYS.items()]
        listed.append(("without oneDNN", ["--without-onednn"], {}))
    listed.append(("eager attention", ["--attention", "eager"], {}))
    wider = {"bfloat16": "float32", "float16": "float32", "float32": "float64"}[arguments.dtype]
    listed.append((wider, ["--dtype", wider], {}))
    listed += [(f"rounded to {name}", ["--rounding", name], {}) for name in ROUNDINGS]
    if arguments.device == "cpu":
        listed += [(f"rounded to {name}, AVX2", ["--rounding", name], AVX2) for name in ROUNDINGS]
    return listed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("store", type=Path, help="made if it does not exist")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32", "float64"])
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--without-onednn", action="store_true")
    parser.add_argument("--rounding", choices=list(ROUNDINGS))
    parser.add_argument("--one", action="store_true", help="this way only, in this process: a line of JSON")
    parser.add_argument("--output", type=Path, help="CSV file; rows are added")
    arguments = parser.parse_args()
    if arguments.one:
        if not arguments.store.is_file():
            make_store(arguments, arguments.store)
        print(json.dumps(compare(arguments)))
        return
    shared = [sys.executable, __file__, str(arguments.model), str(arguments.store), "--one"]
    shared += ["--device", arguments.device, "--dtype", arguments.dtype, "--text", str(arguments.text)]
    rows = []
    for name, options, variables in ways(arguments):
        done = subprocess.run([*shared, *options], env=os.environ | variables, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
            continue
        row = {
            "model": arguments.model.name,
            "machine": machine(arguments.device),
            "dtype": arguments.dtype,
            "way": name,
        }
        rows.append(row | json.loads(done.stdout.splitlines()[-1]))
        print("{way}: KL {kl_nats_mean:.3g} nats, 99 % below {kl_nats_p99:.3g}, largest {kl_nats_max:.3g}, "
              "top-1 agreement {top1_agreement:.2%}".format(**rows[-1]), flush=True)  # fmt: skip
    if arguments.output:
        new = not arguments.output.exists()
        with open(arguments.output, "a", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
