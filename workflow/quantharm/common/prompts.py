"""The prompt suite: reading and choosing prompts."""

import json
import re
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from quantharm.common.errors import UserError
from quantharm.common.files import LARGEST_INPUT_BYTES
from quantharm.common.judging import JUDGES, Answer, judge

LONGEST_PROMPT_CHARACTERS = 1_000_000


class Prompt(TypedDict):
    """A line of a prompt suite."""

    id: str
    category: str
    prompt: str
    answer: NotRequired[Answer | None]


def read_prompts(path: Path, per_category: int | None = None) -> list[Prompt]:
    """Prompts in file order, at most `per_category` of each category; raises UserError naming the faulty line."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the prompt file {path} does not exist; correct `prompts:` in the config")
    if path.stat().st_size > LARGEST_INPUT_BYTES:
        raise UserError(f"the prompt file {path} is larger than {LARGEST_INPUT_BYTES >> 20} MB; split it into suites")
    prompts, seen = [], set()
    taken: dict[str, int] = {}  # prompts of each category so far
    with open(path, encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    prompt = check_prompt(line, f"{path}, line {number}")
                    if prompt["id"] in seen:
                        raise UserError(f"{path}, line {number}: the id {prompt['id']!r} occurs twice; rename one")
                    seen.add(prompt["id"])
                    taken[prompt["category"]] = taken.get(prompt["category"], 0) + 1
                    if per_category is None or taken[prompt["category"]] <= per_category:
                        prompts.append(prompt)
        except UnicodeDecodeError:
            raise UserError(f"the prompt file {path} is not UTF-8; convert it") from None
    if not prompts:
        raise UserError(f"the prompt file {path} holds no prompt; write one JSON object a line")
    return prompts


def check_prompt(line: str, where: str) -> Prompt:
    """The prompt on a line of a suite; raises UserError that begins with `where`."""
    try:
        prompt = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); write one JSON object a line") from None
    if not isinstance(prompt, dict):
        raise UserError(f"{where} is not a JSON object; write one with id, category and prompt")
    for key in ("id", "category", "prompt"):
        if not isinstance(prompt.get(key), str) or not prompt[key].strip():
            raise UserError(f"{where}: `{key}` is missing or empty; give it some text")
        if any("\ud800" <= c <= "\udfff" for c in prompt[key]):  # JSON can write them, UTF-8 cannot
            raise UserError(f"{where}: `{key}` holds half a character (a lone surrogate, \\ud800); correct it")
    if len(prompt["prompt"]) > LONGEST_PROMPT_CHARACTERS:
        raise UserError(f"{where}: the prompt has over {LONGEST_PROMPT_CHARACTERS:,} characters; shorten it")
    answer = prompt.get("answer")
    if answer is not None:
        if not isinstance(answer, dict) or answer.get("kind") not in list(JUDGES) or "value" not in answer:
            raise UserError(f"{where}: `answer` needs a kind ({', '.join(JUDGES)}) and a value")
        try:
            judge("A 0", cast(Answer, answer))
        except (re.error, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where}: the answer's {answer['kind']} is not valid ({error}); correct it") from None
    return cast(Prompt, prompt)
