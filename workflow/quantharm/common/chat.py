"""From a prompt to token ids: the chat template, and its inputs.

A template is a program by the checkpoint's author. It may want its content in parts, have a switch for thinking, print
the date, or raise. The protocol fixes and records its inputs, so that the same prompts give the same ids tomorrow.
"""

import contextlib
import datetime
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

from quantharm.common.errors import UserError
from quantharm.common.records.generation import Asked
from quantharm.common.text import sha256_of_windows

SWITCHES = ("enable_thinking", "thinking")  # the switch's name in Qwen3, SmolLM3 and GLM; in Granite and DeepSeek


@dataclass(frozen=True)
class Asking:
    """The settings of a protocol that decide the token ids of a prompt."""

    chat_template: str = "auto"  # auto: where there is one; never; required
    thinking: bool = False
    template_date: str = "2025-01-01"  # today's date, as a template is told
    system_prompt: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any] | Namespace) -> "Asking":
        """From a stage's flags, or from generation.json; a missing setting has its default."""
        values = vars(record) if isinstance(record, Namespace) else record
        return cls(**{key: values[key] for key in asdict(cls()) if key in values})


def add_flags(parser: ArgumentParser) -> None:
    """Adds the flags of Asking to a stage's parser."""
    parser.add_argument("--chat-template", default="auto", choices=["auto", "never", "required"])
    parser.add_argument("--thinking", action="store_true", help="let templates that know a switch for it have it on")
    parser.add_argument("--template-date", default=Asking.template_date, help="today's date, as a template is told")
    parser.add_argument("--system-prompt", help="said before each prompt, in the role `system`")


def encode_prompt(tokenizer, prompt: str, asking: Asking = Asking()) -> list[int]:
    """Token ids of a prompt, in the form in which the model expects to be asked.

    A template writes its own special tokens, so none are added to its text (no second BOS). Raises UserError where a
    required template is missing, or the template fails on this prompt.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if asking.chat_template == "required" and not has_template:
        raise UserError("`chat_template: required` but the tokenizer has no chat template; use auto or never")
    if has_template and asking.chat_template != "never":
        return tokenizer(render(tokenizer, prompt, asking), add_special_tokens=False)["input_ids"]
    return tokenizer(prompt if asking.system_prompt is None else f"{asking.system_prompt}\n\n{prompt}")["input_ids"]


@contextlib.contextmanager
def today(date: str) -> Iterator[None]:
    """Sets the date that transformers gives to templates (strftime_now), for which it has no argument."""
    from transformers.utils import chat_template_utils

    clock = chat_template_utils.datetime
    moment = datetime.datetime.fromisoformat(date)
    chat_template_utils.datetime = SimpleNamespace(now=lambda: moment)
    try:
        yield
    finally:
        chat_template_utils.datetime = clock


def render(tokenizer, prompt: str, asking: Asking) -> str:
    """The template's text for a prompt; the content is given as a text, or in parts where the template wants those."""
    from jinja2 import TemplateError

    switches = dict.fromkeys(SWITCHES, asking.thinking)
    reason = "its text does not hold the prompt"
    for in_parts in (False, True):
        messages = [
            {"role": role, "content": [{"type": "text", "text": content}] if in_parts else content}
            for role, content in (("system", asking.system_prompt), ("user", prompt))
            if content is not None
        ]
        try:
            with today(asking.template_date):
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switches)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = reason if in_parts else " ".join(str(error).split())[:200] or type(error).__name__
            continue
        if prompt.strip() in text:  # a template that wants parts may drop a text without an error
            return text
    raise UserError(
        f"the tokenizer's chat template cannot put a prompt ({reason}); set `chat_template: never` in the protocol, "
        "or `system_prompt:` if it wants one"
    )


def knows_thinking(tokenizer, asking: Asking = Asking()) -> bool:
    """Whether the chat template has a switch for thinking, which changes its text."""
    if not getattr(tokenizer, "chat_template", None) or asking.chat_template == "never":
        return False
    on, off = (render(tokenizer, "x", replace(asking, thinking=value)) for value in (True, False))
    return on != off


def asked(tokenizer, asking: Asking, encoded: list[list[int]]) -> Asked:
    """Keys of generation.json for the form of the prompts; encoded: the token ids of all prompts."""
    return {
        "chat_template": asking.chat_template,
        "thinking": asking.thinking,
        "template_date": asking.template_date,
        "system_prompt": asking.system_prompt,
        "thinking_switch": knows_thinking(tokenizer, asking),
        "prompt_tokens_sha256": sha256_of_windows(encoded),
    }
