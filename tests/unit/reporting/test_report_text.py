"""What models wrote, made safe to show."""

import pytest
from markupsafe import Markup

from quantharm.reporting.examples import parting, token
from quantharm.reporting.page import environment, html_with_code, inline_svg
from quantharm.reporting.text import markdown, one_line, shortened, visible, with_code


def test_control_and_bidirectional_characters_are_shown_by_their_code():
    assert visible("a\x00b\x1bc\u202ed\u2066e\ufefff") == "a⟨U+0000⟩b⟨U+001B⟩c⟨U+202E⟩d⟨U+2066⟩e⟨U+FEFF⟩f"
    assert visible("ok é 漢字 ‰ עברית\n\tx") == "ok é 漢字 ‰ עברית\n\tx"
    assert visible("\ud800") == "⟨U+D800⟩"


def test_one_line():
    assert one_line("a  b\n\nc") == "a b⏎⏎c"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a|b", r"a\|b"),
        ("<script>alert(1)</script>", r"\<script\>alert(1)\</script\>"),
        ("**x** _y_ `z`", r"\*\*x\*\* \_y\_ \`z\`"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("![x](y)", r"\!\[x\](y)"),
        ("# title\n# two", r"\# title⏎\# two"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("https://example.org", r"https\://example.org"),
        ("back\\slash", r"back\\slash"),
        ("&lt;", r"\&lt;"),
    ],
)
def test_markdown_has_no_markup_left(text, safe):
    assert markdown(text) == safe


def test_what_a_template_shows_is_escaped_for_its_form():
    """In macros, filters and joined lists, too, and once only."""
    hostile = "<script>alert(1)</script>\u202e*x*"
    escaped = {
        "html": "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩*x*",
        "markdown": r"\<script\>alert(1)\</script\>⟨U+202E⟩\*x\*",
    }
    macro = "{% macro m(y) %}{{ y }}{% endmacro %}"
    for form, shown in escaped.items():
        for source in ("{{ x }}", macro + "{{ m(x) }}", "{{ x|sentence_case }}", "{{ '%s'|format(x) }}"):
            assert environment(form).from_string(source).render(x=hostile) == shown
        assert environment(form).from_string("{{ [x, x]|join(' ') }}").render(x=hostile) == f"{shown} {shown}"


def test_answers_part_between_words():
    assert parting("the cat sat", "the car sat") == ("the ", "cat sat", "car sat")
    assert parting("same", "same") == ("same", "", "")
    assert parting("a b", "a b c") == ("a b", "", " c")
    assert parting("", "x") == ("", "", "x")


def test_tokens_are_visible():
    assert token(" the") == "␣the"
    assert token("\n") == "⏎"
    assert token("") == "∅"


def test_shortened():
    assert shortened("abcdef", 4) == "abc…"
    assert shortened("abc", 4) == "abc"


def test_charts_in_the_page_have_their_own_names():
    svg = '<svg class="marks" width="70" height="9" viewBox="0 0 70 9"><g id="c0" clip-path="url(#c0)" role="x"/></svg>'
    shown = inline_svg("sizes", svg)
    assert 'id="sizes-c0"' in shown
    assert "url(#sizes-c0)" in shown
    assert "role=" not in shown
    assert "--width:70px" in shown


def test_what_stands_between_backticks_is_code_and_stays_escaped():
    assert html_with_code("see `window_tokens: 4096` & `<b>`, `half") == Markup(
        "see <code>window_tokens: 4096</code> &amp; <code>&lt;b&gt;</code>, `half"
    )
    assert markdown("see `window_tokens: 4096` & `a\x00_b`, `half_", with_code) == (
        "see `window_tokens: 4096` \\& `a⟨U+0000⟩_b`, \\`half\\_"
    )
