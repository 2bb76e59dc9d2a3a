"""Stored formats: one module a family. Whoever quantized a checkpoint, its family reads what it holds.

`Family` says what such a module holds, the Protocols after it what it may hold besides; quantizers' own
`ComputesInFloat32` is one of them. quantharm.quantizers.formats.families finds the family of a checkpoint. A quantizer
that writes a format takes its family's `inspect`. Imports of ML libraries stay inside functions where the configuration
needs a module.
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
    """A module that reads what checkpoints of one format hold."""

    @property
    def METHODS(self) -> tuple[str, ...]:  # noqa: N802 (a constant of the module)
        """Values of `quant_method` in config.json that it reads."""

    def inspect(self, name: str, module: Any, checkpoint: Path) -> "QuantizedMatrix | None":
        """A linear layer that the file stores in this format; None for any other module.

        With its bytes, the bytes by the format's formula, the matrix by arithmetic of our own, and how the inputs are
        rounded. name: the one in the file.
        """


@runtime_checkable
class RefusesCheckpoints(Protocol):
    """A family of which some checkpoints cannot be loaded everywhere."""

    def unreadable(self, stated: StatedQuantization, device: str) -> str | None:
        """Why such a checkpoint cannot be loaded here, None where it can; device: cpu, cuda or auto."""


@runtime_checkable
class ArrangesLoading(Protocol):
    """A family that transformers does not load as is wanted by itself."""

    def loading(
        self, checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
    ) -> AbstractContextManager[LoadingArguments]:
        """Gives further arguments for from_pretrained, and arranges what it needs while it runs."""


@runtime_checkable
class ChoosesKernel(Protocol):
    """A family whose kernel a method's `backend:` may choose."""

    TAKES_BACKEND: bool  # true


@runtime_checkable
class FinishesModels(Protocol):
    """A family that leaves something to do on a model that was just loaded."""

    def finish(self, model: Any, dtype: Any) -> None:
        """dtype: of torch, what the model is to compute in."""


@runtime_checkable
class StatesExclusions(Protocol):
    """A family whose checkpoints say in their own way which modules were left alone."""

    def excluded(self, stated: StatedQuantization, names: Collection[str]) -> set[str]:
        """Those of the named modules that were left alone."""
