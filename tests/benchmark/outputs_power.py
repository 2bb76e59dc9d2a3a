"""Power and false alarms of the two-sample test on outputs, on the cells of a finished run.

    PYTHONPATH=workflow python tests/benchmark/outputs_power.py results/reference [--answers 100] [--repetitions 100]

Samples answers (temperature 1, 32 tokens) of each method's dequantized weights, then tests random subsets: a method's
answers against the baseline's, and, for false alarms, disjoint subsets of the baseline's against each other. Subsets
are drawn from one pool of answers, so repetitions are not independent. Prints and writes outputs_power.md.
"""

import argparse
import json
from pathlib import Path

import numpy
import torch
from dequantize_checkpoint import dequantized

from quantharm.common.files import read_parquet
from quantharm.forensics import sample_answers
from quantharm.forensics.model_equality import compare_outputs

NEW_TOKENS = 32
SIZES = (5, 10, 20, 40)
LEVEL = 0.05


def sample(results: Path, method: str, answers: int, prompts: int) -> dict[str, list[list[int]]]:
    """{prompt_id: sampled answers as token ids, cut at the end token}"""
    model = dequantized(results, method)
    eos_token_ids = {model.config.eos_token_id}
    generator = torch.Generator().manual_seed(0 if method == "baseline" else 1 + len(method))
    rows = read_parquet(results / "baseline" / "generation.parquet").head(prompts)
    return {
        row.prompt_id: sample_answers.sample(
            model, list(map(int, row.prompt_token_ids)), answers, NEW_TOKENS, 1.0, eos_token_ids, generator
        )
        for row in rows.itertuples()
    }


def rate(first: dict, second: dict, size: int, repetitions: int, seed: int) -> float:
    """Share of random subsets of so many answers a prompt that are told apart; disjoint ones of one pool."""
    random = numpy.random.default_rng(seed)
    told = 0
    for _ in range(repetitions):
        a, b = {}, {}
        for prompt in first:
            order = random.permutation(len(first[prompt]))
            other = order[size : 2 * size] if second is first else random.permutation(len(second[prompt]))[:size]
            a[prompt] = [first[prompt][i] for i in order[:size]]
            b[prompt] = [second[prompt][i] for i in other]
        told += compare_outputs(a, b, permutations=199, seed=int(random.integers(2**31)))["p_value"] <= LEVEL
    return told / repetitions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results folder of a model")
    parser.add_argument("--methods", nargs="+", default=["int8", "nf4", "awq"])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--pools", type=Path, help="where sampled answers are kept, and taken from when they are there")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "outputs_power.md")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    pools = {}
    for method in ["baseline", *arguments.methods]:
        kept = arguments.pools / f"{method}.json" if arguments.pools else None
        if kept and kept.is_file():
            pools[method] = json.loads(kept.read_text())
        else:
            pools[method] = sample(arguments.results, method, arguments.answers, arguments.prompts)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(pools[method]))
        print(f"{method}: {sum(map(len, pools[method].values()))} answers", flush=True)
    sizes = [n for n in SIZES if 2 * n <= arguments.answers]
    lines = [
        "# Power of the two-sample test on outputs",
        "",
        f"Share of {arguments.repetitions} random subsets told apart at level {LEVEL:g}, by answers a prompt from each "
        f"model ({arguments.prompts} prompts,",
        f"temperature 1, {NEW_TOKENS} tokens); the first row are false alarms. Made by",
        f"`PYTHONPATH=workflow python tests/benchmark/outputs_power.py results/reference --methods "
        f"{' '.join(arguments.methods)}`.",
        "",
        "| baseline against | " + " | ".join(map(str, sizes)) + " |",
        "|---|" + "--:|" * len(sizes),
    ]
    for method, pool in pools.items():
        rates = [rate(pools["baseline"], pool, n, arguments.repetitions, seed=n) for n in sizes]
        name = "itself" if method == "baseline" else method
        lines.append(f"| {name} | " + " | ".join(f"{r:.0%}" for r in rates) + " |")
        print(lines[-1], flush=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
