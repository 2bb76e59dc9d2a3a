"""The built-in multiple choice: made of the text by its program, and one ending of four goes on with it."""

import importlib.util
import json

import pytest


@pytest.fixture(scope="module")
def program(root):
    spec = importlib.util.spec_from_file_location("right_ending", root / "data/tasks/right_ending.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def items(root):
    lines = (root / "data/tasks/right-ending.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_file_is_what_the_program_makes_of_the_text(program, items, evaluation_text):
    assert items == program.items_of(evaluation_text)


def test_one_ending_of_four_goes_on_with_the_text(items, evaluation_text):
    text = " ".join(evaluation_text.split())
    assert len(items) >= 300
    for item in items:
        assert len(set(item["endings"])) == 4
        goes_on = [f"{item['context']} {ending}" in text for ending in item["endings"]]
        assert goes_on == [i == item["right"] for i in range(4)], item["id"]


def test_the_right_ending_is_in_no_place_more_than_by_chance(items):
    counts = [sum(item["right"] == place for item in items) for place in range(4)]
    assert min(counts) > 60  # 80 of 320 each, less two and a half standard deviations
