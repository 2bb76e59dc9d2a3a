"""Is a checkpoint what it is said to be? Its files, its weights, its behaviour.

    python -m quantharm.integrity FOLDER [--signature FILE] [--store FOLDER --store-signature FILE] [--public-key FILE]

1. files: every sha256 against a signed manifest (forensics.manifest), or as recorded when a model was fetched.
2. weights: traces of having been quantized and dequantized (forensics.detection): method, bits and groups by matrix.
3. behaviour: the KL divergence from the original's log-prob store, beside its noise floor (forensics.reference_check).

Exit code of the command: 0 without a finding, 3 with one, 1 where it cannot be judged. It cannot, for one, where the
divergence from the store could come from other hardware or from the mildest quantization, and nothing else vouches for
the checkpoint. No trace is no proof: noise, further training or rescaling can hide one. Native low-bit training looks
like quantization.

As a stage (--cell) it writes integrity.json for a cell of the workflow: the model's files and weights, the cell's own
files, and whether the scan would notice if the cell's checkpoint were dequantized and handed on as the original.
"""

import argparse
import sys
from pathlib import Path

from quantharm.common.checkpoint_files import gguf_file, read_checkpoint_config
from quantharm.common.files import read_json, write_json
from quantharm.common.provenance import provenance
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.common.records.integrity import (
    Behaviour,
    CellIntegrity,
    Files,
    FolderIntegrity,
    FolderIntegrityRecord,
    FolderScan,
    IntegrityRecord,
)
from quantharm.common.sanitize import print_line
from quantharm.common.stage import Timing, add_device, begin_offline_stage, run_stage, stage_parser
from quantharm.forensics import file_hashes, manifest, reference_check
from quantharm.forensics.detection.checkpoints import scan_dequantized, scan_folder
from quantharm.forensics.printed import print_table
from quantharm.models.devices import choose_device
from quantharm.models.loading import read_quantization
from quantharm.models.safety import refuse_unsafe

NOT_JUDGED = 1  # exit code


def judge_folder(arguments: argparse.Namespace) -> FolderIntegrity:
    """The findings on a checkpoint that somebody handed over."""
    folder = arguments.folder
    if not gguf_file(folder):
        read_checkpoint_config(folder)
    refuse_unsafe(folder, allow_pickle=False, trust_remote_code=False)
    files = store_files = behaviour = None
    if arguments.signature:
        files = manifest.verify(folder, arguments.public_key, arguments.signature)
    if arguments.store_signature:
        signature = arguments.store_signature
        store_files = reference_check.verify_store(arguments.store, arguments.public_key, signature)
    scan = scan_folder(folder)
    if arguments.store:
        device = choose_device(arguments.device, arguments.gpus)
        behaviour = reference_check.score_folder(folder, arguments.store, device, arguments.gpus)
    findings = findings_in(files, scan, behaviour)
    untold = behaviour is not None and behaviour["same_as_original"] is None
    positive = files or (behaviour and not untold)
    why = f"behaviour: {behaviour['explanation']}" if behaviour and untold else "no signature was given"
    nothing = "nothing was found against it" if positive else f"not verified: {why}; {scan['explanation']}"
    return {
        "checkpoint": str(folder),
        "manifest": files,
        "store_manifest": store_files,
        "behaviour": behaviour,
        "scan": scan,
        "verified": False if findings else True if positive else None,
        "explanation": "; ".join(findings) or nothing,
    }


def findings_of(record: FolderIntegrity) -> list[str]:
    """Findings against a checkpoint, in words."""
    return findings_in(record["manifest"], record["scan"], record["behaviour"])


def findings_in(files: Files | None, scan: FolderScan, behaviour: Behaviour | None) -> list[str]:
    """Findings in files, weights and behaviour, a sentence each."""
    findings = []
    if files and not files["verified"]:
        findings.append(f"files: {files['explanation']}")
    findings += weight_findings(scan)
    if behaviour and behaviour["same_as_original"] is False:
        findings.append(f"behaviour: {behaviour['explanation']}")
    return findings


def weight_findings(scan: FolderScan) -> list[str]:
    """Traces of quantization, or contradictions between config.json and the storage of the weights."""
    against = scan["verdict"] == "dequantized" or scan["findings"]
    return [f"weights: {scan['explanation']}"] if against else []


def judge_cell(arguments: argparse.Namespace) -> CellIntegrity:
    """The findings on a cell; the baseline's record holds those on the model."""
    cell = read_quantization(arguments.cell / "quantization.json")
    folder = Path(cell["checkpoint"])
    files, signed, dequantized = file_hashes.verify_recorded(folder, cell["weight_files"]), None, None
    floor = read_json(arguments.floor)["kl_nats"]["mean"]
    divergence: DivergenceRecord = read_json(arguments.cell / "divergence.json")
    behaviour = reference_check.judge(divergence, floor, divergence["store"])
    scan = scan_folder(folder)
    packed = scan["verdict"] in ("packed", "partly packed")
    findings = []
    if arguments.baseline is None:
        if arguments.signature:
            signed = manifest.verify(Path(cell["source"]["path"]), arguments.public_key, arguments.signature)
        if packed:
            findings.append(f"the model itself: {scan['explanation']}")
    else:
        model = read_json(arguments.baseline)
        findings += [] if model["verified"] else [f"its model: {model['explanation']}"]
        if packed:
            dequantized = scan_dequantized(cell, choose_device(arguments.device, cell["gpus"]))
    findings += weight_findings(scan)
    for checked in (files, signed):
        if checked and not checked["verified"]:
            findings.append(f"files: {checked['explanation']}")
    explanations = [(signed or files)["explanation"], scan["explanation"]]
    explanations += [dequantized["explanation"]] if dequantized else []
    return {
        "model": cell["model"],
        "method": cell["method"],
        "checkpoint": str(folder),
        "manifest": files,
        "signed_manifest": signed,
        "behaviour": behaviour,
        "scan": scan,
        "if_dequantized": dequantized,
        "verified": not findings,
        "explanation": "; ".join(findings or explanations),
    }


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="checkpoint to judge")
    parser.add_argument("--signature", type=Path, help="signed manifest of the checkpoint (forensics.manifest)")
    parser.add_argument("--public-key", type=Path, help="the signer's public key")
    parser.add_argument("--store", type=Path, help="log-prob store of the original: its baseline's result folder")
    parser.add_argument("--store-signature", type=Path, help="signature of the store, by the same key")
    parser.add_argument("--cell", type=Path, help="as a stage: folder of the cell's result files")
    parser.add_argument("--baseline", type=Path, help="as a stage: the baseline's integrity.json")
    parser.add_argument("--floor", type=Path, help="as a stage: the baseline's divergence.json")
    add_device(parser)
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to spread the checkpoint over; a cell's record says")
    parser.add_argument("--output", type=Path, help="integrity.json")
    arguments = parser.parse_args()
    if (arguments.folder is None) == (arguments.cell is None):
        parser.error("name a checkpoint folder, or --cell")
    if bool(arguments.signature or arguments.store_signature) != bool(arguments.public_key):
        parser.error("--public-key goes with --signature or --store-signature")
    if arguments.store_signature and not arguments.store:
        parser.error("--store-signature goes with --store")
    begin_offline_stage()
    timing = Timing()
    timing.started()
    if arguments.cell:
        with timing.part("model"):
            cell = judge_cell(arguments)
        if arguments.output:
            of_cell: IntegrityRecord = {**cell, "timing": timing.record(), "provenance": provenance("cpu")}
            write_json(arguments.output, of_cell)
        verdict = "no finding" if cell["verified"] else "FINDING"
        print_line(f"{cell['model']} × {cell['method']}: {verdict}: {cell['explanation']}")
        return
    with timing.part("model"):
        folder = judge_folder(arguments)
    if arguments.output:
        of_folder: FolderIntegrityRecord = {**folder, "timing": timing.record(), "provenance": provenance("cpu")}
        write_json(arguments.output, of_folder)
    print_table(folder)
    findings = findings_of(folder)
    against = f"against it: {', '.join(finding.split(':')[0] for finding in findings)}"
    print_line(f"{folder['checkpoint']}: {against if findings else folder['explanation'].split(';')[0]}")
    if findings:
        sys.exit(manifest.FOUND_SOMETHING)
    if folder["behaviour"] and folder["verified"] is None:
        sys.exit(NOT_JUDGED)


if __name__ == "__main__":
    run_stage(main)
