"""The inputs of layers during forward passes."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextlib.contextmanager
def watched_inputs(model: Any, modules: Iterable[str], watch: "Callable[[str, Tensor], None]") -> Iterator[None]:
    """While this lasts, each call of one of the modules calls watch(name, its input [..., columns]) first."""

    def hook_for(name: str) -> "Callable[[nn.Module, tuple[Tensor, ...]], None]":
        def hook(_: "nn.Module", arguments: "tuple[Tensor, ...]") -> None:  # a returned value would replace them
            watch(name, arguments[0])

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
