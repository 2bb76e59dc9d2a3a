"""The lines of a budget as text for a terminal, as Markdown, and as JUnit XML for CI services."""

import re
from xml.etree import ElementTree

from quantharm.common.sanitize import visible
from quantharm.gating.advice import Advice, named
from quantharm.gating.judging import UNFINISHED
from quantharm.gating.limits import kind_of
from quantharm.gating.verdicts import BREACH, PASS, Line
from quantharm.reporting.format import MISSING, interval
from quantharm.reporting.tables.columns import text
from quantharm.reporting.tables.table import Column, Field, Table, markdown_table, name_field, table_of, text_field
from quantharm.reporting.text import markdown as escaped
from quantharm.reporting.text import one_line

TONES = {PASS: "pass", BREACH: "fail"}


def cell_of(entry: Line) -> str:
    """`model × method`; of a whole model its name."""
    return entry["model"] if entry["method"] is None else f"{entry['model']} × {entry['method']}"


def limit_on(entry: Line) -> str:
    """`mean KL in Translation`"""
    if entry["limit"] == UNFINISHED:
        return "the cell"
    return named(entry)


def bound_of(entry: Line) -> str:
    """`≤ 0.05 nats`"""
    if entry["bound"] is None:
        return MISSING
    kind = kind_of(entry["limit"])
    return f"{'≤' if entry['at_most'] else '≥'} {kind.show(entry['bound'])}{kind.unit}"


def figure_of(entry: Line) -> Field:
    """`0.031 nats`, and `[0.027, 0.036]` beside it."""
    if entry["value"] is None:
        return Field(MISSING)
    kind = kind_of(entry["limit"])
    shown = f"{kind.show(entry['value'])}{kind.unit}"
    return Field(shown, entry["value"], entry["ci95"], interval(entry["ci95"], kind.show))


def words_of(field: Field) -> str:
    """`0.031 nats [0.027, 0.036]`"""
    return f"{field.text} {field.aside}".strip()


def over(entry: Line) -> str:
    """`24 prompts`"""
    return f"{entry['counted']:,} {entry['of']}" if entry["counted"] else MISSING


COLUMNS = [
    Column("model", "Model", "left", lambda entry: name_field(entry["model"])),
    Column("method", "Method", "left", lambda entry: name_field(entry["method"] or "all")),
    text("limit", "Limit on", limit_on),
    Column("figure", "Figure [95\u00a0%]", field=figure_of),
    Column("bound", "Limit", field=lambda entry: Field(bound_of(entry), entry["bound"])),
    text("over", "Over", over, align="right"),
    Column(
        "verdict",
        "Verdict",
        "left",
        lambda entry: text_field(entry["verdict"], TONES.get(entry["verdict"], "undecided"), entry["reason"]),
    ),
]


def budget_table(lines: list[Line]) -> Table:
    """A row a line, for the report's page and for budget.md."""
    note = (
        "A limit is kept where the whole 95 % interval is within it, and breached where the whole interval is beyond; "
        "undecided where the interval holds the limit."
    )
    return table_of("budget", COLUMNS, lines, note if lines else "The config has no budget.", "The budget")


def terminal_table(lines: list[Line]) -> str:
    """Columns padded to their widest entry; reasons below their line."""
    rows = [[column.label for column in COLUMNS]]
    rows += [[*map(words_of, figures), verdict.text] for *figures, verdict in budget_table(lines).rows]
    rows = [[one_line(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    told = []
    for row, reason in zip(rows, ["", *(entry["reason"] for entry in lines)], strict=True):
        told.append("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
        if reason:
            told.append(f"    {one_line(reason)}")
    return "\n".join(told)


def markdown(passed: bool, sentence: str, lines: list[Line], advice: list[Advice]) -> str:
    """budget.md: the outcome, the advice on each model, the table."""
    parts = [f"# Budget: {'passed' if passed else 'FAILED'}", escaped(sentence)]
    parts += [f"**{escaped(entry['model'])}**: {escaped(entry['sentence'])}" for entry in advice]
    return "\n\n".join([*parts, markdown_table(budget_table(lines))]) + "\n"


def xml_text(text: str) -> str:
    """The part of a text that XML 1.0 can hold: no control characters, no halves of surrogates."""
    return re.sub(r"[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", visible(text))


def junit(lines: list[Line]) -> str:
    """A suite a model, a case a limit: `failure` where the gate fails, `skipped` where it accepts what is not known."""
    root = ElementTree.Element("testsuites", name="quantharm budget")
    for model in dict.fromkeys(entry["model"] for entry in lines):
        own = [entry for entry in lines if entry["model"] == model]
        counts = {
            "tests": len(own),
            "failures": sum(not entry["accepted"] for entry in own),
            "errors": 0,
            "skipped": sum(entry["accepted"] and entry["verdict"] != PASS for entry in own),
        }
        attributes = {"name": xml_text(model)} | {key: str(many) for key, many in counts.items()}
        suite = ElementTree.SubElement(root, "testsuite", attributes)
        for entry in own:
            name = f"{limit_on(entry)} {bound_of(entry)}".removesuffix(f" {MISSING}")
            case = ElementTree.SubElement(suite, "testcase", classname=xml_text(cell_of(entry)), name=xml_text(name))
            words = f"{entry['verdict']}: {words_of(figure_of(entry))} over {over(entry)}".removesuffix(
                f" over {MISSING}"
            )
            words += f"; {entry['reason']}" if entry["reason"] else ""
            if not entry["accepted"]:
                failure = ElementTree.SubElement(case, "failure", type=entry["verdict"], message=xml_text(words))
                failure.text = xml_text(words)
            elif entry["verdict"] != PASS:
                ElementTree.SubElement(case, "skipped", message=xml_text(words))
            else:
                ElementTree.SubElement(case, "system-out").text = xml_text(words)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
