"""Where the divergence stage's inner loop loses time: its parts, each beside a bare forward loop over the same
sequences, just before it or just after. Random weights, a random trace of 96 prompts × 100 tokens.

    PYTHONPATH=workflow python tests/benchmark/divergence_parts.py [--architecture mistral-7b --rounds 6 --kernels]
    PYTHONPATH=workflow python tests/benchmark/divergence_parts.py --only "all of it" --rounds 30

A share of the bare loop is the median of the rounds' own, with its 95 % interval, and that of the fastest rounds: other
users of a host only ever add time, and change it within seconds. The first row, a bare loop beside another, shows what
they do to a share. The last figure is the seconds that the thread which launches kernels kept a processor busy: less
than the wall's where it sleeps. --only: parts whose name has these words. With --kernels, of one more round: what the
GPU's kernels take of the bare loop and of the last part, and its longest.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from decode import TOKENIZER, kernels_of, random_model
from growth import Size, random_trace
from stored_forms import fill
from throughput import bare_forward

from quantharm.common.medians import median_interval
from quantharm.config.architectures import read_architecture
from quantharm.models.devices import choose_device
from quantharm.models.loading import quiet
from quantharm.models.single_sequences import of_one_sequence
from quantharm.scoring.forward import last_hidden_states
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.paired_logits import first_targets_of, pieces_of, read_ahead, sequences_of
from quantharm.scoring.worst_positions import WorstPositions
from quantharm.speed.device_meters import synchronise
from quantharm.synthesize import model_configuration

Part = Callable[[torch.nn.Module], None]
BARE = "bare forward loop"
LONGEST = 12  # kernels shown


def parts(trace, store: Path) -> dict[str, Part]:
    sequences = [list(ids) for ids in trace["token_ids"]]

    def without_look(model) -> None:
        with of_one_sequence():
            bare_forward(model, sequences)

    def in_inference_mode(model) -> None:
        with torch.inference_mode():
            without_look(model)

    def without_logits(model) -> None:
        for ids in sequences:
            last_hidden_states(model, ids)

    def beside_reader(model) -> None:
        groups = read_ahead(model, store)
        for ids in sequences:
            next(groups, None)
            bare_forward(model, [ids])
        for _ in groups:
            pass

    def logits_and_store(model) -> None:
        for _ in pieces_of(model, store, sequences_of(trace), first_targets=first_targets_of(trace)):
            pass

    def whole(model) -> None:
        score_store(model, store, trace, WorstPositions())

    return {
        BARE: lambda model: bare_forward(model, sequences),
        "the same, without a look at the positions": without_look,
        "the same, and in inference mode": in_inference_mode,
        "last hidden states, as they are scored": without_logits,
        "bare forward loop beside a thread that reads the store": beside_reader,
        "hidden states, logits in float32 and the store": logits_and_store,
        "all of it, with the scores": whole,
    }


def seconds_of(part: Part, model) -> tuple[float, float]:
    """(wall, of this thread on a processor)."""
    synchronise(model.device)
    begin, busy = time.perf_counter(), time.thread_time()
    part(model)
    busy = time.thread_time() - busy
    synchronise(model.device)
    return time.perf_counter() - begin, busy


def pair_of(part: Part, bare: Part, model, bare_first: bool) -> tuple[float, float, float]:
    """Seconds of (a bare loop, a part, the part's own thread on a processor), one right after the other."""
    timed = [seconds_of(each, model) for each in ((bare, part) if bare_first else (part, bare))]
    (of_bare, _), (wall, busy) = timed if bare_first else reversed(timed)
    return of_bare, wall, busy


def row(name: str, pairs: list[tuple[float, float, float]]) -> str:
    bare, walls, busy = zip(*pairs, strict=True)
    shares = [b / w for b, w in zip(bare, walls, strict=True)]
    interval = "–" if (ends := median_interval(shares)) is None else f"{ends[0]:.0%} to {ends[1]:.0%}"
    figures = [f"{median(walls):.2f}", f"{min(walls):.2f}", f"{median(shares):.0%}", interval]
    figures += [f"{min(bare) / min(walls):.0%}", f"{median(busy):.2f}"]
    return f"| {' | '.join([name, *figures])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="mistral-7b")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", default="")
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
        chosen = {name: part for name, part in named.items() if name == BARE or arguments.only in name}
        rounds = [
            {name: pair_of(part, named[BARE], model, number % 2 == 0) for name, part in chosen.items()}
            for number in range(arguments.rounds + 1)
        ]
        kept = rounds[1:]  # the first round warms up
        print("| part | median, s | fastest, s | of the bare loop | interval | of the fastest | thread, s |")
        print(f"|---|{'--:|' * 6}", flush=True)
        for name in chosen:
            print(row(name, [r[name] for r in kept]), flush=True)
        if arguments.kernels:
            last = list(chosen)[-1]
            of_each = {name: kernels_of(lambda part=chosen[name]: part(model)) for name in (BARE, last)}
            for name, kernels in of_each.items():
                print(f"{sum(k.self_device_time_total for k in kernels) / 1e6:8.3f} s in kernels: {name}")
            for kernel in of_each[last][:LONGEST]:
                print(f"{kernel.self_device_time_total / 1e6:8.3f} s, {kernel.count} of {kernel.key[:90]}")


if __name__ == "__main__":
    main()
