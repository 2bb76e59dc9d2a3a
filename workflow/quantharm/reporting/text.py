"""Text that strangers wrote (models, prompts, names) made safe to show: in HTML by Jinja's escaping, here for Markdown.

Control and bidirectional characters could reorder or hide what stands beside them, so they are shown by their code.
"""

import re
from collections.abc import Callable
from typing import Any

from quantharm.common.sanitize import visible

MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~&!$@]|(?<=\w):(?=//))")
LINE_START = re.compile(r"^(\s*)([-+=]|\d+[.)])(?=\s)")


def one_line(text: Any) -> str:
    """Blanks joined, new lines as ⏎."""
    return re.sub(r"[ \t]+", " ", visible(text).replace("\n", "⏎"))


def escaped(text: Any) -> str:
    return MARKUP.sub(r"\\\1", one_line(text))


def markdown(text: Any, escape: Callable[[Any], str] = escaped) -> str:
    """Text that cannot end a table cell, start a block, or be taken for markup, a link or HTML."""
    line = escape(text).strip()
    return LINE_START.sub(lambda m: f"{m[1]}\\{m[2]}" if len(m[2]) == 1 else f"{m[1]}{m[2][:-1]}\\{m[2][-1]}", line)


def with_code(text: Any) -> str:
    """Escapes a sentence; what stands between backticks in it, keys and commands, stays code."""
    parts = re.split(r"`([^`\n]+)`", str(text))
    return "".join(f"`{one_line(part)}`" if i % 2 else escaped(part) for i, part in enumerate(parts))


def shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
