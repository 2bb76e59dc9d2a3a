"""GGUF by llama.cpp's own tools: the checkpoint is converted to 16 bits, then `llama-quantize` rounds it.

A type that ends in _M gives some kinds of matrices more bits than others; a matrix whose rows are no multiple of 256
gets the nearest type with blocks of 32. Head and embeddings stay in 16 bits, as in the other methods, unless a type is
set for them; published files usually have a head in Q6_K.

With `importance`, an importance matrix is made from the calibration text (importance_matrix.py).
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema, pretrained
from quantharm.quantizers.calibration_samples import (
    CALIBRATION_SETTINGS,
    calibration_record,
    calibration_samples,
    samples_for,
)
from quantharm.quantizers.experts import experts_of
from quantharm.quantizers.formats import families
from quantharm.quantizers.importance_matrix import architecture_of, importance_matrix, write_importance
from quantharm.quantizers.llama_cpp_tools import (
    CONVERT,
    check_types,
    in_types_of_the_fork,
    run_tool,
    source_as_expected,
    tools,
)

if TYPE_CHECKING:
    from quantharm.common.checkpoint_files import CheckpointConfig

__all__ = ["SETTINGS", "calibration_samples"]

load = pretrained.load_own
inspect = families.inspect
multiply_in_float32 = families.multiply_in_float32

PACKAGES = "gguf"  # a file in envs/
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1")
MAINLINE = {"IQ4_XS": ["--attn-v-type", "q5_K"]}  # as llama.cpp chooses; the fork takes a type of its own
FILE = "model.gguf"
KEPT_TYPES = ["BF16", "F16", "F32", "Q8_0", "Q6_K", "Q4_K"]

SETTINGS: SettingsSchema = {
    "type": {"enum": list(TYPES), "default": "Q4_K_M", "description": "As `llama-quantize` calls it."},
    "head_type": {"enum": KEPT_TYPES, "default": "BF16", "description": "Of the output head."},
    "embedding_type": {"enum": KEPT_TYPES, "default": "BF16", "description": "Of the token embeddings."},
    "importance": {
        "type": "boolean",
        "default": False,
        "description": "Whether an importance matrix from the calibration text weighs the error of rounding.",
    },
    **CALIBRATION_SETTINGS,
}


def without_effect(settings: Settings) -> set[str]:
    return set() if settings["importance"] else set(CALIBRATION_SETTINGS)


def conflict(settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
    if settings["importance"] and experts_of(checkpoint_config) > 1:
        return "importance matrices are not made here for mixtures of experts; set `importance: false`"
    return None


def unsupported(model, settings: Settings) -> str | None:
    """Asked of a model on the meta device."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    kind = model.config.model_type
    read = {str(name).replace("-", "_") for name in GGUF_SUPPORTED_ARCHITECTURES}
    if kind not in read and architecture_of(kind) not in read:
        return f"transformers reads no GGUF files of models of type {kind!r}"
    return None


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    from quantharm.models.completeness import check_whole
    from quantharm.models.safety import refuse_unsafe

    converter, quantizer = tools()
    refuse_unsafe(Path(source["path"]), source["allow_pickle"], trust_remote_code=False)
    check_whole(Path(source["path"]), trust_remote_code=False)
    record: QuantizerOutput = {}
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary, source_as_expected(source) as folder:
        whole, importance = Path(temporary) / "whole.gguf", []
        outtype = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[dtype]
        convert = [sys.executable, "-c", CONVERT, str(converter), str(folder)]
        convert += ["--model-name", source["model"]]  # else the temporary folder's, and no two files were equal
        run_tool([*convert, "--outfile", str(whole), "--outtype", outtype], "the conversion to GGUF")
        if settings["importance"]:
            assert calibration is not None  # the workflow names a text for each method that calibrates
            packed = samples_for(source, settings, calibration)
            matrix, positions = importance_matrix(source, packed, dtype, device, gpus)
            path = Path(temporary) / "importance.dat"
            write_importance(matrix, path)
            importance = ["--imatrix", str(path)]
            reached = positions // settings["calibration_tokens"]
            record["calibration"] = calibration_record(packed, settings, calibration, reached, positions)
        kept = ["--output-tensor-type", settings["head_type"].lower()]
        kept += ["--token-embedding-type", settings["embedding_type"].lower()]
        kept += MAINLINE.get(settings["type"], [])
        files = [str(whole), str(output / FILE), settings["type"], "2"]
        log = run_tool([str(quantizer), *importance, *kept, *files], "llama-quantize")
        if foreign := in_types_of_the_fork(log):  # llama.cpp takes Q5_1 there
            kept += ["--custom-q", ",".join(f"{re.escape(name)}=q5_1" for name in foreign)]
            run_tool([str(quantizer), *importance, *kept, *files], "llama-quantize")
    check_types(output / FILE)
    shutil.copyfile(Path(source["path"]) / "config.json", output / "config.json")
    return record
