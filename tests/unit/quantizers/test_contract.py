"""Every quantizer against the Protocol that the workflow uses it by."""

import inspect
from types import SimpleNamespace

import pytest

from quantharm import quantizers
from quantharm.config.methods import quantizer_names
from quantharm.quantizers import Quantizer, quantizer_named

OPTIONAL = [
    quantizers.RoundsToGrid,
    quantizers.RefusesConfigs,
    quantizers.RefusesModels,
    quantizers.Calibrates,
    quantizers.ComputesInFloat32,
]


def functions_of(protocol: type) -> dict[str, list[str]]:
    """{function: its parameters} of a Protocol."""
    return {
        name: list(inspect.signature(function).parameters)[1:]
        for name, function in vars(protocol).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


def faults(module) -> list[str]:
    """Functions that a module lacks, or that take other parameters than the Protocol says."""
    wrong = [] if isinstance(module, Quantizer) else ["not a quantizer"]
    for protocol in [Quantizer, *(p for p in OPTIONAL if isinstance(module, p))]:
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


def test_what_a_module_lacks_or_takes_otherwise_is_seen():
    from quantharm.quantizers import experts

    assert "not a quantizer" in faults(experts)

    strange = SimpleNamespace(SETTINGS={}, **dict.fromkeys(["quantize", "load", "inspect"], lambda folder: None))
    assert len(faults(strange)) == 3
