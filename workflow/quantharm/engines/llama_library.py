"""llama.cpp's C interface by ctypes, from the wheel xllamacpp, which is llama.cpp built as one library.

The wheel's own Python interface is a server, which gives log-probabilities of the tokens that it generates; those of
given tokens need the functions below. Structures are declared as far as they are used. Another release may have other
fields, so their layout is first checked against the library's default values.
"""

import collections
import ctypes
import functools
import importlib.metadata
import importlib.util
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from pathlib import Path
from typing import ClassVar

from quantharm.common.errors import UserError
from quantharm.common.records.parts import EngineRecord

PACKAGE = "xllamacpp"
ERROR_LEVEL = 4
LAST_LINES = 2  # errors that the library reported, for the message of a failure
ANY_LAYERS = -1  # as many layers on a GPU as there are
Defaults = dict[str, float | None]  # {field: its value as the library fills a structure in}


class ModelParameters(ctypes.Structure):
    """llama_model_params."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_overrides", c_void_p),
        ("gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("main_gpu", c_int32),
        ("others", c_uint8 * 164),  # the fields that follow, as the library fills them in
    ]
    DEFAULTS: ClassVar[Defaults] = {"devices": None, "tensor_overrides": None, "gpu_layers": -1, "split_mode": 1}


class ContextParameters(ctypes.Structure):
    """llama_context_params."""

    _fields_ = [
        ("context", c_uint32),  # tokens
        ("batch", c_uint32),  # most tokens of one call
        ("physical_batch", c_uint32),  # most tokens that are computed at once
        ("sequences", c_uint32),
        ("more_sizes", c_uint32 * 3),
        ("threads", c_int32),
        ("threads_batch", c_int32),
        ("context_type", c_int32),
        ("rope_scaling", c_int32),
        ("pooling", c_int32),
        ("attention", c_int32),
        ("flash_attention", c_int32),  # -1 where the library decides
        ("rope", c_float * 2),
        ("yarn", c_float * 4),
        ("yarn_context", c_uint32),
        ("defragmentation", c_float),
        ("evaluation_callback", c_void_p * 2),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("others", c_uint8 * 144),
    ]
    DEFAULTS: ClassVar[Defaults] = {
        "context": 512,
        "batch": 2048,
        "physical_batch": 512,
        "sequences": 1,
        "threads": 4,
        "threads_batch": 4,
        "rope_scaling": -1,
        "pooling": -1,
        "attention": -1,
        "flash_attention": -1,
        "defragmentation": -1.0,
        "type_k": 1,
        "type_v": 1,
    }


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("count", c_int32),
        ("tokens", POINTER(c_int32)),
        ("embeddings", c_void_p),
        ("positions", POINTER(c_int32)),
        ("sequence_counts", POINTER(c_int32)),
        ("sequences", POINTER(POINTER(c_int32))),
        ("wanted", POINTER(c_int8)),  # whether a token's logits are wanted
    ]


LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)

# {function: (result, arguments)}
FUNCTIONS = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LOG, c_void_p]),
    "llama_version": (c_char_p, []),
    "llama_print_system_info": (c_char_p, []),
    "llama_supports_gpu_offload": (c_bool, []),
    "llama_model_default_params": (ModelParameters, []),
    "llama_context_default_params": (ContextParameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParameters]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_size": (ctypes.c_uint64, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_get_text": (c_char_p, [c_void_p, c_int32]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_vocab_eos": (c_int32, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParameters]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_state_seq_get_size": (c_size_t, [c_void_p, c_int32]),
    "llama_batch_init": (Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
}


@functools.cache
def last_errors() -> collections.deque[str]:
    """The last errors that the library reported; all of its messages would be thousands of lines in a stage's log."""
    return collections.deque(maxlen=LAST_LINES)


@LOG
def keep_error(level: int, text: bytes, _data: int | None) -> None:
    """The library's log callback: keeps lines of the level `error`."""
    if level == ERROR_LEVEL:
        last_errors().append(text.decode(errors="replace").strip(" .\n"))


@functools.cache
def library() -> ctypes.CDLL:
    """The library, loaded once; raises UserError where it is missing or of a release that this module does not know."""
    package = importlib.util.find_spec(PACKAGE)
    places = list(package.submodule_search_locations or []) if package else []
    paths = [path for place in places for path in sorted(Path(place).glob(f"{PACKAGE}*.so"))]
    if not paths:
        raise UserError(
            f"engine llama.cpp needs the package {PACKAGE}, which this interpreter lacks; install the "
            "packages that envs/llama-cpp.txt names"
        )
    loaded = ctypes.CDLL(str(paths[0]))
    missing = [name for name in FUNCTIONS if not hasattr(loaded, name)]
    for name in FUNCTIONS.keys() - set(missing):
        function = getattr(loaded, name)
        function.restype, function.argtypes = FUNCTIONS[name]
    if missing or not (
        has_defaults(loaded.llama_model_default_params()) and has_defaults(loaded.llama_context_default_params())
    ):
        raise UserError(
            f"{paths[0]} is another release of llama.cpp than quantharm knows; install the version of {PACKAGE} that "
            "envs/llama-cpp.txt names"
        )
    loaded.llama_log_set(keep_error, None)
    loaded.llama_backend_init()
    return loaded


def has_defaults(parameters: ModelParameters | ContextParameters) -> bool:
    """Whether a structure that the library filled in has its known default values where they are expected."""
    return all(getattr(parameters, name) == value for name, value in parameters.DEFAULTS.items())


def identity() -> EngineRecord:
    """Name, version, package and instructions of this llama.cpp."""
    loaded = library()
    return {
        "name": "llama.cpp",
        "version": loaded.llama_version().decode(),
        "package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
        "instructions": loaded.llama_print_system_info().decode().strip(" |"),
    }
