"""The report of one model, or of several: one HTML page, EVALUATION_SUMMARY.md, figures and tables.

Everything shown comes from finished result files; words come from figures by the rules in the config's `report:`. The
page needs no network: its charts, style and the few lines that sort tables are inside it, and its content security
policy lets nothing else run or load.
"""

import argparse
import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from quantharm.common.errors import UserError
from quantharm.common.files import read_json, write_text
from quantharm.common.left_out import LeftOut, name, sentence
from quantharm.common.stage import run_stage, stage_parser
from quantharm.config.validation import with_defaults
from quantharm.reporting import assessment as words
from quantharm.reporting import detection, examples
from quantharm.reporting import names as report_names
from quantharm.reporting import overview as report_overview
from quantharm.reporting import risks as risk
from quantharm.reporting.charts import cost as cost_charts
from quantharm.reporting.charts import quality as quality_charts
from quantharm.reporting.charts.base import Figure, nothing_to_show, to_svg, write_figure
from quantharm.reporting.format import number, sentence_case, share, size
from quantharm.reporting.results import Results, read_results
from quantharm.reporting.tables import cost, integrity, quality, record, speed, studies, trade
from quantharm.reporting.tables.table import Column, Table, markdown_table, text_cell, write_table
from quantharm.reporting.text import markdown, visible
from quantharm.reporting.verdicts import other_hardware_percent, scale

WORKFLOW = Path(__file__).parents[1]
TEMPLATES = WORKFLOW / "report" / "templates"
NOTHING = "No cell of this model can be compared."
SCHEMA = WORKFLOW / "schemas" / "config.schema.yaml"


def default_thresholds() -> dict[str, Any]:
    """The schema's defaults for the config's `report:`."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["properties"]["report"]
    return with_defaults(schema["default"], schema)


def environment() -> jinja2.Environment:
    """Templates escape everything for HTML, but those of Markdown, which name the filter `markdown` themselves."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: not (name or "").endswith(".md.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    found.filters |= {
        "markdown": markdown,
        "number": number,
        "share": share,
        "size": size,
        "sentence_case": sentence_case,
        "cell_name": name,
        "why_left_out": sentence,
        "markdown_table": markdown_table,
    }
    return found


def inline_svg(key: str, svg: str) -> Markup:
    """A chart for the page: names within it made unique, its size left to the style sheet."""
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r' aria-\w+="[^"]*"| role="[^"]*"', "", svg)
    width = re.search(r'<svg[^>]* width="([\d.]+)"', svg)
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+" height="[\d.]+"', r"\1", svg, count=1)
    style = f"--width:{float(width[1]):.0f}px" if width else ""
    return Markup(svg.replace("<svg ", f'<svg aria-hidden="true" style="{style}" ', 1))


def script() -> dict[str, str]:
    """The page's own script and the hash by which its content security policy lets it run, and nothing else."""
    text = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).digest()
    return {"text": Markup(text), "sha256": base64.b64encode(digest).decode()}


def model_tables(
    results: Results, found: list[words.Assessment], thresholds: dict[str, Any], rates: detection.Rates
) -> dict[str, Table]:
    tables = [
        words.executive_table(results, found),
        quality.perplexity_table(results, thresholds),
        quality.divergence_table(results, thresholds),
        quality.divergence_by_category_table(results),
        quality.answers_table(results),
        cost.sizes_table(results),
        cost.memory_table(results),
        cost.time_by_category_table(results),
        cost.length_by_category_table(results),
        cost.success_by_category_table(results),
        speed.benchmark_table(results, thresholds),
        speed.limits_table(results),
        trade.overall_table(results, words.best_use(results, found)),
        trade.trade_off_table(results, thresholds),
        trade.trade_off_pairs_table(results),
        words.harm_table(results, found),
        risk.risk_table(results, thresholds),
        risk.defense_table(results, thresholds),
        integrity.defenses_table(results),
        record.configuration_table(results),
        record.checks_table(results),
        studies.calibration_table(results),
        integrity.integrity_table(results),
        detection.detection_table(rates),
        record.environment_table(results),
        record.files_table(results),
    ]
    return {table.key: table for table in tables}


def model_figures(results: Results) -> list[Figure]:
    makers = [
        quality_charts.quality_against_size,
        quality_charts.perplexity_chart,
        quality_charts.kl_by_category_chart,
        quality_charts.kl_distribution,
        cost_charts.time_by_category,
        cost_charts.speed_chart,
        cost_charts.sizes_chart,
    ]
    return [make(results) for make in makers]


def write_figures(folder: Path, figures: list[Figure]) -> dict[str, dict[str, Any]]:
    """Files, and for the templates {key: {figure, svg}}."""
    return {f.key: {"figure": f, "svg": inline_svg(f.key, write_figure(folder, f))} for f in figures}


def report_model(arguments: argparse.Namespace, thresholds: dict[str, Any]) -> None:
    summary = read_json(arguments.model / "summary.json")
    if not summary["cells"]:
        report_nothing(arguments, summary["left_out"])
        return
    results = read_results(arguments.model, thresholds)
    found = [words.assess(cell, results, thresholds) for cell in results.methods]
    rates = detection.read_rates()
    tables = model_tables(results, found, thresholds, rates)
    figures = write_figures(arguments.figures, model_figures(results))
    for table in tables.values():
        write_table(arguments.tables, table)
    prompts = examples.prompt_texts(arguments.prompts)
    per_category = min(v["prompts"] for v in results.baseline.generation["by_category"].values())
    page = {
        "results": results,
        "baseline": results.baseline,
        "assessments": found,
        "tables": tables,
        "figures": figures,
        "thresholds": thresholds,
        "scales": {
            "kl": scale(thresholds["kl_nats"], " nats"),
            "perplexity": scale(thresholds["perplexity_change_percent"], " %"),
        },
        "hardware": {
            "kl": results.other_hardware_kl,
            "perplexity": other_hardware_percent(
                results.other_hardware_kl, results.baseline.perplexity["tokens_scored"]
            ),
        },
        "prompts_per_category": cost_charts.prompts_text(results),
        "categories_are_descriptive": per_category < thresholds["prompts_to_test_a_category"],
        "front": words.front_sentence(results),
        "demonstrated": words.demonstrated_harm(results, found),
        "baseline_conditions": words.baseline_conditions(results, found),
        "risk_caveat": risk.risk_caveat(results),
        "attack": risk.attack_sentence(results),
        "integrity_findings": integrity.integrity_findings(results),
        "detection_notes": detection.detection_notes(rates),
        "most_divergent": max((c.row["kl_nats_mean"], c.method) for c in results.believed or results.cells)[1],
        "worst_positions": {cell.method: examples.worst_positions(cell) for cell in results.methods},
        "responses": {cell.method: examples.responses(cell, results, prompts) for cell in results.methods},
        "studies": [
            {"table": table, "chart": {"figure": figure, "svg": inline_svg(f"study-{figure.key}", to_svg(figure))}}
            for table, figure in studies.studies(results)
        ],
        "calibration_caveat": studies.calibration_caveat(results),
        "script": script(),
    }
    render(arguments, "model", page)


def report_nothing(arguments: argparse.Namespace, left_out: list[LeftOut]) -> None:
    """The page of a model of which no cell can be compared: it says why, in the place of each chart and table, too."""
    words = f"{NOTHING} {'; '.join(f'{name(entry)}: {sentence(entry)}' for entry in left_out)}."
    columns = [Column(key, key.capitalize(), "left") for key in ("method", "stage", "reason")]
    rows = [[text_cell(str(entry[column.key])) for column in columns] for entry in left_out]
    for key, title in report_names.TABLES.items():
        write_table(arguments.tables, Table(key, title, columns, rows, words))
    for key, title in report_names.FIGURES.items():
        write_figure(arguments.figures, Figure(key, title, nothing_to_show(NOTHING), words))
    model = left_out[0]["model"]
    render(arguments, "nothing", {"model": model, "left_out": left_out, "tables": {}, "script": script()})


def report_models(arguments: argparse.Namespace, thresholds: dict[str, Any]) -> None:
    models = []
    left_out: list[LeftOut] = list(arguments.left_out)
    for folder in arguments.models:
        summary = read_json(folder / "summary.json")
        left_out += summary.get("left_out", [])
        if not summary["cells"]:
            continue
        results = read_results(folder, thresholds)
        models.append((results, [words.assess(cell, results, thresholds) for cell in results.methods]))
    tables = {table.key: table for table in report_overview.overview_tables(models, thresholds)}
    for table in tables.values():
        write_table(arguments.tables, table)
    page = {
        "models": models,
        "left_out": left_out,
        "failed": [(r.model, cell.method, cell.failed) for r, _ in models for cell in r.cells if cell.failed],
        "tables": tables,
        "figures": write_figures(arguments.figures, report_overview.overview_figures(models)),
        "scales": {
            "kl": scale(thresholds["kl_nats"], " nats"),
            "perplexity": scale(thresholds["perplexity_change_percent"], " %"),
        },
        "script": script(),
    }
    render(arguments, "overview", page)


def render(arguments: argparse.Namespace, name: str, page: dict[str, Any]) -> None:
    templates = environment()
    write_text(arguments.html, templates.get_template(f"{name}.html.jinja").render(page))
    text = templates.get_template(f"{name}.md.jinja").render(page)
    write_text(arguments.markdown, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    print(f"{arguments.html}: {arguments.html.stat().st_size / 1e6:.2f} MB, {len(page['tables'])} tables")


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", type=Path, help="results folder of one model")
    parser.add_argument("--models", type=Path, nargs="*", help="or results folders of several models")
    parser.add_argument("--left-out", type=json.loads, default=[], help="JSON: models that could not be summarised")
    parser.add_argument("--thresholds", type=json.loads, help="the config's `report:` as JSON; the schema's defaults")
    parser.add_argument("--prompts", type=Path, help="prompt suite, to show the prompts beside the responses")
    parser.add_argument("--html", type=Path, required=True, help="report.html")
    parser.add_argument("--markdown", type=Path, required=True, help="EVALUATION_SUMMARY.md")
    parser.add_argument("--figures", type=Path, required=True, help="folder for SVG and PNG")
    parser.add_argument("--tables", type=Path, required=True, help="folder for CSV and Parquet")
    arguments = parser.parse_args()
    thresholds = arguments.thresholds or default_thresholds()
    if (arguments.model is None) == (arguments.models is None):
        raise UserError("name either --model or --models")
    (report_model if arguments.model else report_models)(arguments, thresholds)


if __name__ == "__main__":
    run_stage(main)
