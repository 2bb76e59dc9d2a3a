"""How the time of scoring grows: seconds and peak memory of the inner loops of four stages on random weights, a row for
each size of one factor (prompts, new tokens, vocabulary, layers) while the others stay.

    PYTHONPATH=workflow python tests/benchmark/growth.py [--hidden 4096 --layers 8 --rounds 5 --rows 1]

Sizes of the checkpoint are those of a Mistral shape; the store is written to a temporary folder and read back. Times
are medians of rounds, after one that warms up; a share is the median of the rounds' own.
"""

import argparse
import dataclasses
import gc
import tempfile
from pathlib import Path
from statistics import median

import pandas
import torch
from decode import random_model
from stored_forms import fill
from throughput import bare_forward, seconds_of

from quantharm.config.architectures import MISTRAL_7B
from quantharm.logits import make_trace
from quantharm.models.devices import choose_device
from quantharm.models.loading import quiet
from quantharm.perplexity import score_against_store
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.worst_positions import WorstPositions
from quantharm.speed.decoding import continue_greedily
from quantharm.synthesize import model_configuration

PROMPT_TOKENS = 48
WINDOWS = 8
GENERATED_PROMPTS = 3
COLUMNS = ["layers", "vocabulary", "prompts", "new tokens", "parameters, 10^9", "generation, s a prompt", "logits, s"]
COLUMNS += ["divergence, s", "share of a bare forward loop", "perplexity and KL, s", "share", "store, MB"]
COLUMNS += ["peak over the weights, GB"]


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    vocabulary: int = 32000
    prompts: int = 12
    new_tokens: int = 32


def ids(generator: torch.Generator, vocabulary: int, count: int) -> list[int]:
    return torch.randint(5, vocabulary, (count,), generator=generator).tolist()


def random_trace(size: Size, windows: list[list[int]]) -> pandas.DataFrame:
    """trace.parquet of random tokens: the prompts with their continuations, then the windows of text."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "prompt_id": f"p{i}",
            "category": "c",
            "prompt_token_ids": ids(generator, size.vocabulary, PROMPT_TOKENS),
            "token_ids": ids(generator, size.vocabulary, size.new_tokens),
        }
        for i in range(size.prompts)
    ]
    return make_trace(pandas.DataFrame(rows), windows)


def measure(model, size: Size, window_tokens: int, rounds: int) -> list[str]:
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(1)
    windows = [ids(generator, size.vocabulary, window_tokens) for _ in range(WINDOWS)]
    trace = random_trace(size, windows)
    sequences = [list(token_ids) for token_ids in trace["token_ids"][: size.prompts]]
    prompts = [sequence[:PROMPT_TOKENS] for sequence in sequences]
    continue_greedily(model, prompts[0], 4, set(), None)  # warm-up
    peak = "–"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()

    generation = median(
        seconds_of(continue_greedily, model, prompt, size.new_tokens, set(), None)
        for prompt in prompts[:GENERATED_PROMPTS]
    )
    times: dict[str, list[float]] = {"logits": [], "divergence": [], "perplexity": [], "prompts": [], "windows": []}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "logits.parquet"
        for _ in range(rounds + 1):
            times["logits"].append(seconds_of(fill, model, trace, store, "hidden_states"))
            times["divergence"].append(seconds_of(score_store, model, store, trace, WorstPositions()))
            times["perplexity"].append(seconds_of(score_against_store, model, windows, store, False))
            if device.type == "cuda" and not times["prompts"]:
                peak = f"{(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}"  # of the stages, not the bare loop
            times["prompts"].append(seconds_of(bare_forward, model, sequences))
            times["windows"].append(seconds_of(bare_forward, model, windows))
        megabytes = store.stat().st_size / 1e6
    measured = {name: values[1:] for name, values in times.items()}  # the first round warms up

    def share(bare: str, stage: str) -> str:
        return f"{median(b / s for b, s in zip(measured[bare], measured[stage], strict=True)):.0%}"

    return [
        *map(str, dataclasses.astuple(size)),
        f"{model.num_parameters() / 1e9:.2f}",
        f"{generation:.2f}",
        f"{median(measured['logits']):.2f}",
        f"{median(measured['divergence']):.2f}",
        share("prompts", "divergence"),
        f"{median(measured['perplexity']):.2f}",
        share("windows", "perplexity"),
        f"{megabytes:.0f}",
        peak,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--window-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="measure the first so many sizes only, the largest before the others")
    arguments = parser.parse_args()
    quiet()
    torch.set_grad_enabled(False)
    few = arguments.layers
    sizes = [Size(4 * few, prompts=96, new_tokens=100), Size(4 * few), Size(2 * few), Size(few), Size(few, prompts=24)]
    sizes += [Size(few, prompts=48), Size(few, new_tokens=64), Size(few, new_tokens=128)]
    sizes += [Size(few, vocabulary=64000), Size(few, vocabulary=152000)]
    shape = MISTRAL_7B | {"hidden_size": arguments.hidden, "intermediate_size": arguments.hidden * 7 // 2}
    shape |= {"num_attention_heads": arguments.hidden // 128, "num_key_value_heads": max(1, arguments.hidden // 512)}
    print(f"| {' | '.join(COLUMNS)} |\n|{'--:|' * len(COLUMNS)}", flush=True)
    made, model = None, None
    for size in sizes[: arguments.rows]:
        if made != (size.layers, size.vocabulary):
            model = None
            gc.collect()
            grown = shape | {"num_hidden_layers": size.layers, "vocab_size": size.vocabulary}
            configuration = model_configuration(grown, Path("data/reference-model"))
            model, made = random_model(configuration, choose_device("auto", 1)), (size.layers, size.vocabulary)
        print(f"| {' | '.join(measure(model, size, arguments.window_tokens, arguments.rounds))} |", flush=True)


if __name__ == "__main__":
    main()
