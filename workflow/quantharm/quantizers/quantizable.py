"""The weights of a model that a quantizer could take, and whether a library would take enough of them."""

from collections.abc import Collection

import torch
from torch.nn.modules.conv import _ConvNd

QUANTIZED_SHARE_LIMIT = 0.9  # of the quantizable weights, at least


def quantizable(model) -> dict[str, torch.nn.Parameter]:
    """{name: parameter} of the weights that a quantizer could take: those of two or more dimensions, with exceptions.

    The exceptions are embeddings, the output head, and depthwise convolutions, which hold a vector a channel and no
    matrix. Experts count, which transformers keeps as one parameter [experts, rows, columns]; so do routers and the
    decays of state spaces, which are small and which no quantizer here takes.
    """
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    weights = {}
    for name, parameter in model.named_parameters():
        module = modules[name.rpartition(".")[0]]
        depthwise = isinstance(module, _ConvNd) and module.groups == module.out_channels
        embedding = isinstance(module, torch.nn.Embedding) or module is head
        if parameter.dim() >= 2 and not depthwise and not embedding:
            weights[name] = parameter
    return weights


def kept_weights(model, quantized: Collection[str] = ()) -> dict[str, int]:
    """{name: number of weights} of the quantizable weights outside the modules `quantized`; `x.weight` is called x."""
    return {
        name.removesuffix(".weight"): parameter.numel()
        for name, parameter in quantizable(model).items()
        if name.rpartition(".")[0] not in quantized
    }


def plain_linears(model, quantized: Collection[str] = ()) -> list[str]:
    """Names of the linear layers held in 16 bits or more, without those `quantized` that were unpacked on loading."""
    return [name for name, module in model.named_modules() if type(module) is torch.nn.Linear and name not in quantized]


def linears_to_quantize(model) -> dict[str, torch.nn.Linear]:
    """{name: layer} of the linear layers without the output head."""
    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if type(m) is torch.nn.Linear and m is not head}


def head_name(model) -> str | None:
    """The output head's module name."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def too_few_linears(model, library: str) -> str | None:
    """Why a library that rounds linear layers leaves too much of a model in 16 bits; None where it takes enough."""
    return too_little(model, linears_to_quantize(model), library)


def too_little_for_bitsandbytes(model) -> str | None:
    """Why bitsandbytes leaves too much of a model in 16 bits; None where it takes enough. Asked of the modules alone.

    transformers has it replace torch.nn.Linear itself and Conv1D, but no subclasses (Falcon's) and no experts.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = get_keys_to_not_convert(model)
    taken = {
        name
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
    }
    return too_little(model, taken, "bitsandbytes")


def too_little(model, taken: Collection[str], library: str) -> str | None:
    """Why quantizing the modules `taken` leaves too much of a model in 16 bits; None where it is enough."""
    left, weights = kept_weights(model, taken), sum(kept_weights(model).values())
    share = 1 - sum(left.values()) / weights if weights else 0.0
    if share >= QUANTIZED_SHARE_LIMIT:
        return None
    modules = dict(model.named_modules())
    largest = max(left, key=left.__getitem__, default="")
    owner = modules.get(largest) or modules.get(largest.rpartition(".")[0])
    return f"{library} would quantize {share:.0%} of its weights, for it leaves {type(owner).__name__} alone"
