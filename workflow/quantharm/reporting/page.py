"""A page from its template: once as HTML that needs no network, once as Markdown.

The templates hold the sections and sentences; html.jinja and markdown.jinja the macros with which they are written.
Every value that a template shows is escaped for the format, so that nothing that a model wrote is taken for markup.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import jinja2
from markupsafe import Markup, escape

from quantharm.common.files import write_text
from quantharm.common.left_out import name, sentence
from quantharm.reporting.charts.base import Figure, to_svg, write_figure
from quantharm.reporting.format import number, sentence_case, share
from quantharm.reporting.tables.table import markdown_table
from quantharm.reporting.text import markdown, visible, with_code

TEMPLATES = Path(__file__).parents[2] / "report" / "templates"
SHOW = {"html": visible, "markdown": lambda text: Markup(markdown(text))}


def html_with_code(text: str) -> Markup:
    """A sentence for HTML, escaped; what stands between backticks in it, keys and commands, as code."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(visible(text)))))


WITH_CODE = {"html": html_with_code, "markdown": lambda text: Markup(markdown(text, with_code))}
FILTERS = {
    "number": number,
    "share": share,
    "sentence_case": sentence_case,
    "cell_name": name,
    "why_left_out": sentence,
    "markdown_table": markdown_table,
}


def environment(form: str) -> jinja2.Environment:
    """form: html or markdown. Text is escaped by `SHOW`, then for HTML where it is not Markup yet."""
    show = SHOW[form]
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        extensions=["jinja2.ext.do"],
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: show(value) if type(value) is str else value,
    )
    made.filters |= FILTERS | {"with_code": WITH_CODE[form]}
    return made


def write_page(html: Path, markdown: Path, template: str, title: str, shown: Mapping[str, object]) -> None:
    """Both forms of one page; title: in the browser's tab; shown: what the template names."""
    contents: list[tuple] = []  # (group, id, name) of each section, as the template comes to it
    pages = environment("html")
    body = pages.get_template(f"{template}.jinja").render(shown, form="html", contents=contents)
    frame = {"title": title, "contents": contents, "body": Markup(body), "script": script()}
    write_text(html, pages.get_template("page.html.jinja").render(frame))
    text = environment("markdown").get_template(f"{template}.jinja").render(shown, form="markdown")
    write_text(markdown, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def script() -> dict[str, str]:
    """The page's own script and the hash by which its content security policy lets it run, and nothing else."""
    text = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).digest()
    return {"text": Markup(text), "sha256": base64.b64encode(digest).decode()}


class Drawn(TypedDict):
    """A chart for the templates."""

    figure: Figure
    svg: Markup
    file: str | None  # from the page's folder


def drawn(figure: Figure, folder: Path | None = None) -> Drawn:
    """Written to the folder where one is named, else only shown."""
    key = figure.key if folder else f"study-{figure.key}"
    svg = write_figure(folder, figure) if folder else to_svg(figure)
    return {"figure": figure, "svg": inline_svg(key, svg), "file": f"figures/{figure.key}.svg" if folder else None}


def inline_svg(key: str, svg: str) -> Markup:
    """A chart for the page: names within it made unique, its size left to the style sheet."""
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r' aria-\w+="[^"]*"| role="[^"]*"', "", svg)
    width = re.search(r'<svg[^>]* width="([\d.]+)"', svg)
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+" height="[\d.]+"', r"\1", svg, count=1)
    style = f"--width:{float(width[1]):.0f}px" if width else ""
    return Markup(svg.replace("<svg ", f'<svg aria-hidden="true" style="{style}" ', 1))
