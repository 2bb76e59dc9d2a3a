"""Tables of quality: perplexity, KL divergence, answers."""

from functools import partial

from quantharm.reporting.format import count, fixed, number, share_to_a_tenth
from quantharm.reporting.judgement import believed, kl_of, perplexity_of
from quantharm.reporting.limit_verdicts import largest
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import (
    METHOD,
    but_baseline,
    by_method,
    figure,
    first_difference,
    named,
    perplexity_change,
    text,
    verdict,
)
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, table_of, text_field

four_decimals = partial(fixed, decimals=4)


def perplexity_table(results: Results) -> Table:
    columns = [
        METHOD,
        figure("perplexity", "Perplexity [95\u00a0%]", four_decimals, bounds="perplexity_ci95"),
        perplexity_change("Change from the baseline [95\u00a0%, paired]", "reference"),
        verdict("verdict", "Verdict", lambda cell: believed(cell, perplexity_of(cell, results)), baseline="reference"),
        figure("bits_per_byte", "Bits per byte", four_decimals),
    ]
    first = results.baseline.perplexity
    note = (
        f"Protocol {first['protocol']}: {first['tokens_scored']:,} tokens in {count(first['windows'], 'window')}. "
        "Intervals by Student's t over windows; the change is paired by window, so its interval is "
        "much narrower than the perplexity's."
    )
    return table_of("perplexity", columns, results.cells, note)


def divergence_table(results: Results) -> Table:
    def worst_category(cell: Cell) -> Field:
        worst = largest(cell.by_category)
        return text_field(worst[0], aside=f"{number(worst[1])} nats") if worst else text_field("–")

    columns = [
        METHOD,
        figure("kl_nats_mean", "Mean KL, nats [95\u00a0%]", bounds="kl_nats_ci95"),
        verdict("verdict", "Verdict", lambda cell: believed(cell, kl_of(cell, results)), baseline="the noise floor"),
        figure("kl_nats_median", "Median"),
        figure("kl_nats_p99", "99th percentile"),
        figure("kl_nats_max", "Largest"),
        figure("top1_agreement", "Top-1 agreement", share_to_a_tenth),
        figure("text_kl_nats_mean", "Mean KL on the text"),
        but_baseline(Column("worst_category", "Worst category", "left", worst_category)),
    ]
    note = (
        f"KL(baseline ‖ method) over the whole vocabulary at {results.baseline.divergence['positions']:,} positions of "
        "the baseline's own greedy answers: mean of category means of prompt means, 95 % intervals over prompts within "
        "categories (Student's t on a logarithmic scale). The baseline's row is its divergence from what it stored "
        "itself: what repeating a forward pass changes."
    )
    return table_of("divergence", columns, results.cells, note)


def divergence_by_category_table(results: Results) -> Table:
    """Rows are categories; the last column names the method with the largest KL."""

    def worst_method(category: str) -> str | None:
        by_method = {c.method: c.by_category for c in results.believed_methods}
        measured = {method: kl[category] for method, kl in by_method.items() if category in kl}
        worst = largest(measured)
        return worst and worst[0]

    def kl(cell: Cell, category: str) -> Field:
        measured = cell.by_category.get(category, {"kl_nats_mean": None, "ci95": None})
        tone = "worst" if cell.method == worst_method(category) else ""
        return figure_field(measured["kl_nats_mean"], number, measured["ci95"], tone=tone)

    columns = [
        named("category", "Category"),
        *by_method("kl_nats_mean", results.methods, kl, "{}, nats [95\u00a0%]"),
        text("worst_method", "Worst method", lambda category: worst_method(category) or "–"),
    ]
    return table_of("divergence-by-category", columns, results.categories)


def answers_table(results: Results) -> Table:
    """Answers that a program can judge, and responses that changed at all."""

    def counted(key: str, label: str, of: str) -> Column:
        return Column(key, label, field=lambda cell: Field(f"{cell.row[key]} of {cell.row[of]}", cell.row[key]))

    columns = [
        METHOD,
        counted("succeeded", "Succeeded", "prompts"),
        counted("correct", "Correct answers", "judged"),
        figure("flips_right_to_wrong", "Correct → wrong", str, baseline="–"),
        figure("flips_wrong_to_right", "Wrong → correct", str, baseline="–"),
        but_baseline(counted("identical_responses", "Same as the baseline's", "prompts")),
        first_difference("First differing token, median"),
        figure("degenerate", "Degenerate", str, lambda cell: cell.generation["degenerate"]),
    ]
    note = (
        "A prompt succeeds if its answer has at least one token, finite logits and no short cycle at its end. Correct "
        "answers are counted where a program can judge them."
    )
    return table_of("answers", columns, results.cells, note)
