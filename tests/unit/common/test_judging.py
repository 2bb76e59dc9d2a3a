"""The judges on right and wrong responses, in several languages and conventions for numbers."""

import pytest

from quantharm.common.judging import judge

LETTERS = "ABCDE"


def letter_in(response: str) -> str:
    """All letters that the judge takes the response for: one at most."""
    return "".join(letter for letter in LETTERS if judge(response, {"kind": "choice", "value": letter}))


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("C", "C"),
        ("(C)", "C"),
        ("c", "C"),
        ("c)", "C"),
        ("**C**", "C"),
        ("C) x &= x - 1", "C"),
        ("C. A marble", "C"),
        ("C because it clears one bit", "C"),
        ("C is right", "C"),
        ("Option B", "B"),
        ("The answer is (C)", "C"),
        ("The answer is C because it clears one bit.", "C"),
        ("The answer is option B.", "B"),
        ("The correct option is D.", "D"),
        ("The correct answer is **B) a coin**.", "B"),
        ("**Answer:** D\n\nA rock is heavier.", "D"),
        ("Answer:\nC", "C"),
        ("The answer to the question is E.", "E"),
        ("Both pipes are open, so it takes nine minutes.\n\nD", "D"),
        ("The answer is not A. The answer is C.", "C"),
        ("A) one\nB) two\nC) three\n\nAnswer: B", "B"),
        ("A", "A"),
        ("A)", "A"),
        ("A: it expands", "A"),
        ("A because it expands", "A"),
        # the article A, names, words and lists are no choices
        ("A bottle that has burst", ""),
        ("The answer is a difficult one", ""),
        ("The answer is A bottle that has burst", ""),
        ("D'Artagnan", ""),
        ("A) one\nB) two\nC) three\nD) four", ""),
        ("(A) one\n(B) two", ""),
        ("Answer with the letter of the right option.", ""),
        ("I cannot decide between B and C here", ""),
        ("e.g. one of them", ""),
        ("Because of the drain", ""),
        ("", ""),
    ],
)
def test_choice(response, letter):
    assert letter_in(response) == letter


@pytest.mark.parametrize(
    ("response", "value", "expected"),
    [
        ("36", 36, True),
        ("**36**.", 36, True),
        ("36.0", 36, True),
        ("so 500 + 700 = 1,200 copies", 1200, True),
        ("€1,234,567.50.", 1234567.5, True),
        ("-5", -5, True),
        ("8-9", 9, True),
        ("-5", 5, False),
        ("13 O2", 13, True),
        ("2 C4H10 + 13 O2 -> 8 CO2 + 10 H2O, so 13", 13, True),
        ("the coefficient of O2 is 13", 13, True),
        ("6 cm^2", 6, True),
        ("H2O", 2, False),
        ("10^3", 3, False),
        ("36 or 37", 36, False),  # the last number counts
        ("1,2", 12, False),  # a list, not a thousands separator
        ("18,69", 1869, False),
        ("416.5", 416.5, True),
        ("4165", 416.5, False),
        ("416.50001", 416.5, False),
        ("thirty-six", 36, False),
        ("", 0, False),
        ("9" * 400, 9, False),
    ],
)
def test_number(response, value, expected):
    assert judge(response, {"kind": "number", "value": value}) is expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Not stated", True),
        (' "not  stated". ', True),
        ("```\nnot stated\n```", True),
        ("not stated here", False),
        ("stated", False),
        ("", False),
    ],
)
def test_exact(response, expected):
    assert judge(response, {"kind": "exact", "value": "not stated"}) is expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("South", True),
        ("He faces **south**.", True),
        ("- south", True),
        ("the South.", True),
        ("Süden, that is sud", True),
        ("southwest", False),
        ("South-west", False),
        ("North-South", False),
        ("southern", False),
        ("", False),
    ],
)
def test_contains(response, expected):
    assert judge(response, {"kind": "contains", "value": ["south", "Sud"]}) is expected


def test_contains_takes_values_literally():
    answer = {"kind": "contains", "value": "a.b@c.example"}
    assert judge("write to a.b@c.example.", answer) is True
    assert judge("write to axb@c.example", answer) is False


@pytest.mark.parametrize(
    ("response", "expected"), [("  d05a", True), ("`D05A`", True), ("e117", False), ("xd05a", False)]
)
def test_regex(response, expected):
    assert judge(response, {"kind": "regex", "value": r"\A\W*d05a\b"}) is expected


# ---------------------------------------------------------------- other languages


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("答案是B", "B"),
        ("答案是B。", "B"),
        ("正确答案：Ｂ", "B"),
        ("答案应该是(C)，因为它更重", "C"),
        ("所以应该选D。", "D"),
        ("故选Ｃ．", "C"),
        ("正确选项是B，答案是B选项。", "B"),
        ("B是正确的", "B"),
        ("答えはBです。", "B"),
        ("正解はCです", "C"),
        ("정답은 B입니다.", "B"),
        ("คำตอบคือ B", "B"),
        ("La réponse est la B.", "B"),
        ("La respuesta correcta es la opción D.", "D"),
        ("Die richtige Antwort lautet C.", "C"),
        ("La risposta corretta è B.", "B"),
        ("Правильный ответ: C", "C"),
        ("الإجابة الصحيحة هي B", "B"),
        ("उत्तर B है", "B"),
        # denied, or no choice at all
        ("答案不是A", ""),
        ("不选A", ""),
        ("答案是4个", ""),
        ("答案是ABC公司", ""),
        ("La respuesta es A veces difícil", ""),
        ("La réponse est D'Artagnan", ""),
        ("La réponse est Bruxelles", ""),
    ],
)
def test_choice_in_other_languages(response, letter):
    assert letter_in(response) == letter


@pytest.mark.parametrize(
    ("response", "value", "expected"),
    [
        # beside words of scripts that need no space
        ("答案是4个", 4, True),
        ("答案是14个", 4, False),
        ("答案是4.5个", 4, False),
        ("一共有５个", 5, True),
        ("答えは12です", 12, True),
        ("답은 7개입니다", 7, True),
        ("答案是-5度", -5, True),
        ("คำตอบคือ ๔๒", 42, True),
        ("الجواب هو ٤٢", 42, True),
        ("الجواب ٣٫٥", 3.5, True),
        ("١٬٢٠٠", 1200, True),
        ("उत्तर १२ है", 12, True),
        ("第3题的答案是x4", 4, False),
        ("ответ х4", 4, False),  # a Cyrillic letter
        # units that multiply
        ("4万", 4, False),
        ("4万", 40_000, True),
        ("约1億2000万人", 120_000_000, True),
        ("3.5亿", 350_000_000, True),
        ("5만 명", 50_000, True),
        ("4만큼", 4, True),
        ("4千克", 4, True),
        # decimal commas and grouping
        ("3,5", 3.5, True),
        ("3,5", 35, False),
        ("3.5", 35, False),
        ("35", 3.5, False),
        ("pH = 1,30.", 1.3, True),
        ("0,125", 0.125, True),
        ("1.000.000", 1_000_000, True),
        ("1.000.000", 1, False),
        ("1.234,56 €", 1234.56, True),
        ("1,234.56", 1234.56, True),
        ("1.200", 1200, True),
        ("1.200", 1.2, True),
        ("1,200", 1.2, False),
        ("1\u00a0234\u00a0567,5", 1234567.5, True),
        ("1\u202f004", 4, False),
        ("1\u202f200 exemplaires", 1200, True),
        ("1\u202f200 exemplaires", 200, False),
        ("1 200 exemplaires", 1200, True),
        ("1 004", 4, False),
        ("in 2024 100 copies", 100, True),
        ("100 200 300", 300, True),
        ("CHF 1'234'567.50", 1234567.5, True),
        ("1’200", 1200, True),
        ("₹12,34,567.50", 1234567.5, True),
        ("1,00,000", 100_000, True),
        ("1_000_000", 1_000_000, True),
        ("48,46,44", 44, True),
        ("version 1.2.3", 3, True),
        ("\u22125", -5, True),
        ("\u22125", 5, False),
        ("10²", 102, False),
    ],
)
def test_number_in_other_conventions(response, value, expected):
    assert judge(response, {"kind": "number", "value": value}) is expected


@pytest.mark.parametrize(
    ("response", "value", "expected"),
    [
        ("答案是北京。", "北京", True),
        ("答案是北京", ["Beijing", "北京"], True),
        ("答案是上海。", "北京", False),
        ("答案是Beijing。", "Beijing", True),
        ("答案是Beijingren。", "Beijing", False),
        ("คำตอบคือกรุงเทพครับ", "กรุงเทพ", True),
        ("答えは東京です", "東京", True),
        ("サウジアラビアのリヤド", "リヤド", True),
        ("정답은 서울입니다", "서울", True),
        ("정답은 남서울", "서울", False),
        ("عاصمتها القاهرة.", "القاهرة", True),
        ("بالقاهرة", "القاهرة", True),
        ("والقاهرة", "القاهرة", True),
        ("إسلام", "سلام", False),
        ("הבירה בירושלים", "ירושלים", True),
        ("राजधानी दिल्ली है", "दिल्ली", True),
        ("राजधानी दिल्ली है", "दिल", False),  # the next sign belongs to the same letter
        ("Москва", "москва", True),
        ("Подмосковье", "москва", False),
        ("答案是4个", "4", True),
        ("答案是14个", "4", False),
        ("答案是4.5个", "4", False),
        ("答案是3.4个", "4", False),
        ("４个", "4", True),
        ("2031\u201105\u201114", "2031-05-14", True),  # with hyphens that do not break
        ("mi\u00a0manchi", "mi manchi", True),
        ("Cafe\u0301", "café", True),
        ("Cafe\u0301", "cafe", False),
        ("north\u2013south", "south", False),
    ],
)
def test_contains_in_other_languages(response, value, expected):
    assert judge(response, {"kind": "contains", "value": value}) is expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [("「北京」。", True), ("北京！", True), ("北京市", False), ("答案是北京", False)],
)
def test_exact_in_other_scripts(response, expected):
    assert judge(response, {"kind": "exact", "value": "北京"}) is expected
