"""Decoding of random weights in a published shape, eager and captured, without a checkpoint on disk: a row a method.

    PYTHONPATH=workflow python tests/benchmark/decode.py --architecture mistral-7b [--methods bf16 nf4] [--compile]

With --kernels also the kernels in which a captured step spends its time.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from quantharm.config.architectures import read_architecture
from quantharm.models import attention
from quantharm.models.devices import choose_device
from quantharm.models.loading import quiet
from quantharm.speed.benchmark import benchmark
from quantharm.speed.cuda_graph import captured_decoder
from quantharm.speed.timings import random_prompt
from quantharm.synthesize import model_configuration

TOKENIZER = Path("data/reference-model")
COLUMNS = (
    "method",
    "eager, tokens/s",
    "host wait",
    "captured, tokens/s",
    "compiled, tokens/s",
    "share of copy",
    "check",
)


def to_nf4(model) -> None:
    """Replace every linear layer but the head by bitsandbytes' NF4 with double quantization, in place."""
    import bitsandbytes

    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or module is model.get_output_embeddings():
            continue
        device = module.weight.device
        layer = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=model.dtype,
            quant_type="nf4",
            device="meta",
        )
        layer.bias = module.bias
        layer.weight = bitsandbytes.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4").to(device)
        model.set_submodule(name, layer)


def random_model(configuration, device: str):
    attention.without_plans()
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(configuration, dtype=torch.bfloat16).eval()


def rate(captured: dict) -> str:
    return captured["reason"] if "reason" in captured else f"{captured['decode_tokens_per_second']['median']:.1f}"


def rates(result: dict) -> tuple[str, str, str, str]:
    """Tokens a second eagerly, captured, captured and compiled, and the share of copy bandwidth of the faster one."""
    captured = result["captured"]
    variants = {c["compiled"]: c for c in (captured, captured.get("other")) if c}
    share = result["roofline"]["captured_share_of_copy_bandwidth"]
    return (
        f"{result['decode_tokens_per_second']['median']:.1f}",
        rate(variants[False]),
        rate(variants[True]) if True in variants else "–",
        "–" if share is None else f"{share:.1%}",
    )


def row(method: str, result: dict) -> str:
    eager, captured, compiled, share = rates(result)
    wait, check = result["host_wait_share"], result["captured"].get("check", {})
    cells = [
        method,
        eager,
        "–" if wait is None else f"{wait:.0%}",
        captured,
        compiled,
        share,
        f"{check['same_tokens']} of {check['steps']}, {check['kl_nats_max']:.1e} nats" if check else "–",
    ]
    return f"| {' | '.join(cells)} |"


def kernels_of(work: Callable[[], None]) -> list:
    """The GPU's kernels of some work, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return sorted(profile.key_averages(), key=lambda kernel: -kernel.self_device_time_total)


def kernel_table(model, tokens: int = 8) -> str:
    """Microseconds, launches a token and name of the kernels of a captured step, the longest first."""
    prompt = random_prompt(model, 256)
    decoder, reason = captured_decoder(model, prompt, 2 * tokens)
    if decoder is None:
        return reason
    decoder.prefill(prompt)
    events = kernels_of(lambda: decoder.decode(tokens))
    lines = [f"{e.self_device_time_total / tokens:9.1f} µs {e.count / tokens:6.1f} × {e.key[:90]}" for e in events[:12]]
    total = sum(e.self_device_time_total for e in events) / tokens
    return "\n".join([f"{total:9.1f} µs a token in kernels", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="mistral-7b")
    parser.add_argument("--methods", nargs="+", default=["bf16", "nf4"], choices=["bf16", "nf4"])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    arguments = parser.parse_args()
    quiet()
    torch.set_grad_enabled(False)
    configuration = model_configuration(read_architecture(arguments.architecture), TOKENIZER)
    print(f"| {' | '.join(COLUMNS)} |\n|{'--|' * len(COLUMNS)}", flush=True)
    for method in arguments.methods:
        model = random_model(configuration, choose_device("auto", 1))
        if method == "nf4":
            to_nf4(model)
        result = benchmark(model, 256, arguments.new_tokens, 5, 1.0, compile_too=arguments.compile)
        print(row(method, result), flush=True)
        if arguments.kernels:
            print(kernel_table(model), flush=True)
        del model


if __name__ == "__main__":
    main()
