"""The two-sample test on outputs, against computations of its own and against models that do and do not differ."""

import itertools
import json
import os
import subprocess
import sys

import numpy
import pytest
from scipy.stats import permutation_test

from quantharm.common.errors import UserError
from quantharm.forensics.model_equality import compare_outputs, hamming_kernel, read_answers, squared_mmd


def agreement(a, b, length):
    """By hand, one place at a time."""
    place = lambda s, i: s[i] if i < len(s) else "ended"  # noqa: E731
    return sum(place(a, i) == place(b, i) for i in range(length)) / length


def mmd_by_hand(first, second, length):
    within = lambda s: numpy.mean([agreement(a, b, length) for a, b in itertools.permutations(s, 2)])  # noqa: E731
    between = numpy.mean([agreement(a, b, length) for a, b in itertools.product(first, second)])
    return within(first) + within(second) - 2 * between


def answers(random, probabilities, count, length=16):
    return [list(map(int, random.choice(len(probabilities), size=length, p=probabilities))) for _ in range(count)]


def test_kernel_and_mmd_by_hand():
    first, second = [[1, 2, 3], [1, 2], [1, 5, 3]], [[1, 2, 3], [4]]
    kernel = hamming_kernel(first + second, 3)
    assert kernel[0, 1] == pytest.approx(2 / 3)
    assert kernel[1, 4] == pytest.approx(1 / 3)  # both have ended at the third place
    labels = numpy.array([[1.0, 1, 1, 0, 0]])
    assert squared_mmd(kernel, labels)[0] == pytest.approx(mmd_by_hand(first, second, 3), abs=1e-12)


def test_p_value_agrees_with_scipy_on_one_prompt():
    random = numpy.random.default_rng(0)
    first = answers(random, [0.5, 0.3, 0.2], 7, length=6)
    second = answers(random, [0.3, 0.3, 0.4], 7, length=6)
    pooled = first + second
    kernel = hamming_kernel(pooled, 6)

    def statistic(a, b):
        labels = numpy.zeros((1, len(pooled)))
        labels[0, a.astype(int)] = 1
        return squared_mmd(kernel, labels)[0]

    expected = permutation_test(
        (numpy.arange(7), numpy.arange(7, 14)),
        statistic,
        vectorized=False,
        alternative="greater",
        n_resamples=numpy.inf,
    )
    comparison = compare_outputs({"p": first}, {"p": second}, permutations=20_000)
    assert comparison["mmd_squared"] == pytest.approx(expected.statistic)
    assert comparison["p_value"] == pytest.approx(expected.pvalue, abs=0.015)


def test_false_alarms_are_as_rare_as_the_level_says_and_differences_are_seen():
    random = numpy.random.default_rng(1)
    models = random.dirichlet(numpy.ones(20), size=5)  # one distribution a prompt: prompts differ, models do not
    other = 0.1 * models + 0.9 * random.dirichlet(numpy.ones(20), size=5)

    def pool(distributions):
        return {str(i): answers(random, p / p.sum(), 8) for i, p in enumerate(distributions)}

    equal = [compare_outputs(pool(models), pool(models), 199)["p_value"] for _ in range(200)]
    assert numpy.mean(numpy.array(equal) <= 0.05) < 0.1
    assert numpy.mean(numpy.array(equal) <= 0.5) == pytest.approx(0.5, abs=0.12)
    different = [compare_outputs(pool(models), pool(other), 199)["p_value"] for _ in range(40)]
    assert numpy.mean(numpy.array(different) <= 0.05) > 0.9


def test_a_prompt_that_only_one_was_asked_says_nothing():
    random = numpy.random.default_rng(2)
    a = {"p": answers(random, [0.5, 0.5], 5), "only a": answers(random, [1.0], 5)}
    b = {"p": answers(random, [0.5, 0.5], 5)}
    assert compare_outputs(a, b, 99)["prompts"] == 1
    with pytest.raises(UserError, match="two answers"):
        compare_outputs({"p": [[1]]}, {"p": [[1]]})


@pytest.mark.parametrize(
    "line", ["{", '{"prompt_id": "a"}', '{"text": "x"}', "[1]", '{"prompt_id": 1, "token_ids": 5}']
)
def test_a_damaged_file_is_one_sentence_with_the_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt_id": "a", "text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_answers(path, path)


def test_tokens_are_compared_where_both_files_hold_them_and_else_characters(tmp_path):
    both, text, tokens = (tmp_path / name for name in ("both.jsonl", "text.jsonl", "tokens.jsonl"))
    both.write_text('{"prompt_id": 1, "text": "ab", "token_ids": [7]}\n\n')
    text.write_text('{"prompt_id": 1, "text": "ac"}\n')
    tokens.write_text('{"prompt_id": 1, "token_ids": [8]}\r\n')
    assert read_answers(both, tokens) == ({"1": [[7]]}, {"1": [[8]]})
    assert read_answers(both, text) == ({"1": [[97, 98]]}, {"1": [[97, 99]]})
    with pytest.raises(UserError, match="both files must hold"):
        read_answers(text, tokens)
    text.write_text('{"prompt_id": 1, "text": "\u2028\x85"}\n')  # lines to str.splitlines, not to JSON lines
    assert read_answers(text, text)[0] == {"1": [[0x2028, 0x85]]}
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no answers"):
        read_answers(tmp_path / "empty.jsonl", text)


def test_the_command_tells_models_apart_by_its_exit_code(tmp_path, root):
    random = numpy.random.default_rng(3)
    for name, probabilities in {"a": [0.6, 0.4], "b": [0.6, 0.4], "c": [0.1, 0.9]}.items():
        lines = [{"prompt_id": "p", "text": "".join("xy"[t] for t in s)} for s in answers(random, probabilities, 12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def run(first, second, *flags):
        module = "quantharm.forensics.model_equality"
        command = [sys.executable, "-m", module, tmp_path / first, tmp_path / second, *flags]
        environment = os.environ | {"PYTHONPATH": str(root / "workflow")}
        return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)

    assert run("a.jsonl", "b.jsonl").returncode == 0
    assert run("a.jsonl", "c.jsonl").returncode == 3
    # One in twenty is the smallest p-value of 19 permutations, and the level itself counts.
    assert run("a.jsonl", "c.jsonl", "--permutations", "19", "--level", "0.05").returncode == 3
    missing = run("a.jsonl", "none.jsonl")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
