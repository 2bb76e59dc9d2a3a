"""Badges: escaped, readable, and as wide as their words."""

from xml.etree import ElementTree

import pytest

from quantharm.publishing.badge import COLOURS, LEFT_COLOUR, badge

SVG = "{http://www.w3.org/2000/svg}"


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [LEFT_COLOUR, *COLOURS.values()])
def test_white_text_can_be_read(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 4.5


def test_no_name_can_end_an_element_or_add_one():
    hostile = '"/><script>x</script>& \x1b \u202e\n'
    root = ElementTree.fromstring(badge(hostile, f"KL {hostile}", "high"))
    assert [e.tag for e in root.iter(f"{SVG}script")] == []
    assert next(root.iter(f"{SVG}text")).text.startswith('"/><script>x</script>&')
    assert "\u202e" not in ElementTree.tostring(root, encoding="unicode")


def test_longer_words_make_a_wider_badge():
    widths = [float(ElementTree.fromstring(badge("q", words, "low")).get("width")) for words in ("a", "aaaa", "a" * 40)]
    assert widths == sorted(widths)
    assert widths[0] < widths[1] < widths[2]
