"""The report of one model: its tables, its charts, and the words between them.

A table or a chart is a function of the results; templates/model.jinja says where it stands on the page.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from quantharm.reporting import demonstrated, detection, examples, ranking, risks
from quantharm.reporting.charts import cost as cost_charts
from quantharm.reporting.charts import depth as depth_charts
from quantharm.reporting.charts import divergence as divergence_charts
from quantharm.reporting.charts import quality as quality_charts
from quantharm.reporting.charts import tasks as task_charts
from quantharm.reporting.charts.base import Figure
from quantharm.reporting.judgement import judge_all
from quantharm.reporting.page import drawn
from quantharm.reporting.results import Results
from quantharm.reporting.tables import (
    cost,
    depth,
    engines,
    integrity,
    quality,
    record,
    speed,
    studies,
    tasks,
    text_divergence,
    trade,
    whole,
)
from quantharm.reporting.tables.table import Table
from quantharm.reporting.thresholds import Thresholds
from quantharm.reporting.verdicts import other_hardware_percent, scale

TABLES: list[Callable[[Results], Table]] = [
    whole.executive_table,
    quality.perplexity_table,
    quality.divergence_table,
    quality.divergence_by_category_table,
    depth.divergence_by_depth_table,
    text_divergence.text_divergence_table,
    text_divergence.context_depth_table,
    engines.engines_table,
    engines.caches_table,
    quality.answers_table,
    depth.long_answers_table,
    tasks.tasks_table,
    cost.sizes_table,
    cost.stored_types_table,
    cost.memory_table,
    *(partial(cost.by_category_table, key) for key in cost.BY_CATEGORY),
    speed.benchmark_table,
    speed.batches_table,
    speed.limits_table,
    whole.overall_table,
    trade.trade_off_table,
    trade.trade_off_pairs_table,
    whole.harm_table,
    risks.risk_table,
    risks.defense_table,
    integrity.defenses_table,
    record.configuration_table,
    record.checks_table,
    studies.calibration_table,
    integrity.integrity_table,
    record.environment_table,
    record.files_table,
]
FIGURES = [
    quality_charts.quality_against_size,
    quality_charts.perplexity_chart,
    divergence_charts.kl_by_category_chart,
    divergence_charts.kl_distribution,
    depth_charts.kl_by_depth_chart,
    task_charts.recovery_chart,
    divergence_charts.text_divergence_chart,
    cost_charts.time_by_category,
    cost_charts.speed_chart,
    cost_charts.batches_chart,
    cost_charts.sizes_chart,
]


def tables(results: Results) -> list[Table]:
    return [*(make(results) for make in TABLES), detection.detection_table(detection.read_rates())]


def figures(results: Results) -> list[Figure]:
    return [make(results) for make in FIGURES]


def words(results: Results, prompts: Path | None) -> dict[str, object]:
    """Values that model.jinja names beside tables, charts and assessments; prompts: the suite, shown beside answers."""
    judged = judge_all(results)
    other_hardware, tokens = results.other_hardware_kl, results.baseline.perplexity["tokens_scored"]
    asked = examples.prompt_texts(prompts)
    return {
        "results": results,
        "scales": scales(results.thresholds),
        "hardware": {"kl": other_hardware, "perplexity": other_hardware_percent(other_hardware, tokens)},
        "failed": "; ".join(f"{cell.method}: {', '.join(cell.failed)}" for cell in results.cells if cell.failed),
        "prompts_per_category": cost_charts.prompts_text(results),
        "front": ranking.front_sentence(results),
        "demonstrated": demonstrated.demonstrated_harm(results, judged),
        "baseline_conditions": demonstrated.baseline_conditions(results, judged),
        "risk_caveat": risks.risk_caveat(results),
        "attack": risks.attack_sentence(results),
        "integrity_findings": integrity.integrity_findings(results),
        "detection_notes": detection.detection_notes(detection.read_rates()),
        "most_divergent": max((c.row["kl_nats_mean"], c.method) for c in results.believed or results.cells)[1],
        "worst_positions": {cell.method: examples.worst_positions(cell) for cell in results.methods},
        "responses": {cell.method: examples.responses(cell, results, asked) for cell in results.methods},
        "studies": [{"table": table, "chart": drawn(figure)} for table, figure in studies.studies(results)],
        "calibration_caveat": studies.calibration_caveat(results),
    }


def scales(thresholds: Thresholds) -> dict[str, str]:
    """The rules of the verdicts."""
    return {
        "kl": scale(thresholds["kl_nats"], " nats"),
        "perplexity": scale(thresholds["perplexity_change_percent"], " %"),
    }
