"""What the scan for quantized-and-dequantized weights catches and what evades it: rates over the built-in model.

    PYTHONPATH=workflow python tests/benchmark/integrity_detection.py [--clean NAME=FOLDER …] [--four-bit NAME=FOLDER …]

Every quantizer of this project (through its own module), GPTQ-like and round-to-nearest integers are applied to the
built-in model, dequantized, stored in three formats, and then changed: noise, further training, pruning, rescaled and
permuted input channels, AWQ's scales folded back. Counted are matrices whose trace is seen, and of which method, bits
and group are recovered. The first rows are false alarms: the same changes to weights never quantized, and random
matrices of other shapes and distributions; the last are ternary weights as native low-bit training leaves them. Writes
workflow/report/integrity-detection.csv, which the report shows, and integrity_detection.md, the same as a page. Rows
that the file holds are kept: delete it to measure all of them again (20 minutes on two busy cores).
"""

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from quantharm import fetch, quantize
from quantharm.common.files import replacing, write_text
from quantharm.forensics.detection.checkpoints import scan_matrices
from quantharm.forensics.detection.lattice_fit import CODEBOOKS
from quantharm.forensics.detection.weights import linear_shape, narrowest, sample_matrix
from quantharm.models import loading, safety
from quantharm.quantizers import quantized_layers
from quantharm.reporting.detection import (
    FOUR_BIT,
    NATIVE,
    NOTHING,
    ONLY_AWQ,
    RANDOM,
    RATES,
    REAL,
    detection_notes,
    detection_table,
    read_rates,
    short_table,
)
from quantharm.reporting.tables.table import markdown_table

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "data" / "reference-model"
LAYERS = (0, 3, 6)  # whose matrices are scanned
AWQ = {
    "bits": 4,
    "group_size": 128,
    "zero_point": True,
    "calibration_samples": 20,
    "calibration_tokens": 512,
    "backend": None,
}
NF4 = {"quant_type": "nf4"}
TRAINED_TOKENS = 256  # in each step
Weights = dict[str, torch.Tensor]  # {module: [rows, columns] float32}

# ---------------------------------------------------------------- quantizers


def groups_of(weight: torch.Tensor, size: int | None, axis: int = 1) -> torch.Tensor:
    lines = weight if axis == 1 else weight.t().contiguous()
    return lines.reshape(-1, size or lines.shape[1])


def put_back(groups: torch.Tensor, weight: torch.Tensor, axis: int = 1) -> torch.Tensor:
    return groups.reshape(weight.shape) if axis == 1 else groups.reshape(weight.t().shape).t().contiguous()


def nearest_integers(
    weight: torch.Tensor, bits: int, size: int | None, symmetric: bool, axis: int = 1, whole_zero: bool = True
) -> torch.Tensor:
    """Round to nearest; a zero point that is an integer (AWQ, GPTQ) or not (min and max are levels, as HQQ's are)."""
    groups = groups_of(weight, size, axis)
    if symmetric:
        largest = 2 ** (bits - 1) - 1
        scale = groups.abs().amax(1, keepdim=True) / largest
        return put_back((groups / scale).round().clamp(-largest, largest) * scale, weight, axis)
    largest = 2**bits - 1
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / largest
    zero = (-low / scale).round() if whole_zero else -low / scale
    return put_back(((groups / scale + zero).round().clamp(0, largest) - zero) * scale, weight, axis)


def gptq(weight: torch.Tensor, bits: int, size: int, act_order: bool, seed: int = 0) -> torch.Tensor:
    """GPTQ (Frantar et al. 2023), column by column with error feedback, inputs random with a few large channels."""
    random = torch.Generator().manual_seed(seed)
    columns = weight.shape[1]
    inputs = torch.randn(2 * columns, columns, generator=random) * torch.exp(torch.randn(columns, generator=random))
    hessian = inputs.t() @ inputs
    order = hessian.diagonal().argsort(descending=True) if act_order else torch.arange(columns)
    weight, hessian = weight[:, order].clone(), hessian[order][:, order]
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(columns)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    largest = 2**bits - 1
    quantized = torch.zeros_like(weight)
    for i in range(columns):
        if i % size == 0:
            group = weight[:, i : i + size]
            scale = (group.amax(1).clamp_min(0) - group.amin(1).clamp_max(0)) / largest
            zero = (-group.amin(1).clamp_max(0) / scale).round()
        column = weight[:, i]
        quantized[:, i] = ((column / scale + zero).round().clamp(0, largest) - zero) * scale
        error = (column - quantized[:, i]) / inverse[i, i]
        weight[:, i + 1 :] -= error.unsqueeze(1) * inverse[i, i + 1 :]
    back = torch.empty_like(order)
    back[order] = torch.arange(columns)
    return quantized[:, back]


def codebook(weight: torch.Tensor, name: str, size: int) -> torch.Tensor:
    groups, levels = groups_of(weight, size), torch.tensor(CODEBOOKS[name])
    scale = groups.abs().amax(1, keepdim=True)
    between = (levels[1:] + levels[:-1]) / 2
    return put_back(levels[torch.bucketize(groups / scale, between)] * scale, weight)


def ternary(weight: torch.Tensor) -> torch.Tensor:
    """What training in 1.58 bits keeps (BitNet b1.58, Ma et al. 2024): -1, 0 or 1 times one scale a matrix."""
    scale = weight.abs().mean()
    return (weight / scale).round().clamp(-1, 1) * scale


def by_project(quantizer: str, settings: dict) -> Callable[[Weights], tuple[Weights, Weights]]:
    """The project's own quantizer on the built-in model, from checkpoint to dequantized matrices and norms."""

    def run(_: Weights) -> tuple[Weights, Weights]:
        source = fetch.describe("reference", str(REFERENCE), REFERENCE, None, False, False)
        with tempfile.TemporaryDirectory() as folder:
            arguments = SimpleNamespace(
                quantizer=quantizer,
                checkpoint=Path(folder) / "checkpoint",
                dtype="bfloat16",
                gpus=1,
                calibration=ROOT / "data" / "calibration.txt",
            )
            gradients = torch.is_grad_enabled()
            quantize.make_checkpoint(arguments, source, settings, "cpu")
            record = {
                "quantizer": quantizer,
                "settings": settings,
                "dtype": "bfloat16",
                "gpus": 1,
                "source": source,
                "checkpoint": str(arguments.checkpoint),
                "weight_files": safety.hash_weights(arguments.checkpoint),
            }
            model = loading.load_cell(record, "cpu")
            matrices = quantized_layers.quantized_matrices(model, arguments.checkpoint, quantizer)
            weights = {m.name: m.dequantize() for m in matrices}
            norms = {n: p.float() for n, p in model.named_parameters() if "norm" in n}
            torch.set_grad_enabled(gradients)
        return weights, norms

    return run


def each(function: Callable[..., torch.Tensor], *arguments, **keywords) -> Callable:
    return lambda weights: ({n: function(w, *arguments, **keywords) for n, w in weights.items()}, {})


# name: (quantizer, (method, bits, group size, axis) that the scan should recover)
QUANTIZERS: dict[str, tuple[Callable, tuple]] = {
    "LLM.int8 (bitsandbytes)": (
        by_project("bitsandbytes_int8", {"threshold": 6.0}),
        ("8-bit integer", "whole", "input"),
    ),
    "NF4, double (bitsandbytes)": (
        by_project("bitsandbytes_4bit", NF4 | {"double_quantization": True}),
        ("NF4", 64, "input"),
    ),
    "NF4 (bitsandbytes)": (
        by_project("bitsandbytes_4bit", NF4 | {"double_quantization": False}),
        ("NF4", 64, "input"),
    ),
    "FP4, double (bitsandbytes)": (
        by_project("bitsandbytes_4bit", {"quant_type": "fp4", "double_quantization": True}),
        ("FP4", 64, "input"),
    ),
    "AWQ 4 bits, 128 (autoawq)": (by_project("awq", AWQ), ("4-bit integer", 128, "input")),
    "GPTQ-like 4 bits, 128": (each(gptq, 4, 128, False), ("4-bit integer", 128, "input")),
    "GPTQ-like 4 bits, 128, act-order": (
        each(gptq, 4, 128, True),
        ("4-bit integer, columns in any order", 128, "input"),
    ),
    "GPTQ-like 3 bits, 64": (each(gptq, 3, 64, False), ("3-bit integer", 64, "input")),
    "RTN 8 bits, 128": (each(nearest_integers, 8, 128, False), ("8-bit integer", 128, "input")),
    "RTN 4 bits symmetric, 128": (each(nearest_integers, 4, 128, True), ("4-bit integer", 128, "input")),
    "RTN 4 bits, 32, zero not whole": (
        each(nearest_integers, 4, 32, False, whole_zero=False),
        ("4-bit integer", 32, "input"),
    ),
    "RTN 4 bits, row": (each(nearest_integers, 4, None, False), ("4-bit integer", "whole", "input")),
    "RTN 4 bits, 64, outputs": (each(nearest_integers, 4, 64, False, axis=0), ("4-bit integer", 64, "output")),
    "RTN 2 bits, 32": (each(nearest_integers, 2, 32, False), ("2-bit integer", 32, "input")),
    "NF4, blocks of 256": (each(codebook, "NF4", 256), ("NF4", 256, "input")),
    NATIVE: (each(ternary), None),
}

# ---------------------------------------------------------------- changes


def add_noise(weights: Weights, share: float) -> Weights:
    random = torch.Generator().manual_seed(1)
    return {n: w + share * w.std() * torch.randn(w.shape, generator=random) for n, w in weights.items()}


def prune(weights: Weights, share: float) -> Weights:
    """The smallest weights of each matrix set to zero."""
    return {n: w * (w.abs() > w.abs().flatten().kthvalue(int(share * w.numel())).values) for n, w in weights.items()}


def rescale_channels(weights: Weights) -> Weights:
    """Every input channel by a factor of its own between 1/2 and 2; the layer before can take the inverse."""
    random = torch.Generator().manual_seed(2)
    return {n: w * torch.exp2(2 * torch.rand(w.shape[1], generator=random) - 1) for n, w in weights.items()}


def permute_channels(weights: Weights) -> Weights:
    random = torch.Generator().manual_seed(3)
    return {n: w[:, torch.randperm(w.shape[1], generator=random)] for n, w in weights.items()}


def fold_back(weights: Weights, norms: Weights, original: Weights) -> Weights:
    """Undo AWQ's scales, so that norms are the original's: what they multiplied an input channel by is divided out."""
    stored = load_reference()
    undone = dict(weights)
    for name in weights:
        layer, kind = name.rsplit(".", 2)[0], name.rsplit(".", 1)[-1]
        norm = {"q_proj": "input_layernorm", "k_proj": "input_layernorm", "v_proj": "input_layernorm"}.get(kind)
        norm = norm or {"gate_proj": "post_attention_layernorm", "up_proj": "post_attention_layernorm"}.get(kind)
        if norm:
            key = f"{layer}.{norm}.weight"
            undone[name] = weights[name] * (norms[key] / stored[key].float())
    for name in weights:
        if name.endswith("down_proj"):  # its scales were divided out of up_proj's rows
            up = name.replace("down_proj", "up_proj")
            scale = original[up].norm(dim=1) / undone[up].norm(dim=1)
            undone[name] = weights[name] / scale
    return undone


def train(weights: Weights, norms: Weights, steps: int, rate: float) -> Weights:
    """AdamW steps on calibration text, float32 master weights, batches of one sequence."""
    source = fetch.describe("reference", str(REFERENCE), REFERENCE, None, False, False)
    tokens = loading.load_tokenizer(source)((ROOT / "data" / "calibration.txt").read_text(encoding="utf-8"))[
        "input_ids"
    ]
    model = loading.load_checkpoint(REFERENCE, source, "float32", "cpu", 1)
    model.load_state_dict({f"{n}.weight": w for n, w in weights.items()} | norms, strict=False)
    torch.set_grad_enabled(True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    for step in range(steps):
        ids = torch.tensor([tokens[step * TRAINED_TOKENS : (step + 1) * TRAINED_TOKENS]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_grad_enabled(False)
    return {n: model.get_submodule(n).weight.detach().clone() for n in weights}


# name: (change of (weights, norms, original), storage format)
CHANGES: dict[str, tuple[Callable, torch.dtype]] = {
    "none, bfloat16": (lambda w, n, o: w, torch.bfloat16),
    "none, float16": (lambda w, n, o: w, torch.float16),
    "none, float32": (lambda w, n, o: w, torch.float32),
    "noise 0.3 %": (lambda w, n, o: add_noise(w, 0.003), torch.bfloat16),
    "noise 1 %": (lambda w, n, o: add_noise(w, 0.01), torch.bfloat16),
    "noise 3 %": (lambda w, n, o: add_noise(w, 0.03), torch.bfloat16),
    "20 steps at 1e-5": (lambda w, n, o: train(w, n, 20, 1e-5), torch.bfloat16),
    "20 steps at 1e-4": (lambda w, n, o: train(w, n, 20, 1e-4), torch.bfloat16),
    "20 % pruned": (lambda w, n, o: prune(w, 0.2), torch.bfloat16),
    "channels rescaled": (lambda w, n, o: rescale_channels(w), torch.bfloat16),
    "channels permuted": (lambda w, n, o: permute_channels(w), torch.bfloat16),
    ONLY_AWQ: (fold_back, torch.bfloat16),
}

# ---------------------------------------------------------------- rates


def load_reference() -> Weights:
    return {n: t for f in sorted(REFERENCE.glob("*.safetensors")) for n, t in load_file(f).items()}


def chosen(weights: Weights) -> Weights:
    return {n: w for n, w in weights.items() if any(f"layers.{layer}." in n for layer in LAYERS)}


def rates(weights: Weights, stored: torch.dtype, expected: tuple | None) -> dict:
    """Of the matrices: how many show a trace, and the one expected; their ratios."""
    scanned = scan_matrices(sample_matrix(n, w.to(stored), *w.shape, stored) for n, w in weights.items())
    traces = [m for m in scanned if m["verdict"] == "dequantized"]
    right = [m for m in traces if (m["method"], m["group_size"], m["axis"]) == expected]
    ratios = sorted(m["ratio"] for m in scanned if m["ratio"] is not None)
    return {
        "expected": ", ".join(map(str, expected)) if expected else "",
        "matrices": len(scanned),
        "detected": len(traces),
        "recovered": len(right),
        "ratio_lowest": round(ratios[0], 4),
        "ratio_median": round(ratios[len(ratios) // 2], 4),
        "ratio_highest": round(ratios[-1], 4),
        "distinct_lowest": round(
            min(m["distinct_share_of_row"] / m["distinct_share_of_row_reference"] for m in scanned), 4
        ),
        "seen_as": "; ".join(sorted({f"{m['method']}, {m['group_size']}, {m['axis']}" for m in traces})),
    }


def random_matrices() -> dict[str, torch.Tensor]:
    """Weights never quantized, of other shapes and distributions than the built-in model's."""
    random = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> torch.Tensor:
        return 0.02 * torch.randn(*shape, generator=random)

    def scales(*shape: int) -> torch.Tensor:
        return torch.exp(1.5 * torch.randn(*shape, generator=random))

    torch.manual_seed(5)
    dense = normal(1024, 1024)
    by_fours = dense.view(1024, -1, 4).abs().argsort(-1).argsort(-1) >= 2
    return {
        "normal": dense,
        "normal, 4096 × 1536": normal(4096, 1536),
        "normal, 1000 × 1000": normal(1000, 1000),
        "Laplace": torch.distributions.Laplace(0.0, 0.02).sample((1024, 1024)),
        "Student t, 3 degrees": 0.02 * torch.distributions.StudentT(3.0).sample((1024, 1024)),
        "uniform": 0.08 * torch.rand(1024, 1024, generator=random) - 0.04,
        "rows of many scales": dense * scales(1024, 1),
        "columns of many scales": dense * scales(1, 1024),
        "rank 8": normal(1024, 8) @ normal(8, 1024) * 50,
        "half pruned": dense * (dense.abs() > 0.0135),
        "2 of 4 pruned": dense * by_fours.view(1024, 1024),
    }


def real_weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {n: t for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}
    return {n: t for n, t in tensors.items() if t.is_floating_point() and linear_shape(list(t.shape))}


def real_row(quantizer: str, change: str, folder: Path) -> dict:
    """Of all matrices of a model in a folder, changed."""
    weights = {n: w.float() for n, w in real_weights(folder).items()}
    function, stored = CHANGES[change]
    expected = None if quantizer.startswith(REAL) else ("4-bit integer", 32, "input")
    return rates(function(weights, {}, weights), stored, expected)


def rows_to_make() -> list[tuple[str, str]]:
    nothing = [(NOTHING, change) for change in CHANGES if change != ONLY_AWQ]
    made = [(q, change) for q in QUANTIZERS for change in CHANGES if change != ONLY_AWQ or q.startswith("AWQ")]
    dtypes = [(RANDOM, f"none, {dtype}") for dtype in ("bfloat16", "float16", "float32", "bfloat16 in 32")]
    return [*dtypes, *nothing, *made]


def make_row(quantizer: str, change: str, cache: dict) -> dict:
    if quantizer == RANDOM:
        stored = torch.float32 if change.endswith("32") else getattr(torch, change.removeprefix("none, "))
        weights = random_matrices()
        if change.endswith("in 32"):
            weights = {n: w.bfloat16().float() for n, w in weights.items()}
            assert narrowest(list(weights.values()), torch.float32) == torch.bfloat16
        return rates(weights, stored, None)
    stored_model = load_reference()
    original = {n.removesuffix(".weight"): w.float() for n, w in stored_model.items() if "proj" in n}
    if quantizer == NOTHING:
        made, norms, expected = original, {}, None
    else:
        function, expected = QUANTIZERS[quantizer]
        if quantizer not in cache:
            cache.clear()
            cache[quantizer] = function(original)
        made, norms = cache[quantizer]
    function, stored = CHANGES[change]
    changed = function(made, norms, original)
    return rates(chosen(changed), stored, expected)


def page(rates: list[dict]) -> str:
    lines = [
        "# What the scan for dequantized weights catches",
        "",
        "Matrices of the built-in model with a trace, of those scanned, and for how many the right method, group and",
        "axis were named where these are fewer. Noise is in shares of a matrix's standard deviation. Ratios stand in",
        "`workflow/report/integrity-detection.csv`; both files were made by",
        "`PYTHONPATH=workflow python tests/benchmark/integrity_detection.py`.",
        "",
        markdown_table(detection_table(rates)),
        "",
        *(f"- {note}" for note in detection_notes(rates)),
        "",
        f"Never quantized, beside the model's own matrices: {'; '.join(random_matrices())}.",
    ]
    return "\n".join(lines) + "\n"


def write_rates(path: Path, rates: list[dict]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rates[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, default=RATES, help="CSV file; its rows are not measured again")
    parser.add_argument("--clean", nargs="*", default=[], metavar="NAME=FOLDER", help="real models never quantized")
    parser.add_argument(
        "--four-bit", nargs="*", default=[], metavar="NAME=FOLDER", help="real models of 4-bit integers"
    )
    parser.add_argument("--only", nargs="*", metavar="QUANTIZER", help="rows of these alone; all")
    parser.add_argument("--page", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    known = {(r["quantizer"], r["change"]): r for r in read_rates(arguments.rates)} if arguments.rates.is_file() else {}
    rates: list[dict] = []
    cache: dict = {}
    folders = {REAL + n: Path(f) for n, _, f in (given.partition("=") for given in arguments.clean)}
    four_bit = {n + FOUR_BIT: Path(f) for n, _, f in (given.partition("=") for given in arguments.four_bit)}
    trained = [c for c in CHANGES if "steps" in c]
    real = [(name, c) for name in folders for c in CHANGES if c not in (*trained, ONLY_AWQ)]
    real += [(name, "none, bfloat16") for name in four_bit]
    folders |= four_bit
    only = arguments.only and set(arguments.only)
    for quantizer, change in [(q, c) for q, c in [*rows_to_make(), *real] if not only or q in only]:
        row = known.get((quantizer, change))
        if row is None:
            made = quantizer in folders
            figures = real_row(quantizer, change, folders[quantizer]) if made else make_row(quantizer, change, cache)
            row = {"quantizer": quantizer, "change": change} | figures
            print(
                f"{quantizer} | {change}: {row['detected']} of {row['matrices']}, right {row['recovered']}, ratio "
                f"{row['ratio_lowest']:.3f} {row['ratio_median']:.3f} {row['ratio_highest']:.3f}  {row['seen_as']}",
                flush=True,
            )
        rates.append(row)
        known.pop((quantizer, change), None)
        write_rates(arguments.rates, [*rates, *known.values()])
    rates += known.values()  # real models that are not at hand this time
    write_text(arguments.page, page(rates))
    print(page(rates))
    print("For the README:\n\n" + markdown_table(short_table(rates)))


if __name__ == "__main__":
    main()
