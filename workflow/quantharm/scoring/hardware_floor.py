"""The effect of other hardware on a model's next-token distributions, beside that of the mildest quantization.

Other processors add and round in another order. Its size shows here, without them: the same passes in the
next wider dtype differ from this machine's by the rounding of this machine, and another machine rounds as much. Over
three instruction sets, two attention implementations and a GPU the change was 0.4 to 1.4 times that figure
(tests/benchmark/hardware_floor.py). Weights rounded to 8 bits by row are what a quantization costs at least.
"""

import contextlib
from collections.abc import Callable, Iterator

import pandas
import torch

from quantharm.common.errors import first_line
from quantharm.common.records.logits import HardwareFloor
from quantharm.scoring.forward import last_hidden_states, output_head, slices_of

WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # float32's changes 4e-12
PROMPTS = 8  # of the trace, spread over it
Replace = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor | None]


@contextlib.contextmanager
def parameters_replaced(model, replace: Replace) -> Iterator[None]:
    """Each module computes with replace(module, parameter) in place of its parameters, None for those to be kept.

    One module's are held at a time, so that memory does not grow with the model. All is as before afterwards.
    """
    kept: dict[int, tuple[torch.nn.Parameter, torch.Tensor]] = {}

    def before(module, _) -> None:
        for parameter in module.parameters(recurse=False):
            new = None if id(parameter) in kept else replace(module, parameter)
            if new is not None:
                kept[id(parameter)] = parameter, parameter.data
                parameter.data = new

    def after(module, *_) -> None:
        for parameter in module.parameters(recurse=False):
            if id(parameter) in kept:
                parameter.data = kept.pop(id(parameter))[1]

    hooks = [module.register_forward_pre_hook(before) for module in model.modules()]
    hooks += [module.register_forward_hook(after) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in kept.values():  # where a pass ended in an error
            parameter.data = data


def widened(_: torch.nn.Module, parameter: torch.Tensor) -> torch.Tensor | None:
    wider = WIDER.get(parameter.dtype)
    return None if wider is None else parameter.data.to(wider)


def rounded_to_8_bits(module: torch.nn.Module, parameter: torch.Tensor) -> torch.Tensor | None:
    """Nearest of 255 integers times the largest magnitude of its row / 127; matrices and stacks of them only."""
    if parameter.ndim < 2 or not parameter.is_floating_point() or isinstance(module, torch.nn.Embedding):
        return None
    scale = parameter.data.float().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((parameter.data.float() / scale).round_() * scale).to(parameter.dtype)


def chosen_rows(trace: pandas.DataFrame, left_out: str) -> list:
    """Up to PROMPTS rows, spread over the trace; windows of the text (category `left_out`) only if nothing else is."""
    prompts = list(trace[trace["category"] != left_out].itertuples()) or list(trace.itertuples())
    count = min(PROMPTS, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def kl_nats(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of each position in float64; [n, vocabulary] each → [n]."""
    ln_p, ln_q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
    return (ln_p.exp() * (ln_p - ln_q)).sum(-1)


def mean_divergence(model, rows: list, replace: Replace) -> float:
    """Mean over rows of the mean KL(as it is ‖ with parameters replaced) in nats; the output head stays as it is."""
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
    """{rounding_kl_nats, eight_bit_kl_nats, prompts, reason}; figures that could not be measured are None, with why."""
    rows = chosen_rows(trace, text_category)
    floor: HardwareFloor = {"rounding_kl_nats": None, "eight_bit_kl_nats": None, "prompts": len(rows), "reason": None}
    try:
        floor["eight_bit_kl_nats"] = mean_divergence(model, rows, rounded_to_8_bits)
        floor["rounding_kl_nats"] = mean_divergence(model, rows, widened) if model.dtype in WIDER else 0.0
    except (RuntimeError, TypeError) as error:  # a kernel that knows one dtype only
        floor["reason"] = first_line(error)
    return floor
