"""The checks that a cell must pass before its numbers are believed. Writes checks.json; a failed one fails the stage.

Each check is {name, status: pass | fail | skipped, value, limit, explanation}; quantharm.forensics.checks has their
functions and limits. Five of them load the checkpoint: `reload` (twice), `method_is_real`, `kernel`, `stored_weights`
and `engine`; the others read the cell's result files and the baseline's.
"""

import argparse
from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.common.files import read_json, write_json
from quantharm.common.prompts import read_prompts
from quantharm.common.provenance import provenance
from quantharm.common.records.checks import CalibrationEvidence, CheckRecord, ChecksRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.stage import Timing, add_device, begin_model_stage, run_stage, stage_parser
from quantharm.common.text import read_text
from quantharm.config.engines import NO_WEIGHTS, is_served
from quantharm.forensics.checks.figures import check_consistency, check_finite, check_self_divergence
from quantharm.forensics.checks.kernel import KERNEL_TOKENS, check_kernel
from quantharm.forensics.checks.logits import check_engine, check_reload
from quantharm.forensics.checks.outcome import outcome
from quantharm.forensics.checks.texts import ScoredRecords, check_calibration, check_same_text
from quantharm.forensics.checks.weights import check_bits_per_weight, check_method_is_real, check_stored_weights
from quantharm.models.devices import choose_device, dtype_of, free_memory
from quantharm.models.loading import load_in_transformers, load_tokenizer, read_quantization, verify_config
from quantharm.models.safety import verify_weights
from quantharm.quantizers import quantized_layers
from quantharm.quantizers.calibration_evidence import calibration_evidence
from quantharm.scoring.forward import last_hidden_states, output_head


def checks_of_weights(
    arguments: argparse.Namespace,
    record: QuantizationRecord,
    cell: ScoredRecords,
    baseline: ScoredRecords,
    device: str,
    timing: Timing,
) -> tuple[list[CheckRecord], CalibrationEvidence | None, str]:
    """(checks, calibration evidence, dtype of computing) of a cell whose checkpoint is here; loads it twice."""
    evaluation = read_text(arguments.text)
    verify_weights(Path(record["checkpoint"]), record["weight_files"], in_full=True)
    verify_config(record)

    with timing.part("load"):
        tokenizer = load_tokenizer(record["source"])
        model = load_in_transformers(record, device)
    tokens = tokenizer(evaluation[:4000])["input_ids"][:KERNEL_TOKENS]
    with timing.part("model"):
        matrices = quantized_layers.quantized_matrices(model, Path(record["checkpoint"]), record["quantizer"])
        head = output_head(model)
        first, repeated = (head(last_hidden_states(model, tokens)).cpu() for _ in range(2))
        real = check_method_is_real(record, matrices, model)
        kernel = check_kernel(model, matrices, tokens)
        stored = check_stored_weights(model, matrices, Path(record["source"]["path"]), record)
    del model, matrices, head
    free_memory(device)
    with timing.part("load"):
        model = load_in_transformers(record, device)
    with timing.part("model"):
        head = output_head(model)
        second = head(last_hidden_states(model, tokens)).cpu()
        prompts = read_prompts(arguments.prompts)
        calibrated = calibration_evidence(record, model, head, tokenizer, cell, evaluation, prompts)
        engine = check_engine(record, model, device, tokenizer, evaluation)
    checks = [
        check_self_divergence(baseline["divergence"]),
        check_reload(first, second, device, repeated),
        real,
        check_bits_per_weight(record),
        kernel,
        stored,
        engine,
        check_finite(cell["generation"]),
        check_consistency(cell["divergence"]),
        check_same_text(cell, baseline),
        check_calibration(calibrated),
    ]
    return checks, calibrated, dtype_of(model)


def checks_of_endpoint(cell: ScoredRecords, baseline: ScoredRecords) -> list[CheckRecord]:
    """The checks of a cell whose weights are behind an address: its figures are checked, the rest is skipped."""
    unseen = ("reload", "method_is_real", "bits_per_weight", "kernel", "stored_weights", "engine")
    return [
        check_self_divergence(baseline["divergence"]),
        *(outcome(name, None, None, None, f"{NO_WEIGHTS}: not run") for name in unseen),
        check_finite(cell["generation"]),
        check_consistency(cell["divergence"]),
        check_same_text(cell, baseline),
        check_calibration(None),
    ]


def scored_records(folder: Path) -> ScoredRecords:
    """The result files of one cell that the checks read."""
    return {
        "perplexity": read_json(folder / "perplexity.json"),
        "generation": read_json(folder / "generation.json"),
        "divergence": read_json(folder / "divergence.json"),
    }


def refuse_failed(record: QuantizationRecord, failed: list[CheckRecord]) -> None:
    """Raises UserError that names each failed check, what it measured and its limit."""
    if failed:
        reasons = "; ".join(f"{c['name']} ({c['value']}, limit {c['limit']}: {c['explanation']})" for c in failed)
        raise UserError(
            f"{record['model']} × {record['method']} failed {reasons}. Its numbers are not to be believed; find the "
            "cause, or set `on_failed_check: report` to see them marked as failed"
        )


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--cell", type=Path, required=True, help="folder of the cell's result files")
    parser.add_argument("--baseline", type=Path, required=True, help="folder of the baseline's result files")
    parser.add_argument("--text", type=Path, required=True, help="evaluation text")
    parser.add_argument("--prompts", type=Path, required=True, help="prompt suite")
    parser.add_argument("--on-failure", default="stop", choices=["stop", "report"], help="whether a failure fails")
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True, help="checks.json")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    record = read_quantization(arguments.cell / "quantization.json")
    device = choose_device(arguments.device, record["gpus"])
    cell, baseline = scored_records(arguments.cell), scored_records(arguments.baseline)
    if is_served(record["settings"]):
        checks, calibrated, computed = checks_of_endpoint(cell, baseline), None, None
    else:
        checks, calibrated, computed = checks_of_weights(arguments, record, cell, baseline, device, timing)
    for check in checks:
        print(
            f"{check['status']:8}{check['name']:18}{check['value']}  (limit {check['limit']})  {check['explanation']}"
        )
    failed = [check for check in checks if check["status"] == "fail"]
    if arguments.on_failure == "stop":
        refuse_failed(record, failed)
    written: ChecksRecord = {
        "model": record["model"],
        "method": record["method"],
        "checks": checks,
        "failed": [check["name"] for check in failed],
        "calibration": calibrated,
        "timing": timing.record(),
        "provenance": provenance(device, record["dtype"], computed),
    }
    write_json(arguments.output, written)


if __name__ == "__main__":
    run_stage(main)
