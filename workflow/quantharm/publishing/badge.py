"""A badge as SVG: two fields, no font, script or picture from elsewhere, every text escaped."""

from xml.sax.saxutils import escape, quoteattr

from quantharm.reporting.text import one_line

COLOURS = {  # of the right field; white text has a contrast of at least 4.5 on each
    "negligible": "#1a7f37",
    "low": "#4d7c0f",
    "moderate": "#b45309",
    "high": "#b91c1c",
    "failed": "#b91c1c",
    "unknown": "#5c6370",
}
LEFT_COLOUR = "#3b424c"
HEIGHT, PADDING, SIZE = 20, 6, 11
NARROW, WIDE = "ijlt.,:;|!'()[]fI1 ", "mwMWÅ@%—"


def text_width(text: str) -> float:
    """Roughly, in pixels at SIZE; the SVG then fits the text to it (textLength)."""
    return sum(4.0 if c in NARROW else 10.0 if c in WIDE else 6.8 for c in text)


def badge(left: str, right: str, level: str) -> str:
    """level: a key of COLOURS."""
    words = [one_line(left), one_line(right)]
    lengths = [text_width(word) for word in words]
    widths = [length + 2 * PADDING for length in lengths]
    total = sum(widths)
    title = f"{words[0]}: {words[1]}"
    fields = []
    for x, width, length, word, colour in zip(
        (0.0, widths[0]), widths, lengths, words, (LEFT_COLOUR, COLOURS[level]), strict=True
    ):
        fields.append(
            f'<rect x="{x:g}" width="{width:g}" height="{HEIGHT}" fill="{colour}"/>'
            f'<text x="{x + PADDING:g}" y="14" textLength="{length:g}" lengthAdjust="spacingAndGlyphs">'
            f"{escape(word)}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total:g}" height="{HEIGHT}" role="img" '
        f"aria-label={quoteattr(title)}><title>{escape(title)}</title>"
        f'<clipPath id="r"><rect width="{total:g}" height="{HEIGHT}" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)" fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="{SIZE}">'
        f"{''.join(fields)}</g></svg>\n"
    )
