"""Numbers in a text of any language: digits of other scripts, and 1,234.5, 1.234,5, 1 234,5, 1'234.5 or 1,23,456."""

import re
import unicodedata

# Letters that are written in words with spaces around them and stand beside digits in names (O2, x4).
CASED = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0370-\u058f\u1e00-\u1fff"
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
