"""What cuDNN's attention costs where each prompt has another length, and what a suite of prompts gains without it.

    PYTHONPATH=workflow python tests/benchmark/attention_plans.py [--architecture mistral-7b] [--layers 8]

On a GPU, random weights in a published shape. For PyTorch's own choice and for models/attention.py's: a pass over
prompts of 18 lengths, each length for the first time and again; eager decoding of 100 tokens, for the first time and
again; answers of 100 tokens by the captured step, as a share of the step's own rate.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from decode import TOKENIZER, random_model

from quantharm.config.architectures import read_architecture
from quantharm.models.loading import quiet
from quantharm.speed.decoding import continue_greedily, prefill
from quantharm.speed.static_decoder import StaticDecoder
from quantharm.synthesize import model_configuration

NEW_TOKENS = 100
LENGTHS = range(40, 200, 9)


def milliseconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin)


def row(model, planned: bool) -> list[str]:
    """Lengths that the other choice has not seen: a plan is kept."""
    torch.backends.cuda.enable_cudnn_sdp(planned)
    prompts = [torch.arange(5, 5 + length + 4 * planned, device="cuda")[None] for length in LENGTHS]
    passes = [median(milliseconds(lambda p=p: prefill(model, p)) for p in prompts) for _ in range(2)]
    ids = list(range(5, 305 + 200 * planned))
    eager = [NEW_TOKENS / continue_greedily(model, ids, NEW_TOKENS, set(), None).seconds for _ in range(2)]
    decoder = StaticDecoder(model, 400)
    fresh = [list(range(5, 5 + length + 2 + 4 * planned)) for length in LENGTHS]
    decoder.capture(torch.tensor([fresh[-1]], device="cuda"))
    decoder.continue_greedily(fresh[0], 8, set(), None)
    answers = [decoder.continue_greedily(ids, NEW_TOKENS, set(), None) for ids in fresh]
    torch.backends.cuda.enable_cudnn_sdp(planned)
    decoder.prefill(torch.tensor([fresh[0]], device="cuda"))
    step = milliseconds(lambda: decoder.decode(NEW_TOKENS)) / NEW_TOKENS
    answer = 1e3 * sum(a.seconds for a in answers) / len(answers)
    figures = [*(f"{p:.0f}" for p in passes), *(f"{e:.0f}" for e in eager), f"{1e3 / step:.0f}"]
    return ["cuDNN's" if planned else "without", *figures, f"{step * NEW_TOKENS / answer:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="mistral-7b")
    parser.add_argument("--layers", type=int, help="the shape's, if not all")
    arguments = parser.parse_args()
    quiet()
    torch.set_grad_enabled(False)
    shape = read_architecture(arguments.architecture)
    shape |= {"num_hidden_layers": arguments.layers} if arguments.layers else {}
    model = random_model(model_configuration(shape, TOKENIZER), "cuda")
    prefill(model, torch.tensor([[5, 6, 7]], device="cuda"))
    names = ["attention", "pass, new length, ms", "again", "eager, new lengths, tokens/s", "again"]
    names += ["captured, tokens/s", "share of it in answers"]
    print(f"| {' | '.join(names)} |\n|---|{'--:|' * (len(names) - 1)}")
    for planned in (True, False):
        print(f"| {' | '.join(row(model, planned))} |", flush=True)


if __name__ == "__main__":
    main()
