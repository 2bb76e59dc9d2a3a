"""Do two models give the same answers? A two-sample test on sampled outputs alone, for models behind an interface.

    python -m quantharm.forensics.model_equality A.jsonl B.jsonl

Each line is one sampled answer: {"prompt_id": …, "text": …} or {"prompt_id": …, "token_ids": […]}; several a prompt,
all sampled in the same way (temperature, length) from both; forensics/sample_answers.py makes those of a checkpoint.
Tokens are compared where both files hold them in every line, else characters.

The statistic is the squared maximum mean discrepancy (Gretton et al. 2012, unbiased) with the Hamming kernel of Gao,
Liang and Guestrin 2024 ("Model Equality Testing"): the share of places at which two answers to one prompt agree, 0
between prompts. Its p-value comes from permuting, within each prompt, the models that answers are from, so prompts need
not be equally hard. Exit code: 0 where no difference is shown at the given level, 3 where the models differ, 1 where it
cannot be judged. A difference that is not shown may exist: few answers show little (tests/benchmark/outputs_power.py).
"""

import json
import sys
from pathlib import Path
from typing import TypedDict

import numpy

from quantharm.common.errors import UserError
from quantharm.common.files import JsonObject, write_json
from quantharm.common.stage import run_stage, stage_parser
from quantharm.forensics.manifest import FOUND_SOMETHING

PERMUTATIONS = 999
SEED = 0
END = -1  # fills an answer up to the length compared; two answers that have ended agree


class ComparedAnswers(TypedDict):
    """The two-sample test on two models' answers."""

    mmd_squared: float
    mmd_squared_p95_if_equal: float  # quantile over the permutations
    p_value: float
    prompts: int  # that both answered twice or more
    answers: list[int]  # of the first model, of the second
    permutations: int


class EqualityRecord(ComparedAnswers):
    level: float  # largest p-value that tells models apart
    differs: bool


Answers = dict[str, list[list[int]]]  # {prompt_id: answers as sequences of tokens or of characters}


def read_answers(first: Path, second: Path) -> tuple[Answers, Answers]:
    """Both files' answers, as tokens where every line of both has them, else as characters.

    Raises UserError naming the line that is wrong.
    """
    files = {path: read_lines(path) for path in (first, second)}
    tokens = all("token_ids" in record for records in files.values() for _, record in records)

    def sequences(path: Path) -> Answers:
        answers: Answers = {}
        for number, record in files[path]:
            try:
                answer = [int(t) for t in record["token_ids"]] if tokens else [ord(c) for c in record["text"]]
                answers.setdefault(str(record["prompt_id"]), []).append(answer)
            except (ValueError, KeyError, TypeError):
                other = "" if tokens else "; both files must hold `text`, or both `token_ids`, in every line"
                raise UserError(
                    f"{path} line {number} is no answer: it needs `prompt_id` and `text` or `token_ids`{other}"
                ) from None
        return answers

    return sequences(first), sequences(second)


def read_lines(path: Path) -> list[tuple[int, JsonObject]]:
    """(line number, object) of each line that is not blank; raises UserError for a line that is no JSON object."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # an answer may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); it must be JSON lines of answers") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{path} line {number} is no answer: it must be a JSON object") from None
        records.append((number, record))
    if not records:
        raise UserError(f"{path} holds no answers; it must be JSON lines of `prompt_id` and `text` or `token_ids`")
    return records


def hamming_kernel(answers: list[list[int]], length: int) -> numpy.ndarray:
    """[n, n] share of the first `length` places at which two answers agree; both having ended counts as agreement."""
    padded: numpy.ndarray = numpy.full((len(answers), length), END, dtype=numpy.int64)
    for row, answer in zip(padded, answers, strict=True):
        part = answer[:length]
        row[: len(part)] = part
    return (padded[:, None, :] == padded[None, :, :]).mean(-1)


def squared_mmd(kernel: numpy.ndarray, first: numpy.ndarray) -> numpy.ndarray:
    """Unbiased MMD² of a prompt: mean agreement within the first model, plus within the second, minus twice between.

    kernel: [n, n]. first: [permutations, n], 1 for the answers that are taken for the first model's.
    """
    off = kernel - numpy.diag(numpy.diag(kernel))
    second: numpy.ndarray = 1 - first
    m, n = first[0].sum(), second[0].sum()
    within_first = numpy.einsum("pi,ij,pj->p", first, off, first, optimize=True) / (m * (m - 1))
    within_second = numpy.einsum("pi,ij,pj->p", second, off, second, optimize=True) / (n * (n - 1))
    between = numpy.einsum("pi,ij,pj->p", first, kernel, second, optimize=True) / (m * n)
    return within_first + within_second - 2 * between


def compare_outputs(a: Answers, b: Answers, permutations: int = PERMUTATIONS, seed: int = SEED) -> ComparedAnswers:
    """Mean MMD² over the prompts that both answered, and its p-value, the observed labels counted as one permutation.

    Raises UserError unless both have at least two answers to a common prompt.
    """
    shared = sorted(p for p in set(a) & set(b) if len(a[p]) >= 2 and len(b[p]) >= 2)
    if not shared:
        raise UserError("no prompt has two answers from each model; sample each prompt several times from both")
    random = numpy.random.default_rng(seed)
    total = numpy.zeros(permutations + 1)
    for prompt in shared:
        answers = a[prompt] + b[prompt]
        labels = numpy.array([1.0] * len(a[prompt]) + [0.0] * len(b[prompt]))
        shuffled = random.permuted(numpy.tile(labels, (permutations, 1)), axis=1)
        length = max(map(len, answers)) or 1
        total += squared_mmd(hamming_kernel(answers, length), numpy.vstack([labels, shuffled]))
    values = total / len(shared)
    at_least = (values[1:] >= values[0] - 1e-12).sum()
    return {
        "mmd_squared": float(values[0]),
        "mmd_squared_p95_if_equal": float(numpy.quantile(values[1:], 0.95)),
        "p_value": float((1 + at_least) / (1 + permutations)),
        "prompts": len(shared),
        "answers": [sum(len(side[p]) for p in shared) for side in (a, b)],
        "permutations": permutations,
    }


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("first", type=Path, help="answers of one model, JSON lines")
    parser.add_argument("second", type=Path, help="answers of the other")
    parser.add_argument("--level", type=float, default=0.05, help="largest p-value that tells models apart")
    parser.add_argument("--permutations", type=int, default=PERMUTATIONS)
    parser.add_argument("--output", type=Path, help="record, JSON")
    arguments = parser.parse_args()
    if not 1 / (arguments.permutations + 1) <= arguments.level < 1:
        raise UserError(
            f"--level {arguments.level} cannot be reached with {arguments.permutations} permutations; raise "
            "--permutations, or choose a higher level below 1"
        )
    compared = compare_outputs(*read_answers(arguments.first, arguments.second), arguments.permutations)
    differs = compared["p_value"] <= arguments.level
    record: EqualityRecord = {**compared, "level": arguments.level, "differs": differs}
    if arguments.output:
        write_json(arguments.output, record)
    print(
        f"{'DIFFERENT' if differs else 'no difference shown'}: MMD² {record['mmd_squared']:.4g} (equal models: up to "
        f"{record['mmd_squared_p95_if_equal']:.4g} in 95 %), p = {record['p_value']:.4g}, {record['prompts']} prompts, "
        f"{record['answers'][0]} and {record['answers'][1]} answers"
    )
    sys.exit(FOUND_SOMETHING if differs else 0)


if __name__ == "__main__":
    run_stage(main)
