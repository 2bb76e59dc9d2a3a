"""The storage of each weight matrix of a checkpoint: plain floats, or packed integers with scales beside them.

Judged from the files' headers alone, one matrix at a time: an added tensor of integers, a mask or a line in config.json
does not decide about the others. The architecture in config.json tells which tensors are weights of the model.
"""

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.checkpoint_files import CheckpointConfig, read_checkpoint_config, weight_files
from quantharm.forensics.detection.weights import FLOATS, PACKED, linear_shape
from quantharm.models.loading import quiet
from quantharm.models.safety import is_known_architecture
from quantharm.quantizers.formats.files import headers_of_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALES = re.compile(r"scale|absmax|scb$|codebook|centroid", re.IGNORECASE)  # names of tensors beside packed ones
BESIDE = re.compile(r"scale|absmax|scb$|codebook|centroid|zero|g_idx|quant_|shape|perm|format|bias", re.IGNORECASE)
RECOGNISED = 0.9  # share of the architecture's matrices found by name; below it, no unknown name is called foreign


@dataclass(frozen=True)
class Stored:
    """A tensor as a file's header describes it."""

    name: str
    dtype: str  # of safetensors: BF16, U8, …
    shape: tuple[int, ...]

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def own_name(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Storage:
    """The matrices of a checkpoint by their storage, its claim, and contradictions between the two."""

    floats: list[str]  # matrices of floating point, 3-D stacks of experts counted once
    packed: list[str]
    foreign: list[str]  # tensors of matrix shape that the architecture does not have
    claim: str | None  # config.json's quantization_config

    @property
    def findings(self) -> list[str]:
        """A claim without packed matrices, and packed matrices without a claim."""
        if self.claim and not self.packed and self.floats:
            return [f"config.json claims {self.claim}, but all {len(self.floats)} matrices are plain floats"]
        if self.packed and not self.claim:
            of = len(self.packed) + len(self.floats)
            return [f"{len(self.packed)} of {of} matrices are stored packed, but config.json declares no quantization"]
        return []


def stored_tensors(folder: Path) -> list[Stored]:
    """All tensors of a checkpoint's safetensors files, by name."""
    headers = [header for path in weight_files(folder) for header in headers_of_file(path)]
    return sorted((Stored(h.key, h.dtype, h.shape) for h in headers), key=lambda tensor: tensor.name)


def is_float_matrix(tensor: Stored) -> bool:
    """[rows, columns] or [experts, rows, columns] of floats, which read_matrices can sample."""
    return tensor.dtype in FLOATS and bool(
        linear_shape(list(tensor.shape[1:] if len(tensor.shape) == 3 else tensor.shape))
    )


def packed_matrices(tensors: Iterable[Stored]) -> list[Stored]:
    """Tensors of integers or 8-bit floats, of two dimensions or more, whose module holds scales as well.

    Masks and position ids have no scales; scales, zero points and tables are no matrices themselves.
    """
    tensors = list(tensors)
    scaled = {t.module for t in tensors if SCALES.search(t.own_name)}
    return [
        t
        for t in tensors
        if t.dtype in PACKED
        and len(t.shape) >= 2
        and not BESIDE.search(t.own_name)
        and (t.module in scaled or t.name in scaled)
    ]


def model_class(settings: CheckpointConfig) -> "type[PreTrainedModel]":
    """transformers' class of the name in config.json, else its causal language model of that type."""
    import transformers

    for name in settings.get("architectures") or []:
        named_class = getattr(transformers, str(name), None)
        if isinstance(named_class, type) and issubclass(named_class, transformers.PreTrainedModel):
            return named_class
    configuration = type(transformers.AutoConfig.for_model(settings["model_type"]))
    return transformers.AutoModelForCausalLM._model_mapping[configuration]


@functools.lru_cache(maxsize=4)
def expected_matrices(config: str) -> tuple[dict[str, tuple[int, ...]], str] | None:
    """({name: shape} of the architecture's matrices, its base model's prefix); None where config.json builds no model.

    config: its text. None of the checkpoint's own code runs, and no weight is read.
    """
    import torch
    import transformers

    quiet()
    settings = json.loads(config)
    if not is_known_architecture(settings.get("model_type")):
        return None
    settings.pop("quantization_config", None)
    try:
        built = transformers.AutoConfig.for_model(**settings)
        with torch.device("meta"):
            model = model_class(settings)._from_config(built)
    except Exception:  # any fault in anybody's configuration means the same: names are unknown
        return None
    matrices = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False) if p.ndim >= 2}
    return matrices, model.base_model_prefix


def foreign_names(tensors: list[Stored], config: CheckpointConfig) -> set[str]:
    """Names of matrices that the architecture lacks; none where most of its own are stored under other names."""
    known = expected_matrices(json.dumps(config, sort_keys=True))
    if known is None:
        return set()
    expected, prefix = known
    modules = {name.rpartition(".")[0] for name in expected}

    def spelled(name: str) -> set[str]:
        return {name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")}

    covered = set().union(*(spelled(t.name) | spelled(f"{t.module}.weight") for t in tensors)) & set(expected)
    # Experts that the loader stacks, fused projections: names then differ without being foreign.
    if len(covered) < RECOGNISED * len(expected):
        return set()
    vacant = {shape for name, shape in expected.items() if name not in covered}  # a head that the loader renames
    unknown = [t for t in tensors if not (spelled(t.name) & set(expected) or spelled(t.module) & modules)]
    return {t.name for t in unknown if t.shape not in vacant}


def read_storage(folder: Path) -> Storage:
    """The storage of the checkpoint's matrices; raises UserError for a damaged file."""
    config, tensors = read_checkpoint_config(folder), stored_tensors(folder)
    stated = config.get("quantization_config") or config.get("compression_config")
    claim = str((stated.get("quant_method") if isinstance(stated, dict) else None) or "quantized") if stated else None
    floats = [t for t in tensors if is_float_matrix(t) and not BESIDE.search(t.own_name)]
    packed = packed_matrices(tensors)
    foreign = foreign_names([*floats, *packed], config)
    return Storage(
        [t.name for t in floats if t.name not in foreign],
        [t.name for t in packed if t.name not in foreign],
        sorted(foreign),
        claim,
    )
