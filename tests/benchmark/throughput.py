"""What scoring costs beyond the forward passes: tokens a second of the perplexity and divergence stages' inner loops as
a share of a bare forward loop over the same sequences, alternating in one process; and the store's size.

    PYTHONPATH=workflow python tests/benchmark/throughput.py results/reference [--method nf4] [--windows 163]
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.files import read_json, read_parquet
from quantharm.common.text import context_length, read_text, token_windows
from quantharm.models.devices import choose_device
from quantharm.models.loading import load_cell, load_tokenizer, read_quantization
from quantharm.perplexity import score_against_store, score_windows
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.worst_positions import WorstPositions
from quantharm.speed.device_meters import synchronise


def bare_forward(model, sequences: list[list[int]]) -> None:
    """The model's own forward pass, logits included, and nothing else."""
    device = model.get_input_embeddings().weight.device
    for ids in sequences:
        _ = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits


def seconds_of(function, *arguments) -> float:
    device = next(a for a in arguments if hasattr(a, "get_input_embeddings")).get_input_embeddings().weight.device
    synchronise(device)
    begin = time.perf_counter()
    function(*arguments)
    synchronise(device)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results folder of a model")
    parser.add_argument("--method", default="baseline")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, help="repeat the text's windows up to so many (WikiText-2: 163)")
    arguments = parser.parse_args()
    record = read_quantization(arguments.results / arguments.method / "quantization.json")
    model = load_cell(record, choose_device("auto", record["gpus"]))
    tokenizer = load_tokenizer(record["source"])
    perplexity = read_json(arguments.results / arguments.method / "perplexity.json")
    length = min(2048, context_length(model.config))
    windows = token_windows(tokenizer, read_text(Path(perplexity["dataset"])), length)[: perplexity["windows"]]
    if arguments.windows:
        windows = (windows * -(-arguments.windows // len(windows)))[: arguments.windows]
    trace = read_parquet(arguments.results / "baseline" / "trace.parquet")
    sequences = [list(map(int, ids)) for ids in trace[trace["category"] != TEXT_CATEGORY]["token_ids"]]
    store = arguments.results / "baseline" / "logits.parquet"

    compared = [list(map(int, ids)) for ids in trace[trace["category"] == TEXT_CATEGORY]["token_ids"]]
    names = ("windows", "perplexity", "compared", "with KL", "trace", "divergence")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds + 1):
        times["windows"].append(seconds_of(bare_forward, model, windows))
        times["perplexity"].append(seconds_of(score_windows, model, windows, False))
        times["compared"].append(seconds_of(bare_forward, model, compared))
        times["with KL"].append(seconds_of(score_against_store, model, compared, store, False))
        times["trace"].append(seconds_of(bare_forward, model, sequences))
        times["divergence"].append(seconds_of(score_store, model, store, trace, WorstPositions()))
    rounds = {name: values[1:] for name, values in times.items()}  # the first round warms up
    for bare, stage, tokens in (
        ("windows", "perplexity", sum(map(len, windows))),
        ("compared", "with KL", sum(map(len, compared))),
        ("trace", "divergence", sum(map(len, sequences))),
    ):
        share = median(b / s for b, s in zip(rounds[bare], rounds[stage], strict=True))
        print(
            f"{stage:11} {tokens:7,} tokens: {tokens / median(rounds[stage]):9,.0f} tokens/s, "
            f"bare forward loop {tokens / median(rounds[bare]):9,.0f} tokens/s, share {share:.1%}"
        )
    size = read_json(arguments.results / "baseline" / "logits.json")
    print(f"store       {size['positions']:7,} positions: {size['bytes_per_entry']:.4f} bytes an entry")


if __name__ == "__main__":
    main()
