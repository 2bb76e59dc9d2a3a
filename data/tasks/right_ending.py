"""Make right-ending.jsonl: multiple choice, the right ending of a sentence among four, from data/evaluation.txt.

    python data/tasks/right_ending.py

An item is the beginning of a sentence after what precedes it in its paragraph, the sentence's own last words, and as
many of three other sentences. The wrong endings come from the paragraphs nearby, so that they are
about the same. The seed is fixed: the same text gives the same file.
"""

import json
import random
import re
from pathlib import Path

HERE = Path(__file__).parent
SEED = 0
SHORTEST_SENTENCE = 14  # words
ENDING = 6  # words
CONTEXT = 24  # words in front of an ending, at most
NEARBY = 4  # paragraphs before and after
CHOICES = 4
ITEMS = 320  # of all that the text gives, evenly spaced


def sentences_of(paragraph: str) -> list[list[str]]:
    """Sentences as words; a sentence ends where a capital or a quotation mark follows."""
    return [sentence.split() for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", paragraph.strip())]


def items_of(text: str) -> list[dict]:
    """[{id, context, endings, right}]; endings: CHOICES texts, right: the index of the sentence's own."""
    generator = random.Random(SEED)
    paragraphs = [sentences_of(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]
    items = []
    for i, sentences in enumerate(paragraphs):
        around = [s for p in paragraphs[max(0, i - NEARBY) : i + NEARBY + 1] for s in p if len(s) >= SHORTEST_SENTENCE]
        for j, sentence in enumerate(sentences):
            others = [s for s in around if s[-ENDING:] != sentence[-ENDING:]]
            if len(sentence) < SHORTEST_SENTENCE or len(others) < CHOICES - 1:
                continue
            before = [word for s in sentences[:j] for word in s] + sentence[:-ENDING]
            endings = [" ".join(s[-ENDING:]) for s in generator.sample(others, CHOICES - 1)]
            right = generator.randrange(CHOICES)
            endings.insert(right, " ".join(sentence[-ENDING:]))
            items.append({"context": " ".join(before[-CONTEXT:]), "endings": endings, "right": right})
    return [{"id": f"right-ending-{k:03}"} | items[k * len(items) // ITEMS] for k in range(ITEMS)]


def main() -> None:
    items = items_of((HERE.parent / "evaluation.txt").read_text(encoding="utf-8"))
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
    (HERE / "right-ending.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(items)} items")


if __name__ == "__main__":
    main()
