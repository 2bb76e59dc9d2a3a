"""An earlier run to compare with: its rows, and whether they were measured and computed as those of now.

The earlier run is its summary.json, or a folder of results.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.common.files import read_json
from quantharm.common.provenance import computed_differently
from quantharm.common.records.summary import SummaryRow

SAME_TEXT = ("perplexity_protocol", "text_tokens_sha256")
SAME_PROMPTS = ("prompt_tokens_sha256", "max_new_tokens")
SAME_BENCHMARK = ("benchmark_prompt_tokens", "benchmark_new_tokens")


@dataclass(frozen=True)
class Earlier:
    """The rows of a model in an earlier run, by method, and the folder that its summary.json lies in."""

    rows: dict[str, SummaryRow]
    folder: Path


def read_earlier(path: Path, model: str) -> Earlier | None:
    """path: a summary.json, or a folder of results; None where the run has no such model."""
    summary = path / model / "summary.json" if path.is_dir() else path
    if path.is_dir() and not summary.is_file():
        return None
    record = read_json(summary)
    if not isinstance(record, dict) or not isinstance(record.get("cells"), list):
        raise UserError(f"`budget.against` in the config is {path}, which is no summary.json; correct the path")
    rows = {row["method"]: row for row in record["cells"] if row.get("model") == model}
    return Earlier(rows, summary.parent) if rows else None


def differences(now: Mapping[str, object], then: Mapping[str, object], key: str) -> list[str]:
    """Differences in how two rows of summary.json were measured or computed, as far as a figure depends on them."""
    needed = {"perplexity_change_percent": SAME_TEXT, "kl_nats": SAME_PROMPTS, "decode_rate_ratio": SAME_BENCHMARK}
    words = [name for name in needed.get(key, ()) if now.get(name) != then.get(name)]
    return words + list(computed_differently(now, then))
