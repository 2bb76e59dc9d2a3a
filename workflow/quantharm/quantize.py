"""Quantizes a model, saves it, loads the saved checkpoint, and records its sizes, modules and hashes.

Later stages evaluate the checkpoint on disk, never the object that was just quantized. Writes the checkpoint folder (a
pointer for the baseline and for pretrained checkpoints) and quantization.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import cast

from quantharm import engines
from quantharm.common.checkpoint_files import gguf_file
from quantharm.common.files import read_json, replacing_folder, write_json
from quantharm.common.memory import memory_bytes
from quantharm.common.provenance import provenance
from quantharm.common.records.quantization import (
    CheckpointMeasured,
    CheckpointRecord,
    MadeByQuantizer,
    QuantizationRecord,
    QuantizerOutput,
    Settings,
)
from quantharm.common.records.source import SourceRecord
from quantharm.common.stage import add_device, begin_model_stage, run_stage, stage_parser
from quantharm.config.engines import LLAMA_CPP, engine_of, is_served
from quantharm.config.noise import grid_of
from quantharm.models.compute import compute_dtype
from quantharm.models.devices import choose_device, dtype_of, free_memory, torch_dtype
from quantharm.models.loading import load_as_stored, quiet
from quantharm.models.safety import hash_config_files, hash_weights, verify_config_files, verify_weights
from quantharm.quantizers import LeavesSettings, noise, quantizable, quantized_layers, quantizer_named
from quantharm.quantizers.conditions import refuse_conflict
from quantharm.quantizers.formats import gguf_file as stored_gguf
from quantharm.speed.trial import try_model

POINTER = "pointer.json"


def make_checkpoint(
    arguments: argparse.Namespace, source: SourceRecord, settings: Settings, device: str
) -> QuantizerOutput:
    """Runs the quantizer; the checkpoint folder appears whole or not at all. Returns the quantizer's own record keys.

    Noise is added first, to a copy of the source that the quantizer is given, or that is itself the checkpoint.
    """
    quantizer = quantizer_named(arguments.quantizer)
    with replacing_folder(arguments.checkpoint) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as noisy:
        extra: QuantizerOutput = {}
        if "noise" in settings:
            copy = folder if arguments.quantizer == "unquantized" else Path(noisy)
            grid = grid_of(arguments.quantizer, settings)
            extra["noise"] = noise.write_noisy(source, settings["noise"], grid, copy)
            source = {**source, "path": str(copy)}
        if "noise" not in settings or arguments.quantizer != "unquantized":
            extra |= quantizer.quantize(
                source, settings, arguments.dtype, device, arguments.gpus, folder, arguments.calibration
            )
        if "checkpoint" in extra:
            write_json(folder / POINTER, {"checkpoint": extra["checkpoint"]})
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return extra


def inspect_checkpoint(record: CheckpointRecord, device: str) -> CheckpointMeasured:
    """Loads the checkpoint from disk and measures it: bytes, bits a weight, quantized and kept modules."""
    folder = Path(record["checkpoint"])
    begin = time.perf_counter()
    model = load_as_stored(record, device)
    load_seconds = time.perf_counter() - begin
    matrices = quantized_layers.quantized_matrices(model, folder, record["quantizer"])
    loaded_bytes = quantized_layers.model_bytes(model)  # before a forward pass, at which a CPU repacks 4-bit weights
    try_model(model, matrices)
    measured, formula = quantized_layers.bits_per_weight(matrices)
    quantized = {m.name for m in matrices}
    packed = engine_of(record["settings"]) == LLAMA_CPP and gguf_file(folder) is not None  # it multiplies the blocks
    kept = quantizable.kept_weights(model, quantized)
    return {
        "load_seconds": round(load_seconds, 3),
        "loaded_dtype": dtype_of(model),
        "weight_bytes": stored_gguf.tensor_bytes(folder) if packed else loaded_bytes,
        "parameters": sum(m.rows * m.columns for m in matrices)
        + sum(p.numel() for n, p in model.named_parameters() if n.rpartition(".")[0] not in quantized)
        + sum(quantized_layers.bias_size(model.get_submodule(name)) for name in quantized),
        "bits_per_weight": measured,
        "bits_per_weight_formula": formula,
        "linear_classes": sorted({type(model.get_submodule(m.name)).__name__ for m in matrices}),
        "held_dequantized": bool(matrices) and not packed and all(m.held_dequantized for m in matrices),
        "by_layer_kind": quantized_layers.by_layer_kind(matrices),
        "quantized_modules": sorted(quantized),
        "quantized_weights": sum(m.rows * m.columns for m in matrices),
        "quantizable_weights": sum(m.rows * m.columns for m in matrices) + sum(kept.values()),
        "kept_modules": sorted({*quantizable.plain_linears(model, quantized), *kept}),
        "output_head": quantizable.head_name(model),
    }


NOTHING_SEEN: CheckpointMeasured = {  # of weights that are behind an address
    "load_seconds": None,
    "loaded_dtype": None,
    "weight_bytes": None,
    "parameters": None,
    "bits_per_weight": None,
    "bits_per_weight_formula": None,
    "linear_classes": [],
    "held_dequantized": False,
    "by_layer_kind": {},
    "quantized_modules": [],
    "quantized_weights": None,
    "quantizable_weights": None,
    "kept_modules": [],
    "output_head": None,
}


def asked_endpoint(stored: CheckpointRecord, device: str) -> CheckpointMeasured:
    """The record of a model behind an address, which is asked now so that a wrong address fails here.

    `stored` gets what the server says of one sentence: the stages ask again, and so know other weights.
    """
    served = engines.open_cell(stored, device)
    stored["probe_nll_nats"] = served.probe_nll_nats
    description = served.description()
    print(f"{stored['model']} × {stored['method']}: {', '.join(f'{key} {v}' for key, v in description.items())}")
    return NOTHING_SEEN


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--source", type=Path, required=True, help="source.json of the model")
    parser.add_argument("--method", required=True, help="name in the config")
    parser.add_argument("--quantizer", required=True, help="module in quantharm.quantizers")
    parser.add_argument("--settings", default="{}", help="the method's settings, JSON")
    parser.add_argument("--pretrained-source", type=Path, help="source.json of a pretrained quantized checkpoint")
    parser.add_argument("--calibration", type=Path, help="calibration text, for quantizers that use one")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add_device(parser)
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to spread the model over")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder to write")
    parser.add_argument("--output", type=Path, required=True, help="quantization.json")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    quiet()
    device = choose_device(arguments.device, arguments.gpus)
    source: SourceRecord = read_json(arguments.source)
    settings = json.loads(arguments.settings)
    if arguments.pretrained_source:
        settings["resolved"] = read_json(arguments.pretrained_source)
    verify_weights(Path(source["path"]), source["weight_files"])
    verify_config_files(Path(source["path"]), source.get("config_files"), source["trust_remote_code"])

    refuse_conflict(arguments.method, arguments.quantizer, settings, source)
    with timing.part("model"):
        extra = make_checkpoint(arguments, source, settings, device)
        free_memory(device)
    peak = memory_bytes(device)
    folder = Path(extra.pop("checkpoint", arguments.checkpoint))
    pointed = extra.pop("resolved", source if folder != arguments.checkpoint else None)
    files = pointed["weight_files"] if pointed else hash_weights(folder)
    trusted = (pointed or source)["trust_remote_code"]
    beside = pointed.get("config_files") if pointed else hash_config_files(folder, trusted)
    stored: CheckpointRecord = {
        "model": source["model"],
        "method": arguments.method,
        "synthetic": source["synthetic"],
        "quantizer": arguments.quantizer,
        "settings": settings,
        "dtype": arguments.dtype,
        "gpus": arguments.gpus,
        "source": source,
        "checkpoint": str(folder),
        "checkpoint_bytes": None if is_served(settings) else sum(f["bytes"] for f in files),
        "weight_files": files,
        "seconds": round(timing.seconds["model"], 3),
        **cast(MadeByQuantizer, extra),
    }
    quantizer = quantizer_named(arguments.quantizer)
    if isinstance(quantizer, LeavesSettings) and (idle := quantizer.without_effect(settings)):
        stored["settings_without_effect"] = sorted(idle & settings.keys())
    if beside is not None:
        stored["config_files"] = beside
    with timing.part("load"):
        measured = (asked_endpoint if is_served(settings) else inspect_checkpoint)(stored, device)
    record: QuantizationRecord = {
        **stored,
        **measured,
        "memory": peak,
        "timing": timing.record(),
        "provenance": provenance(device, arguments.dtype, compute_dtype(arguments.dtype, device)),
    }
    write_json(arguments.output, record)
    if record["checkpoint_bytes"] is None or record["weight_bytes"] is None:
        return
    bits = record["bits_per_weight"]
    print(
        f"{record['model']} × {arguments.method}: {record['checkpoint_bytes'] / 1e6:.2f} MB on disk, "
        f"{record['weight_bytes'] / 1e6:.2f} MB loaded, {len(record['quantized_modules'])} matrices at "
        f"{f'{bits:.3f}' if bits else str(torch_dtype(str(record['loaded_dtype'])).itemsize * 8)} bits a weight"
    )


if __name__ == "__main__":
    run_stage(main)
