"""What the figures say about a method: strengths, weaknesses, verdict, and when to use it. Sentences made by rules.

A sentence appears only where its rule holds, and every sentence names the figure that it rests on.
"""

from dataclasses import dataclass
from typing import Any

from quantharm.reporting.format import count, fixed, interval, listing, number, percent, share, size
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import COMPRESSION, METHOD, figure
from quantharm.reporting.tables.quality import kl_of, perplexity_of
from quantharm.reporting.tables.speed import decode_of, kind_of, time_of
from quantharm.reporting.tables.table import Cell as TableCell
from quantharm.reporting.tables.table import Column, Table, figure_cell, name_cell, table_of, text_cell, verdict_cell
from quantharm.reporting.tables.trade import beaten_by, front_of
from quantharm.reporting.verdicts import LEVELS, Verdict, change_verdict, harm_verdict, largest, level_of


@dataclass(frozen=True)
class Assessment:
    """All that the report says in words about one method."""

    method: str
    harm: Verdict
    perplexity: Verdict
    kl: Verdict
    decode: Verdict
    time: Verdict
    strengths: list[str]
    weaknesses: list[str]
    headline: str  # `Use x if`
    conditions: list[str]
    cautions: list[str]
    sentence: str


def assess(cell: Cell, results: Results, thresholds: dict[str, Any]) -> Assessment:
    perplexity, kl = perplexity_of(cell, results, thresholds), kl_of(cell, results, thresholds)
    harm = harm_verdict(perplexity, kl, cell.failed)
    decode = decode_of(cell, results, thresholds)
    time = time_of(cell, results, thresholds)
    strengths, weaknesses = strengths_and_weaknesses(cell, results, thresholds, perplexity, kl, decode)
    headline, conditions, cautions = recommendation(cell, results, harm, perplexity, kl, decode, thresholds)
    return Assessment(
        cell.method,
        harm,
        perplexity,
        kl,
        decode,
        time,
        strengths,
        weaknesses,
        headline,
        conditions,
        cautions,
        in_short(cell, results, harm, perplexity, kl, decode),
    )


def in_short(cell: Cell, results: Results, harm: Verdict, perplexity: Verdict, kl: Verdict, decode: Verdict) -> str:
    """One sentence a method for the first screen."""
    row = cell.row
    if cell.failed:
        return (
            f"failed {count(len(cell.failed), 'check')} ({listing(cell.failed)}): its figures are shown but not to be "
            "believed, and no verdict rests on them."
        )
    if row["saved_bytes"] > 0:
        saves = f"saves {size(row['saved_bytes'])} ({fixed(row['compression'], 2)}× smaller)"
    else:
        saves = "saves no memory"
    speed = {
        "none": "decoding at no measurably other speed",
        "unknown": f"its speed {decode.words}",
    }.get(decode.level, f"decoding {fixed(abs(cell.decode_change[0]), 0)} % {decode.words}")
    if cell.synthetic:
        return f"{saves}, {speed}."
    changed = percent(row["perplexity_change_percent"])
    quality = f"perplexity {changed}" + (f" ({perplexity.words})" if perplexity.level == "none" else "")
    return f"{saves}, {speed}, at {harm.words}: {quality}, KL {number(row['kl_nats_mean'])} nats ({kl.words})."


def strengths_and_weaknesses(
    cell: Cell, results: Results, thresholds: dict[str, Any], perplexity: Verdict, kl: Verdict, decode: Verdict
) -> tuple[list[str], list[str]]:
    if cell.failed:
        return [], [f"failed the check {name}" for name in cell.failed]
    row, reference = cell.row, results.baseline.row
    strengths, weaknesses = [], []
    if row["saved_bytes"] > 0:
        strengths.append(
            f"{fixed(row['compression'], 2)}× smaller in memory ({size(reference['weight_bytes'])} → "
            f"{size(row['weight_bytes'])})"
        )
    else:
        weaknesses.append(f"not smaller in memory ({size(row['weight_bytes'])})")
    mild = perplexity.level in ("none", "negligible", "low")
    (strengths if mild else weaknesses).append(f"perplexity {perplexity.figure}: {perplexity.words}")
    if kl.level == "none":
        strengths.append(f"KL {kl.figure}: {kl.words}")
    else:
        (strengths if kl.level in LEVELS[:2] else weaknesses).append(f"KL divergence {kl.figure}: {kl.words}")
    agreement = row["top1_agreement"]
    enough = agreement >= thresholds["top1_agreement"]
    (strengths if enough else weaknesses).append(
        f"the first choice is the baseline's at {share(agreement, 1)} of positions"
    )
    if decode.level in ("rises", "falls"):
        (strengths if decode.level == "rises" else weaknesses).append(f"decoding is {decode.words}: {decode.figure}")
    if row["succeeded"] == row["prompts"]:
        strengths.append(f"all {count(row['prompts'], 'prompt')} succeeded")
    elif row["succeeded"] < reference["succeeded"]:
        lost = reference["succeeded"] - row["succeeded"]
        weaknesses.append(f"{count(lost, 'prompt')} of {row['prompts']} fewer succeeded than with the baseline")
    if row["flips_right_to_wrong"] > row["flips_wrong_to_right"]:
        weaknesses.append(
            f"{count(row['flips_right_to_wrong'], 'right answer')} of {reference['correct']} became wrong, "
            f"{row['flips_wrong_to_right']} the other way"
        )
    worst = largest(cell.by_category)
    if worst and level_of(worst[1], thresholds["kl_nats"]) in LEVELS[2:] and kl.level != "none":
        weaknesses.append(f"departs most in {worst[0]} (KL {number(worst[1])} nats {interval(worst[2])})".rstrip())
    better = beaten_by(results, cell.method)
    if better:
        weaknesses.append(f"{listing(better)} is at most as large and measurably closer to the baseline")
    return strengths, weaknesses


def recommendation(
    cell: Cell,
    results: Results,
    harm: Verdict,
    perplexity: Verdict,
    kl: Verdict,
    decode: Verdict,
    thresholds: dict[str, Any],
) -> tuple[str, list[str], list[str]]:
    """(`Use x if`, its conditions, cautions)."""
    row, reference = cell.row, results.baseline.row
    name = cell.method
    if cell.failed:
        return f"Do not use {name}", [], [f"it failed {listing(cell.failed)}: find the cause first"]
    if row["saved_bytes"] <= 0 and decode.level != "rises":
        return f"No reason to use {name}", [], ["it is neither smaller nor measurably faster than the baseline"]
    conditions, cautions = [], []
    if row["saved_bytes"] > 0:
        conditions.append(
            f"memory is short: {size(row['weight_bytes'])} must do in place of {size(reference['weight_bytes'])}"
        )
    if harm.level == "none":
        conditions.append("the answers must stay what they were: no harm could be measured")
    else:
        conditions.append(
            f"{harm.words} is acceptable: perplexity {perplexity.figure}, KL {number(row['kl_nats_mean'])} nats"
        )
    if decode.level == "rises":
        conditions.append(f"decoding speed matters: {decode.figure}")
    elif decode.level == "falls":
        conditions.append(f"slower decoding is acceptable: {decode.figure}")
    worst = largest(cell.by_category)
    if worst and kl.level != "none" and level_of(worst[1], thresholds["kl_nats"]) in LEVELS[2:]:
        cautions.append(f"check it on your own data for tasks like {worst[0]}, where it departs most")
    better = beaten_by(results, name)
    if better:
        cautions.append(f"prefer {listing(better, 'or')}: at most as large, and measurably closer to the baseline")
    if harm.level == "high":
        return f"Use {name} only where nothing else fits, if", conditions, cautions
    return (f"Use {name} with caution if" if harm.level == "moderate" else f"Use {name} if"), conditions, cautions


def baseline_conditions(results: Results, assessments: list[Assessment]) -> list[str]:
    """When to leave the model as it is."""
    row = results.baseline.row
    conditions = [
        f"{size(row['weight_bytes'])} of weights fit",
        f"the answers must not change at all (perplexity {fixed(row['perplexity'], 2)} is the reference)",
    ]
    if assessments and all(a.harm.level not in ("none", "negligible") for a in assessments):
        conditions.append("the harm measured here matters to your task: no method of this run is without it")
    if assessments and all(a.decode.level == "falls" for a in assessments):
        conditions.append("speed matters: every method of this run decodes more slowly")
    return conditions


def best_use(results: Results, assessments: list[Assessment]) -> dict[str, str]:
    """A phrase a method, by rank among the cells that passed their checks."""
    believed = [c for c in results.methods if not c.failed]
    smallest = min(believed, key=lambda c: c.row["weight_bytes"], default=None)
    closest = min(believed, key=lambda c: c.row["kl_nats_mean"], default=None)
    decode = {a.method: a.decode.level for a in assessments}
    fastest = max(believed, key=lambda c: c.decode_change[0], default=None)
    words = {results.baseline.method: "quality first (the reference)"}
    for cell in results.methods:
        claims = []
        if cell is closest and not results.synthetic:
            claims.append("closest to the baseline")
        if cell is smallest and cell.row["saved_bytes"] > 0:
            claims.append("smallest")
        if cell is fastest and decode[cell.method] == "rises":
            claims.append("fastest")
        other = "in between" if cell.method in front_of(results) else "none: another is as small and closer"
        other = "–" if results.synthetic else other
        words[cell.method] = "none: failed checks" if cell.failed else listing(claims) if claims else other
    return words


def harm_table(results: Results, assessments: list[Assessment]) -> Table:
    """Harm indicators, a row a method."""
    assessed = {a.method: a for a in assessments}
    whole = results.baseline.row["weight_bytes"]

    def figure_judged(key: str, label: str, show, verdict: str) -> Column:
        def cell_of(cell: Cell) -> TableCell:
            return figure_cell(cell.row[key], show, tone=getattr(assessed[cell.method], verdict).level)

        return Column(key, label, cell=cell_of)

    def success(cell: Cell) -> TableCell:
        change = change_verdict(*cell.changes["succeeded_points"], "more succeed", "fewer succeed")
        return text_cell(f"{cell.row['succeeded']} of {cell.row['prompts']}", aside=change.words)

    def decode(cell: Cell) -> TableCell:
        return text_cell(assessed[cell.method].decode.words, aside=percent(cell.decode_change[0], 1))

    columns = [
        METHOD,
        Column("verdict", "Verdict", "left", lambda cell: verdict_cell(assessed[cell.method].harm)),
        figure_judged("perplexity_change_percent", "Perplexity change", percent, "perplexity"),
        figure_judged("kl_nats_mean", "Mean KL, nats", number, "kl"),
        figure(
            "saved_percent",
            "Memory saved",
            lambda cell: 100 * cell.row["saved_bytes"] / whole,
            lambda v: f"{fixed(v, 1)}\u00a0%",
        ),
        COMPRESSION,
        Column("success", "Success", cell=success),
        Column("decode", "Decode speed", "left", decode),
    ]
    return table_of("harm", "Harm by method", columns, results.methods)


def executive_table(results: Results, assessments: list[Assessment]) -> Table:
    """The first screen: what each method costs and gains, and whether it may be believed."""
    rows = []
    found = {a.method: a for a in assessments}
    for cell in results.cells:
        row, words = cell.row, found.get(cell.method)
        ran = [c for c in cell.checks["checks"] if c["status"] != "skipped"]
        passed = sum(c["status"] == "pass" for c in ran)
        belief = (
            text_cell("no", "fail", f"failed {', '.join(cell.failed)}")
            if cell.failed
            else text_cell("yes", "pass", f"{passed} of {len(ran)} checks")
        )
        if words is None:
            cost = [text_cell("reference"), text_cell("0 %"), figure_cell(row["kl_nats_mean"], aside="noise floor")]
            gain = [figure_cell(row["weight_bytes"], size), text_cell("–"), text_cell("reference")]
        else:
            change = row["perplexity_change_percent"]
            bounds = row["perplexity_change_percent_ci95"]
            rate = cell.decode_change
            cost = [
                verdict_cell(words.harm),
                figure_cell(change, percent, bounds, tone=words.perplexity.level),
                figure_cell(row["kl_nats_mean"], number, row["kl_nats_ci95"], tone=words.kl.level),
            ]
            gain = [
                figure_cell(row["weight_bytes"], size),
                figure_cell(row["compression"], lambda v: f"{fixed(v, 2)}×"),
                figure_cell(
                    rate[0],
                    lambda v: percent(v, 0),
                    rate[1],
                    "not judged" if words.decode.level == "unknown" else kind_of(cell, results),
                ),
            ]
        rows.append([name_cell(cell.method, cell.failed), belief, *cost, *gain])
    columns = [
        METHOD,
        Column("believable", "May it be believed?", "left"),
        Column("harm", "Harm", "left"),
        Column("perplexity_change_percent", "Perplexity change [95\u00a0%]"),
        Column("kl_nats_mean", "Mean KL, nats [95\u00a0%]"),
        Column("weight_bytes", "Weights loaded"),
        Column("compression", "Smaller by"),
        Column("decode_change_percent", "Decode rate [95\u00a0%]"),
    ]
    return Table("executive-summary", "What each method costs and gains", columns, rows)


def demonstrated_harm(results: Results, assessments: list[Assessment]) -> list[str]:
    """What the run shows, each sentence with its figures; what it does not show is said too."""
    per_category = min(v["prompts"] for v in results.baseline.generation["by_category"].values())
    few = per_category < results.thresholds["prompts_to_test_a_category"]
    cells = [c for c in results.methods if not c.failed]
    words = {a.method: a for a in assessments}
    if not cells:
        return ["No method of this run passed its checks: nothing is demonstrated."]
    sentences = []
    harmed = [c for c in cells if words[c.method].perplexity.level in LEVELS]
    unharmed = [c for c in cells if words[c.method].perplexity.level == "none"]
    if harmed:
        shown = listing([f"{c.method} {words[c.method].perplexity.figure}" for c in harmed])
        sentences.append(f"Perplexity rises measurably: {shown}.")
    if unharmed:
        shown = listing([f"{c.method} {words[c.method].perplexity.figure}" for c in unharmed])
        sentences.append(f"No measurable rise of the perplexity: {shown}.")
    undecided = [c for c in cells if words[c.method].perplexity.level == "undecided"]
    if undecided:
        shown = listing([f"{c.method} {words[c.method].perplexity.figure}" for c in undecided])
        sentences.append(f"The change of the perplexity is not known well enough to judge: {shown}.")
    shifted = [c for c in cells if words[c.method].kl.level in LEVELS]
    if shifted:
        shown = listing(
            [f"{c.method} {number(c.row['kl_nats_mean'])} nats ({words[c.method].kl.words})" for c in shifted]
        )
        sentences.append(f"The distribution of the next token shifts: {shown}.")
    worst = {c.method: largest(c.by_category) for c in shifted}
    if worst:
        shown = listing([f"{m} in {w[0]} ({number(w[1])} nats {interval(w[2])})" for m, w in worst.items() if w])
        caution = f"; descriptive, {count(per_category, 'prompt')} are too few to single out a category"
        sentences.append(f"Largest by category: {shown}{caution if few else ''}.")
    for direction, sentence in (("falls", "Decoding is measurably slower"), ("rises", "Decoding is measurably faster")):
        slower = [c for c in cells if words[c.method].decode.level == direction]
        if slower:
            sentences.append(f"{sentence}: {listing([f'{c.method} {words[c.method].decode.figure}' for c in slower])}.")
    silent = [c for c in shifted if c.row["succeeded"] == c.row["prompts"] and words[c.method].harm.level in LEVELS[2:]]
    if silent:
        sentences.append(
            f"The harm is silent: every prompt still succeeds with {listing([c.method for c in silent])}, so a monitor "
            "that counts failures sees nothing."
        )
    return sentences


def front_sentence(results: Results) -> str:
    """Which methods are worth their size, by what could be measured."""
    reference = results.baseline.method
    front = [m for m in front_of(results) if m != reference]
    if not front:
        return "No method of this run is on the Pareto front of size against divergence."
    off = {c.method: beaten_by(results, c.method) for c in results.methods}
    rest = [
        f"{m} is not: {listing(others)} is at most as large and measurably closer"
        for m, others in off.items()
        if others
    ]
    sentence = (
        f"On the Pareto front of size against divergence: {listing(front)}{'; ' if rest else ''}{'; '.join(rest)}."
    )
    same = [
        f"{a} and {b}"
        for (a, b), difference in results.kl_differences.items()
        if a < b and a in front and b in front and not difference.measurable
    ]
    return sentence + (f" No measurable difference in KL between {listing(same)}." if same else "")
