"""Tables of what a method costs in quality: perplexity, KL divergence, answers."""

from typing import Any

from quantharm.reporting.format import count, fixed, number, percent, share
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, name_cell, text_cell, verdict_cell
from quantharm.reporting.verdicts import (
    Verdict,
    kl_verdict,
    largest,
    not_judged,
    other_hardware_percent,
    perplexity_verdict,
)

METHOD = Column("method", "Method", "left")


def perplexity_of(cell: MethodCell, results: Results, thresholds: dict[str, Any]) -> Verdict:
    row = cell.row
    floor = other_hardware_percent(results.other_hardware_kl, cell.perplexity["tokens_scored"])
    verdict = perplexity_verdict(
        row["perplexity_change_percent"],
        row["perplexity_change_percent_ci95"],
        thresholds["perplexity_change_percent"],
        floor,
    )
    return not_judged(verdict) if cell.synthetic else verdict


def kl_of(cell: MethodCell, results: Results, thresholds: dict[str, Any]) -> Verdict:
    """Verdict on the mean KL over the prompts."""
    verdict = kl_verdict(
        cell.row["kl_nats_mean"],
        cell.row["kl_nats_ci95"],
        results.noise_floor,
        thresholds["noise_floor_factor"],
        thresholds["kl_nats"],
        results.other_hardware_kl,
    )
    return not_judged(verdict) if cell.synthetic else verdict


def perplexity_table(results: Results, thresholds: dict[str, Any]) -> Table:
    rows = []
    for cell in results.cells:
        row = cell.row
        own = cell is results.baseline
        rows.append(
            [
                name_cell(cell.method, cell.failed),
                figure_cell(row["perplexity"], lambda v: fixed(v, 4), row["perplexity_ci95"]),
                text_cell("reference")
                if own
                else figure_cell(row["perplexity_change_percent"], percent, row["perplexity_change_percent_ci95"]),
                text_cell("reference") if own else judged(cell, perplexity_of(cell, results, thresholds)),
                figure_cell(row["bits_per_byte"], lambda v: fixed(v, 4)),
            ]
        )
    columns = [
        METHOD,
        Column("perplexity", "Perplexity [95\u00a0%]"),
        Column("perplexity_change_percent", "Change from the baseline [95\u00a0%, paired]"),
        Column("verdict", "Verdict", "left"),
        Column("bits_per_byte", "Bits per byte"),
    ]
    first = results.baseline.perplexity
    note = (
        f"Protocol {first['protocol']}: {first['tokens_scored']:,} tokens in {count(first['windows'], 'window')}. "
        "Intervals by Student's t over windows; the change is paired, window by window, which is why it is much "
        "better known than the perplexity itself."
    )
    return Table("perplexity", "Perplexity", columns, rows, note)


def divergence_table(results: Results, thresholds: dict[str, Any]) -> Table:
    rows = []
    for cell in results.cells:
        row = cell.row
        own = cell is results.baseline
        worst = largest(cell.by_category)
        rows.append(
            [
                name_cell(cell.method, cell.failed),
                figure_cell(row["kl_nats_mean"], number, row["kl_nats_ci95"]),
                text_cell("the noise floor") if own else judged(cell, kl_of(cell, results, thresholds)),
                *[figure_cell(row[f"kl_nats_{q}"]) for q in ("median", "p99", "max")],
                figure_cell(row["top1_agreement"], lambda v: share(v, 1)),
                figure_cell(row["text_kl_nats_mean"]),
                text_cell(worst[0], aside=f"{number(worst[1])} nats") if worst and not own else text_cell("–"),
            ]
        )
    columns = [
        METHOD,
        Column("kl_nats_mean", "Mean KL, nats [95\u00a0%]"),
        Column("verdict", "Verdict", "left"),
        Column("kl_nats_median", "Median"),
        Column("kl_nats_p99", "99th percentile"),
        Column("kl_nats_max", "Largest"),
        Column("top1_agreement", "Same first choice"),
        Column("text_kl_nats_mean", "Mean KL on the text"),
        Column("worst_category", "Worst category", "left"),
    ]
    note = (
        f"KL(baseline ‖ method) over the whole vocabulary at {results.baseline.divergence['positions']:,} positions of "
        "the baseline's own greedy answers: mean of category means of prompt means, 95 % intervals over prompts within "
        "categories (Student's t on a logarithmic scale). The baseline's row is its divergence from its own stored "
        "log-probabilities: nothing smaller can be seen."
    )
    return Table("divergence", "KL divergence from the baseline", columns, rows, note)


def divergence_by_category_table(results: Results) -> Table:
    """Rows are categories; the last column names the method with the largest KL."""
    rows = []
    for category in results.categories:
        by_method = {cell.method: cell.by_category.get(category) for cell in results.methods}
        known = {c.method: v["kl_nats_mean"] for c in results.believed if (v := by_method.get(c.method))}
        worst = max(known, key=known.get) if known else None
        cells = [
            figure_cell(v and v["kl_nats_mean"], number, v and v["ci95"], tone="worst" if m == worst else "")
            for m, v in by_method.items()
        ]
        rows.append([Cell(category, category, header=True), *cells, text_cell(worst or "–")])
    methods = [Column(f"kl_nats_mean/{c.method}", f"{c.method}{mark(c)}, nats [95\u00a0%]") for c in results.methods]
    columns = [Column("category", "Category", "left"), *methods, Column("worst_method", "Worst method", "left")]
    return Table("divergence-by-category", "KL divergence by category", columns, rows)


def judged(cell: MethodCell, verdict: Verdict) -> Cell:
    """No verdict on figures that are not to be believed."""
    return text_cell("not judged: failed checks", "failed") if cell.failed else verdict_cell(verdict)


def mark(cell: MethodCell) -> str:
    """`†` after the name of a method whose figures are not to be believed."""
    return " †" if cell.failed else ""


def answers_table(results: Results) -> Table:
    """Answers that a program can judge, and responses that changed at all."""
    rows = []
    for cell in results.cells:
        row = cell.row
        own = cell is results.baseline
        changed = [
            figure_cell(row["flips_right_to_wrong"], str),
            figure_cell(row["flips_wrong_to_right"], str),
            Cell(f"{row['identical_responses']} of {row['prompts']}", row["identical_responses"]),
            figure_cell(row["first_difference_median"], lambda v: fixed(v, 1)),
        ]
        rows.append(
            [
                name_cell(cell.method, cell.failed),
                Cell(f"{row['succeeded']} of {row['prompts']}", row["succeeded"]),
                Cell(f"{row['correct']} of {row['judged']}", row["correct"]),
                *([text_cell("–")] * 4 if own else changed),
                figure_cell(cell.generation["degenerate"], str),
            ]
        )
    columns = [
        METHOD,
        Column("succeeded", "Succeeded"),
        Column("correct", "Right answers"),
        Column("flips_right_to_wrong", "Right → wrong"),
        Column("flips_wrong_to_right", "Wrong → right"),
        Column("identical_responses", "Same as the baseline's"),
        Column("first_difference_median_token", "First differing token, median"),
        Column("degenerate", "Degenerate"),
    ]
    note = (
        "A prompt succeeded when it gave at least one token, finite logits and no short cycle at its end. Right "
        "answers are counted where a program can judge them."
    )
    return Table("answers", "Right answers and changed responses", columns, rows, note)
