"""The report of one model, or of several: one HTML page, EVALUATION_SUMMARY.md, figures and tables.

Everything shown comes from finished result files; words come from figures by the thresholds in the config's `report:`.
The page needs no network: its charts, style and the few lines that sort tables are inside it, and its content security
policy lets nothing else run or load.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import yaml

from quantharm.common.errors import UserError
from quantharm.common.files import read_json
from quantharm.common.left_out import LeftOut, name, sentence
from quantharm.common.stage import run_stage, stage_parser
from quantharm.config.entries import Budget
from quantharm.config.validation import with_defaults
from quantharm.gating.advice import Advice, advise, reasons
from quantharm.gating.forms import budget_table
from quantharm.gating.judging import judged
from quantharm.gating.limits import has_limits
from quantharm.gating.verdicts import Line
from quantharm.reporting import model_page, names
from quantharm.reporting.assessment import Assessment, assess
from quantharm.reporting.charts.base import Figure, nothing_to_show
from quantharm.reporting.charts.overview import overview_figures
from quantharm.reporting.judgement import judge_all
from quantharm.reporting.page import drawn, write_page
from quantharm.reporting.reading import read_models, read_results
from quantharm.reporting.results import Results
from quantharm.reporting.tables.columns import text
from quantharm.reporting.tables.overview import overview_tables
from quantharm.reporting.tables.table import table_of, write_table
from quantharm.reporting.thresholds import Thresholds

NOTHING = "No cell of this model can be compared."
SCHEMA = Path(__file__).parents[1] / "schemas" / "config.schema.yaml"


def default_thresholds() -> Thresholds:
    """The schema's defaults for the config's `report:`."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["properties"]["report"]
    return with_defaults(schema["default"], schema)


def report_model(arguments: argparse.Namespace) -> None:
    summary = read_json(arguments.model / "summary.json")
    if not summary["cells"]:
        report_nothing(arguments, summary["left_out"])
        return
    results = read_results(arguments.model, arguments.thresholds)
    lines = judged(results, arguments.budget) if arguments.budget else []
    tables, figures = [budget_table(lines), *model_page.tables(results)], model_page.figures(results)
    assessments = [assess(judgement, results) for judgement in judge_all(results).values()]
    shown = model_page.words(results, arguments.prompts)
    shown |= by_the_budget(assessments, results, lines, arguments.budget)
    write(arguments, "model", f"Quantization of {results.model}", tables, figures, shown)


class Advised(TypedDict):
    """The budget's verdict and advice, as the page shows them."""

    passed: bool
    advice: str


class ByTheBudget(TypedDict):
    """What the page shows of a budget; no `budget` without one."""

    budget: Advised | None
    assessments: list[Assessment]


def by_the_budget(
    assessments: list[Assessment], results: Results, lines: list[Line], budget: Budget | None
) -> ByTheBudget:
    """What the budget says; a method outside of it is not recommended, whatever else is said."""
    if not lines or budget is None:
        return {"budget": None, "assessments": assessments}
    refused: dict[str, list[Line]] = {}
    for line in lines:
        if not line["accepted"]:
            refused.setdefault(str(line["method"]), []).append(line)

    def within(assessment: Assessment) -> Assessment:
        method = assessment.judged.method
        if method not in refused:
            return assessment
        cautions = [f"the budget: {reasons(refused[method])}"]
        return replace(assessment, headline=f"Do not use {method}", conditions=[], cautions=cautions)

    advice = advise(results, lines, budget)["sentence"]
    return {"budget": {"passed": not refused, "advice": advice}, "assessments": [*map(within, assessments)]}


def advice_on(models: list[Results], budget: Budget | None) -> list[Advice]:
    """The budget's advice on each model; nothing without a budget."""
    if budget is None or not has_limits(budget):
        return []
    return [advise(results, judged(results, budget), budget) for results in models]


def report_nothing(arguments: argparse.Namespace, left_out: list[LeftOut]) -> None:
    """The page of a model of which no cell can be compared: it says why, in the place of each chart and table, too."""
    words = f"{NOTHING} {'; '.join(f'{name(entry)}: {sentence(entry)}' for entry in left_out)}."
    columns = [text(key, key.capitalize(), key) for key in ("method", "stage", "reason")]
    tables = [table_of(key, columns, left_out, words) for key in names.TABLES]
    figures = [Figure(key, title, nothing_to_show(NOTHING), words) for key, title in names.FIGURES.items()]
    model = left_out[0]["model"]
    shown = {"model": model, "left_out": left_out}
    write(arguments, "nothing", f"Quantization of {model}", tables, figures, shown)


def report_models(arguments: argparse.Namespace) -> None:
    models, left_out = read_models(arguments.models, arguments.thresholds)
    failed = [f"{r.model} × {cell.method}: {', '.join(cell.failed)}" for r in models for cell in r.cells if cell.failed]
    shown = {
        "models": [(results, [assess(j, results) for j in judge_all(results).values()]) for results in models],
        "left_out": arguments.left_out + left_out,
        "failed": "; ".join(failed),
        "scales": model_page.scales(arguments.thresholds),
        "advice": advice_on(models, arguments.budget),
    }
    title = f"Quantization of {len(models)} models"
    write(arguments, "overview", title, overview_tables(models), overview_figures(models), shown)


def write(arguments: argparse.Namespace, template: str, title: str, tables: list, figures: list, shown: dict) -> None:
    """The tables and charts as files, and the page that shows them with its words."""
    for table in tables:
        write_table(arguments.tables, table)
    shown |= {
        "tables": {table.key: table for table in tables},
        "figures": {figure.key: drawn(figure, arguments.figures) for figure in figures},
    }
    write_page(arguments.html, arguments.markdown, template, title, shown)
    print(f"{arguments.html}: {arguments.html.stat().st_size / 1e6:.2f} MB, {len(tables)} tables")


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", type=Path, help="results folder of one model")
    parser.add_argument("--models", type=Path, nargs="*", help="or results folders of several models")
    parser.add_argument("--left-out", type=json.loads, default=[], help="JSON: models that could not be summarised")
    parser.add_argument("--thresholds", type=json.loads, help="the config's `report:` as JSON; the schema's defaults")
    parser.add_argument("--budget", type=json.loads, help="the config's `budget:` as JSON")
    parser.add_argument("--prompts", type=Path, help="prompt suite, to show the prompts beside the responses")
    parser.add_argument("--html", type=Path, required=True, help="report.html")
    parser.add_argument("--markdown", type=Path, required=True, help="EVALUATION_SUMMARY.md")
    parser.add_argument("--figures", type=Path, required=True, help="folder for SVG and PNG")
    parser.add_argument("--tables", type=Path, required=True, help="folder for CSV and Parquet")
    arguments = parser.parse_args()
    arguments.thresholds = arguments.thresholds or default_thresholds()
    if (arguments.model is None) == (arguments.models is None):
        raise UserError("name either --model or --models")
    (report_model if arguments.model else report_models)(arguments)


if __name__ == "__main__":
    run_stage(main)
