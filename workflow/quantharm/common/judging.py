"""Judges whether a response gives a prompt's answer, as far as a program can tell.

Responses come in any language: words without spaces between them (北京 in 答案是北京。), digits of other scripts and
full-width forms.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Any, TypedDict

from quantharm.common.numerals import CASED, HARD_SPACES, last_number, plain


class Answer(TypedDict):
    """The right answer, in a form that a program can compare."""

    kind: str  # a key of JUDGES
    value: Any  # a text or a number; of `contains`, also a list of alternatives


# Scripts whose words stand together without spaces, by the first word of a letter's Unicode name.
WITHOUT_SPACES = {"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR"}
SUFFIXING = {"HANGUL"}  # particles follow a word without a space: 서울입니다
PREFIXES = {"ARABIC": "وفبكلا", "HEBREW": "ושהבלמכ"}  # and, in, to, the: written together with the word after them


def normalise(text: str) -> str:
    """The text without case, and without spaces and marks around it."""
    return " ".join(plain(text).split()).strip(" .!?\"'`*。｡！？؟।、，“”„«»「」『』").casefold()


def is_exact(response: str, value: str) -> bool:
    """Whether the response is `value` but for case, spaces and marks around it."""
    return normalise(response) == normalise(str(value))


def is_number(response: str, value: float) -> bool:
    """Whether the last number in the response is `value`."""
    expected = float(value)
    return any(abs(reading - expected) <= 1e-9 * max(1, abs(expected)) for reading in last_number(response))


# A capital letter is an option unless it is the article A; a small one only where nothing else can be meant.
BORDER = rf"(?![0-9_{CASED}])"
ARTICLE = rf"A(?=\s+(?:because|since|as|is)\b|(?!\s+[{CASED}]|'))"
LETTER = rf"([B-E](?!')|{ARTICLE}|[a-e](?=\)|:|\.?\s*\Z)){BORDER}"
END = rf"(?!(?<=[{CASED}])[{CASED}])"  # of a word, in scripts that have spaces
KIND = r"(?:the\s+)?(?:(?:option|choice|letter)\b[^A-Za-z]*)?"
# The word `answer`, and what may stand between it and the letter: no word that denies it.
ANSWER = (
    r"答案|正确选项|正確選項|答え|正解|解答|정답|답|respuesta|resposta|risposta|réponse|antwort|lösung|antwoord|svar(?:et)?|odpowied[zź]|"
    r"ответ|відповідь|απάντηση|cevap|yanıt|jawaban|đáp\s+án|câu\s+trả\s+lời|คำตอบ|उत्तर|الإجابة|الجواب|התשובה"
)
IS = (
    r"(?:应该|應該|就)?(?:是|为|為|选|選)|は|은|는|が|es|ist|lautet|est|è|é|är|er|to|jest|adalah|là|คือ|है|هي|هو|היא|"
    r"correct[ae]?|richtige?|corretta|верный|правильный|الصحيحة|"
    r"(?:(?:la|el|il|die|a)\s+)?(?:option|opción|opção|opzione|вариант|选项|選項|letra|lettre|lettera|буква|la|il|el|die)"
)
CHOICES = [
    re.compile(rf"(?i:\banswer(?:\s+to\b[^.\n]{{0,60}}?)?[^A-Za-z]*(?:(?:is|would\s+be)\b[^A-Za-z]*)?{KIND}){LETTER}"),
    re.compile(rf"(?i:\b(?:option|choice|letter|one|sentence|summary)\s+is\b[^A-Za-z\n]*{KIND}){LETTER}"),
    re.compile(rf"(?i:(?<![{CASED}])(?:{ANSWER}){END}[\W_]*(?:(?:{IS}){END}[\W_]*)*){LETTER}"),
    re.compile(rf"(?<!不)(?:选择|選擇|应选|應選|故选|故選|选|選)[\W_]*{LETTER}"),
]
FIRST_LETTER = re.compile(rf"\W*(?i:{KIND}){LETTER}")
LAST_LETTER = re.compile(r"(?:\A|\n)\W*([A-E])\W*\Z")
OPTION = re.compile(r"(?m)^\s*\(?[A-E][.):]")


def is_choice(response: str, value: str) -> bool:
    """Whether the response names the letter: after `answer` or `option is`, else at its start or alone at its end.

    A letter elsewhere does not count: it may be the article A or an echoed list of options.
    """
    response = plain(response)
    named = next((match for pattern in CHOICES if (match := pattern.search(response))), None)
    if named is None and len(OPTION.findall(response)) <= 1:
        named = FIRST_LETTER.match(response) or LAST_LETTER.search(response)
    return named is not None and named[1].upper() == str(value).upper()


def script(character: str) -> str | None:
    """The script that a character's neighbours must share to stand in one word with it; None where no word goes on."""
    if character == "_" or character.isdecimal() or re.match(f"[{CASED}]", character):
        return "cased"
    if not (character.isalnum() or unicodedata.category(character).startswith("M")):
        return None
    name = unicodedata.name(character, "?").split()[0]
    return None if name in WITHOUT_SPACES else name


def is_word(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is one or several whole words; `south` in `south-west` is none, nor 4 in 14 or 4.5."""
    before, after = text[:start], text[end:]
    first, last = script(text[start]), script(text[end - 1])
    prefixes = PREFIXES.get(first or "", "")
    stem = before[-2:].rstrip(prefixes) if prefixes else before[-1:]
    before = before[:-2] + stem if prefixes else before
    if after and unicodedata.category(after[0]).startswith("M"):  # a vowel sign belongs to the letter before it
        return False
    if first and before and script(before[-1]) == first:
        return False
    if last and last not in SUFFIXING and after and script(after[0]) == last:
        return False
    digits_go_on = (text[start].isdecimal() and re.search(r"\d[.,]\Z", before)) or (
        text[end - 1].isdecimal() and re.match(r"[.,]\d", after)
    )
    hyphenated = (first and re.search(rf"[0-9_{CASED}]-\Z", before)) or (last and re.match(rf"-[0-9_{CASED}]", after))
    return not (digits_go_on or hyphenated)


def contains(response: str, value: str | list[str]) -> bool:
    """Whether any of the alternatives occurs as whole words, ignoring case."""
    text, *alternatives = (
        re.sub(f"[{HARD_SPACES}]", " ", plain(t)) for t in [response, *([value] if isinstance(value, str) else value)]
    )
    spans = (m.span() for a in alternatives if a for m in re.finditer(re.escape(a), text, re.IGNORECASE))
    return any(is_word(text, *span) for span in spans)


def matches(response: str, value: str) -> bool:
    """Whether the regular expression `value` is found in the response."""
    return re.search(value, response, re.IGNORECASE | re.MULTILINE) is not None


JUDGES: dict[str, Callable[[str, Any], bool]] = {
    "exact": is_exact,
    "number": is_number,
    "choice": is_choice,
    "contains": contains,
    "regex": matches,
}


def judge(response: str, answer: Answer | None) -> bool | None:
    """Whether the response gives the answer; None where a program cannot tell."""
    return None if answer is None else bool(JUDGES[answer["kind"]](response.strip(), answer["value"]))
