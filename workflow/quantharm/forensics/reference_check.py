"""Does a checkpoint behave like the original? Its KL divergence from a log-prob store, with interval and noise floor.

A store is a folder: logits.parquet (log-probabilities of the original), trace.parquet (the tokens they are of) and
divergence.json (what the original itself gives against it: the noise floor), as a baseline's results hold them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet
from quantharm.forensics import manifest

STORE, TRACE, FLOOR = "logits.parquet", "trace.parquet", "divergence.json"
KL_LIMIT = 1e-5  # nats; as the check self_divergence: what two runs of one model may differ by
NOISE_FACTOR = 10.0  # times the baseline's own divergence


def verify_store(
    folder: Path, public_key: Path, signature: Path, names: Sequence[str] = (STORE, TRACE, FLOOR)
) -> dict[str, Any]:
    """The record of a store whose files are the signed ones; raises UserError for any other."""
    found = manifest.verify(folder, public_key, signature, only=names)
    if not found["verified"]:
        raise UserError(f"the log-prob store in {folder} is not the signed one: {found['explanation']}")
    return found


def judge(divergence: dict[str, Any], floor: float | None, remark: str = "") -> dict[str, Any]:
    """From a divergence record's figures: whether the model can be told from the one that filled the store.

    It differs where the interval's lower end (the mean, where there is no interval) is above NOISE_FACTOR times the
    noise floor and above KL_LIMIT.
    """
    kl = divergence["kl_nats"]
    limit = max(KL_LIMIT, NOISE_FACTOR * (floor or 0.0))
    differs = (kl["ci95"][0] if kl["ci95"] else kl["mean"]) > limit
    between = " [{:.2g}, {:.2g}]".format(*kl["ci95"]) if kl["ci95"] else ""
    known = "" if floor is None else f", noise floor {floor:.2g}"
    return {
        "kl_nats_mean": kl["mean"],
        "kl_nats_ci95": kl["ci95"],
        "noise_floor_kl_nats": floor,
        "limit_kl_nats": limit,
        "top1_agreement": divergence["top1_agreement"],
        "same_as_original": not differs,
        "explanation": f"KL divergence {kl['mean']:.2g}{between} nats from the store{known}, limit {limit:.2g}: "
        f"{'not the' if differs else 'as the'} model that filled it{remark}",
    }


def score_folder(checkpoint: Path, store: Path, device: str, gpus: int) -> dict[str, Any]:
    """Behaviour of a checkpoint against a store: one forward pass a prompt; raises UserError for another tokenizer."""
    from quantharm.common.provenance import device_name
    from quantharm.common.text import sha256_of_windows
    from quantharm.divergence import check_values, summarise
    from quantharm.fetch import tokenizer_hashes
    from quantharm.models.loading import load_checkpoint
    from quantharm.scoring.kl_divergence import score_store
    from quantharm.scoring.stored_logits import require_same
    from quantharm.scoring.worst_positions import WorstPositions

    trace = read_parquet(store / TRACE)
    metadata = require_same(
        store / STORE,
        {
            "trace_sha256": sha256_of_windows([list(map(int, ids)) for ids in trace["token_ids"]]),
            "tokenizer_sha256": tokenizer_hashes(checkpoint)["tokenizer_sha256"],
        },
    )
    here = device_name(device)
    remark = "" if metadata["device"] == here else f" (it was filled on {metadata['device']}, this ran on {here})"
    untrusted = {"allow_pickle": False, "trust_remote_code": False}
    model = load_checkpoint(checkpoint, untrusted, metadata["dtype"], device, gpus)
    rows = score_store(model, store / STORE, trace, WorstPositions())
    check_values(rows, str(checkpoint))
    floor = read_json(store / FLOOR)["kl_nats"]["mean"] if (store / FLOOR).is_file() else None
    return judge(summarise(rows), floor, remark) | {"store_model": metadata["model"]}
