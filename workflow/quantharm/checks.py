"""The checks that a cell must pass before its numbers are believed. Writes checks.json; a failed one fails the stage.

Each check is {name, status: pass | fail | skipped, value, limit, explanation}. Five of them load the checkpoint:
`reload` (twice), `method_is_real`, `kernel`, `stored_weights` and `engine`; the others read the cell's result files and
the baseline's.
"""

import math
from pathlib import Path
from typing import Any, Literal

import torch

from quantharm import engines
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, write_json
from quantharm.common.prompts import read_prompts
from quantharm.common.provenance import computed_differently, provenance
from quantharm.common.records.checks import CalibrationEvidence, CheckRecord, ChecksRecord
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.stage import add_device, begin_model_stage, run_stage, stage_parser
from quantharm.common.text import read_text
from quantharm.config.engines import NO_WEIGHTS, is_served
from quantharm.models.compute import multiplies_bytes_exactly
from quantharm.models.loading import (
    choose_device,
    dtype_of,
    free_memory,
    load_in_transformers,
    load_tokenizer,
    read_quantization,
    set_compute_dtype,
    verify_weights,
)
from quantharm.quantizers import against_original, calibration, quantized_layers
from quantharm.quantizers.calibration_evidence import calibration_evidence
from quantharm.quantizers.formats import families
from quantharm.quantizers.quantized_layers import QUANTIZED_SHARE_LIMIT
from quantharm.scoring.forward import last_hidden_states, output_head

SELF_DIVERGENCE_LIMIT = 1e-5  # nats
RELOAD_LIMIT = {"cpu": 0.0, "cuda": 1e-6}  # nats
RELOAD_NOISE_FACTOR = 10.0  # some GPU kernels add in varying order: two passes of one load differ as well
RELOAD_CEILING = 1e-2  # nats; kernels that vary by more say nothing about a 4-bit method's divergence, 0.01 to 0.06
BITS_LIMIT = 0.03
KERNEL_LIMIT = 0.02
CONSISTENCY_LIMIT = 3.0  # times half the mean square of ln p - ln q on the text's tokens
CONSISTENCY_LEAST = 30.0  # and at least one part in so many of it
CONSISTENCY_FROM = 1e-3  # nats; below, rounding has its share
CONSISTENCY_STANDARD_ERRORS = 3.0  # few windows tell the mean square only roughly
ENGINE_LIMIT = 0.02  # nats; llama.cpp rounds activations to 8 bits: 0.003 on a model of 135M parameters
ENGINE_TOKENS = 256
KERNEL_MATRICES = 8
KERNEL_TOKENS = 64
SAME_PROMPTS_KEYS = ["suite_sha256", "prompts_per_category", "max_new_tokens", "chat_template", "thinking"]
SAME_PROMPTS_KEYS += ["prompt_tokens_sha256"]
SAME_TEXT_KEYS = ["dataset_sha256", "tokens_sha256", "protocol"]


def outcome(name: str, passed: bool | None, value: Any, limit: Any, explanation: str) -> CheckRecord:
    """passed None means skipped."""
    status: Literal["pass", "fail", "skipped"] = "skipped" if passed is None else "pass" if passed else "fail"
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    return {"name": name, "status": status, "value": value, "limit": limit, "explanation": explanation}


def check_self_divergence(baseline_divergence: DivergenceRecord) -> CheckRecord:
    value = baseline_divergence["kl_nats"]["mean"]
    return outcome(
        "self_divergence",
        value <= SELF_DIVERGENCE_LIMIT,
        value,
        SELF_DIVERGENCE_LIMIT,
        "mean KL in nats of the baseline against its own store: the noise floor of every divergence of this model",
    )


def mean_kl(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean over positions of |KL| in nats; first, second: [T, vocabulary] logits. Exactly 0 for equal logits."""
    if torch.equal(first, second):
        return 0.0
    ln_p, ln_q = torch.log_softmax(first.double(), -1), torch.log_softmax(second.double(), -1)
    return float((ln_p.exp() * (ln_p - ln_q)).sum(-1).abs().mean())


def check_reload(
    first: torch.Tensor, second: torch.Tensor, device: str, repeated: torch.Tensor | None = None
) -> CheckRecord:
    """first, second: [T, vocabulary] logits of the same tokens from two loads of the same files.

    repeated: of another pass of the first load. What its kernels vary by is no difference between the loads, up to
    RELOAD_CEILING (the Triton kernel of AWQ adds with atomics and varies by 2e-4 nats on the built-in model).
    """
    value, noise = mean_kl(first, second), 0.0 if repeated is None else mean_kl(first, repeated)
    limit = max(RELOAD_LIMIT[device], min(RELOAD_NOISE_FACTOR * noise, RELOAD_CEILING))
    return outcome(
        "reload",
        value <= limit,
        value,
        limit,
        "mean KL in nats between two loads of the checkpoint (largest difference of a logit "
        f"{float((first - second).abs().max()):.3g}; between two passes of one load {noise:.3g} nats)",
    )


def check_method_is_real(record: QuantizationRecord, matrices: list, model) -> CheckRecord:
    """The loaded matrices are the quantizer's own classes, most of the weights, and the head is not among them.

    The share is of the weights that could have been quantized (quantized_layers.kept_weights); what the config of a
    third party's checkpoint excludes is no fault of it and is left out, nor is a head that its maker quantized.
    """
    quantized = sum(m.rows * m.columns for m in matrices)
    head = quantized_layers.head_name(model)
    kept = quantized_layers.kept_weights(model, {m.name for m in matrices})
    excluded: set[str] = set()
    if record["quantizer"] == "pretrained":
        excluded = families.excluded_by_config(Path(record["checkpoint"]), kept)
    left = sum(kept[name] for name in excluded)
    wanted_weights = quantized + sum(kept.values()) - left
    share = quantized / wanted_weights if wanted_weights else 0.0
    head_quantized = head in {m.name for m in matrices}
    if record["quantizer"] == "unquantized":
        passed, limit, wanted = not matrices, 0.0, "of them quantized, as nothing should be in this cell"
    else:
        passed, limit = (
            share >= QUANTIZED_SHARE_LIMIT and (not head_quantized or record["quantizer"] == "pretrained"),
            QUANTIZED_SHARE_LIMIT,
        )
        unpacked = "unpacked to 16 bits when loaded, " if any(m.held_dequantized for m in matrices) else ""
        classes = sorted({type(model.get_submodule(m.name)).__name__ for m in matrices})
        wanted = f"{unpacked}as {', '.join(classes) or 'nothing'}"
        wanted += f"; the output head is {'' if head_quantized else 'not '}quantized"
    if left:
        wanted += f"; its config excludes {len(excluded)} others, {left / (wanted_weights + left):.0%} of all weights"
    return outcome(
        "method_is_real",
        passed,
        share,
        limit,
        "share of the weights of two or more dimensions, but embeddings and head, that are quantized, "
        f"{len(matrices)} {wanted}",
    )


def check_bits_per_weight(record: QuantizationRecord) -> CheckRecord:
    measured, formula = record["bits_per_weight"], record["bits_per_weight_formula"]
    if measured is None or formula is None:
        return outcome("bits_per_weight", None, None, BITS_LIMIT, "nothing is quantized in this cell")
    value = abs(measured / formula - 1)
    return outcome(
        "bits_per_weight",
        value <= BITS_LIMIT,
        value,
        BITS_LIMIT,
        f"relative difference of {measured:.4f} measured bits a weight from the format's {formula:.4f}",
    )


def relative_difference(measured: torch.Tensor, expected: torch.Tensor) -> float:
    return float((measured.float() - expected).norm() / expected.norm().clamp_min(1e-30))


def kernel_difference(matrix, module, inputs: torch.Tensor) -> float:
    """Relative difference of a layer's output from (dequantized weight × the same input); inputs: [n, columns].

    The larger one of all rows at once and of one row alone: decoding uses other kernels than prefill.
    """
    weight = matrix.dequantize().to(inputs.device)
    both = [difference_from(weight, matrix, module, rows) for rows in (inputs, inputs[:1])]
    return float(torch.tensor(both).max())  # NaN if either is


def difference_from(weight: torch.Tensor, matrix, module, inputs: torch.Tensor) -> float:
    measured = module(inputs.unsqueeze(0))[0]  # [batch, tokens, columns], as the model calls it
    if module.bias is not None:
        measured = measured - module.bias.to(measured)
    multiplied = matrix.round_inputs(inputs.cpu()).to(inputs.device) if matrix.round_inputs else inputs
    return relative_difference(measured, multiplied.float() @ weight.t())


def check_kernel(model, matrices: list, tokens: list[int]) -> CheckRecord:
    """Some quantized layers, spread over depth and shape, on the activations that real text gives them."""
    if not matrices:
        return outcome("kernel", None, None, KERNEL_LIMIT, "nothing is quantized in this cell")
    if any(matrix.dequantize is None for matrix in matrices):
        return outcome("kernel", None, None, KERNEL_LIMIT, "what is quantized in this cell is not its quantizer's")
    chosen = choose_matrices(reached_by_text(model, matrices, tokens))
    if not chosen:
        return outcome("kernel", None, None, KERNEL_LIMIT, "text reaches no quantized matrix of this cell")
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(_, arguments) -> None:  # what a hook returns would take the input's place
            inputs[name] = arguments[0].detach().flatten(0, -2).clone()

        return hook

    hooks = [model.get_submodule(m.name).register_forward_pre_hook(keep(m.name)) for m in chosen]
    last_hidden_states(model, tokens)
    for hook in hooks:
        hook.remove()
    differences = {m.name: kernel_difference(m, model.get_submodule(m.name), inputs[m.name]) for m in chosen}
    worst = max(differences, key=lambda name: differences[name] if math.isfinite(differences[name]) else math.inf)
    kernel = type(model.get_submodule(worst)).__name__
    passed = differences[worst] <= KERNEL_LIMIT
    what = f"largest relative difference of {kernel} from its dequantized weights on {len(chosen)} matrices, in {worst}"
    rounds_inputs = any(matrix.round_inputs is not None for matrix in chosen)
    if not passed and rounds_inputs and model.device.type == "cpu" and not multiplies_bytes_exactly():
        what += "; PyTorch multiplies 8-bit integers wrongly on this processor (no VNNI instructions)"
    return outcome("kernel", passed, differences[worst], KERNEL_LIMIT, what)


def check_stored_weights(model, matrices: list, source: Path) -> CheckRecord:
    """Every part of every matrix in the file against the weights of the model in the folder `source`."""
    passed, value, explanation = against_original.judge(model, matrices, source)
    return outcome("stored_weights", passed, value, against_original.FACTOR_LIMIT, explanation)


def reached_by_text(model, matrices: list, tokens: list[int]) -> list:
    """Those that tokens pass through: the eyes of a model for pictures, or an expert, may see none of them."""
    reached: set[str] = set()
    hooks = [
        model.get_submodule(m.name).register_forward_pre_hook(lambda *_, name=m.name: reached.add(name))
        for m in matrices
    ]
    last_hidden_states(model, tokens)
    for hook in hooks:
        hook.remove()
    return [matrix for matrix in matrices if matrix.name in reached]


def choose_matrices(matrices: list) -> list:
    """At most KERNEL_MATRICES: of each kind (last part of the name) one, walking through the layers."""
    kinds: dict[str, list] = {}
    for matrix in matrices:
        kinds.setdefault(matrix.name.rsplit(".", 1)[-1], []).append(matrix)
    walk = [group[i * (len(group) - 1) // max(1, len(kinds) - 1)] for i, group in enumerate(kinds.values())]
    return walk[:KERNEL_MATRICES]


def check_engine(record: QuantizationRecord, model, device: str, tokenizer, text: str) -> CheckRecord:
    """The engine's distributions against those of the same weights in transformers, multiplied in float32.

    model: the cell's in transformers; it computes in float32 from here on. The engine's cache is exact here: what a
    quantized one changes is what its cell measures.
    """
    name = engines.other_engine(record["settings"])
    if name is None:
        return outcome("engine", None, None, ENGINE_LIMIT, "this cell runs in transformers")
    tokens = tokenizer(text[:16_000])["input_ids"][:ENGINE_TOKENS]
    settings = {key: value for key, value in record["settings"].items() if key != "kv_cache"}
    with_exact_cache = record.copy()
    with_exact_cache["settings"] = settings
    served = engines.open_cell(with_exact_cache, device)
    set_compute_dtype(model, record["quantizer"], record["dtype"], device, "float32")
    kl = mean_kl(*(output_head(each)(last_hidden_states(each, tokens)).cpu() for each in (model, served)))
    served.close()
    explanation = (
        f"mean KL divergence of {name} from the same file's weights multiplied in float32, over {len(tokens)} "
        "positions of the evaluation text, nats"
    )
    return outcome("engine", kl <= ENGINE_LIMIT, kl, ENGINE_LIMIT, explanation)


def check_finite(generation: GenerationRecord) -> CheckRecord:
    """Perplexity and divergence refuse what is not finite, so their files' existence says that theirs were."""
    value = generation["not_finite"]
    return outcome(
        "finite",
        value == 0,
        value,
        0,
        "prompts that met a NaN or infinite logit; the perplexity and divergence stages met none",
    )


def check_consistency(divergence: DivergenceRecord) -> CheckRecord:
    """On the text, mean KL against half the mean square of ln p - ln q of the text's own tokens.

    Both measure how far the model moved, one over the whole vocabulary and one on single tokens: near p,
    KL = E_p[(ln p/q)²] / 2 to second order, as for every f-divergence. The tokens need not be drawn from p: an
    overconfident model, as chat tuning makes them, meets improbable tokens more often than it expects, which makes the
    square greater, so KL may be a thirtieth of it and no more than three times it. (ln(perplexity ratio) itself would
    have to agree with KL only for text drawn from p: the built-in model sharpened threefold, in 6 bits, gives -0.038
    and KL 0.017.)
    """
    text = divergence["text"]
    if divergence.get("synthetic"):
        reason = "synthetic weights do not predict the text, so its tokens have nothing to do with KL"
        return outcome("consistency", None, None, CONSISTENCY_LIMIT, reason)
    if text is None:
        return outcome("consistency", None, None, CONSISTENCY_LIMIT, "no window of the text is in the store")
    if "squared_delta_nll_mean" not in text:
        return outcome("consistency", None, None, CONSISTENCY_LIMIT, "divergence.json is of an earlier version")
    kl, half = text["kl_nats_mean"], text["squared_delta_nll_mean"] / 2
    error = CONSISTENCY_STANDARD_ERRORS * (text["squared_delta_nll_standard_error"] or 0.0) / 2
    explanation = (
        f"on the text, mean KL is {kl:.4g} nats and half the mean square of ln p - ln q of its tokens {half:.4g} ± "
        f"{error:.2g}: KL should be no more than three times it nor less than a thirtieth (ln(perplexity ratio): "
        f"{text['log_perplexity_ratio']:.4g})"
    )
    if max(kl, half) <= CONSISTENCY_FROM:
        return outcome("consistency", None, None, CONSISTENCY_LIMIT, f"{explanation}, but both are too small to tell")
    value = kl / half if half > 0 else math.inf
    bound = divergence.get("kl_is_lower_bound", False)  # then it may be too small, and never too large
    agree = (bound or (half - error) / CONSISTENCY_LEAST <= kl) and kl <= CONSISTENCY_LIMIT * (half + error)
    return outcome("consistency", agree, value, CONSISTENCY_LIMIT, explanation)


def check_same_text(cell: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> CheckRecord:
    """Token ids, data, protocol, suite, trace, device, how it computed and library versions equal the baseline's."""
    differing = []
    for key in SAME_TEXT_KEYS:
        if cell["perplexity"][key] != baseline["perplexity"][key]:
            differing.append(f"perplexity {key}")
    for key in SAME_PROMPTS_KEYS:
        if cell["generation"][key] != baseline["generation"][key]:
            differing.append(f"generation {key}")
    if cell["divergence"]["trace_sha256"] != baseline["divergence"]["trace_sha256"]:
        differing.append("trace")
    for stage in ("perplexity", "generation", "divergence"):
        mine, reference = cell[stage]["provenance"], baseline[stage]["provenance"]
        for key, (value, other) in computed_differently(mine, reference).items():
            differing.append(f"{stage} {key} ({value!r}, the baseline {other!r})")
        if mine["versions"] != reference["versions"]:
            differing.append(f"{stage} versions")
    return outcome(
        "same_text",
        not differing,
        len(differing),
        0,
        f"differs from the baseline in: {', '.join(differing)}" if differing else "scored as the baseline was",
    )


def check_calibration(evidence: CalibrationEvidence | None) -> CheckRecord:
    """evidence: what calibration_evidence gives."""
    if evidence is None:
        return outcome("calibration", None, None, 0, "this method uses no calibration text")
    wrong = calibration.faults(evidence)
    ratio = evidence["nll_mean_nats"] / evidence["text_nll_mean_nats"]
    explanation = (
        f"{evidence['samples_reached']} samples and {evidence['tokens_reached']} tokens reached the quantizer, none of "
        f"them shared with the evaluation text or the prompts, {evidence['duplicate_samples']} repeated; the model's "
        f"loss on them is {ratio:.2f} times that on the evaluation text"
    )
    return outcome("calibration", not wrong, len(wrong), 0, "; ".join(wrong) or explanation)


def checks_of_endpoint(cell: dict[str, Any], baseline: dict[str, Any]) -> list[CheckRecord]:
    """Of a cell whose weights are behind an address: what can be told from its figures; the rest says why not."""
    unseen = ("reload", "method_is_real", "bits_per_weight", "kernel", "engine")
    skipped = {name: outcome(name, None, None, None, f"{NO_WEIGHTS}: not run") for name in unseen}
    return [
        check_self_divergence(baseline["divergence"]),
        *skipped.values(),
        check_finite(cell["generation"]),
        check_consistency(cell["divergence"]),
        check_same_text(cell, baseline),
        check_calibration(None),
    ]


def checks_of_weights(arguments, record, cell, baseline, device, timing) -> tuple[list[CheckRecord], Any, str]:
    """(checks, calibration evidence, dtype that it computes in) of a cell whose checkpoint is here; loaded twice."""
    evaluation = read_text(arguments.text)
    verify_weights(Path(record["checkpoint"]), record["weight_files"], in_full=True)

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
        stored = check_stored_weights(model, matrices, Path(record["source"]["path"]))
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
    stages = ("perplexity", "generation", "divergence")
    cell = {stage: read_json(arguments.cell / f"{stage}.json") for stage in stages}
    baseline = {stage: read_json(arguments.baseline / f"{stage}.json") for stage in stages}
    if is_served(record["settings"]):
        checks, calibrated, computed = checks_of_endpoint(cell, baseline), None, None
    else:
        checks, calibrated, computed = checks_of_weights(arguments, record, cell, baseline, device, timing)
    for check in checks:
        print(
            f"{check['status']:8}{check['name']:18}{check['value']}  (limit {check['limit']})  {check['explanation']}"
        )
    failed = [check for check in checks if check["status"] == "fail"]
    if failed and arguments.on_failure == "stop":
        reasons = "; ".join(f"{c['name']} ({c['value']}, limit {c['limit']}: {c['explanation']})" for c in failed)
        raise UserError(
            f"{record['model']} × {record['method']} failed {reasons}. Its numbers are not to be believed; find the "
            "cause, or set `on_failed_check: report` to see them marked as failed"
        )
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
