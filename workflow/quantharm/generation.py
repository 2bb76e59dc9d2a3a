"""Greedy answers of one cell to the prompt suite, then a benchmark of prefill and decode in the same process.

On a GPU the prompts are answered by a captured decoding step where there is one (speed/answers.py), elsewhere eagerly;
`decoding` in the record and in each row says which, `decoding_reason` why not captured. A prompt succeeds with at least
one token, finite logits and no degenerate end. Writes a row a prompt (generation.parquet) and
generation.json. The baseline's rows are the trace on which every method is compared.
"""

import math
from pathlib import Path

import pandas

from quantharm.common import chat
from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_file, write_json, write_parquet
from quantharm.common.judging import judge
from quantharm.common.prompts import Prompt, read_prompts
from quantharm.common.records.generation import Answers, GenerationRecord, GenerationRow
from quantharm.common.stage import begin_model_stage, cell_parser, run_stage
from quantharm.common.text import context_length
from quantharm.models.cell import open_cell
from quantharm.scoring.forward import check_ids
from quantharm.speed.answers import answer_suite
from quantharm.speed.benchmark import benchmark
from quantharm.speed.decoding import Continuation, eos_token_ids_of, is_degenerate


def check_prompt_tokens(model, prompt: Prompt, ids: list[int]) -> None:
    """Raises UserError for a prompt that the model cannot answer: no tokens, or no room for one more."""
    context = context_length(model.config)
    if not ids:
        raise UserError(f"prompt {prompt['id']} has no tokens; give it some text or take it out of the suite")
    if context and len(ids) >= context:
        raise UserError(
            f"prompt {prompt['id']} has {len(ids)} tokens, which leaves no room in the model's context of {context}; "
            "shorten it or take it out of the suite"
        )
    check_ids(model, ids)


def check_benchmark(model, prompt_tokens: int, new_tokens: int) -> None:
    """Raises UserError for a benchmark that is longer than the model's context."""
    context = context_length(model.config)
    if context and prompt_tokens + new_tokens > context:
        raise UserError(
            f"the benchmark needs {prompt_tokens} + {new_tokens} tokens but the model's context is {context}; lower "
            "`benchmark:` of the protocol in the config"
        )


def row_of(tokenizer, prompt: Prompt, ids: list[int], continuation: Continuation, decoding: str) -> GenerationRow:
    """The row of generation.parquet for one prompt; ids: the prompt's token ids."""
    text = tokenizer.decode(continuation.token_ids, skip_special_tokens=True)
    degenerate = is_degenerate(continuation.token_ids)
    return {
        "prompt_id": prompt["id"],
        "category": prompt["category"],
        "prompt_token_ids": ids,
        "token_ids": continuation.token_ids,
        "text": text,
        "decoding": decoding,
        "new_tokens": len(continuation.token_ids),
        "seconds": continuation.seconds,
        "time_to_first_token_seconds": continuation.time_to_first_token_seconds,
        "stop_reason": continuation.stop_reason,
        "finite": continuation.finite,
        "degenerate": degenerate,
        "succeeded": bool(continuation.token_ids) and continuation.finite and not degenerate,
        "correct": judge(text, prompt.get("answer")),
    }


def summarise(rows: pandas.DataFrame) -> Answers:
    """Figures over some prompts; rates divide sums over the prompts, so that long answers weigh more."""
    judged = rows["correct"].dropna()
    return {
        "prompts": len(rows),
        "succeeded": int(rows["succeeded"].sum()),
        "seconds_mean": float(rows["seconds"].mean()),
        "time_to_first_token_seconds_mean": float(rows["time_to_first_token_seconds"].mean()),
        "new_tokens_mean": float(rows["new_tokens"].mean()),
        "tokens_per_second": float(rows["new_tokens"].sum() / rows["seconds"].sum()),
        "degenerate": int(rows["degenerate"].sum()),
        "judged": len(judged),
        "correct": int(judged.astype(bool).sum()),
    }


def main() -> None:
    parser = cell_parser(__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompt suite, JSON lines")
    parser.add_argument("--prompts-per-category", type=int, help="take only the first so many of each category")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="longest answer")
    chat.add_flags(parser)
    parser.add_argument("--benchmark-prompt-tokens", type=int, default=256)
    parser.add_argument(
        "--benchmark-prefill-tokens", type=int, nargs="*", default=[], help="further prompt lengths, prefill alone"
    )
    parser.add_argument("--benchmark-compile", action="store_true", help="capture decoding compiled, too")
    parser.add_argument("--benchmark-new-tokens", type=int, default=64)
    parser.add_argument(
        "--benchmark-batch-sizes", type=int, nargs="*", default=[1], help="sequences decoded at once, a timing each"
    )
    parser.add_argument("--benchmark-repetitions", type=int, default=10, help="at least")
    parser.add_argument("--benchmark-seconds", type=float, default=4.0, help="at least")
    parser.add_argument("--rows", type=Path, required=True, help="generation.parquet")
    parser.add_argument("--output", type=Path, required=True, help="generation.json")
    arguments = parser.parse_args()
    prompts = read_prompts(arguments.prompts, arguments.prompts_per_category)
    timing = begin_model_stage()
    cell = open_cell(arguments.quantization, arguments.device, timing)
    tokenizer, model = cell.tokenizer, cell.model
    asking = chat.Asking.of(arguments)
    encoded = [chat.encode_prompt(tokenizer, prompt["prompt"], asking) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):  # every prompt is checked before the first answer
        check_prompt_tokens(model, prompt, ids)
    check_benchmark(model, arguments.benchmark_prompt_tokens, arguments.benchmark_new_tokens)
    eos_token_ids = eos_token_ids_of(model, tokenizer)

    with timing.part("model"):
        answers = answer_suite(model, encoded, arguments.max_new_tokens, eos_token_ids)
        speed = benchmark(
            model,
            arguments.benchmark_prompt_tokens,
            arguments.benchmark_new_tokens,
            arguments.benchmark_repetitions,
            arguments.benchmark_seconds,
            arguments.benchmark_prefill_tokens,
            arguments.benchmark_compile,
            arguments.benchmark_batch_sizes,
        )
    rows = [
        row_of(tokenizer, prompt, ids, continuation, answers.decoding)
        for prompt, ids, continuation in zip(prompts, encoded, answers.continuations, strict=True)
    ]
    table = pandas.DataFrame(rows).astype({"correct": "boolean"})
    write_parquet(arguments.rows, table)
    figures = summarise(table)
    assert all(math.isfinite(v) for v in figures.values() if isinstance(v, int | float))
    record: GenerationRecord = {
        **cell.names(),
        "suite": str(arguments.prompts),
        "suite_sha256": sha256_of_file(arguments.prompts),
        "prompts_per_category": arguments.prompts_per_category,
        "max_new_tokens": arguments.max_new_tokens,
        **chat.asked(tokenizer, asking, encoded),
        **figures,
        "decoding": answers.decoding,
        "decoding_reason": answers.reason,
        "decoding_check": answers.check,
        "not_finite": int((~table["finite"]).sum()),
        "by_category": {c: summarise(part) for c, part in table.groupby("category", sort=False)},
        "benchmark": speed,
        "model_load_seconds": timing.seconds["load"],
        "memory": answers.memory,
        "timing": timing.record(),
        "provenance": cell.provenance(),
    }
    write_json(arguments.output, record)
    cell.finished()
    print(
        f"{cell.title}: {figures['succeeded']} of {figures['prompts']} prompts succeeded, "
        f"{speed['decode_tokens_per_second']['median']:.1f} tokens a second when decoding"
    )


if __name__ == "__main__":
    run_stage(main)
