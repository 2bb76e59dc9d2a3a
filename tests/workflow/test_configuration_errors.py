"""A mistake in the config ends the run at once in one sentence that says what to change: no job, no traceback."""

import json
import re
import shlex

import pytest
from workflow_project import Result, evaluation_python

SMALL_MODEL = {"model_type": "mistral", "hidden_size": 200, "intermediate_size": 600, "num_hidden_layers": 1}
REFERENCE = {"source": "data/reference-model", "protocol": "tiny"}
MISTAKES = {
    "misspelt key of a method": (
        "methods/nf4/double_quantisation",
        True,
        ["nf4", "did you mean `double_quantization`"],
    ),
    "misspelt key at the top": ("treads", 2, ["treads", "did you mean `threads`"]),
    "misspelt key of a protocol": ("protocols/tiny/max_tokens", 2, ["protocols.tiny", "max_tokens"]),
    "unknown method": ("evaluate/methods", ["baseline", "nf5"], ["evaluate.methods", "nf5", "did you mean `nf4`"]),
    "unknown model": ("evaluate/models", ["referense"], ["referense", "did you mean `reference`"]),
    "no baseline": ("evaluate/methods", ["nf4"], ["evaluate.methods", "baseline"]),
    "unknown quantizer": ("methods/nf4/quantizer", "bitsandbytes", ["methods.nf4.quantizer", "bitsandbytes_4bit"]),
    "a quantizer that is a path": ("methods/nf4/quantizer", "../../evil", ["methods.nf4.quantizer"]),
    "unknown protocol": ("models/reference/protocol", "tinny", ["models.reference.protocol", "did you mean `tiny`"]),
    "unknown text": ("protocols/tiny/text", "wikitext-3", ["protocols.tiny.text", "wikitext-2"]),
    "setting out of its choices": ("methods/nf4/quant_type", "nf3", ["methods.nf4.quant_type", "nf4"]),
    "number for a name": ("evaluate/methods", ["baseline", 4], ["evaluate.methods", "string"]),
    "text for a number": ("threads", "many", ["threads", "many", "integer"]),
    "fraction for a whole number": ("protocols/tiny/max_new_tokens", 1.5, ["max_new_tokens", "integer"]),
    "text for a truth value": ("methods/nf4/double_quantization", "yes please", ["double_quantization", "boolean"]),
    "number too small": ("protocols/tiny/window_tokens", 1, ["protocols.tiny.window_tokens", "2"]),
    "nothing for models": ("models", None, ["models", "lacks"]),
    "no model chosen": ("evaluate/models", [], ["evaluate.models"]),
    "missing section": ("protocols", ..., ["protocols"]),
    "missing source": ("models/mine", {"protocol": "tiny"}, ["models.mine", "source"]),
    "no such folder": (
        "models/reference/source",
        "data/no-such-model-here/x",
        ["models.reference.source", "no folder"],
    ),
    "hub model without a commit": ("models/mine", {"source": "owner/name"}, ["models.mine.revision", "commit"]),
    "a branch for a commit": ("models/mine", {"source": "a/b", "revision": "main"}, ["models.mine.revision", "main"]),
    "name with a path": ("models/..\\x", REFERENCE, ["not allowed", "letters, digits"]),
    "name with a semicolon": ("methods/a;b", {"quantizer": "awq"}, ["a;b", "not allowed"]),
    "name with a space": ("models/a b", REFERENCE, ["a b", "not allowed"]),
    "name of 300 characters": ("models/" + 300 * "a", REFERENCE, ["not allowed", "64"]),
    "name of a folder of the workflow": ("models/logs", REFERENCE, ["logs", "rename"]),
    "text without a source": ("texts/mine", {}, ["texts.mine", "path", "dataset"]),
    "template required": ("protocols/tiny/chat_template", "required", ["chat template", "reference", "auto"]),
    "no such prompts": ("protocols/tiny/prompts", "data/none.jsonl", ["protocols.tiny.prompts", "data/none.jsonl"]),
    "braces in a path": ("models/reference/source", "data/{x}", ["models.reference.source", "{x}", "braces", "rename"]),
    "no such text": ("texts/builtin/path", "data/none.txt", ["texts.builtin.path", "data/none.txt", "no file here"]),
    "no such interpreter": ("python", "./no-python", ["python", "./no-python", "no program here"]),
    "no such calibration": ("calibration", "data/nothing.txt", ["calibration", "data/nothing.txt", "correct the path"]),
}


def assert_one_sentence(project, result: Result, words: list[str]) -> None:
    assert result.code != 0, result.output
    assert "Traceback" not in result.output
    assert "Job " not in result.output.replace("Job stats", "")
    lines = [line for line in result.lines if line.strip()]
    start = next(i for i, line in enumerate(lines) if re.match(r"WorkflowError\b", line))
    told = " ".join(lines[start + 1 :])
    for word in words:
        assert word in told, told
    assert len(lines) - start <= 8, result.output
    assert max(map(len, lines[start:])) < 400
    assert not (project / "results").exists()


@pytest.mark.parametrize(("key", "value", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(small, key, value, words):
    if key == "models/..\\x":  # a slash separates keys here
        small.edit("models/placeholder", value)
        config = small.config()
        config["models"]["../x"] = config["models"].pop("placeholder")
        small.write_config(config)
    else:
        small.edit(key, value)
    result = small.snakemake("--quiet", "host")
    assert_one_sentence(small, result, words)
    lines = [line for line in result.lines if line.strip()]
    start = next(i for i, line in enumerate(lines) if line.startswith("WorkflowError in file"))
    assert words[0] in lines[start + 1], lines  # our sentence follows at once


@pytest.mark.parametrize("group", [64, 128])
def test_group_size_that_does_not_divide(small, tmp_path, group):
    (tmp_path / "narrow").mkdir()
    (tmp_path / "narrow/config.json").write_text(json.dumps(SMALL_MODEL), encoding="utf-8")
    small.edit("models/narrow", {"source": str(tmp_path / "narrow"), "protocol": "tiny"})
    small.edit("methods/awq/group_size", group)
    assert_one_sentence(
        small, small.snakemake("--quiet", "host"), ["`awq`", "`narrow`", f"group_size {group}", "hidden_size 200"]
    )


def test_damaged_config_json(small, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{", encoding="utf-8")
    small.edit("models/broken", {"source": str(tmp_path / "broken"), "protocol": "tiny"})
    assert_one_sentence(small, small.snakemake("--quiet", "host"), ["broken/config.json", "damaged"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("models: [unclosed\n", ["config.yaml, line 2", "not YAML"]),
        ("a: &a [x]\n" + "b: &b [*a, *b]\n", ["config.yaml", "aliases"]),
        ("__use_yte__: true\n?open('results', 'w'): 1\n", ["config.yaml", "__use_yte__", "run code"]),
    ],
    ids=["broken", "without end", "code"],
)
def test_a_config_file_that_is_none(small, content, words):
    (small / "config.yaml").write_text(content, encoding="utf-8")
    assert_one_sentence(small, small.snakemake("--quiet", "host"), words)


def test_a_mistake_on_the_command_line(small):
    result = small.snakemake("--quiet", "host", "--config", "device=gpu")
    assert_one_sentence(small, result, ["device", "gpu", "cuda"])


def test_a_target_that_does_not_exist(small):
    result = small.snakemake("results/no-such-model/summary.json")
    assert result.code != 0
    assert "Traceback" not in result.output
    assert "results/no-such-model/summary.json" in result.output


ODD = "a b;touch pwned $(touch pwned) `touch pwned` 'ü\" * ? [a] ~ & # \\"


def test_paths_cannot_reach_a_shell(small):
    """A model, a text, prompts and a calibration text whose paths are shell commands arrive as one word each."""
    (small / "data/reference-model").rename(small / ODD)
    odd = {name: f"data/{name} {ODD}" for name in ("evaluation", "prompts", "calibration")}
    for name, path in odd.items():
        source = next((small / "data").glob(f"{name}.*"))
        source.rename(small / path)
    small.edit("models/reference/source", ODD)
    small.edit("texts/builtin/path", odd["evaluation"])
    for protocol in small.config()["protocols"]:
        small.edit(f"protocols/{protocol}/prompts", odd["prompts"])
    small.edit("calibration", odd["calibration"])
    result = small.snakemake("--dry-run", "--printshellcmds", "--quiet", "host", "reason")
    assert result.code == 0, result.output[-3000:]
    commands = [shlex.split(line) for line in result.lines if " -m quantharm." in line]
    assert len(commands) > 20
    words = {word for command in commands for word in command}
    assert {ODD, *odd.values()} <= words
    assert not (small / "pwned").exists()


def test_a_model_in_a_folder_with_an_odd_name_is_fetched(small):
    """And for real, through the shell."""
    (small / "data/reference-model").rename(small / ODD)
    small.edit("models/reference/source", ODD)
    small.use_python(evaluation_python())
    small.run("results/reference/source.json")
    assert small.read("source.json")["path"] == ODD
    assert not (small / "pwned").exists()


def test_a_second_config_file_overrides_the_shipped_one(small):
    """Snakemake merges the two key by key: what does not fit is named, and null removes it."""
    texts = f"texts: {{builtin: {{path: null, dataset: a/b, revision: {'a' * 40}}}}}"
    (small / "mine.yaml").write_text(f"methods: {{nf4: {{quantizer: bitsandbytes_int8}}}}\n{texts}", encoding="utf-8")
    result = small.snakemake("--quiet", "host", "--configfile", "mine.yaml")
    assert_one_sentence(small, result, ["methods.nf4", "merged key by key", "`quant_type: null`"])
    entry = "{quantizer: bitsandbytes_int8, quant_type: null, double_quantization: null}"
    (small / "mine.yaml").write_text(f"methods: {{nf4: {entry}}}\n{texts}", encoding="utf-8")
    assert "reference × nf4: quantize" in small.jobs("--configfile", "mine.yaml")
