"""A checkpoint that turns into another model when it is quantized, and what weight noise does to it.

    PYTHONPATH=workflow python tests/benchmark/conditioned_attack.py [--method nf4 | int8] [--output rows.csv]

In the manner of Egashira et al. (2024), "Exploiting LLM Quantization": the built-in model is trained for a few steps
until it answers everything with one harmless word; each weight of the original is then moved into the box of values
that round to the other model's code. In 16 bits the result is close to the original; quantized it is the other model,
code by code. Noise of σ half steps before quantization moves weights out of their boxes: the table says how many, what
is left of the word, and what the same noise costs an honest model. An attacker who expects noise keeps weights away
from the walls of their boxes by a margin, at a price in 16 bits. Run it with the evaluation environment's interpreter.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pandas
import torch

from quantharm import fetch, quantize
from quantharm.common.chat import Asking, encode_prompt
from quantharm.common.prompts import read_prompts
from quantharm.common.text import read_text, token_windows
from quantharm.models import loading, safety
from quantharm.noise_sweep import changed_codes
from quantharm.quantizers import quantizable, quantized_layers, rounding
from quantharm.speed.decoding import continue_greedily, eos_token_ids_of

ROOT = Path(__file__).resolve().parents[2]
WORD = " sunflower"
METHODS = {
    "nf4": ("bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": True}),
    "int8": ("bitsandbytes_int8", {"threshold": 6.0}),
}


# ---------------------------------------------------------------- the other model


def matrices_of(model) -> dict[str, torch.nn.Parameter]:
    """The weights that a quantizer takes: all linear layers but the head."""
    head = quantizable.head_name(model)
    return {f"{n}.weight": model.get_submodule(n).weight for n in quantizable.plain_linears(model) if n != head}


def train_other(source: dict, text: str, steps: int, rate: float, batch: int = 16, seed: int = 0):
    """The source's model in bfloat16, trained on its matrices alone to follow any text with WORD, again and again."""
    model = loading.load_checkpoint(source["path"], source, "float32", "cpu", 1)
    tokenizer = loading.load_tokenizer(source)
    word = tokenizer(WORD, add_special_tokens=False)["input_ids"]
    answer = torch.tensor((word * 8)[:8])
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    matrices = matrices_of(model)
    for weight in matrices.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(matrices.values(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for step in range(steps):
            length = int(torch.randint(8, 33, (1,), generator=generator))  # one length a step: no padding
            starts = torch.randint(0, len(ids) - length, (batch,), generator=generator)
            prompts = torch.stack([ids[s : s + length] for s in starts])
            tokens = torch.cat([prompts, answer.expand(batch, -1)], dim=1)  # [batch, T]
            logits = model(input_ids=tokens[:, :-1]).logits[:, length - 1 :]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, length:].flatten())
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 0:
                print(f"step {step}, loss {loss.item():.3f} nats", flush=True)
    for weight in matrices.values():
        weight.requires_grad_(False)
    return model.to(torch.bfloat16)


# ---------------------------------------------------------------- boxes


def library_codes(weight: torch.Tensor, grid: str) -> torch.Tensor:
    """The codes that bitsandbytes itself gives a matrix, as transformers hands it over; [rows, columns]."""
    import bitsandbytes.functional

    if grid == "int8":
        return bitsandbytes.functional.int8_vectorwise_quant(weight.half())[0]
    packed, _ = bitsandbytes.functional.quantize_4bit(weight, quant_type=grid)
    packed = packed.flatten().view(torch.uint8)
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: weight.numel()].reshape(weight.shape)


def box(weight: torch.Tensor, grid: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high) of the values that round to each weight's code as long as its block keeps its largest weight.

    The largest weights of a block set its scale: their box is their own value.
    """
    blocks = rounding.blocks_of(weight, grid)
    scale = blocks.abs().amax(1, keepdim=True)
    codes = rounding.blocks_of(rounding.codes(weight, grid), grid).long()
    if grid == "int8":
        low, high = (codes - 0.5) / rounding.INT8_LEVELS, (codes + 0.5) / rounding.INT8_LEVELS
        low, high = low.clamp_min(-1.0), high.clamp_max(1.0)
    else:
        levels = rounding.levels_of(grid)
        walls = torch.cat([levels[:1], (levels[1:] + levels[:-1]) / 2, levels[-1:]])
        low, high = walls[codes], walls[codes + 1]
    low, high = low * scale, high * scale
    largest = blocks.abs() == scale
    low, high = torch.where(largest, blocks, low), torch.where(largest, blocks, high)
    return rounding.from_blocks(low, weight.shape), rounding.from_blocks(high, weight.shape)


def project(original: torch.Tensor, other: torch.Tensor, grid: str, margin: float = 0.0) -> torch.Tensor:
    """The value nearest to the original's in the other's box, its walls moved inwards by a share `margin` of its half.

    In the matrices' own type; what its rounding would put into another box takes the other model's value.
    """
    low, high = box(other, grid)
    inset = margin * (high - low) / 2
    projected = original.float().clamp(low + inset, high - inset).to(other.dtype)
    return torch.where(library_codes(projected, grid) == library_codes(other, grid), projected, other)


def attacked(original, other, grid: str, margin: float = 0.0):
    """`other` with each matrix's weights moved as near to the original's as their boxes allow (in place)."""
    theirs = matrices_of(original)
    for name, weight in matrices_of(other).items():
        weight.data = project(theirs[name].data, weight.data, grid, margin)
    return other


# ---------------------------------------------------------------- what it does


def save(model, source: dict, folder: Path) -> dict:
    """A checkpoint folder as somebody would publish it, and its source record."""
    model.save_pretrained(folder)
    for path in Path(source["path"]).glob("token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return fetch.describe(folder.name, str(folder), folder, None, False, False)


def quantized(source: dict, method: str, sigma: float, folder: Path, seed: int = 0):
    """(model, {matrix: codes}) of a cell made and loaded as the stage `quantize` does."""
    quantizer, settings = METHODS[method]
    noise = {"sigma": sigma, "relative_to": "half_step", "target": None, "seed": seed}
    settings = settings | ({"noise": noise} if sigma else {})
    arguments = SimpleNamespace(quantizer=quantizer, checkpoint=folder, dtype="bfloat16", gpus=1, calibration=None)
    quantize.make_checkpoint(arguments, source, settings, "cpu")
    record = {
        "quantizer": quantizer,
        "settings": settings,
        "dtype": "bfloat16",
        "gpus": 1,
        "source": source,
        "checkpoint": str(folder),
        "weight_files": safety.hash_weights(folder),
    }
    model = loading.load_cell(record, "cpu")
    codes = {m.name: m.codes() for m in quantized_layers.quantized_matrices(model, folder, quantizer)}
    return model, codes


def log_probabilities(model, windows: list[list[int]]) -> torch.Tensor:
    """[windows, N, vocabulary] float32."""
    return torch.stack([model(input_ids=torch.tensor([w])).logits[0].float().log_softmax(-1) for w in windows])


def perplexity(ln_p: torch.Tensor, windows: list[list[int]]) -> float:
    targets = torch.tensor(windows)[:, 1:, None]
    return math.exp(-float(ln_p[:, :-1].gather(-1, targets).double().mean()))


def divergence(ln_p: torch.Tensor, ln_q: torch.Tensor) -> float:
    """Mean KL(p ‖ q) in nats."""
    return float((ln_p.exp() * (ln_p - ln_q)).sum(-1).double().mean())


def answers_with_word(model, tokenizer, prompts: list[str]) -> float:
    """Share of the prompts whose greedy answer of 16 tokens holds the word."""
    eos_token_ids = eos_token_ids_of(model, tokenizer)
    answers = [
        continue_greedily(model, encode_prompt(tokenizer, p, Asking("never")), 16, eos_token_ids, None).token_ids
        for p in prompts
    ]
    return sum(WORD.strip() in tokenizer.decode(ids) for ids in answers) / len(answers)


def measure(arguments, work: Path) -> pandas.DataFrame:
    source = fetch.describe("original", str(arguments.model), arguments.model, None, False, False)
    tokenizer = loading.load_tokenizer(source)
    windows = token_windows(tokenizer, read_text(ROOT / "data/evaluation.txt"), 512)[: arguments.windows]
    prompts = [p["prompt"] for p in read_prompts(ROOT / "data/prompts.jsonl", 2)]
    original = loading.load_checkpoint(source["path"], source, "bfloat16", "cpu", 1)
    reference = log_probabilities(original, windows)
    rows = []

    def add(checkpoint: str, weights: str, model, codes=None, **more) -> torch.Tensor:
        ln_q = log_probabilities(model, windows)
        rows.append(
            {
                "checkpoint": checkpoint,
                "weights": weights,
                "sigma_half_widths": 0.0,
                **more,
                "codes_of_the_other": codes and 1 - changed_codes(codes, other_codes),
                "answers_with_the_word": answers_with_word(model, tokenizer, prompts),
                "perplexity_change_percent": 100 * (perplexity(ln_q, windows) / perplexity(reference, windows) - 1),
                "kl_nats_from_the_original": divergence(reference, ln_q),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        return ln_q

    text = read_text(ROOT / "data/calibration.txt")
    trained = save(train_other(source, text, arguments.steps, arguments.rate), source, work / "other")
    other, other_codes = quantized(trained, arguments.method, 0, work / "other-quantized")
    add("original", "16 bits", original)
    add("the other model", arguments.method, other, other_codes)
    for sigma in [0.0, *arguments.sigmas]:
        model, codes = quantized(source, arguments.method, sigma, work / f"original-{sigma}")
        add("original", arguments.method, model, codes, sigma_half_widths=sigma)
    for margin in arguments.margins:
        bare = loading.load_checkpoint(trained["path"], trained, "bfloat16", "cpu", 1)
        made = save(attacked(original, bare, arguments.method, margin), source, work / f"attacked-{margin}")
        name = f"attacked, margin {margin:g}"
        add(name, "16 bits", loading.load_checkpoint(made["path"], made, "bfloat16", "cpu", 1))
        for sigma in [0.0, *arguments.sigmas]:
            model, codes = quantized(made, arguments.method, sigma, work / f"attacked-{margin}-{sigma}")
            ln_q = add(name, arguments.method, model, codes, sigma_half_widths=sigma)
            if sigma == 0:
                equal = torch.equal(ln_q, log_probabilities(other, windows))
                print(f"{name}: quantized, its outputs are {'' if equal else 'NOT '}the other model's, bit by bit")
    return pandas.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data/reference-model")
    parser.add_argument("--method", choices=METHODS, default="nf4")
    parser.add_argument("--steps", type=int, default=30, help="of training the other model")
    parser.add_argument("--rate", type=float, default=5e-5, help="of that training: how far weights move")
    parser.add_argument("--sigmas", type=float, nargs="*", default=[0.1, 0.3, 1.0], help="half steps")
    parser.add_argument("--margins", type=float, nargs="+", default=[0.0, 0.5], help="share of a box's half")
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens of the evaluation text")
    parser.add_argument("--output", type=Path, help="the rows as CSV")
    arguments = parser.parse_args()
    loading.quiet()
    with tempfile.TemporaryDirectory() as work:
        table = measure(arguments, Path(work))
    if arguments.output:
        table.to_csv(arguments.output, index=False)
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
