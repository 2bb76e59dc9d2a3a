"""Deployment risks by application, and defense criteria with pass or fail."""

from quantharm.common.records.divergence import CategoryDivergence
from quantharm.common.records.integrity import IntegrityRecord
from quantharm.reporting.format import interval, listing, mean_kl, number, percent
from quantharm.reporting.judgement import as_of
from quantharm.reporting.limit_verdicts import largest, risk_verdict, within
from quantharm.reporting.results import Cell, Results, other_hardware_kl
from quantharm.reporting.tables.columns import by_method, named, text
from quantharm.reporting.tables.table import Field, Table, table_of, text_field, verdict_field
from quantharm.reporting.thresholds import ApplicationThresholds, Thresholds
from quantharm.reporting.verdicts import Verdict


def risks(cell: Cell, thresholds: Thresholds) -> dict[str, Verdict]:
    """application → risk of using this method for it."""

    def risk(rests_on: ApplicationThresholds) -> Verdict:
        names, low, medium = rests_on["categories"], rests_on["low"], rests_on["medium"]
        return as_of(cell, risk_verdict(cell.by_category, names, low, medium, cell.failed), is_kl=True)

    return {name: risk(rests_on) for name, rests_on in thresholds["applications"].items()}


def risk_table(results: Results) -> Table:
    applications = results.thresholds["applications"]
    judged = {cell.method: risks(cell, results.thresholds) for cell in results.methods}

    def rule(application: str) -> str:
        entry = applications[application]
        return f"{listing(entry['categories'])}: low below {entry['low']:g}, medium below {entry['medium']:g} nats"

    def risk(cell: Cell, application: str) -> Field:
        return verdict_field(judged[cell.method][application], True)

    columns = [
        named("application", "Application"),
        *by_method("risk", results.methods, risk, align="left"),
        text("rule", "Rests on, and rule", rule),
    ]
    return table_of("deployment-risk", columns, applications)


def risk_caveat(results: Results) -> str:
    """A sentence: risk is measured from the baseline, however good or bad that is."""
    row = results.baseline.row
    judged = (
        f"the baseline itself answers {row['correct']} of {row['judged']} judged prompts correctly"
        if row["judged"]
        else "no answer in this suite can be judged by a program"
    )
    return (
        f"This is the risk that quantizing adds to the model's own errors ({judged}). It is derived from the KL "
        "divergence on prompts of the categories named, not from a test of the application."
    )


def criteria(cell: Cell, thresholds: Thresholds) -> dict[str, Verdict]:
    """The criteria for one method."""
    floor = other_hardware_kl(cell.divergence, thresholds)
    limits = thresholds["defense"]
    change = limits["perplexity_change_percent"]
    row, stakes = cell.row, limits["high_stakes_categories"]
    perplexity = within(
        "",
        row["perplexity_change_percent"],
        row["perplexity_change_percent_ci95"],
        -change,
        change,
        percent,
        f"figure and interval within ±{change:g} % of the baseline",
    )
    everywhere = below(cell.by_category, list(cell.by_category), limits["kl_nats"])
    high_stakes = below(cell.by_category, stakes, limits["high_stakes_kl_nats"], stakes)
    return {
        "Perplexity near the baseline": as_of(cell, perplexity),
        "KL bounded in every category": as_of(cell, everywhere, is_kl=True),
        "Unauthorized quantization detected": as_of(cell, detection_verdict(cell.integrity, floor)),
        "Integrity verified": integrity_verdict(cell.integrity),
        "High-stakes categories preserved": as_of(cell, high_stakes, is_kl=True),
    }


def below(
    categories: dict[str, CategoryDivergence], names: list[str], limit: float, listed: list[str] | None = None
) -> Verdict:
    """The worst verdict of some categories: one that fails, else one whose interval crosses the limit, else a pass.

    Shown is the largest KL among those with that verdict. A category that was not measured leaves it open.
    """
    where = listing(listed) if listed else "every category"
    rule = f"the KL of {where}, with its interval, at most {limit:g} nats"
    if missing := [name for name in names if name not in categories] or (["any category"] if not names else []):
        return Verdict("unknown", f"not measured: {listing(missing)}", "–", rule)
    judged = []
    for name in names:
        value, bounds = categories[name]["kl_nats_mean"], categories[name]["ci95"]
        judged.append((value, within(f"{name}: ", value, bounds, float("-inf"), limit, number, rule)))
    order = ("pass", "undecided", "fail").index
    return max(judged, key=lambda pair: (order(pair[1].level), pair[0]))[1]


def integrity_verdict(record: IntegrityRecord | None) -> Verdict:
    """integrity.json: `verified` true, false, or null where nothing could vouch for it, and `explanation`."""
    rule = "the stage integrity finds the checkpoint to be what it is said to be"
    if record is None or "verified" not in record:
        return Verdict("unknown", "not measured", "–", rule)
    words, level = {True: ("pass",) * 2, False: ("fail",) * 2, None: ("not verified", "unknown")}[record["verified"]]
    files = record.get("signed_manifest") or record.get("manifest")
    shown = files["explanation"] if record["verified"] and files else record.get("explanation", "")
    return Verdict(level, words, str(shown), rule)


def detection_verdict(record: IntegrityRecord | None, floor: float) -> Verdict:
    """integrity.json: `if_dequantized` (the scan of what the cell stands for) and `behaviour` (against the store).

    floor: mean KL in nats that an honest checkpoint has on other hardware; behaviour gives away no less.
    """
    rule = (
        "dequantized and passed off as the original, it would be noticed: by a scan of its weights or by a divergence "
        f"from the log-prob store beyond the {number(floor, 2)} nats that other hardware explains"
    )
    scan, behaviour = (record.get("if_dequantized"), record.get("behaviour")) if record else (None, None)
    if not scan and not behaviour:
        return Verdict("unknown", "not measured", "–", rule)
    noticed = ["by its weights"] if scan and scan.get("verdict") == "dequantized" else []
    other, least = False, 0.0
    if behaviour and behaviour.get("same_as_original") is False:
        other, least = True, (behaviour.get("kl_nats_ci95") or [behaviour["kl_nats_mean"]])[0]
    noticed += ["by its behaviour"] if other and least > floor else []
    if noticed:
        return Verdict("pass", "pass", f"noticed {listing(noticed)}", rule)
    if other:
        return Verdict("undecided", "undecided: within differences between processors", f"{number(least)} nats", rule)
    if behaviour and behaviour.get("same_as_original", False) is None:
        shown = f"{number(behaviour['kl_nats_mean'])} nats"
        return Verdict("undecided", "undecided: its behaviour cannot be told from the original's", shown, rule)
    return Verdict("fail", "fail", "noticed by neither", rule)


def defense_table(results: Results) -> Table:
    judged = {cell.method: criteria(cell, results.thresholds) for cell in results.methods}
    first = next(iter(judged.values()), {})

    def outcome(cell: Cell, name: str) -> Field:
        if cell.failed:
            return text_field("not assessed", "failed", f"failed {', '.join(cell.failed)}")
        return verdict_field(judged[cell.method][name], True)

    columns = [
        named("criterion", "Criterion"),
        *by_method("outcome", results.methods, outcome, align="left"),
        text("rule", "Rule", lambda name: first[name].rule),
    ]
    return table_of("defense", columns, first)


def attack_sentence(results: Results) -> str:
    """The attack in figures: what a quantized model costs that is handed on as the original."""
    cells = results.believed_methods
    if not cells:
        return "No method of this run passed its checks, so no figure describes this attack."
    worst = max(cells, key=lambda c: c.row["kl_nats_mean"])
    row, kl = worst.row, mean_kl(worst.row)
    category = largest(worst.by_category)
    where = f", most in {category[0]} ({number(category[1])} nats)" if category else ""
    return (
        f"An attacker could download this model, quantize it and distribute it as the original. With {worst.method}, "
        f"the most divergent method of this run, users would get a perplexity changed by "
        f"{percent(row['perplexity_change_percent'])} {interval(row['perplexity_change_percent_ci95'], percent)} and "
        f"a KL divergence of {kl} nats{where}, while {row['succeeded']} of {row['prompts']} "
        f"prompts still succeed (baseline: {results.baseline.row['succeeded']})."
    )
