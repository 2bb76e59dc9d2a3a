"""Does a checkpoint behave like the original? Its KL divergence from the original's store, and the noise floor.

A store is a folder with files of a baseline's results: logits.parquet (the original's predictions),
output_head.safetensors (which turns stored hidden states into logits), trace.parquet (the tokens) and divergence.json
(the original's own divergence from the store: the noise floor).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from quantharm.common.checkpoint_files import gguf_file, read_checkpoint_config
from quantharm.common.constants import HEAD_FILE, SELF_DIVERGENCE_LIMIT
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet
from quantharm.common.records.divergence import DivergenceFigures, StoreShown
from quantharm.common.records.integrity import Behaviour, Files
from quantharm.common.records.logits import StoreMetadata
from quantharm.common.records.source import SourceRecord, Trust
from quantharm.forensics import manifest

STORE, TRACE, FLOOR = "logits.parquet", "trace.parquet", "divergence.json"
NOISE_FACTOR = 10.0  # times the baseline's own divergence
SAME, CANNOT_BE_TOLD, DIFFERENT = "same", "cannot be told", "different"
# For a store without a hardware floor: ten times the most seen (tests/benchmark/hardware_floor.py).
UNMEASURED_LIMITS = {"bfloat16": 1e-2, "float16": 1e-4, "float32": SELF_DIVERGENCE_LIMIT}


def verify_store(
    folder: Path, public_key: Path, signature: Path, names: Sequence[str] = (STORE, HEAD_FILE, TRACE, FLOOR)
) -> Files:
    """The verification of a store whose files are the signed ones; raises UserError for any other store.

    A store of log-probabilities may lack the output head; a store of hidden states without it is refused when it is
    read.
    """
    handed_on = [name for name in names if name != HEAD_FILE or (folder / HEAD_FILE).exists()]
    verification = manifest.verify(folder, public_key, signature, only=handed_on)
    if not verification["verified"]:
        raise UserError(
            f"the log-prob store in {folder} is not the signed one: {verification['explanation']}; fetch it again"
        )
    return verification


def limits_of(store: StoreMetadata | StoreShown, floor: float | None, same_machine: bool) -> tuple[float, float]:
    """(KL up to which a model is the one that filled the store, KL above which it is another on any hardware), in nats.

    Rounding on two machines adds up to twice the KL of one, and to four times at the very most, since the root of a KL
    is a distance. The first limit is also below half the KL of rounding weights to 8 bits, the mildest quantization.
    """
    own = max(SELF_DIVERGENCE_LIMIT, NOISE_FACTOR * (floor or 0.0))
    measured = store.get("hardware_floor")
    rounding, mildest = (measured["rounding_kl_nats"], measured["eight_bit_kl_nats"]) if measured else (None, None)
    if rounding is None:
        return own, max(own, UNMEASURED_LIMITS.get(store["dtype"] or "", SELF_DIVERGENCE_LIMIT))
    explained = 2 * rounding if mildest is None else min(2 * rounding, mildest / 2)
    return own if same_machine else max(own, explained), max(own, 4 * rounding)


def judge(
    divergence: DivergenceFigures,
    floor: float | None,
    store: StoreMetadata | StoreShown,
    same_machine: bool = True,
    remark: str = "",
) -> Behaviour:
    """Whether a model is the one that filled the store, by a divergence record's figures.

    `verdict` is `different` where the lower end of KL's interval (without one, the mean) is above the effect of any
    hardware; `same` where the mean is within the effect of hardware and below that of the mildest quantization; else
    `cannot be told`. `same_as_original` is then False, True or None. floor: mean KL of the baseline against its own
    store, nats. store: the store's metadata. same_machine: whether device and versions are those that filled it.
    """
    kl = divergence["kl_nats"]
    low, high = limits_of(store, floor, same_machine)
    lowest = kl["ci95"][0] if kl["ci95"] else kl["mean"]
    verdict = SAME if kl["mean"] <= low else DIFFERENT if lowest > high else CANNOT_BE_TOLD
    between = " [{:.2g}, {:.2g}]".format(*kl["ci95"]) if kl["ci95"] else ""
    measured = store.get("hardware_floor")
    mildest = measured["eight_bit_kl_nats"] if measured else None
    eight = "" if mildest is None else f", weights of 8 bits about {mildest:.2g}"
    words = {
        SAME: "as the model that filled it",
        CANNOT_BE_TOLD: "cannot be told from the model that filled it, nor taken for it",
        DIFFERENT: "not the model that filled it",
    }[verdict]
    return {
        "kl_nats_mean": kl["mean"],
        "kl_nats_ci95": kl["ci95"],
        "noise_floor_kl_nats": floor,
        "limit_kl_nats": high,
        "same_limit_kl_nats": low,
        "eight_bit_kl_nats": mildest,
        "top1_agreement": divergence["top1_agreement"],
        "verdict": verdict,
        "same_as_original": {SAME: True, DIFFERENT: False, CANNOT_BE_TOLD: None}[verdict],
        "explanation": f"KL divergence {kl['mean']:.2g}{between} nats from the store: {words} (the same up to "
        f"{low:.2g}, hardware changes at most {high:.2g}{eight}){remark}",
    }


def open_checkpoint(checkpoint: Path, dtype: str, device: str, gpus: int):
    """The model of a folder that somebody handed over, in plain floats or in any format that is read here."""
    from quantharm.models.loading import load_checkpoint
    from quantharm.quantizers import quantizer_named

    untrusted: Trust = {"allow_pickle": False, "trust_remote_code": False}
    if not gguf_file(checkpoint) and "quantization_config" not in read_checkpoint_config(checkpoint):
        return load_checkpoint(checkpoint, untrusted, dtype, device, gpus)
    settings = {"resolved": untrusted, "backend": None}
    source = cast(SourceRecord, untrusted)  # only these keys are read
    return quantizer_named("pretrained").load(checkpoint, settings, source, dtype, device, gpus)


def score_folder(checkpoint: Path, store: Path, device: str, gpus: int) -> Behaviour:
    """Behaviour of a checkpoint against a store, by one forward pass a prompt; raises UserError for another tokenizer.

    A GGUF file's own tokenizer is not compared, since it is written in another form.
    """
    from quantharm.common.provenance import device_name, filled_here
    from quantharm.common.text import sha256_of_windows
    from quantharm.models.loading import set_compute_dtype
    from quantharm.models.source import tokenizer_hashes
    from quantharm.scoring.divergence_figures import check_values, summarise
    from quantharm.scoring.kl_divergence import score_store
    from quantharm.scoring.stored_logits import require_same

    trace = read_parquet(store / TRACE)
    expected = {"trace_sha256": sha256_of_windows([list(map(int, ids)) for ids in trace["token_ids"]])}
    if not gguf_file(checkpoint):
        expected["tokenizer_sha256"] = tokenizer_hashes(checkpoint)["tokenizer_sha256"]
    metadata = require_same(store / STORE, expected)
    here = device_name(device)
    remark = "" if metadata["device"] == here else f" (it was filled on {metadata['device']}, this ran on {here})"
    model = open_checkpoint(checkpoint, metadata["dtype"], device, gpus)
    filled_in = metadata.get("compute_dtype", metadata["dtype"])  # that dtype, even where it is slow
    set_compute_dtype(model, "pretrained", metadata["dtype"], device, filled_in)
    rows = score_store(model, store / STORE, trace)
    check_values(rows, str(checkpoint))
    floor = read_json(store / FLOOR)["kl_nats"]["mean"] if (store / FLOOR).is_file() else None
    return judge(summarise(rows), floor, metadata, filled_here(metadata, device), remark) | {
        "store_model": metadata["model"]
    }
