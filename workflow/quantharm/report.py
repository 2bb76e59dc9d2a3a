"""EVALUATION_SUMMARY.md: the tables of one model's cells, every figure from their result files."""

from pathlib import Path
from typing import Any

from quantharm.files import read_json, write_text
from quantharm.stage import run_stage, stage_parser

Row = dict[str, Any]


def escape(text: Any) -> str:
    """Text that cannot end a table cell or be taken for markup."""
    cleaned = " ".join(str(text).split())
    for character in "\\`*_{}[]<>|#":
        cleaned = cleaned.replace(character, f"\\{character}")
    return cleaned


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits; `–` for a figure that does not exist."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def interval(bounds: list[float] | None, digits: int = 3) -> str:
    return "–" if bounds is None else f"{number(bounds[0], digits)} … {number(bounds[1], digits)}"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.2f} MB" if value < 1e9 else f"{value / 1e9:,.3f} GB"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f} %"


def change(row: Row) -> str:
    """ΔPPL, or `no measurable change` where its 95 % interval holds zero."""
    bounds = row["perplexity_change_percent_ci95"]
    if row["method"] == "baseline":
        return "reference"
    shown = f"{percent(row['perplexity_change_percent'])} [{interval(bounds)}]"
    return f"no measurable change: {shown}" if bounds and bounds[0] <= 0 <= bounds[1] else shown


def perplexity_table(rows: list[Row]) -> str:
    return table(
        ["Method", "Perplexity", "95 % interval", "Change from the baseline [95 %]", "Bits per byte"],
        [
            [
                escape(r["method"]),
                f"{r['perplexity']:.4f}",
                interval(r["perplexity_ci95"], 5),
                change(r),
                f"{r['bits_per_byte']:.4f}",
            ]
            for r in rows
        ],
    )


def divergence_table(rows: list[Row]) -> str:
    return table(
        ["Method", "KL, nats", "95 % interval", "median", "p99", "max", "Top-1 agreement", "KL on the text"],
        [
            [
                escape(r["method"]) + (" (noise floor)" if r["method"] == "baseline" else ""),
                number(r["kl_nats_mean"]),
                interval(r["kl_nats_ci95"]),
                number(r["kl_nats_median"]),
                number(r["kl_nats_p99"]),
                number(r["kl_nats_max"]),
                f"{r['top1_agreement']:.2%}",
                number(r["text_kl_nats_mean"]),
            ]
            for r in rows
        ],
    )


def by_category(rows: list[Row], key: str, show) -> str:
    """One line a category, one column a method."""
    categories = list(rows[0][key])
    body = [[escape(c), *[show(r[key].get(c)) for r in rows]] for c in categories]
    return table(["Category", *[escape(r["method"]) for r in rows]], body)


def size_table(rows: list[Row]) -> str:
    return table(
        [
            "Method",
            "On disk",
            "Loaded",
            "Compression",
            "Saved",
            "Bits a weight",
            "By the formula",
            "Peak when generating",
        ],
        [
            [
                escape(r["method"]),
                megabytes(r["checkpoint_bytes"]),
                megabytes(r["weight_bytes"]),
                f"{r['compression']:.2f}×",
                megabytes(r["saved_bytes"]),
                number(r["bits_per_weight"], 4) if r["bits_per_weight"] else "16 (not quantized)",
                number(r["bits_per_weight_formula"], 4),
                megabytes(r["memory_peak_bytes"]),
            ]
            for r in rows
        ],
    )


def generation_table(rows: list[Row]) -> str:
    return table(
        [
            "Method",
            "Succeeded",
            "Right answers",
            "Right → wrong",
            "Wrong → right",
            "Same as baseline",
            "First difference, token",
            "Seconds a prompt",
            "Prefill, ms",
            "Decode, tokens/s",
        ],
        [
            [
                escape(r["method"]),
                f"{r['succeeded']} of {r['prompts']}",
                f"{r['correct']} of {r['judged']}",
                str(r["flips_right_to_wrong"]),
                str(r["flips_wrong_to_right"]),
                f"{r['identical_responses']} of {r['prompts']}",
                number(r["first_difference_median"]),
                number(r["seconds_mean"]),
                number(1000 * r["prefill_seconds_median"]),
                f"{r['decode_tokens_per_second_median']:.1f} [{interval(r['decode_tokens_per_second_ci95'])}]",
            ]
            for r in rows
        ],
    )


def checks_table(folder: Path, rows: list[Row]) -> str:
    records = [read_json(folder / r["method"] / "checks.json")["checks"] for r in rows]
    names = [check["name"] for check in records[0]]
    body = [[name.replace("_", "\\_"), *[checks[i]["status"] for checks in records]] for i, name in enumerate(names)]
    return table(["Check", *[escape(r["method"]) for r in rows]], body)


def summary_of(folder: Path) -> str:
    rows = read_json(folder / "summary.json")["cells"]
    first = rows[0]
    failed = [f"**{escape(r['method'])}** ({', '.join(r['checks_failed'])})" for r in rows if r["checks_failed"]]
    warning = f"\n> **Failed checks; do not believe the figures of:** {'; '.join(failed)}.\n" if failed else ""
    prompts = first["prompts"] // max(1, len(first["kl_nats_by_category"]) - ("text" in first["kl_nats_by_category"]))
    return f"""# Quantization of {escape(first["model"])}

{escape(first["source"])}{f" at {first['revision']}" if first["revision"] else ""}, {first["parameters"]:,} parameters,
{first["dtype"]}, on {escape(first["device"])}. Every figure comes from the result files beside this one.
{warning}
## Perplexity

Protocol `{first["perplexity_protocol"]}`, {first["perplexity_tokens_scored"]:,} tokens scored; intervals by a paired
bootstrap over windows.

{perplexity_table(rows)}

## Divergence from the baseline

KL(baseline ‖ method) over the whole vocabulary on the baseline's own greedy answers; mean of category means, intervals
by a bootstrap over prompts within categories.

{divergence_table(rows)}

Mean KL in nats by category, {prompts} prompts each: descriptive only, too few prompts to test a category by itself.

{by_category(rows, "kl_nats_by_category", number)}

## Sizes

{size_table(rows)}

## Generation

Greedy, batch 1. Prefill and decode are medians of repeated runs on a fixed prompt.

{generation_table(rows)}

Seconds a prompt, by category:

{by_category(rows, "seconds_mean_by_category", number)}

Tokens an answer, by category:

{by_category(rows, "new_tokens_mean_by_category", number)}

Prompts that succeeded (at least one token, finite logits, not degenerate), by category:

{by_category(rows, "succeeded_by_category", lambda v: f"{v:.0%}")}

## Checks

{checks_table(folder, rows)}
"""


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results folder of a model")
    parser.add_argument("--output", type=Path, required=True, help="EVALUATION_SUMMARY.md")
    arguments = parser.parse_args()
    write_text(arguments.output, summary_of(arguments.results))


if __name__ == "__main__":
    run_stage(main)
