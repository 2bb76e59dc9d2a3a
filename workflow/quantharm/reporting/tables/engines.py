"""Tables of what ran a checkpoint: the same weights by engine, side by side, and caches of keys and values."""

import json
from functools import partial

from quantharm.config.engines import OPENAI, TRANSFORMERS, engine_of
from quantharm.reporting.format import (
    at_least,
    count,
    number,
    one_decimal,
    percent,
    share,
    share_to_a_tenth,
    size,
    times,
)
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import CHANGE, METHOD, figure, text
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, name_field, table_of, text_field

BESIDE = [  # what is shown of each engine
    (CHANGE, "Perplexity", percent),
    ("kl_nats_mean", "KL, nats", number),
    ("top1_agreement", "Top-1", share_to_a_tenth),
]
Weights = list[Cell]  # cells of the same weights, with exact caches, one an engine


def settings_of(cell: Cell) -> dict:
    return cell.quantization["settings"]


def engine(cell: Cell) -> str:
    return engine_of(settings_of(cell))


def cache_of(cell: Cell) -> str:
    """`q8_0`, `keys q8_0, values q4_0`, `quanto, 4 bits`; nothing where it is exact."""
    asked = settings_of(cell).get("kv_cache")
    if not asked:
        return ""
    if "backend" in asked:
        bits = asked.get("bits", 4) if asked["backend"] == "quanto" else 8
        return f"{asked['backend']}, {bits} bits"
    keys, values = (asked.get(part, "f16") for part in ("keys", "values"))
    return keys if keys == values else f"keys {keys}, values {values}"


def same_weights(results: Results) -> list[Weights]:
    """Groups of cells of the same weights, where another engine than transformers runs one."""
    groups: dict[str, Weights] = {}
    for cell in results.cells:
        if not cache_of(cell):
            groups.setdefault(weights_of(cell), []).append(cell)
    return [cells for cells in groups.values() if any(engine(cell) != TRANSFORMERS for cell in cells)]


def weights_of(cell: Cell) -> str:
    """What is equal where weights are: the files' sha256, or the settings of a GGUF file that was made here.

    Two files of equal settings may differ in their metadata (the path of the importance matrix lies there).
    """
    if cell.served:
        return cell.method
    if cell.quantization["quantizer"] == "gguf":
        return json.dumps({k: v for k, v in settings_of(cell).items() if k != "engine"}, sort_keys=True)
    return "".join(sorted(file["sha256"] for file in cell.quantization["weight_files"]))


def engines_table(results: Results) -> Table:
    """A row for each file of weights, its figures by engine beside each other."""
    groups = same_weights(results)
    engines = list(dict.fromkeys(engine(cell) for cells in groups for cell in cells))

    def of_engine(name: str, key: str, show, cells: Weights) -> Field:
        cell = next((c for c in cells if engine(c) == name), None)
        if cell is None:
            return text_field("–")
        bounded = cell.bounded and key == "kl_nats_mean"
        aside = cell.method if len(cells) > 1 and key == CHANGE else ""
        return figure_field(cell.figure(key), (lambda v: at_least(show(v))) if bounded else show, aside=aside)

    columns = [Column("weights", "Weights", "left", lambda cells: name_field(cells[0].method, failed_of(cells)))]
    columns += [
        Column(f"{key}/{name}", f"{label}, {name}", field=partial(of_engine, name, key, show))
        for name in engines
        for key, label, show in BESIDE
    ]
    columns.append(Column("engine_check", "Engine against the same weights in float32, nats", field=engine_check))
    ran = dict.fromkeys(description(cell) for cells in groups for cell in cells if "engine" in ran_by(cell))
    note = f"Every engine is compared with the one baseline. {'; '.join(ran)}." if ran else ""
    if any(c.served for c in results.cells):
        note += f" {calibration(results)}"
    return table_of("engines", columns, groups, note.strip())


def failed_of(cells: Weights) -> list[str]:
    """Checks that failed in any of the cells."""
    return list(dict.fromkeys(check for cell in cells for check in cell.failed))


def ran_by(cell: Cell) -> dict:
    return dict(cell.perplexity["provenance"])


def description(cell: Cell) -> str:
    """`llama.cpp b1234 (xllamacpp 1.2), 4 threads`"""
    ran = ran_by(cell)["engine"]
    if ran["name"] == OPENAI:
        version = f", version {ran['version']}" if ran["version"] else ""
        return f"{cell.method}: {ran['url']}{version}, {ran['top_tokens']} tokens of a position ({ran['dialect']})"
    return f"{ran['name']} {ran['version']} ({ran['package']}), {count(ran['threads'], 'thread')}"


def engine_check(cells: Weights) -> Field:
    checks = [check for cell in cells for check in cell.checks["checks"] if check["name"] == "engine"]
    for check in checks:
        if isinstance(check["value"], float):
            return figure_field(check["value"], tone=check["status"])
    return text_field("–")


def calibration(results: Results) -> str:
    """How much lower bounds miss, on the cells of this model whose whole distribution is known."""
    known = [c.divergence["kl_lower_bound"] for c in results.believed_methods if "kl_lower_bound" in c.divergence]
    missed = sorted(bound["missed_share"] for bound in known if bound["missed_share"] is not None)
    words = (
        "≥: a server shows a few tokens of each position, and all others are one bucket, so KL is a lower bound; "
        "perplexity and top-1 agreement are exact"
    )
    if not missed:
        return f"{words}. No other cell of this model tells how much such bounds miss."
    most = share(missed[-1], 1)
    shares = most if share(missed[0], 1) == most else f"{share(missed[0], 1)} to {most}"
    return (
        f"{words}. Where the whole distribution is known, a bound from {known[0]['top_tokens']} tokens misses "
        f"{shares} of the mean KL ({count(len(missed), 'method')} of this model)."
    )


def caches_table(results: Results) -> Table:
    """What a token of context takes, and what a quantized cache costs, near the beginning and deep in an answer."""
    shown = [
        cell for cell in results.cells if cell is results.baseline or cache_of(cell) or engine(cell) != TRANSFORMERS
    ]
    shown = [cell for cell in shown if not cell.served]
    shown = [] if len(shown) == 1 else shown  # the baseline
    whole = results.baseline.row.get("kv_cache_bytes_per_token")

    def in_text(cell: Cell, place: int) -> tuple | None:
        bins = cell.perplexity["kl_by_position"]
        return (bins[place]["kl_nats_mean"], bins[place]["ci95"]) if bins else (None, None)

    deepest = results.baseline.perplexity["kl_by_position"]
    last = f"from token {deepest[-1]['low']:,.0f} on" if deepest else "at the end"
    columns = [
        METHOD,
        text("engine", "Engine", engine),
        text("kv_cache", "Keys and values", lambda cell: cache_of(cell) or "exact"),
        figure("kv_cache_bytes_per_token", "Bytes a token of context", one_decimal),
        figure("kv_cache_smaller", "Smaller by", times, lambda c: ratio(whole, c.row.get("kv_cache_bytes_per_token"))),
        figure("kl_nats_mean", "Mean KL, nats [95\u00a0%]", bounds="kl_nats_ci95"),
        figure("text_kl_nats_mean", "On the text"),
        figure("text_kl_nats_mean_deepest", f"On the text, {last}", of=lambda cell: in_text(cell, -1)),
        figure("top1_agreement", "Top-1 agreement", share_to_a_tenth),
        figure("weight_bytes", "Weights loaded", size),
    ]
    protocol = results.baseline.row["perplexity_protocol"]
    note = (
        "Keys and values as they lie in memory after the benchmark's prompt, scales included; the baseline's in the "
        f"dtype that it computes in here. The text's windows are those of {protocol}. A quantized cache is read by "
        "every score: a prompt goes in at once, the rest in steps."
    )
    return table_of("caches", columns, shown, note if shown else "")


def ratio(whole: float | None, part: float | None) -> float | None:
    return whole / part if whole and part else None
