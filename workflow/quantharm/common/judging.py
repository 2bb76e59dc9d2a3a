"""Judges whether a response gives a prompt's answer, as far as a program can tell.

Responses come in any language: words without spaces between them (北京 in 答案是北京。), digits of other scripts,
full-width forms, and numbers grouped as 1,234.5, 1.234,5, 1 234,5, 1'234.5 or 1,23,456.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Any, TypedDict


class Answer(TypedDict):
    """The right answer, in a form that a program can compare."""

    kind: str  # a key of JUDGES
    value: Any  # a text or a number; of `contains`, also a list of alternatives


# Letters that are written in words with spaces around them and stand beside digits in names (O2, x4).
CASED = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0370-\u058f\u1e00-\u1fff"
# Scripts whose words stand together without spaces, by the first word of a letter's Unicode name.
WITHOUT_SPACES = {"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR"}
SUFFIXING = {"HANGUL"}  # particles follow a word without a space: 서울입니다
PREFIXES = {"ARABIC": "وفبكلا", "HEBREW": "ושהבלמכ"}  # and, in, to, the: written together with the word after them
FORMS = {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)} | {
    ord("\u2010"): "-",
    ord("\u2011"): "-",
    ord("\u2013"): "-",
    ord("\u2212"): "-",
    ord("\u2018"): "'",
    ord("\u2019"): "'",
    ord("\u066b"): ".",  # the Arabic decimal and thousands separators
    ord("\u066c"): ",",
    ord("\u3000"): " ",
    ord("\uff0c"): ", ",  # separates a list, never decimals
}
HARD_SPACES = "\u00a0\u2007\u2009\u202f"  # some of them group digits: 1 234


def plain(text: str) -> str:
    """The text with characters in their usual forms: full-width as ASCII, digits of any script as 0 to 9, composed."""
    text = unicodedata.normalize("NFC", text).translate(FORMS)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else c for c in text)


def normalise(text: str) -> str:
    """The text without case, and without spaces and marks around it."""
    return " ".join(plain(text).split()).strip(" .!?\"'`*。｡！？؟।、，“”„«»「」『』").casefold()


def is_exact(response: str, value: str) -> bool:
    """Whether the response is `value` but for case, spaces and marks around it."""
    return normalise(response) == normalise(str(value))


NUMBER = re.compile(
    rf"(?<![0-9_^{CASED}])-?(?P<digits>\d+(?:[.,'_{HARD_SPACES}]\d+|[ ]\d{{3}}(?!\d))*)"
    r"(?P<scale>[ ]?(?:[百千]?[万萬億亿]|[百千](?![克米瓦卡帕分升]))|[만억천백](?!큼))?"
)
SCALES = {"百": 1e2, "백": 1e2, "千": 1e3, "천": 1e3, "万": 1e4, "萬": 1e4, "만": 1e4, "億": 1e8, "亿": 1e8, "억": 1e8}


def readings(digits: str) -> set[float]:
    """The numbers that digits and separators may stand for; two where conventions differ (1.200; 12 345)."""
    if re.fullmatch(r"\d+(\.\d+)?", digits):
        thousands = re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", digits)
        return {float(digits)} | ({float(digits.replace(".", ""))} if thousands else set())
    grouped = re.fullmatch(
        rf"([1-9]\d{{0,2}}(?P<mark>[.,'_{HARD_SPACES} ])\d{{3}}(?:(?P=mark)\d{{3}})*)([.,]\d+)?", digits
    )
    if grouped and not (grouped[3] or "").startswith(grouped["mark"]):
        whole, last = re.sub(r"\D", "", grouped[1]), digits.rpartition(" ")[2]
        apart = readings(last) if grouped["mark"] == " " and last[0] != "0" else set()
        return {float(f"{whole}.{(grouped[3] or '.0')[1:]}")} | apart
    if re.fullmatch(r"[1-9]\d?(,\d{2})+,\d{3}(\.\d+)?", digits):  # in lakhs and crores
        return {float(digits.replace(",", ""))}
    if re.fullmatch(r"\d+,\d+", digits):
        return {float(digits.replace(",", "."))}
    return {float(re.split(r"\D", digits)[-1])}  # a date, a version, a list: its last part


def last_number(response: str) -> set[float]:
    """Readings of the last number; empty without one.

    Of 1億2000万 it is the sum; in O2 and 10^3 only the 10 is a number.
    """
    numbers: set[float] = set()
    end, scale_before = -1, 0.0
    for number in NUMBER.finditer(plain(response)):
        scale = 1.0
        for unit in (number["scale"] or "").strip():
            scale *= SCALES[unit]
        sign = -1 if number[0].startswith("-") else 1
        values = {sign * reading * scale for reading in readings(number["digits"])}
        goes_on = number.start() == end and scale < scale_before
        numbers = {a + b for a in numbers for b in values} if goes_on else values
        end, scale_before = number.end(), scale
    return numbers


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
