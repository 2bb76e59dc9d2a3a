"""Tables of what a method costs in quality: perplexity, KL divergence, answers."""

from functools import partial
from typing import Any

from quantharm.reporting.format import count, fixed, number, percent, share
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results
from quantharm.reporting.tables.columns import METHOD, but_baseline, figure, one_decimal, summed_up
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, table_of, text_cell, verdict_cell
from quantharm.reporting.verdicts import (
    Verdict,
    kl_verdict,
    largest,
    not_judged,
    other_hardware_percent,
    perplexity_verdict,
)


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
    verdict = Column("verdict", "Verdict", "left", lambda cell: judged(cell, perplexity_of(cell, results, thresholds)))
    columns = [
        METHOD,
        summed_up("perplexity", "Perplexity [95\u00a0%]", partial(fixed, decimals=4), "perplexity_ci95"),
        summed_up(
            "perplexity_change_percent",
            "Change from the baseline [95\u00a0%, paired]",
            percent,
            "perplexity_change_percent_ci95",
            baseline="reference",
        ),
        but_baseline(verdict, "reference"),
        summed_up("bits_per_byte", "Bits per byte", partial(fixed, decimals=4)),
    ]
    first = results.baseline.perplexity
    note = (
        f"Protocol {first['protocol']}: {first['tokens_scored']:,} tokens in {count(first['windows'], 'window')}. "
        "Intervals by Student's t over windows; the change is paired, window by window, which is why it is much "
        "better known than the perplexity itself."
    )
    return table_of("perplexity", "Perplexity", columns, results.cells, note)


def divergence_table(results: Results, thresholds: dict[str, Any]) -> Table:
    def worst_category(cell: MethodCell) -> Cell:
        worst = largest(cell.by_category)
        return text_cell(worst[0], aside=f"{number(worst[1])} nats") if worst else text_cell("–")

    verdict = Column("verdict", "Verdict", "left", lambda cell: judged(cell, kl_of(cell, results, thresholds)))
    columns = [
        METHOD,
        summed_up("kl_nats_mean", "Mean KL, nats [95\u00a0%]", bounds="kl_nats_ci95"),
        but_baseline(verdict, "the noise floor"),
        summed_up("kl_nats_median", "Median"),
        summed_up("kl_nats_p99", "99th percentile"),
        summed_up("kl_nats_max", "Largest"),
        summed_up("top1_agreement", "Same first choice", partial(share, decimals=1)),
        summed_up("text_kl_nats_mean", "Mean KL on the text"),
        but_baseline(Column("worst_category", "Worst category", "left", worst_category)),
    ]
    note = (
        f"KL(baseline ‖ method) over the whole vocabulary at {results.baseline.divergence['positions']:,} positions of "
        "the baseline's own greedy answers: mean of category means of prompt means, 95 % intervals over prompts within "
        "categories (Student's t on a logarithmic scale). The baseline's row is its divergence from its own stored "
        "log-probabilities: nothing smaller can be seen."
    )
    return table_of("divergence", "KL divergence from the baseline", columns, results.cells, note)


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

    def counted(key: str, label: str, figure: str, of: str) -> Column:
        return Column(key, label, cell=lambda cell: Cell(f"{cell.row[figure]} of {cell.row[of]}", cell.row[figure]))

    columns = [
        METHOD,
        counted("succeeded", "Succeeded", "succeeded", "prompts"),
        counted("correct", "Right answers", "correct", "judged"),
        summed_up("flips_right_to_wrong", "Right → wrong", str, baseline="–"),
        summed_up("flips_wrong_to_right", "Wrong → right", str, baseline="–"),
        but_baseline(
            counted("identical_responses", "Same as the baseline's", "identical_responses", "prompts"),
        ),
        but_baseline(
            figure(
                "first_difference_median_token",
                "First differing token, median",
                lambda cell: cell.row["first_difference_median"],
                one_decimal,
            )
        ),
        figure("degenerate", "Degenerate", lambda cell: cell.generation["degenerate"], str),
    ]
    note = (
        "A prompt succeeded when it gave at least one token, finite logits and no short cycle at its end. Right "
        "answers are counted where a program can judge them."
    )
    return table_of("answers", "Right answers and changed responses", columns, results.cells, note)
