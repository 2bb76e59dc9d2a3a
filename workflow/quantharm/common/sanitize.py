"""Text from strangers, made safe for a terminal, a log or a page: no character hides, moves or colours others."""

import unicodedata
from typing import Any

# Control characters, those that change how their neighbours are drawn, and blanks that cannot be seen.
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: Any) -> str:
    """The text with every character that is not drawn as itself as ⟨U+202E⟩; new lines and tabs stay."""
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in INVISIBLE and c not in "\n\t" else c
        for c in str(text).replace("\r\n", "\n")
    )


def print_line(text: Any) -> None:
    """Prints one line, with everything in it made visible."""
    print(visible(text).replace("\n", "⏎"))
