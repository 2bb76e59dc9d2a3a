"""Where the divergence stage's inner loop loses time: its parts, one after the other in each round, beside a bare
forward loop over the same sequences. Random weights, a random trace of 96 prompts × 100 tokens.

    PYTHONPATH=workflow python tests/benchmark/divergence_parts.py [--architecture mistral-7b --rounds 5 --kernels]

A share is given twice: the median of the rounds' own, and of the fastest rounds, because other users of a host only
ever add time. Beside them stand the seconds that the thread which launches kept a processor busy: less than the wall's
where it waits. The process reads the store once a round, as fast as it can. With --kernels, of one more round: what the
GPU's kernels take of each part, and the longest of the last part.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch
from decode import TOKENIZER, kernels_of, random_model
from growth import Size, random_trace
from stored_forms import fill
from throughput import bare_forward

from quantharm.config.architectures import read_architecture
from quantharm.models.devices import choose_device
from quantharm.models.loading import quiet
from quantharm.models.single_sequences import of_one_sequence
from quantharm.scoring import kl_divergence
from quantharm.scoring.forward import last_hidden_states
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.paired_logits import first_targets_of, pieces_of, read_ahead, sequences_of
from quantharm.scoring.stored_logits import read_store
from quantharm.scoring.worst_positions import WorstPositions
from quantharm.speed.device_meters import synchronise
from quantharm.synthesize import model_configuration

Part = Callable[[torch.nn.Module], None]
LONGEST = 12  # kernels shown


def read_all(store: Path) -> None:
    for _ in read_store(store):
        pass


def parts(trace, store: Path) -> dict[str, Part]:
    sequences = [list(ids) for ids in trace["token_ids"]]
    process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # a fork would take CUDA along

    def without_look(model) -> None:
        with of_one_sequence():
            bare_forward(model, sequences)

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

    def prompt_by_prompt(model) -> None:
        together = kl_divergence.GPU_ELEMENTS
        kl_divergence.GPU_ELEMENTS = 1
        whole(model)
        kl_divergence.GPU_ELEMENTS = together

    return {
        "bare forward loop": lambda model: bare_forward(model, sequences),
        "the same, without a look at the positions": without_look,
        "the same without logits": without_logits,
        "the same beside threads that read the store": beside_readers,
        "the same beside a process that reads it": beside_process,
        "hidden states, logits in float32 and the store": logits_and_store,
        "all of it, each prompt scored by itself": prompt_by_prompt,
        "all of it, ten prompts scored together": whole,
    }


def seconds_of(part: Part, model) -> tuple[float, float]:
    """(wall, of this thread on a processor)."""
    synchronise(model.device)
    begin, busy = time.perf_counter(), time.thread_time()
    part(model)
    busy = time.thread_time() - busy
    synchronise(model.device)
    return time.perf_counter() - begin, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="mistral-7b")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kernels", action="store_true")
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
        bare, *_, last = named
        kept = rounds[1:]  # the first round warms up
        print("| part | median, s | fastest, s | share of the bare loop | of the fastest | thread, s |")
        print("|---|--:|--:|--:|--:|--:|")
        for name in named:
            walls, busy = zip(*(r[name] for r in kept), strict=True)
            share = median(r[bare][0] / r[name][0] for r in kept)
            fastest = min(r[bare][0] for r in kept) / min(walls)
            figures = f"{median(walls):.2f} | {min(walls):.2f} | {share:.0%} | {fastest:.0%} | {median(busy):.2f}"
            print(f"| {name} | {figures} |", flush=True)
        if arguments.kernels:
            of_each = {name: kernels_of(lambda part=part: part(model)) for name, part in named.items()}
            for name, kernels in of_each.items():
                print(f"{sum(k.self_device_time_total for k in kernels) / 1e6:8.3f} s in kernels: {name}")
            for kernel in of_each[last][:LONGEST]:
                print(f"{kernel.self_device_time_total / 1e6:8.3f} s, {kernel.count} of {kernel.key[:90]}")


if __name__ == "__main__":
    main()
