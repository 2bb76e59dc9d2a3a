"""Whether a record has the keys and the kinds of values that its type says, key by key."""

import types
import typing
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, is_typeddict

from quantharm.common.records import (
    checks,
    divergence,
    generation,
    integrity,
    logits,
    perplexity,
    quantization,
    source,
    studies,
    summary,
)

RECORDS = {
    "source": source.SourceRecord,
    "quantization": quantization.QuantizationRecord,
    "generation": generation.GenerationRecord,
    "logits": logits.LogitsRecord,
    "perplexity": perplexity.PerplexityRecord,
    "divergence": divergence.DivergenceRecord,
    "integrity": integrity.IntegrityRecord,
    "checks": checks.ChecksRecord,
    "summary": summary.SummaryRecord,
    "noise_sweep": studies.NoiseSweepRecord,
    "calibration_study": studies.CalibrationStudyRecord,
}


def faults(value: Any, kind: Any, where: str = "") -> list[str]:
    """Each key that is missing or unknown, and each value of another kind, in words; empty where all is right."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return []
    if origin is NotRequired:
        return faults(value, arguments[0], where)
    if origin in (Union, types.UnionType):
        tries = [faults(value, choice, where) for choice in arguments]
        return [] if [] in tries else min(tries, key=len)
    if origin is Literal:
        return [] if value in arguments else [f"{where} is {value!r}, none of {arguments}"]
    if is_typeddict(kind):
        return faults_of_keys(value, kind, where)
    if origin is list:
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [fault for i, entry in enumerate(value) for fault in faults(entry, arguments[0], f"{where}[{i}]")]
    if origin is dict:
        if not isinstance(value, dict):
            return [f"{where} is no dict"]
        return [fault for key, entry in value.items() for fault in faults(entry, arguments[1], f"{where}.{key}")]
    if kind is float and type(value) is int:  # JSON does not tell 1.0 from 1
        return []
    return [] if type(value) is (kind or type(None)) else [f"{where} is {value!r}, not {kind}"]


def faults_of_keys(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where} is no {kind.__name__}"]
    hints = typing.get_type_hints(kind, include_extras=True)
    unknown = [f"{where}.{key} has no type in {kind.__name__}" for key in value.keys() - hints.keys()]
    missing = [f"{where}.{key} is missing, which {kind.__name__} has" for key in kind.__required_keys__ - value.keys()]
    known = hints.keys() & value.keys()
    return unknown + missing + [fault for key in known for fault in faults(value[key], hints[key], f"{where}.{key}")]
