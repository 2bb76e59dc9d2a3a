"""What the store holds, in both forms: its bytes, and the time of filling it and of the passes that read it.

    PYTHONPATH=workflow python tests/benchmark/stored_forms.py [--architecture mistral-7b] [--vocabulary 8192 32000 …]

Random weights in a published shape, random tokens. A row for each vocabulary, form and number of windows: seconds of
filling the store, of the divergence of the prompts, and of perplexity with KL over the windows, with the share of a
bare forward loop over the same sequences, in the same round; peak memory over the weights (of the whole process on a
CPU, so that only a later row can be larger); the largest KL of a window from itself.
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas
import torch
from decode import TOKENIZER, random_model
from throughput import bare_forward, seconds_of

from quantharm.common.constants import HEAD_FILE
from quantharm.common.memory import memory_bytes
from quantharm.config.architectures import read_architecture
from quantharm.logits import make_trace
from quantharm.models.devices import choose_device
from quantharm.models.loading import quiet
from quantharm.perplexity import score_against_store
from quantharm.scoring.head_file import write_head
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.store_filling import form_of_store, head_to_keep, write_store
from quantharm.scoring.store_format import HIDDEN_STATES, LOG_PROBABILITIES
from quantharm.synthesize import model_configuration

COLUMNS = ["vocabulary", "stored", "windows", "positions", "MB", "bytes a position", "head, MB", "filled, s"]
COLUMNS += ["divergence, s", "share of a bare loop", "perplexity and KL, s", "share", "peak, GB", "KL from itself"]


def fill(model, trace: pandas.DataFrame, store: Path, form: str) -> None:
    """A store as the stage `logits` writes it, with its output head."""
    head, reason = head_to_keep(model, form, "bfloat16")
    write_store(model, trace, store, {"model": "random"} | form_of_store(model, head, reason))
    write_head(store.with_name(HEAD_FILE), head, reason)


def random_ids(generator: torch.Generator, vocabulary: int, count: int) -> list[int]:
    return torch.randint(5, vocabulary, (count,), generator=generator).tolist()


def row(model, arguments, vocabulary: int, form: str, windows: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    device = model.get_input_embeddings().weight.device
    prompts = [
        {"prompt_id": f"p{i}", "category": "c", "prompt_token_ids": random_ids(generator, vocabulary, 48)}
        | {"token_ids": random_ids(generator, vocabulary, arguments.new_tokens)}
        for i in range(arguments.prompts)
    ]
    text = [random_ids(generator, vocabulary, arguments.window_tokens) for _ in range(windows)]
    trace = make_trace(pandas.DataFrame(prompts), text)
    sequences = [list(ids) for ids in trace["token_ids"][: len(prompts)]]
    positions = sum(map(len, trace["token_ids"])) - int(trace["first_target"].sum())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    times: dict[str, list[float]] = {name: [] for name in ("filled", "prompts", "divergence", "windows", "perplexity")}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store = Path(folder) / "logits.parquet"
        begin = time.perf_counter()
        fill(model, trace, store, form)
        times["filled"].append(time.perf_counter() - begin)
        for _ in range(arguments.rounds + 1):
            times["prompts"].append(seconds_of(bare_forward, model, sequences))
            times["divergence"].append(seconds_of(score_store, model, store, trace))
            times["windows"].append(seconds_of(bare_forward, model, text))
            times["perplexity"].append(seconds_of(score_against_store, model, text, store, False))
        _, divergence = score_against_store(
            model, text[:1], store_of_first(model, trace, text, Path(folder), form), False
        )
        megabytes = [path.stat().st_size / 1e6 for path in (store, store.with_name(HEAD_FILE))]
    kept = {name: values[-arguments.rounds :] for name, values in times.items()}  # the first round warms up

    def share(bare: str, stage: str) -> str:
        return f"{median(b / s for b, s in zip(kept[bare], kept[stage], strict=True)):.0%}"

    peak = memory_bytes(device.type)["peak_bytes"] - (weights if device.type == "cuda" else 0)
    figures = [f"{vocabulary:,}", form, str(windows), f"{positions:,}", f"{megabytes[0]:.1f}"]
    figures += [f"{megabytes[0] * 1e6 / positions:,.0f}", f"{megabytes[1]:.1f}", f"{times['filled'][0]:.2f}"]
    figures += [
        f"{median(kept['divergence']):.2f}",
        share("prompts", "divergence"),
        f"{median(kept['perplexity']):.2f}",
    ]
    return [*figures, share("windows", "perplexity"), f"{peak / 1e9:.2f}", f"{divergence.kl.max():.1e}"]


def store_of_first(model, trace: pandas.DataFrame, text: list[list[int]], folder: Path, form: str) -> Path:
    """A store of the first window alone."""
    path = folder / "first" / "logits.parquet"
    path.parent.mkdir()
    fill(model, make_trace(pandas.DataFrame(columns=["prompt_id"]), text[:1]), path, form)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="mistral-7b")
    parser.add_argument("--layers", type=int, help="the shape's; fewer for a slow machine")
    parser.add_argument("--hidden", type=int, help="width, the shape's")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[8192, 32000, 151936, 262144])
    parser.add_argument("--forms", nargs="+", default=[LOG_PROBABILITIES, HIDDEN_STATES])
    parser.add_argument("--windows", type=int, nargs="+", default=[2])
    parser.add_argument("--window-tokens", type=int, default=2048)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the store; the system's for temporary files")
    arguments = parser.parse_args()
    quiet()
    torch.set_grad_enabled(False)
    shape = read_architecture(arguments.architecture)
    if arguments.layers:
        shape |= {"num_hidden_layers": arguments.layers}
    if arguments.hidden:
        heads = {"num_attention_heads": arguments.hidden // 64, "num_key_value_heads": arguments.hidden // 64}
        shape |= {
            "hidden_size": arguments.hidden,
            "intermediate_size": arguments.hidden * 7 // 2,
            "head_dim": 64,
        } | heads
    print(f"| {' | '.join(COLUMNS)} |\n|{'--:|' * len(COLUMNS)}", flush=True)
    for vocabulary in arguments.vocabulary:
        model = random_model(
            model_configuration(shape | {"vocab_size": vocabulary}, TOKENIZER), choose_device("auto", 1)
        )
        for windows in arguments.windows:
            for form in arguments.forms:
                print(f"| {' | '.join(row(model, arguments, vocabulary, form, windows))} |", flush=True)
        del model
        gc.collect()


if __name__ == "__main__":
    main()
