"""The effect of other hardware on a model's next-token distributions, beside that of the mildest quantization.

Other processors add and round in another order. The effect can be estimated without them: the same passes in the next
wider dtype differ from this machine's by this machine's rounding, and another machine rounds as much. Over three
instruction sets, two attention implementations and a GPU the effect was 0.4 to 1.4 times the estimate
(tests/benchmark/hardware_floor.py). Weights rounded to 8 bits by row stand for the mildest quantization.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pandas
import torch

from quantharm.common.errors import first_line
from quantharm.common.records.logits import HardwareFloor
from quantharm.scoring.forward import last_hidden_states, output_head, slices_of

WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # of float32 the effect is 4e-12 nats
PROMPTS = 8  # prompts of the trace that are scored
TraceRow = Any  # pandas' tuple of a row with token_ids and first_target
Replace = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor | None]


@contextlib.contextmanager
def parameters_replaced(model, replace: Replace) -> Iterator[None]:
    """Within the block each module computes with replace(module, parameter); where that is None, with its own.

    One module's replacements exist at a time, so that memory does not grow with the model.
    """
    originals: dict[int, tuple[torch.nn.Parameter, torch.Tensor]] = {}

    def before(module, _) -> None:
        for parameter in module.parameters(recurse=False):
            new = None if id(parameter) in originals else replace(module, parameter)
            if new is not None:
                originals[id(parameter)] = parameter, parameter.data
                parameter.data = new

    def after(module, *_) -> None:
        for parameter in module.parameters(recurse=False):
            if id(parameter) in originals:
                parameter.data = originals.pop(id(parameter))[1]

    hooks = [module.register_forward_pre_hook(before) for module in model.modules()]
    hooks += [module.register_forward_hook(after) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, original in originals.values():  # left over where a pass raised
            parameter.data = original


def widened(_: torch.nn.Module, parameter: torch.Tensor) -> torch.Tensor | None:
    """The parameter in the next wider dtype; None where it has the widest."""
    wider = WIDER.get(parameter.dtype)
    return None if wider is None else parameter.data.to(wider)


def rounded_to_8_bits(module: torch.nn.Module, parameter: torch.Tensor) -> torch.Tensor | None:
    """Each weight rounded to a multiple of its row's largest magnitude / 127; None of vectors and embedding tables."""
    if parameter.ndim < 2 or not parameter.is_floating_point() or isinstance(module, torch.nn.Embedding):
        return None
    scale = parameter.data.float().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((parameter.data.float() / scale).round_() * scale).to(parameter.dtype)


def chosen_rows(trace: pandas.DataFrame, left_out: str) -> list[TraceRow]:
    """At most PROMPTS rows, spread over the trace; rows of the category `left_out` only where there are no others."""
    prompts = list(trace[trace["category"] != left_out].itertuples()) or list(trace.itertuples())
    count = min(PROMPTS, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def kl_nats(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of each position in float64; [n, vocabulary] each → [n]."""
    ln_p, ln_q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
    return (ln_p.exp() * (ln_p - ln_q)).sum(-1)


def mean_divergence(model, rows: list[TraceRow], replace: Replace) -> float:
    """Mean over rows of the mean KL(model ‖ model with parameters replaced) in nats; the output head keeps its own."""
    head = output_head(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    means = []
    for row in rows:
        ids, first = [int(i) for i in row.token_ids], int(row.first_target)
        states = last_hidden_states(model, ids)[first - 1 : -1]
        with parameters_replaced(model.base_model, replace):
            others = last_hidden_states(model, ids)[first - 1 : -1]
        parts = slices_of(len(states), vocabulary)
        values = torch.cat([kl_nats(head(states[part]), head(others[part])).cpu() for part in parts])
        means.append(float(values.mean()))
    return sum(means) / len(means)


def measure_floor(model, trace: pandas.DataFrame, text_category: str) -> HardwareFloor:
    """Mean KL by this machine's rounding and by 8-bit weights; None, with the reason, where a kernel prevents it.

    trace: a row a prompt with category, token_ids and first_target. text_category: of the rows to score last.
    """
    rows = chosen_rows(trace, text_category)
    floor: HardwareFloor = {"rounding_kl_nats": None, "eight_bit_kl_nats": None, "prompts": len(rows), "reason": None}
    try:
        floor["eight_bit_kl_nats"] = mean_divergence(model, rows, rounded_to_8_bits)
        floor["rounding_kl_nats"] = mean_divergence(model, rows, widened) if model.dtype in WIDER else 0.0
    except (RuntimeError, TypeError) as error:  # of a kernel for one dtype only
        floor["reason"] = first_line(error)
    return floor
