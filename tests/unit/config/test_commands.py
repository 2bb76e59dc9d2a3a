"""The command of a job, from constants, functions of the wildcards and places to fill."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantharm.config.commands import command, filled, words_of

WILDCARDS = SimpleNamespace(model="m", method="nf4")


def words(stage: str, inputs: dict | None = None, **flags) -> list[str]:
    job = {"wildcards": WILDCARDS, "input": SimpleNamespace(**inputs or {}), "output": "results/m/x.json"}
    return shlex.split(command(stage, **flags)["command"](**job))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        (False, []),
        (True, ["--the-flag"]),
        (0, ["--the-flag", "0"]),
        ([], ["--the-flag"]),
        (["a", 2], ["--the-flag", "a", "2"]),
        (Path("a b"), ["--the-flag", "a b"]),
    ],
)
def test_a_flag_and_its_value_as_words(value, expected):
    assert list(words_of({"the_flag": value})) == expected


def test_a_command_is_read_by_the_shell_as_it_was_meant():
    awkward = "it's $HOME; {not} a place"
    assert words("stage", text=lambda wildcards: awkward) == ["stage", "--text", awkward]


def test_places_are_filled_in():
    assert words("stage", {"store": "a b"}, cell="results/{wildcards.model}/x", store="{input.store}") == [
        *("stage", "--cell", "results/m/x"),
        *("--store", "a b"),
    ]
    assert words("stage", output="{output}") == ["stage", "--output", "results/m/x.json"]


def test_a_flag_without_a_file_is_left_out():
    assert words("stage", {"signature": ""}, signature="{input.signature}", device="cpu") == [
        "stage",
        "--device",
        "cpu",
    ]


def test_json_is_no_place():
    settings = json.dumps({"input": 1, "a": {"output": "x"}})
    assert filled(settings) == settings
    assert words("stage", settings=settings) == ["stage", "--settings", settings]


def test_a_dictionary_stands_for_flags_of_its_own():
    flags = {"source": "s", "revision": None, "allow_pickle": True}
    assert words("stage", source=lambda wildcards: flags, device="cpu") == [
        *("stage", "--source", "s", "--allow-pickle"),
        *("--device", "cpu"),
    ]


def test_what_a_function_returns_is_taken_as_it_is():
    assert words("stage", name=lambda wildcards: "{input.x}") == ["stage", "--name", "{input.x}"]


def test_settings_hold_every_value_but_those_of_files():
    """Snakemake compares them between runs; the command, made of inputs and outputs, it does not."""
    made = command("stage", seed=lambda wildcards: len(wildcards.method), store="{input.store}", where=Path("a"))
    assert json.loads(made["settings"](WILDCARDS)) == {"seed": 3, "store": "{input.store}", "where": "a"}
