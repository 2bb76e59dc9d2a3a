"""The prompt suite: its rules, the judges on right and wrong responses, and encoding."""

import collections
import json

import jsonschema
import pytest

from quantharm.common.errors import UserError
from quantharm.common.judging import judge
from quantharm.common.prompts import read_prompts

CATEGORIES = [
    "Code Generation",
    "Mathematical Reasoning",
    "Text Summarization",
    "Question Answering",
    "Creative Writing",
    "Logical Reasoning",
    "Translation",
    "Sentiment Analysis",
    "Information Extraction",
    "Instruction Following",
    "Common Sense Reasoning",
    "Domain Knowledge (Science)",
]
JUDGED_CATEGORIES = [
    "Mathematical Reasoning",
    "Question Answering",
    "Logical Reasoning",
    "Sentiment Analysis",
    "Information Extraction",
    "Common Sense Reasoning",
    "Domain Knowledge (Science)",
]
LETTERS = "ABCDE"


# ---------------------------------------------------------------- the built-in suite


@pytest.fixture(scope="module")
def schema(root):
    return json.loads((root / "data" / "prompts.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def samples(root):
    lines = (root / "tests" / "unit" / "judged_responses.jsonl").read_text(encoding="utf-8").splitlines()
    return {sample["id"]: sample for sample in map(json.loads, lines)}


def test_every_prompt_follows_the_schema(suite, schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for prompt in suite for error in validator.iter_errors(prompt)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"category": "Cooking"},
        {"id": "cooking-01"},
        {"prompt": ""},
        {"note": "x"},
        {"answer": {"kind": "number", "value": "3"}},
        {"answer": {"kind": "choice", "value": "F"}},
        {"answer": {"kind": "guess", "value": "A"}},
    ],
)
def test_the_schema_refuses_what_is_wrong(suite, schema, change):
    assert not jsonschema.Draft202012Validator(schema).is_valid(suite[0] | change)


def test_96_prompts_8_of_each_category(suite):
    counts = collections.Counter(p["category"] for p in suite)
    assert counts == dict.fromkeys(CATEGORIES, 8)
    assert list(counts) == CATEGORIES
    assert len(suite) == len({p["id"] for p in suite}) == len({p["prompt"] for p in suite}) == 96


def test_the_suite_of_long_answers_is_of_the_same_form(root, schema, suite):
    prompts = read_prompts(root / "data" / "prompts-long.jsonl")
    for prompt in prompts:
        jsonschema.validate(prompt, schema)
    counts = collections.Counter(prompt["category"] for prompt in prompts)
    assert set(counts.values()) == {6}
    assert set(counts) < set(CATEGORIES)
    assert not {prompt["prompt"] for prompt in prompts} & {prompt["prompt"] for prompt in suite}


def test_the_package_reads_the_suite_as_it_is(root, suite):
    assert read_prompts(root / "data" / "prompts.jsonl") == suite


def test_at_least_48_answers_with_some_where_answers_are_facts(suite):
    judged = collections.Counter(p["category"] for p in suite if "answer" in p)
    assert judged.total() >= 48
    assert all(judged[category] >= 4 for category in JUDGED_CATEGORIES), judged
    assert judged["Creative Writing"] == 0


def test_every_judged_prompt_has_sample_responses(suite, samples):
    assert set(samples) == {p["id"] for p in suite if "answer" in p}
    assert all(s["good"] and s["bad"] for s in samples.values())


def test_right_responses_are_accepted(suite, samples):
    answers = {p["id"]: p.get("answer") for p in suite}
    refused = [(i, r) for i, s in samples.items() for r in s["good"] if judge(r, answers[i]) is not True]
    assert refused == []


def test_wrong_responses_are_refused(suite, samples):
    answers = {p["id"]: p.get("answer") for p in suite}
    accepted = [(i, r) for i, s in samples.items() for r in s["bad"] if judge(r, answers[i]) is not False]
    assert accepted == []


def test_no_echo_of_a_prompt_and_no_empty_response_is_right(suite):
    judged = [p for p in suite if "answer" in p]
    for echo in (lambda p: p, lambda p: f"{p}\n\n{p}", lambda _: "", lambda _: " \n"):
        assert [p["id"] for p in judged if judge(echo(p["prompt"]), p["answer"])] == []


def test_only_the_right_letter_of_each_choice_is_accepted(suite):
    choices = [p for p in suite if p.get("answer", {}).get("kind") == "choice"]
    assert len(choices) >= 12
    assert len({p["answer"]["value"] for p in choices}) >= 4  # a model that always says A gains little
    for prompt in choices:
        accepted = [letter for letter in LETTERS if judge(f"The answer is {letter}.", prompt["answer"])]
        assert accepted == [prompt["answer"]["value"]], prompt["id"]
        assert f"\n{accepted[0]}) " in prompt["prompt"], f"{prompt['id']} offers no such option"


def test_prompts_without_an_answer_are_not_judged():
    assert judge("anything", None) is None


# ---------------------------------------------------------------- reading

GOOD = '{"id": "a-01", "category": "A", "prompt": "Say hello."}'


def write(tmp_path, *lines: str):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"line 2 is not JSON \("),
        ("[1, 2]", r"line 2 is not a JSON object"),
        ('{"id": "b", "category": "A"}', r"line 2: `prompt` is missing or empty"),
        ('{"id": "b", "category": "A", "prompt": "  "}', r"line 2: `prompt` is missing or empty"),
        ('{"id": 7, "category": "A", "prompt": "x"}', r"line 2: `id` is missing or empty"),
        ('{"id": "b", "category": null, "prompt": "x"}', r"line 2: `category` is missing or empty"),
        (GOOD, r"line 2: the id 'a-01' occurs twice"),
        (
            '{"id": "b", "category": "A", "prompt": "x", "answer": "C"}',
            r"line 2: `answer` needs a kind \(exact, number",
        ),
        ('{"id": "b", "category": "A", "prompt": "x", "answer": {"kind": "exact"}}', r"`answer` needs a kind"),
        ('{"id": "b", "category": "A", "prompt": "x", "answer": {"kind": "guess", "value": 1}}', r"needs a kind"),
        ('{"id": "b", "category": "A", "prompt": "x", "answer": {"kind": [], "value": 1}}', r"needs a kind"),
        (
            '{"id": "b", "category": "A", "prompt": "x", "answer": {"kind": "regex", "value": "(a"}}',
            r"regex is not valid",
        ),
        ('{"id": "b", "category": "A", "prompt": "x", "answer": {"kind": "regex", "value": 3}}', r"regex is not valid"),
        (
            '{"id": "b", "category": "A", "prompt": "x", "answer": {"kind": "number", "value": "x"}}',
            r"number is not val",
        ),
        (
            '{"id": "b", "category": "A", "prompt": "x", "answer": {"kind": "contains", "value": 3}}',
            r"contains is not va",
        ),
        (f'{{"id": "b", "category": "A", "prompt": "{"x" * 1_000_001}"}}', r"over 1,000,000 characters"),
        ("[" * 100_000, r"line 2 is not JSON"),
    ],
)
def test_faulty_lines_are_refused_by_number(tmp_path, line, message):
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(write(tmp_path, GOOD, line))
    assert "\n" not in str(caught.value)


def test_faulty_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"does not exist; correct `prompts:`"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"does not exist"):
        read_prompts(tmp_path)
    with pytest.raises(UserError, match=r"holds no prompt"):
        read_prompts(write(tmp_path, "", "  "))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.replace("hello", "grüß").encode("latin-1"))
    with pytest.raises(UserError, match=r"is not UTF-8; convert it"):
        read_prompts(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large.jsonl"
    with open(path, "wb") as stream:
        stream.truncate(64 * 2**20 + 1)
    with pytest.raises(UserError, match=r"larger than 64 MB"):
        read_prompts(path)


def test_blank_lines_and_unicode_are_accepted(tmp_path):
    path = write(tmp_path, GOOD, "", '{"id": "b", "category": "Ä", "prompt": "日本語 ü"}', "")
    assert [p["prompt"] for p in read_prompts(path)] == ["Say hello.", "日本語 ü"]


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n")
    assert [p["prompt"] for p in read_prompts(path)] == ["Say hello."]


def test_per_category_takes_the_first_of_each_in_file_order(tmp_path, root, suite):
    lines = [f'{{"id": "{c}-{i}", "category": "{c}", "prompt": "x"}}' for i in (1, 2, 3) for c in "AB"]
    assert [p["id"] for p in read_prompts(write(tmp_path, *lines), 2)] == ["A-1", "B-1", "A-2", "B-2"]
    two = read_prompts(root / "data" / "prompts.jsonl", 2)
    assert [p["id"] for p in two] == [p["id"] for p in suite if p["id"].endswith(("-01", "-02"))]


def test_per_category_still_checks_the_lines_that_it_leaves_out(tmp_path):
    with pytest.raises(UserError, match=r"occurs twice"):
        read_prompts(write(tmp_path, GOOD, GOOD), 1)
