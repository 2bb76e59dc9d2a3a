"""Stored formats: one module a family, which reads checkpoints of one format, whoever quantized them.

`Family` is the Protocol of such a module; those after it, and quantizers' own `MultipliesInFloat32`, are optional.
quantharm.quantizers.formats.families finds the family of a checkpoint. A quantizer that writes a format takes its
family's `inspect`. Imports of ML libraries stay inside functions where the configuration needs a module.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

# `quantization_config` of a config.json as it was read. Each library writes keys of its own, and may leave some out.
StatedQuantization = dict[str, Any]
# Further arguments for transformers' from_pretrained, which has some fifty, each of a type of its own.
LoadingArguments = dict[str, Any]


@runtime_checkable
class Family(Protocol):
    """A module that reads the checkpoints of one format."""

    @property
    def METHODS(self) -> tuple[str, ...]:  # noqa: N802 (a constant of the module)
        """Values of `quant_method` in config.json that it reads."""

    def inspect(self, name: str, module: Any, checkpoint: Path) -> "QuantizedMatrix | None":
        """The record of a linear layer that the file stores in this format; None for any other module.

        It has the layer's bytes, the bytes by the format's formula, the weights by arithmetic of our own, and how
        inputs are rounded. name: the one in the file.
        """


@runtime_checkable
class RefusesCheckpoints(Protocol):
    """A family of which some checkpoints cannot be loaded, or not on every device."""

    def unreadable(self, stated: StatedQuantization, device: str) -> str | None:
        """Why such a checkpoint cannot be loaded here, None where it can; device: cpu, cuda or auto."""


@runtime_checkable
class ArrangesLoading(Protocol):
    """A family for which from_pretrained needs further arguments, or a changed library."""

    def loading(
        self, checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
    ) -> AbstractContextManager[LoadingArguments]:
        """Gives further arguments for from_pretrained, and keeps the libraries changed while it runs."""


@runtime_checkable
class ChoosesKernel(Protocol):
    """A family whose kernel a method's `backend:` may choose."""

    TAKES_BACKEND: bool  # true


@runtime_checkable
class FinishesModels(Protocol):
    """A family whose models need a further step after from_pretrained."""

    def finish(self, model: Any, dtype: Any) -> None:
        """Completes a model that was just loaded; dtype: of torch, in which the model is to compute."""


@runtime_checkable
class StatesExclusions(Protocol):
    """A family whose checkpoints name the modules left in 16 bits in a way of their own."""

    def excluded(self, stated: StatedQuantization, names: Collection[str]) -> set[str]:
        """Those of the named modules that the checkpoint leaves in 16 bits."""
