"""Runs of words that two texts share: the usual sign that one was among the sources of the other."""

import re
from collections.abc import Iterable
from pathlib import Path

from quantharm.common.stage import run_stage, stage_parser
from quantharm.common.text import read_text


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.casefold())


def sequences(text: str, length: int) -> set[tuple[str, ...]]:
    """Every run of `length` words in a text."""
    words = words_of(text)
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def shared_sequences(text: str, others: Iterable[str], length: int = 13) -> list[str]:
    """Runs of `length` words of `text` that occur in any of the others; case and punctuation are ignored."""
    own = sequences(text, length)
    shared: set[tuple[str, ...]] = set()
    for other in others:
        shared |= own & sequences(other, length)
    return sorted(" ".join(sequence) for sequence in shared)


def main() -> None:
    parser = stage_parser(__doc__ + "\nExit code 1 when there are any.")
    parser.add_argument("text", type=Path, help="a text, UTF-8")
    parser.add_argument("others", type=Path, nargs="+", help="texts to compare with (.xz or plain)")
    parser.add_argument("--words", type=int, default=13, help="length of a sequence")
    arguments = parser.parse_args()
    import lzma

    others = (
        lzma.open(p, "rt", encoding="utf-8").read() if p.suffix == ".xz" else read_text(p) for p in arguments.others
    )
    shared = shared_sequences(read_text(arguments.text), others, arguments.words)
    print(f"{arguments.text}: {len(shared)} sequences of {arguments.words} words shared")
    for sequence in shared[:20]:
        print(f"  {sequence}")
    raise SystemExit(bool(shared))


if __name__ == "__main__":
    run_stage(main)
