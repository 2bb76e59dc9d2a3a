"""The figures that limits are on, each with its interval and what it is over."""

from dataclasses import replace

from quantharm.common.answers import LONG_TOKENS
from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.records.tasks import AllTasks
from quantharm.common.shares import share_interval
from quantharm.config.engines import NO_WEIGHTS
from quantharm.gating.limits import Limit
from quantharm.gating.verdicts import Figure
from quantharm.reporting.format import listing
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.verdicts import other_hardware_percent

EXACT = ("weight_bytes", "checkpoint_bytes", "compression", "checks", "integrity")
OF_KL = ("kl_nats", "category_kl_nats", "text_kl_nats")
SYNTHETIC = "synthetic weights have no quality"
NO_TASKS = "no tasks were run (`tasks` of the protocol)"


def figure_of(limit: Limit, cell: Cell, results: Results) -> Figure:
    """A cell's figure for a limit; one without a value says why."""
    if limit.key == "checks":
        return Figure(float(len(cell.failed)), exact=True)
    if limit.key == "integrity":
        verified = cell.row["integrity_verified"]
        missing = NO_WEIGHTS if cell.served else "the stage integrity was not finished" if verified is None else ""
        return Figure(None if verified is None else float(not verified), exact=True, missing=missing)
    if cell.failed:
        return Figure(None, missing=f"it failed {listing(cell.failed)}: its figures are not to be believed")
    if cell.served and limit.key in (*EXACT, "decode_rate_ratio"):
        return Figure(None, missing=NO_WEIGHTS if limit.key in EXACT else "it runs on hardware that is not seen")
    if limit.key in EXACT:
        return Figure(float(cell.figure(limit.key)), exact=True)
    if limit.key == "decode_rate_ratio":
        return decode_rate_ratio(cell)
    if cell.synthetic:
        return Figure(None, missing=SYNTHETIC)
    figure = QUALITY[limit.key](limit, cell, results)
    return replace(figure, at_least=True) if cell.bounded and limit.key in OF_KL else figure


def decode_rate_ratio(cell: Cell) -> Figure:
    """Of the decode rates that a user can reach: captured where it can be, else eager."""
    change, bounds = cell.decode_change
    repetitions = len(cell.generation["benchmark"]["decode_tokens_per_second"]["values"])
    ratios = bounds and [1 + bound / 100 for bound in bounds]
    return Figure(1 + change / 100, ratios, repetitions, "repetitions")


def prompts_of(cell: Cell) -> int:
    """The prompts that its mean KL is over."""
    return sum(category["prompts"] for category in cell.by_category.values())


def mean_kl(limit: Limit, cell: Cell, results: Results) -> Figure:
    """Nats, over all prompts."""
    row = cell.row
    return Figure(row["kl_nats_mean"], row["kl_nats_ci95"], prompts_of(cell), "prompts", floor=results.least_kl)


def category_kl(limit: Limit, cell: Cell, results: Results) -> Figure:
    """Nats, over the prompts of the limit's category."""
    measured = cell.by_category.get(limit.subject or "")
    if measured is None:
        return Figure(None, missing=f"no prompt of this run is of the category {limit.subject}")
    return Figure(measured["kl_nats_mean"], measured["ci95"], measured["prompts"], "prompts", floor=results.least_kl)


def text_kl(limit: Limit, cell: Cell, results: Results) -> Figure:
    """Nats, over the windows of the evaluation text."""
    measured = cell.divergence["by_category"].get(TEXT_CATEGORY)
    if measured is None:
        return Figure(None, missing="no window of the text was compared (`text_windows` of the protocol is 0)")
    return Figure(measured["kl_nats_mean"], measured["ci95"], measured["prompts"], "windows", floor=results.least_kl)


def perplexity_change(limit: Limit, cell: Cell, results: Results) -> Figure:
    """Percent of the baseline's perplexity."""
    tokens = cell.row["perplexity_tokens_scored"]
    return Figure(
        cell.row["perplexity_change_percent"],
        cell.row["perplexity_change_percent_ci95"],
        cell.perplexity["windows"],
        "windows",
        floor=other_hardware_percent(results.other_hardware_kl, tokens),
    )


def recovery(limit: Limit, cell: Cell, results: Results) -> Figure:
    """Accuracy over all tasks, as a share of the baseline's."""
    tasks = cell.row.get("tasks_overall")
    if tasks is None:
        return Figure(None, missing=NO_TASKS)
    if tasks["recovery"] is None:
        return Figure(None, missing="the baseline answered no task item right")
    return Figure(tasks["recovery"], tasks["recovery_ci95"], tasks["items"], "items", resolution=resolution(tasks))


def flips(limit: Limit, cell: Cell, results: Results) -> Figure:
    """Share of task items that turned, from right to wrong or from wrong to right."""
    tasks = cell.row.get("tasks_overall")
    if tasks is None:
        return Figure(None, missing=NO_TASKS)
    turned, items = tasks["flips"] or 0, tasks["items"]
    return Figure(turned / items, share_interval(turned, items), items, "items")


def resolution(tasks: AllTasks) -> str:
    """The smallest change that so many items can show, in words."""
    least = tasks.get("smallest_detectable_difference")
    return "" if least is None else f"; so many items show a change of accuracy from {100 * least:.2g} points on"


def loops(limit: Limit, cell: Cell, results: Results) -> Figure:
    """Share of answers that end in a loop, beyond the baseline's over the same prompts."""
    row = cell.row
    if row["max_new_tokens"] < LONG_TOKENS or "answers_looping_added_share" not in row:
        words = f"answers of at most {row['max_new_tokens']} tokens are too short for loops; take the protocol `long`"
        return Figure(None, missing=words)
    return Figure(
        row["answers_looping_added_share"], row["answers_looping_added_share_ci95"], row["prompts"], "prompts"
    )


QUALITY = {
    "kl_nats": mean_kl,
    "category_kl_nats": category_kl,
    "text_kl_nats": text_kl,
    "perplexity_change_percent": perplexity_change,
    "recovery": recovery,
    "flips": flips,
    "loops": loops,
}
