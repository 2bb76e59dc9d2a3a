"""The config of a compressed-tensors checkpoint: which scheme each module has, and what of it is not read here.

`config_groups` holds the schemes, each with `targets`: names, patterns (`re:`) or classes of modules; `ignore` names
those that are left in 16 bits.
"""

import re
from typing import NotRequired, TypedDict

from quantharm.common.errors import first_line
from quantharm.quantizers.formats import StatedQuantization
from quantharm.quantizers.formats.compressed_tensors_matrices import Rounding

KNOWN_FORMATS = (
    "dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision",
)  # fmt: skip


class Scheme(TypedDict):
    """A group of modules that are quantized in one way."""

    targets: list[str]  # names, patterns or classes
    weights: Rounding
    input_activations: NotRequired[Rounding | None]
    output_activations: NotRequired[Rounding | None]
    format: NotRequired[str | None]  # of a mixture: the group's own


def fault_of(stated: StatedQuantization) -> str | None:
    """Why a checkpoint with this config is not read here; None where it is."""
    if stated.get("sparsity_config") and stated["sparsity_config"].get("format", "dense") != "dense":
        return f"its weights are sparse ({stated['sparsity_config']['format']}), which is not read here"
    if fault := refused_by_library(stated):
        return fault
    groups = groups_of(stated)
    formats = [stated.get("format"), *(group.get("format") for group in groups)]
    unknown = sorted({str(name) for name in formats if name is not None and name not in KNOWN_FORMATS})
    if unknown:
        return f"its format {unknown[0]} is not read here; {', '.join(KNOWN_FORMATS)} are"
    if any(group.get("output_activations") for group in groups):
        return "it rounds what layers put out (`output_activations`), which is not read here"
    if turned := turned_while_running(stated):
        return (
            f"it turns what layers are given while it runs (`transform_config`: {turned}), which transformers does not"
        )
    return None


def refused_by_library(stated: StatedQuantization) -> str | None:
    """Why the installed compressed-tensors refuses a config, in its own words; None where it takes it."""
    from compressed_tensors import __version__
    from compressed_tensors.quantization import QuantizationConfig
    from pydantic import ValidationError

    known = {key: value for key, value in stated.items() if key in QuantizationConfig.model_fields}
    try:
        QuantizationConfig.model_validate(known)
    except KeyError as error:
        return f"compressed-tensors {__version__} does not know a scheme of its config ({first_line(error)})"
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        return f"compressed-tensors {__version__} does not take `{key}` of its config ({first['msg']})"
    return None


def turned_while_running(stated: StatedQuantization) -> str | None:
    """The first place (input, output, k_cache, q_attn) of a rotation that is no part of the weights; None for none."""
    schemes = ((stated.get("transform_config") or {}).get("config_groups") or {}).values()
    places = (apply["location"] for scheme in schemes for apply in scheme.get("apply") or [])
    return next((place for place in places if not place.startswith("weight")), None)


def groups_of(stated: StatedQuantization) -> list[Scheme]:
    """The schemes that a config states; one may be the name of a preset with its targets."""
    from compressed_tensors.quantization import preset_name_to_scheme

    groups = (stated.get("config_groups") or {}).items()
    return [preset_name_to_scheme(name, of).model_dump() if isinstance(of, list) else of for name, of in groups]


def fits(pattern: str, module: str) -> bool:
    """Whether a pattern is a module's name, or after `re:` matches it from its beginning."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern == module


def scheme_of(stated: StatedQuantization, name: str, kind: str = "Linear") -> Scheme | None:
    """The scheme by which a module is quantized; None where it is left in 16 bits.

    Of several that fit, the library takes the one that states the module's name, then the first pattern by the
    alphabet, then the class.
    """
    if any(fits(pattern, name) or pattern == kind for pattern in stated.get("ignore") or []):
        return None
    schemes = {target: group for group in groups_of(stated) for target in group.get("targets") or []}
    by_name = [target for target in sorted(schemes, key=lambda t: ("re:" in t, t)) if fits(target, name)]
    return schemes[by_name[0]] if by_name else schemes.get(kind)
