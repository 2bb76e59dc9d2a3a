"""The keys `engine` and `kv_cache` of a method: the program that runs its checkpoint, and its cache."""

import re
import urllib.parse
from typing import TYPE_CHECKING, TypedDict

from quantharm.common.records.quantization import Settings

if TYPE_CHECKING:
    from quantharm.config.validation import Schema

TRANSFORMERS, LLAMA_CPP, OPENAI = "transformers", "llama.cpp", "openai"
MODULES = {LLAMA_CPP: "llama_cpp", OPENAI: "endpoint"}  # in the room engines
ENDPOINT = "endpoint"  # the quantizer of a model that somebody serves
NO_WEIGHTS = "an endpoint shows no weights: no size, memory, noise or check of them, and no integrity"
QUANTIZERS_OF_ENGINE = {LLAMA_CPP: ("gguf", "pretrained")}  # whose checkpoints an engine can read
# {type of keys or values in llama.cpp: its number in ggml}
LLAMA_CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2}
STEP = 16  # tokens that engines/quantized_cache.py scores at once

ENGINE: "Schema" = {
    "description": "The program that runs the checkpoint; transformers by default.",
    "enum": [TRANSFORMERS, *MODULES],
}
KV_CACHE: "Schema" = {
    "description": "How keys and values are kept. llama.cpp: types of `keys` and `values`; transformers: a `backend`.",
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {
        "keys": {"enum": list(LLAMA_CACHE_TYPES), "description": "Type in llama.cpp; f16 by default."},
        "values": {"enum": list(LLAMA_CACHE_TYPES), "description": "Type in llama.cpp; f16 by default."},
        "backend": {"enum": ["fp8", "quanto"], "description": "Of transformers' QuantizedCache."},
        "bits": {"enum": [2, 4], "description": "quanto; 4 by default."},
        "group_size": {"type": "integer", "minimum": 8, "description": "quanto; 64 by default."},
        "residual_tokens": {
            "type": "integer",
            "minimum": STEP,
            "multipleOf": STEP,
            "description": "quanto: number of last tokens that stay exact; 128 by default.",
        },
    },
}


class KvCache(TypedDict, total=False):
    """A method's `kv_cache`."""

    keys: str  # type in llama.cpp
    values: str
    backend: str  # of transformers' QuantizedCache: fp8 or quanto
    bits: int  # of quanto, as the keys below
    group_size: int
    residual_tokens: int  # last tokens that stay exact


LLAMA_CPP_KEYS = {"keys", "values"}
QUANTO_KEYS = {"bits", "group_size", "residual_tokens"}


def is_served(settings: Settings) -> bool:
    """Whether a method's weights are behind an address."""
    return engine_of(settings) == OPENAI


def with_quantizer(method: Settings) -> Settings:
    """A method's entry; an endpoint, which has no quantizer to name, gets the one that stands for it."""
    return {"quantizer": ENDPOINT, **method} if method.get("engine") == OPENAI else method


def engine_of(settings: Settings) -> str:
    """The engine of a method, transformers by default."""
    return settings.get("engine") or TRANSFORMERS


def module_of(settings: Settings) -> str | None:
    """The module of the room engines that a method's cells need; None for plain transformers."""
    return MODULES.get(engine_of(settings)) or ("quantized_cache" if settings.get("kv_cache") else None)


def extra_packages(settings: Settings) -> str | None:
    """The file in envs/ (without .txt) with the packages of a method's engine or cache; None if it needs none."""
    if engine_of(settings) == LLAMA_CPP:
        return "llama-cpp"
    return "quanto" if (settings.get("kv_cache") or {}).get("backend") == "quanto" else None


def conflict(quantizer: str, settings: Settings) -> str | None:
    """Why a method cannot have its `engine` or `kv_cache`, in words that follow `method … cannot`."""
    engine = engine_of(settings)
    if (engine == OPENAI) != (quantizer == ENDPOINT):
        return (
            f"have `engine: {engine}` and `quantizer: {quantizer}`; an endpoint has `engine: openai` and no quantizer"
        )
    if engine == OPENAI:
        return conflict_of_endpoint(settings)
    if engine in QUANTIZERS_OF_ENGINE and quantizer not in QUANTIZERS_OF_ENGINE[engine]:
        makers = " and ".join(f"`{name}`" for name in QUANTIZERS_OF_ENGINE[engine])
        return f"run in {engine}, which reads GGUF files; quantizer `{quantizer}` makes none, {makers} may"
    keys = set(settings.get("kv_cache") or {})
    if engine == LLAMA_CPP and keys - LLAMA_CPP_KEYS:
        foreign = ", ".join(f"`{key}`" for key in sorted(keys - LLAMA_CPP_KEYS))
        return f"have {foreign} in a `kv_cache` of {engine}, which takes `keys` and `values`"
    if engine == TRANSFORMERS and keys and ("backend" not in keys or keys & LLAMA_CPP_KEYS):
        return (
            "have a `kv_cache` without `backend: fp8` or `quanto` in transformers (`keys` and `values` are llama.cpp's)"
        )
    if engine == TRANSFORMERS and keys & QUANTO_KEYS and settings["kv_cache"]["backend"] != "quanto":
        foreign = ", ".join(f"`{key}`" for key in sorted(keys & QUANTO_KEYS))
        return f"set {foreign} of its `kv_cache`: fp8 has one scale and nothing to set"
    return None


def conflict_of_endpoint(settings: Settings) -> str | None:
    """conflict() of `engine: openai`. Its words repeat no value, since that may be a secret key."""
    if settings.get("kv_cache") or settings.get("noise"):
        return "change the cache or the weights of a model that somebody serves; take `kv_cache` and `noise` out"
    parts = urllib.parse.urlsplit(settings["url"])
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "be asked at its `url`, which is no address; write http:// or https://, the host and its port"
    if parts.username or parts.password or parts.query or parts.fragment:
        return (
            "have a key or a name in its `url`, which is written into records; name the environment variable that has "
            "the key as `api_key_variable`"
        )
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", settings["api_key_variable"] or "_"):
        return "have a key in `api_key_variable`: it is the NAME of an environment variable; keys stand in no file"
    return None
