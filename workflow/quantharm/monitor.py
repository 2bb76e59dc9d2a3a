"""One run of a control chart: does a deployed checkpoint still behave as the one that was approved?

Each run draws a few prompts of the log-prob store, category by category, and takes the deployed checkpoint's mean KL
from the stored baseline over them. On one machine a checkpoint gives the same figures every time, so runs vary by the
draw alone, and the limits are learned from many such draws from the approved cell's own divergence.parquet. (A fixed
set of prompts would have no variance: its limits would call every other driver or thread count a change, and see only
changes that happen to show on it.) With another device or other libraries than the store's, the limits are wider by
their possible effect (`hardware_floor` of the store).

Appends a row to the history (a Parquet file, replaced as a whole), draws the chart beside it, and ends with exit code 1
and one sentence when the EWMA of all runs leaves its limits.
"""

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import pandas

from quantharm.common import control_chart
from quantharm.common.constants import HEAD_FILE
from quantharm.common.errors import UserError
from quantharm.common.files import read_parquet, sha256_of_text, write_parquet
from quantharm.common.prompt_means import read_prompt_means
from quantharm.common.provenance import filled_here
from quantharm.common.records.logits import StoreMetadata
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.stage import add_device, begin_offline_stage, run_stage, stage_parser
from quantharm.forensics import reference_check
from quantharm.forensics.run_history import COLUMNS, SAME, charted, read_history
from quantharm.models.devices import choose_device
from quantharm.models.loading import load_cell, quiet, read_quantization
from quantharm.scoring.store_metadata import store_metadata_of

if TYPE_CHECKING:
    from quantharm.config.entries import Monitor

# Files of the store; its noise floor is not needed here.
SCORED = (reference_check.STORE, HEAD_FILE, reference_check.TRACE)


def ids_by_category(means: pandas.Series) -> list[numpy.ndarray]:
    """Ids of the prompts in each category; means: of read_prompt_means."""
    return [p.index.get_level_values("prompt_id").to_numpy() for _, p in means.groupby(level="category", sort=False)]


def draw(categories: list[numpy.ndarray], per_category: int, generator: numpy.random.Generator) -> list[str]:
    """Ids of `per_category` prompts of each category, without repetition."""
    chosen = (generator.choice(ids, min(per_category, len(ids)), replace=False) for ids in categories)
    return [str(name) for names in chosen for name in names]


def draws(means: pandas.Series, per_category: int, runs: int, generator: numpy.random.Generator) -> numpy.ndarray:
    """The mean KL in nats of `runs` draws on a checkpoint with these prompt means: [runs]."""
    by_id, categories = means.droplevel("category").to_dict(), ids_by_category(means)
    chosen = (draw(categories, per_category, generator) for _ in range(runs))
    return numpy.array([numpy.mean([by_id[name] for name in names]) for names in chosen])


def learn_limits(approved: Path, settings: "Monitor") -> control_chart.Limits:
    """Limits from draws of the approved cell; raises UserError where its prompts leave nothing to draw."""
    means = read_prompt_means(approved)
    values = draws(means, settings["per_category"], settings["baseline_runs"], numpy.random.default_rng(0))
    try:
        return control_chart.learn(values, settings["weight"], settings["width"])
    except ValueError:
        raise UserError(
            f"every draw of {settings['per_category']} prompts a category from {approved} is the same, so no control "
            "limits can be learned; lower `monitor.per_category:` or use a protocol with more prompts"
        ) from None


def score(model, store: Path, trace: pandas.DataFrame, prompts: list[str]) -> float:
    """Mean over the prompts of the mean KL from the stored baseline, in nats."""
    from quantharm.scoring import kl_divergence
    from quantharm.scoring.paired_logits import first_targets_of, pieces_of, sequences_of

    chosen = trace[trace["prompt_id"].isin(prompts)]
    sequences, first_targets = sequences_of(chosen), first_targets_of(chosen)
    lacking = set(prompts) - sequences.keys()
    if lacking:
        raise UserError(f"the log-prob store {store} lacks {min(lacking)}; delete it and run the same command again")
    by_prompt: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    pieces = pieces_of(
        model, store, sequences, lambda prompt, _: prompt in sequences, False, first_targets=first_targets
    )
    for piece in pieces:
        _, names, measures = kl_divergence.score([piece])
        by_prompt[piece.group.prompt_id] += measures[names.index("kl_nats")].tolist()
    return float(numpy.mean([numpy.mean(values) for values in by_prompt.values()]))


def deployed_record(approved: QuantizationRecord, checkpoint: Path | None) -> QuantizationRecord:
    """The record by which the deployed checkpoint is loaded: the approved cell's own, or one made for a folder."""
    if checkpoint is None:
        return approved
    from quantharm.models.source import describe

    description = describe(approved["model"], str(checkpoint), checkpoint, None, False, False)
    settings = {"source": str(checkpoint), "revision": None, "backend": None, "resolved": description}
    return {
        **approved,
        "quantizer": "pretrained",
        "checkpoint": str(checkpoint),
        "weight_files": description["weight_files"],
        "config_files": description["config_files"],
        "settings": settings,
    }


def identity(record: QuantizationRecord) -> str:
    """One sha256 over the weight files of a checkpoint."""
    return sha256_of_text("".join(file["sha256"] for file in record["weight_files"]))


def other_hardware_kl(store: StoreMetadata, device: str) -> float:
    """The most, in nats, by which other hardware or libraries than the store's move a KL from it; 0.0 on the same."""
    same_machine = filled_here(store, device)
    return 0.0 if same_machine else reference_check.limits_of(store, None, same_machine)[1]


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--approved", type=Path, required=True, help="folder of the approved cell")
    parser.add_argument("--baseline", type=Path, required=True, help="folder of the baseline, with the log-prob store")
    parser.add_argument("--checkpoint", type=Path, help="the deployed checkpoint; the approved cell's own")
    parser.add_argument("--signature", type=Path, help="signature of the store (quantharm.forensics.manifest)")
    parser.add_argument("--public-key", type=Path, help="the signer's public key")
    parser.add_argument("--settings", type=json.loads, required=True, help="the config's `monitor:`, JSON")
    add_device(parser)
    parser.add_argument("--history", type=Path, required=True, help="history.parquet; the chart lies beside it")
    arguments = parser.parse_args()
    if bool(arguments.signature) != bool(arguments.public_key):
        parser.error("--signature and --public-key go together")
    if arguments.signature:
        reference_check.verify_store(arguments.baseline, arguments.public_key, arguments.signature, names=SCORED)
    begin_offline_stage()
    quiet()
    from quantharm.reporting.charts.base import write_figure
    from quantharm.reporting.charts.studies import monitor_chart
    from quantharm.scoring.stored_logits import require_same

    approved = read_quantization(arguments.approved / "quantization.json")
    device = choose_device(arguments.device, approved["gpus"])
    trace = read_parquet(arguments.baseline / reference_check.TRACE)
    store = arguments.baseline / reference_check.STORE
    expected = store_metadata_of(approved, trace, device, protocol="")
    same = dict(
        zip(SAME, (identity(approved), expected["trace_sha256"], arguments.settings["per_category"]), strict=True)
    )
    history = read_history(arguments.history, same)
    limits = learn_limits(arguments.approved, arguments.settings)
    metadata = require_same(store, {key: expected[key] for key in ("model", "weights_sha256", "trace_sha256", "dtype")})
    record = deployed_record(approved, arguments.checkpoint)
    run = len(history) + 1
    means = read_prompt_means(arguments.approved)
    # Seeded by the number of the run, so that its draw is none of those that the limits were learned from.
    prompts = draw(ids_by_category(means), arguments.settings["per_category"], numpy.random.default_rng([1, run]))
    kl = score(load_cell(record, device, metadata.get("compute_dtype")), store, trace, prompts)
    row = {
        "run": run,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checkpoint": record["checkpoint"],
        "weights_sha256": identity(record),
        **same,
        "prompts": prompts,
        "kl_nats": kl,
        "other_hardware_kl_nats": other_hardware_kl(metadata, device),
    }
    table = charted(pandas.DataFrame([*history[COLUMNS].to_dict("records"), row]), limits)
    write_parquet(arguments.history, table)
    write_figure(arguments.history.parent, monitor_chart(table, f"{approved['model']} × {approved['method']}"))
    last = table.iloc[-1]
    state = f"run {run}: KL {kl:.4g} nats, EWMA {last['ewma']:.4g}, limits {last['low']:.4g} to {last['high']:.4g} nats"
    if last["alarm"]:
        side = "above" if last["ewma"] > last["high"] else "below"
        raise UserError(
            f"{approved['model']} × {approved['method']}, {state}: {side} the limits, so {record['checkpoint']} no "
            f"longer behaves as the approved checkpoint; find what changed, then move {arguments.history} away"
        )
    print(f"{approved['model']} × {approved['method']}, {state}: no alarm")


if __name__ == "__main__":
    run_stage(main)
