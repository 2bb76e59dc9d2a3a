"""Every quantizer, and every family of stored formats, against the Protocols that it is used by."""

import inspect
from types import SimpleNamespace

import pytest

from quantharm import quantizers
from quantharm.config.methods import quantizer_names
from quantharm.quantizers import MultipliesInFloat32, Quantizer, formats, quantizer_named
from quantharm.quantizers.formats import Family, families

OPTIONAL = [
    quantizers.RoundsToGrid,
    quantizers.RefusesConfigs,
    quantizers.RefusesModels,
    quantizers.Calibrates,
    quantizers.LeavesSettings,
    MultipliesInFloat32,
]
OPTIONAL_OF_FAMILIES = [
    formats.RefusesCheckpoints,
    formats.ArrangesLoading,
    formats.FinishesModels,
    formats.StatesExclusions,
    MultipliesInFloat32,
]


def functions_of(protocol: type) -> dict[str, list[str]]:
    """{function: its parameters} of a Protocol."""
    return {
        name: list(inspect.signature(function).parameters)[1:]
        for name, function in vars(protocol).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


def faults(module, required: type = Quantizer, optional: list[type] = OPTIONAL) -> list[str]:
    """Functions that a module lacks, or that take other parameters than the Protocol says."""
    wrong = [] if isinstance(module, required) else [f"not a {required.__name__}"]
    for protocol in [required, *(p for p in optional if isinstance(module, p))]:
        for name, wanted in functions_of(protocol).items():
            own = getattr(module, name, None)
            if own is not None and list(inspect.signature(own).parameters) != wanted:
                wrong.append(f"{name}{inspect.signature(own)}, not {wanted}")
    return wrong


@pytest.mark.parametrize("name", quantizer_names())
def test_a_quantizer_has_what_the_protocol_says(name):
    module = quantizer_named(name)
    assert faults(module) == []
    assert ("calibration_samples" in module.SETTINGS) == isinstance(module, quantizers.Calibrates)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.__name__.rpartition(".")[2])
def test_a_family_has_what_the_protocol_says(family):
    assert faults(family, Family, OPTIONAL_OF_FAMILIES) == []


def test_what_a_module_lacks_or_takes_otherwise_is_seen():
    from quantharm.quantizers import experts

    assert "not a Quantizer" in faults(experts)

    strange = SimpleNamespace(SETTINGS={}, **dict.fromkeys(["quantize", "load", "inspect"], lambda folder: None))
    assert len(faults(strange)) == 3
