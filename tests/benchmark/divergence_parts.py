"""Where the divergence stage's inner loop loses time: its parts, one after the other in each round, beside a bare
forward loop over the same sequences. Random weights, a random trace of 96 prompts × 100 tokens.

    PYTHONPATH=workflow python tests/benchmark/divergence_parts.py [--architecture mistral-7b --rounds 5]

A share is given twice: the median of the rounds' own, and of the fastest rounds, because other users of a host only
ever add time. The process reads the store once a round, as fast as it can.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch
from decode import TOKENIZER, random_model
from growth import Size, random_trace
from stored_forms import fill
from throughput import bare_forward, seconds_of

from quantharm.config.architectures import read_architecture
from quantharm.models.devices import choose_device
from quantharm.models.loading import quiet
from quantharm.scoring.forward import last_hidden_states
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.paired_logits import first_targets_of, pieces_of, read_ahead, sequences_of
from quantharm.scoring.stored_logits import read_store
from quantharm.scoring.worst_positions import WorstPositions
from quantharm.synthesize import model_configuration


def read_all(store: Path) -> None:
    for _ in read_store(store):
        pass


def parts(trace, store: Path) -> dict[str, Callable[[torch.nn.Module], None]]:
    sequences = [list(ids) for ids in trace["token_ids"]]
    process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # a fork would take CUDA along

    def without_logits(model) -> None:
        for ids in sequences:
            last_hidden_states(model, ids)

    def beside_readers(model) -> None:
        groups = read_ahead(model, store)
        for ids in sequences:
            next(groups, None)
            bare_forward(model, [ids])
        for _ in groups:
            pass

    def beside_process(model) -> None:
        reading = process.submit(read_all, store)
        bare_forward(model, sequences)
        reading.result()

    def logits_and_store(model) -> None:
        for _ in pieces_of(model, store, sequences_of(trace), first_targets=first_targets_of(trace)):
            pass

    def whole(model) -> None:
        score_store(model, store, trace, WorstPositions())

    return {
        "bare forward loop": lambda model: bare_forward(model, sequences),
        "the same without logits": without_logits,
        "the same beside threads that read the store": beside_readers,
        "the same beside a process that reads it": beside_process,
        "hidden states, logits in float32 and the store": logits_and_store,
        "all of it, with the scores": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="mistral-7b")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    quiet()
    torch.set_grad_enabled(False)
    shape = read_architecture(arguments.architecture)
    model = random_model(model_configuration(shape, TOKENIZER), choose_device("auto", 1))
    size = Size(shape["num_hidden_layers"], shape["vocab_size"], arguments.prompts, arguments.new_tokens)
    trace = random_trace(size, windows=[])
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "logits.parquet"
        fill(model, trace, store, "hidden_states")
        named = parts(trace, store)
        rounds = [{name: seconds_of(part, model) for name, part in named.items()} for _ in range(arguments.rounds + 1)]
    bare, *_ = named
    kept = rounds[1:]  # the first round warms up
    print("| part | median, s | fastest, s | share of the bare loop | of the fastest |\n|---|--:|--:|--:|--:|")
    for name in named:
        seconds = [r[name] for r in kept]
        share = median(r[bare] / r[name] for r in kept)
        fastest = min(r[bare] for r in kept) / min(seconds)
        print(f"| {name} | {median(seconds):.2f} | {min(seconds):.2f} | {share:.0%} | {fastest:.0%} |", flush=True)


if __name__ == "__main__":
    main()
