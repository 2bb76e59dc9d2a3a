"""Is a checkpoint what it is said to be? Its files, its weights, its behaviour.

    python -m quantharm.integrity FOLDER [--signature FILE --public-key FILE] [--store FILE --trace FILE]

1. files: every sha256 against a signed manifest (quantharm.manifest), or as recorded when a model was fetched.
2. weights: traces of having been quantized and dequantized (quantharm.detection): method, bits and groups by matrix.
3. behaviour: the KL divergence from a log-prob store of the original, beside its noise floor.

Exit code of the command: 0 nothing was found against it, 3 something was, 1 it could not be judged. No trace is no
proof: noise, further training or rescaling can hide one, and native low-bit training looks like quantization.

As a stage (--cell) it writes integrity.json for a cell of the workflow: the model's files and weights, the cell's own
files, and whether the scan would notice if the cell's checkpoint were dequantized and handed on as the original.
"""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from quantharm import manifest
from quantharm.detection.scan import scan_matrix, scan_model
from quantharm.detection.weights import packed_tensors, read_matrices, sample_matrix, spread
from quantharm.errors import UserError
from quantharm.files import read_json, read_parquet, write_json
from quantharm.models import (
    choose_device,
    offline_environment,
    read_checkpoint_config,
    read_quantization,
    refuse_unsafe,
    torch_dtype,
    weight_files,
)
from quantharm.provenance import device_name, provenance
from quantharm.stage import Timing, run_stage, stage_parser

KL_LIMIT = 1e-5  # nats; as the check self_divergence: what two runs of one model may differ by
NOISE_FACTOR = 10.0  # times the baseline's own divergence
DEQUANTIZED_MATRICES = 16  # of a quantized cell, spread over it, are dequantized and scanned


def scan_folder(folder: Path) -> dict[str, Any]:
    """The scan of a checkpoint in safetensors; its verdict is `packed` where it is openly stored as quantized."""
    stated = read_checkpoint_config(folder).get("quantization_config") or {}
    packed = packed_tensors(folder)
    if stated or packed:
        kind = stated.get("quant_method") or f"{len(packed)} tensors of integers or 8-bit floats"
        return {
            "verdict": "packed",
            "method": str(kind),
            "explanation": f"openly stored as quantized ({kind})",
            "matrices": [],
        }
    matrices = [scan_matrix(m) for m in tqdm(read_matrices(folder), desc="scan", unit="matrix", mininterval=5)]
    return scan_model(matrices) | {"matrices": matrices}


def scan_dequantized(record: dict[str, Any], device: str) -> dict[str, Any]:
    """The scan of what a quantized cell stands for, stored in its model's dtype: would it pass as the original?"""
    from quantharm import linears
    from quantharm.models import load_cell

    model = load_cell(record, device)
    found = linears.quantized_matrices(model, Path(record["checkpoint"]), record["quantizer"])
    del model
    chosen = spread(found, min(DEQUANTIZED_MATRICES, len(found)))
    stored = torch_dtype(record["dtype"])
    scanned = [scan_matrix(sample_matrix(m.name, m.dequantize().to(stored), m.rows, m.columns, stored)) for m in chosen]
    result = scan_model(scanned)
    noticed = result["verdict"] == "dequantized"
    words = f"dequantized and handed on, it would {'' if noticed else 'not '}be noticed: {result['explanation']}"
    return result | {"explanation": words, "matrices_of_checkpoint": len(found), "matrices": scanned}


def behaviour(divergence: dict[str, Any], floor: float | None, explanation: str = "") -> dict[str, Any]:
    """From a divergence record's figures: whether the model can be told from the one that filled the store.

    It differs where the interval's lower end (the mean, where there is no interval) is above NOISE_FACTOR times the
    noise floor and above KL_LIMIT.
    """
    kl = divergence["kl_nats"]
    limit = max(KL_LIMIT, NOISE_FACTOR * (floor or 0.0))
    lower = kl["ci95"][0] if kl["ci95"] else kl["mean"]
    differs = lower > limit
    return {
        "kl_nats_mean": kl["mean"],
        "kl_nats_ci95": kl["ci95"],
        "noise_floor_kl_nats": floor,
        "limit_kl_nats": limit,
        "top1_agreement": divergence["top1_agreement"],
        "same_as_original": not differs,
        "explanation": f"KL divergence {kl['mean']:.2g} nats from the store, limit {limit:.2g}: "
        + ("not the model that filled it" if differs else "as the model that filled it")
        + explanation,
    }


def score_folder(folder: Path, store: Path, trace: Path, floor: Path | None, device: str) -> dict[str, Any]:
    """Behaviour of a checkpoint against a store: one forward pass a prompt; raises UserError for another tokenizer."""
    from quantharm.divergence import check_values, score_store, summarise
    from quantharm.fetch import tokenizer_hashes
    from quantharm.models import load_checkpoint
    from quantharm.store import require_same, store_metadata
    from quantharm.text import sha256_of_windows
    from quantharm.worst_positions import WorstPositions

    prompts = read_parquet(trace)
    metadata = require_same(
        store,
        {
            "trace_sha256": sha256_of_windows([list(map(int, ids)) for ids in prompts["token_ids"]]),
            "tokenizer_sha256": tokenizer_hashes(folder)["tokenizer_sha256"],
        },
    )
    here = device_name(device)
    other = "" if metadata["device"] == here else f" (the store was filled on {metadata['device']}, this ran on {here})"
    untrusted = {"allow_pickle": False, "trust_remote_code": False}
    model = load_checkpoint(folder, untrusted, metadata["dtype"], device, 1)
    rows = score_store(model, store, prompts, WorstPositions())
    check_values(rows, str(folder))
    own = read_json(floor)["kl_nats"]["mean"] if floor else None
    return behaviour(summarise(rows), own, other) | {"store_model": store_metadata(store)["model"]}


def judge_folder(arguments) -> dict[str, Any]:
    """The record of a checkpoint that somebody handed over."""
    folder = arguments.folder
    read_checkpoint_config(folder)
    refuse_unsafe(folder, allow_pickle=False, trust_remote_code=False)
    record: dict[str, Any] = {"checkpoint": str(folder), "manifest": None, "store_manifest": None, "behaviour": None}
    if arguments.signature:
        record["manifest"] = manifest.verify(folder, arguments.public_key, arguments.signature)
    record["scan"] = scan_folder(folder)
    if arguments.store:
        if arguments.store_signature:
            signed = manifest.verify(arguments.store, arguments.public_key, arguments.store_signature)
            record["store_manifest"] = signed
            if not signed["verified"]:
                raise UserError(f"the log-prob store {arguments.store} is not the signed one: {signed['explanation']}")
        device = choose_device(arguments.device)
        record["behaviour"] = score_folder(folder, arguments.store, arguments.trace, arguments.floor, device)
    findings = findings_of(record)
    positive = record["manifest"] or record["behaviour"]
    record["verified"] = False if findings else True if positive else None
    record["explanation"] = "; ".join(findings) or (
        "nothing was found against it"
        if positive
        else f"not verified: no signature was given; {record['scan']['explanation']}"
    )
    return record


def findings_of(record: dict[str, Any]) -> list[str]:
    """What was found against a checkpoint, in words."""
    found = []
    if record["manifest"] and not record["manifest"]["verified"]:
        found.append(f"files: {record['manifest']['explanation']}")
    if record["scan"]["verdict"] == "dequantized":
        found.append(f"weights: {record['scan']['explanation']}")
    if record["behaviour"] and not record["behaviour"]["same_as_original"]:
        found.append(f"behaviour: {record['behaviour']['explanation']}")
    return found


def judge_cell(arguments) -> dict[str, Any]:
    """integrity.json of a cell: the model's own findings (in the baseline's record), and the cell's."""
    cell = read_quantization(arguments.cell / "quantization.json")
    folder, source = Path(cell["checkpoint"]), cell["source"]
    divergence = read_json(arguments.cell / "divergence.json")
    floor = read_json(arguments.floor)["kl_nats"]["mean"]
    record: dict[str, Any] = {"model": cell["model"], "method": cell["method"], "checkpoint": str(folder)}
    record["manifest"] = manifest.verify_recorded(folder, cell["weight_files"])
    record["signed_manifest"] = None
    record["behaviour"] = behaviour(divergence, floor)
    if cell["quantizer"] == "unquantized":
        if arguments.signature:
            record["signed_manifest"] = manifest.verify(Path(source["path"]), arguments.public_key, arguments.signature)
        record["scan"] = scan_folder(folder) if weight_files(folder) else not_scanned(folder)
        record["if_dequantized"] = None
        clean = record["scan"]["verdict"] == "no trace"
        findings = [] if clean else [f"the model itself: {record['scan']['explanation']}"]
    else:
        baseline = read_json(arguments.baseline)
        record["scan"] = scan_folder(folder)
        packed = record["scan"]["verdict"] == "packed"
        record["if_dequantized"] = scan_dequantized(cell, choose_device(arguments.device)) if packed else None
        findings = [] if baseline["verified"] else [f"its model: {baseline['explanation']}"]
        if record["scan"]["verdict"] == "dequantized":
            findings.append(f"weights: {record['scan']['explanation']}")
    for checked in (record["manifest"], record["signed_manifest"]):
        if checked and not checked["verified"]:
            findings.append(f"files: {checked['explanation']}")
    record["verified"] = not findings
    said = [record["signed_manifest"] or record["manifest"], record["scan"], record["if_dequantized"]]
    record["explanation"] = "; ".join(findings or [part["explanation"] for part in said if part])
    return record


def not_scanned(folder: Path) -> dict[str, Any]:
    return {"verdict": "not scanned", "explanation": f"{folder} has no safetensors to scan", "matrices": []}


def print_table(record: dict[str, Any]) -> None:
    """What was asked, what was found, and the matrices that most look quantized."""
    scan = record["scan"]
    rows = [
        ("files", record["manifest"], "verified", "no signature given"),
        ("weights", scan, None, ""),
        ("behaviour", record["behaviour"], "same_as_original", "no log-prob store given"),
    ]
    for name, part, key, missing in rows:
        if part is None:
            print(f"{name:10} {'not checked':12} {missing}")
        else:
            outcome = scan["verdict"] if key is None else "ok" if part[key] else "DIFFERS"
            print(f"{name:10} {outcome:12} {part['explanation']}")
    if scan["matrices"]:
        closest = sorted(scan["matrices"], key=lambda m: m["ratio"] if m["ratio"] is not None else 2)[:8]
        head = ("matrix", "verdict", "closest format", "r", "without grid", "ratio", "t", "distinct")
        widths = (48, 12, 38, 8, 13, 6, 9, 9)
        print("".join(f"{h:<{w}}" for h, w in zip(head, widths, strict=True)))
        for m in closest:
            figures = [f"{m['r']:.4f}", f"{m['r_reference']:.4f}", f"{m['ratio']:.3f}", f"{m['t']:.1f}"]
            distinct = f"{m['distinct_share_of_row']:.0%}"
            cells = (m["name"][-47:], m["verdict"], m["closest"], *figures, distinct)
            print("".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)))
        print(f"{len(scan['matrices'])} matrices scanned, {scan['coverage']:.0%} of their weights sampled")


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="checkpoint to judge")
    parser.add_argument("--signature", type=Path, help="signed manifest of the checkpoint (quantharm.manifest)")
    parser.add_argument("--public-key", type=Path, help="the signer's public key")
    parser.add_argument("--store", type=Path, help="logits.parquet of the original")
    parser.add_argument("--trace", type=Path, help="trace.parquet of the original")
    parser.add_argument("--store-signature", type=Path, help="signature of the store, by the same key")
    parser.add_argument("--floor", type=Path, help="divergence.json of the original against its own store")
    parser.add_argument("--cell", type=Path, help="as a stage: folder of the cell's result files")
    parser.add_argument("--baseline", type=Path, help="as a stage: the baseline's integrity.json")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="integrity.json")
    arguments = parser.parse_args()
    if (arguments.folder is None) == (arguments.cell is None):
        parser.error("name a checkpoint folder, or --cell")
    if bool(arguments.signature or arguments.store_signature) != bool(arguments.public_key):
        parser.error("--public-key goes with --signature or --store-signature")
    if bool(arguments.store) != bool(arguments.trace):
        parser.error("--store and --trace go together")
    offline_environment()
    timing = Timing()
    timing.imports()
    record = judge_cell(arguments) if arguments.cell else judge_folder(arguments)
    if arguments.output:
        write_json(arguments.output, record | {"timing": timing.record(), "provenance": provenance("cpu")})
    if arguments.cell:
        print(f"{record['model']} × {record['method']}: {'' if record['verified'] else 'NOT '}verified: ", end="")
        print(record["explanation"])
        return
    print_table(record)
    print(f"{record['checkpoint']}: {record['explanation']}")
    sys.exit(manifest.FOUND_SOMETHING if findings_of(record) else 0)


if __name__ == "__main__":
    run_stage(main)
