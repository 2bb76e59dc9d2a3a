"""How the time of scoring grows: seconds and peak memory of the inner loops of four stages on random weights, a row for
each size of one factor (prompts, new tokens, vocabulary, layers) while the others stay.

    PYTHONPATH=workflow python tests/benchmark/growth.py [--hidden 4096 --layers 8]

Sizes of the checkpoint are those of a Mistral shape; the store is written to a temporary folder and read back.
"""

import argparse
import dataclasses
import gc
import tempfile
import time
from pathlib import Path

import pandas
import torch
from decode import random_model

from quantharm.architectures import MISTRAL_7B
from quantharm.decoding import continue_greedily
from quantharm.divergence import score_store
from quantharm.logits import make_trace, write_store
from quantharm.meters import synchronise
from quantharm.models import choose_device, quiet
from quantharm.perplexity import score_windows
from quantharm.synthesize import model_configuration
from quantharm.worst_positions import WorstPositions

PROMPT_TOKENS = 48
WINDOWS = 8
TEXT_WINDOWS = 1
GENERATED_PROMPTS = 2
COLUMNS = ["layers", "vocabulary", "prompts", "new tokens", "parameters, 10^9", "generation, s a prompt", "logits, s"]
COLUMNS += ["divergence, s", "share of a bare forward loop", "perplexity, s", "share", "store, MB"]
COLUMNS += ["peak over the weights, GB"]


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    vocabulary: int = 32000
    prompts: int = 12
    new_tokens: int = 32


def ids(generator: torch.Generator, vocabulary: int, count: int) -> list[int]:
    return torch.randint(5, vocabulary, (count,), generator=generator).tolist()


def seconds_of(device: torch.device, function, *arguments) -> float:
    synchronise(device)
    begin = time.perf_counter()
    function(*arguments)
    synchronise(device)
    return time.perf_counter() - begin


def measure(model, size: Size, window_tokens: int) -> list[str]:
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    prompts = [ids(generator, size.vocabulary, PROMPT_TOKENS) for _ in range(size.prompts)]
    windows = [ids(generator, size.vocabulary, window_tokens) for _ in range(WINDOWS)]
    continue_greedily(model, prompts[0], 4, set(), None)  # warm-up
    score_windows(model, windows[:1], False)
    _ = model(input_ids=torch.tensor([windows[0]], device=device), use_cache=False).logits
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()

    def generate() -> None:
        for prompt in prompts[:GENERATED_PROMPTS]:
            continue_greedily(model, prompt, size.new_tokens, set(), None)

    def bare_forward(sequences) -> None:
        for sequence in sequences:
            _ = model(input_ids=torch.tensor([list(sequence)], device=device), use_cache=False).logits

    generation = seconds_of(device, generate) / GENERATED_PROMPTS
    rows = [
        {"prompt_id": f"p{i}", "category": "c", "prompt_token_ids": prompt, "token_ids": answer}
        for i, (prompt, answer) in enumerate(
            zip(prompts, (ids(generator, size.vocabulary, size.new_tokens) for _ in prompts), strict=True)
        )
    ]
    trace = make_trace(pandas.DataFrame(rows), windows[:TEXT_WINDOWS])
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        logits = seconds_of(device, write_store, model, trace, store, {"model": "random"})
        divergence = seconds_of(device, score_store, model, store, trace, WorstPositions())
        megabytes = store.stat().st_size / 1e6
    perplexity = seconds_of(device, score_windows, model, windows, False)
    peak = f"{(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}" if device.type == "cuda" else "–"
    bare_trace = seconds_of(device, bare_forward, trace["token_ids"])
    bare_windows = seconds_of(device, bare_forward, windows)
    return [
        *map(str, dataclasses.astuple(size)),
        f"{model.num_parameters() / 1e9:.2f}",
        f"{generation:.2f}",
        f"{logits:.2f}",
        f"{divergence:.2f}",
        f"{bare_trace / divergence:.0%}",
        f"{perplexity:.2f}",
        f"{bare_windows / perplexity:.0%}",
        f"{megabytes:.0f}",
        peak,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--window-tokens", type=int, default=2048)
    arguments = parser.parse_args()
    quiet()
    torch.set_grad_enabled(False)
    few = arguments.layers
    sizes = [Size(few), Size(few, prompts=24), Size(few, prompts=48), Size(few, new_tokens=64)]
    sizes += [Size(few, new_tokens=128), Size(few, vocabulary=64000), Size(few, vocabulary=152000)]
    sizes += [Size(2 * few), Size(4 * few), Size(4 * few, prompts=96, new_tokens=100)]
    shape = MISTRAL_7B | {"hidden_size": arguments.hidden, "intermediate_size": arguments.hidden * 7 // 2}
    shape |= {"num_attention_heads": arguments.hidden // 128, "num_key_value_heads": max(1, arguments.hidden // 512)}
    print(f"| {' | '.join(COLUMNS)} |\n|{'--:|' * len(COLUMNS)}", flush=True)
    made, model = None, None
    for size in sizes:
        if made != (size.layers, size.vocabulary):
            model = None
            gc.collect()
            grown = shape | {"num_hidden_layers": size.layers, "vocab_size": size.vocabulary}
            configuration = model_configuration(grown, Path("data/reference-model"))
            model, made = random_model(configuration, choose_device("auto")), (size.layers, size.vocabulary)
        print(f"| {' | '.join(measure(model, size, arguments.window_tokens))} |", flush=True)


if __name__ == "__main__":
    main()
