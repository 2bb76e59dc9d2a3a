"""GGUF by llama.cpp's own tools: the checkpoint is converted to 16 bits, then `llama-quantize` rounds it.

Both come from the package ik-llama-cpp-python, a fork whose K-quants and IQ4 are those of llama.cpp. A type that ends
in _M gives some kinds of matrices more bits than others; a matrix whose rows are no multiple of 256 gets the nearest
type with blocks of 32. Head and embeddings stay in 16 bits as in the other methods, unless they are given a type; what
people ship has Q6_K for the head.

With `importance`, an importance matrix is made from the calibration text: of each matrix the mean square of each input
channel, which weighs the squared error of rounding (llama.cpp's `llama-imatrix` measures the same).
"""

import contextlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.errors import UserError
from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema
from quantharm.quantizers.calibration_samples import (
    CALIBRATION_SETTINGS,
    calibration_record,
    calibration_samples,
    samples_for,
)
from quantharm.quantizers.experts import experts_of
from quantharm.quantizers.formats import families

if TYPE_CHECKING:
    from torch import Tensor

    from quantharm.common.checkpoint_files import CheckpointConfig

__all__ = ["SETTINGS", "calibration_samples"]

inspect = families.inspect
compute_in_float32 = families.compute_in_float32

PACKAGES = "gguf"  # a file in envs/
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1")
MAINLINE = {"IQ4_XS": ["--attn-v-type", "q5_K"]}  # as llama.cpp chooses; the fork takes a type of its own
FILE = "model.gguf"
TENSOR = re.compile(r"\[ *\d+/ *\d+\] +(\S+) - \[")  # how llama-quantize begins a tensor's line
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


def conflict(settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
    if settings["importance"] and experts_of(checkpoint_config) > 1:
        return "importance matrices are not made here for mixtures of experts; set `importance: false`"
    return None


def unsupported(model, settings: Settings) -> str | None:
    """model: on the meta device."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    kind = model.config.model_type
    read = {str(name).replace("-", "_") for name in GGUF_SUPPORTED_ARCHITECTURES}
    if kind not in read and architecture_of(kind) not in read:
        return f"transformers reads no GGUF files of models of type {kind!r}"
    return None


def architecture_of(model_type: str) -> str:
    """GGUF's name of an architecture, without punctuation."""
    return {"mistral": "llama", "mixtral": "llama"}.get(model_type, model_type.replace("_", ""))


def tools() -> tuple[Path, Path]:
    """(the converter, llama-quantize) of the package; raises UserError where it is missing."""
    import importlib.util

    specification = importlib.util.find_spec("ik_llama_cpp")
    if specification is None or not specification.origin:
        raise UserError(
            "llama.cpp's tools are missing (package ik-llama-cpp-python); install envs/gguf.txt into the "
            "interpreter that `python:` names"
        )
    package = Path(specification.origin).parent
    places = [package.parent / "bin", Path(sys.prefix) / "bin"]
    converter = next((p / "convert_hf_to_gguf.py" for p in places if (p / "convert_hf_to_gguf.py").is_file()), None)
    if converter is None:
        raise UserError(f"{package.parent} has no convert_hf_to_gguf.py; install envs/gguf.txt again")
    return converter, package / "bin" / "llama-quantize"


@contextlib.contextmanager
def source_as_expected(source: SourceRecord) -> Iterator[Path]:
    """The source's folder with a config.json as the converter reads it, which wants `rope_theta` at its top."""
    folder = Path(source["path"]).resolve()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    with tempfile.TemporaryDirectory() as temporary:
        for path in folder.iterdir():
            if path.name != "config.json":
                (Path(temporary) / path.name).symlink_to(path)
        (Path(temporary) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(temporary)


CONVERT = """
import importlib.util, sys
import gguf
for kind, name in ((gguf.LlamaFileType, "MOSTLY_Q6_0"), (gguf.GGMLQuantizationType, "Q6_0")):
    if not hasattr(kind, name):  # a type of the fork alone, which the converter names and nobody asks for
        setattr(kind, name, None)
spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
known = module.Model.get_vocab_base_pre
def pre_tokenizer(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        print("pre-tokenizer unknown to the converter: written as `default`")
        return "default"
module.Model.get_vocab_base_pre = pre_tokenizer
sys.argv = sys.argv[1:]
module.main()
"""


def run_tool(words: list[str], what: str) -> str:
    """Runs a tool, its words to the log, and returns them; raises UserError with the last of them where it fails."""
    ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(ran.stdout, flush=True)
    if ran.returncode:
        said = [line for line in ran.stdout.splitlines() if line.strip()]
        raise UserError(f"{what} failed ({said[-1].strip() if said else f'exit code {ran.returncode}'}); see the log")
    return ran.stdout


def in_types_of_the_fork(said: str) -> list[str]:
    """Tensors that llama-quantize said it gives Q6_0, its fork's choice for rows that Q5_K does not fit."""
    names: list[str] = []
    tensor = ""
    for line in said.splitlines():
        named = TENSOR.match(line)
        tensor = named[1] if named else tensor
        if "converting to q6_0" in line:
            names.append(tensor)
    return names


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    from quantharm.models.completeness import check_whole
    from quantharm.models.loading import refuse_unsafe

    converter, quantizer = tools()
    refuse_unsafe(Path(source["path"]), source["allow_pickle"], trust_remote_code=False)
    check_whole(Path(source["path"]), trust_remote_code=False)
    made: QuantizerOutput = {}
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary, source_as_expected(source) as folder:
        whole, importance = Path(temporary) / "whole.gguf", []
        outtype = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[dtype]
        convert = [sys.executable, "-c", CONVERT, str(converter), str(folder)]
        run_tool([*convert, "--outfile", str(whole), "--outtype", outtype], "the conversion to GGUF")
        if settings["importance"]:
            assert calibration is not None  # the workflow names a text for each method that calibrates
            packed = samples_for(source, settings, calibration)
            matrix, positions = importance_matrix(source, packed, dtype, device, gpus)
            path = Path(temporary) / "importance.dat"
            write_importance(matrix, path)
            importance = ["--imatrix", str(path)]
            reached = positions // settings["calibration_tokens"]
            made["calibration"] = calibration_record(packed, settings, calibration, reached, positions)
        kept = ["--output-tensor-type", settings["head_type"].lower()]
        kept += ["--token-embedding-type", settings["embedding_type"].lower()]
        kept += MAINLINE.get(settings["type"], [])
        files = [str(whole), str(output / FILE), settings["type"], "2"]
        said = run_tool([str(quantizer), *importance, *kept, *files], "llama-quantize")
        if foreign := in_types_of_the_fork(said):  # llama.cpp takes Q5_1 there
            kept += ["--custom-q", ",".join(f"{re.escape(name)}=q5_1" for name in foreign)]
            run_tool([str(quantizer), *importance, *kept, *files], "llama-quantize")
    check_types(output / FILE)
    shutil.copyfile(Path(source["path"]) / "config.json", output / "config.json")
    return made


def check_types(path: Path) -> None:
    """Raises UserError for a file with types of the fork's own, which nothing else reads."""
    import gguf

    try:
        gguf.GGUFReader(path)
    except ValueError as error:
        raise UserError(f"llama-quantize wrote a type of tensor that only its fork reads ({error})") from None


def importance_matrix(
    source: SourceRecord, packed: list[list[int]], dtype: str, device: str, gpus: int
) -> "tuple[dict[str, Tensor], int]":
    """({GGUF's name of a matrix: mean square of each input channel, float64 [columns]}, positions that were seen)."""
    import torch

    from quantharm.models.loading import load_checkpoint
    from quantharm.quantizers.quantized_layers import linears_to_quantize
    from quantharm.scoring.forward import last_hidden_states

    model = load_checkpoint(Path(source["path"]), source, dtype, device, gpus)
    names = tensor_names(model)
    sums: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def add(name: str):
        def hook(_, arguments) -> None:
            inputs = arguments[0].detach().flatten(0, -2).double()
            sums[name] = sums.get(name, 0) + inputs.square().sum(0).cpu()
            seen[name] = seen.get(name, 0) + len(inputs)

        return hook

    hooks = [
        linear.register_forward_pre_hook(add(names[name]))
        for name, linear in linears_to_quantize(model).items()
        if name in names
    ]
    for sample in packed:
        last_hidden_states(model, sample)
    for hook in hooks:
        hook.remove()
    torch.set_grad_enabled(False)
    return {name: total / seen[name] for name, total in sums.items()}, min(seen.values(), default=0)


def tensor_names(model) -> dict[str, str]:
    """{module: GGUF's name of its weight}, by the table of the package `gguf`."""
    import gguf

    wanted = architecture_of(model.config.model_type)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == wanted)
    table = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    names = {name: table.get_name(f"{name}.weight", try_suffixes=(".weight",)) for name, _ in model.named_modules()}
    return {name: stored for name, stored in names.items() if stored}


def write_importance(matrix: "dict[str, Tensor]", path: Path) -> None:
    """llama.cpp's first format of importance matrices: little-endian; a count of 1, for the values are means already.

    Source: `load_imatrix` in llama.cpp's quantize.cpp.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<i", len(matrix)))
        for name, values in matrix.items():
            encoded = name.encode()
            file.write(struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", 1, len(values)))
            file.write(values.float().numpy().astype("<f4").tobytes())


def load(folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
    from quantharm.quantizers import pretrained

    return pretrained.load(folder, {"resolved": source, "backend": None}, source, dtype, device, gpus)
