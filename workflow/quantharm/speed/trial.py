"""A first try of a new checkpoint: whether it predicts, and decodes token by token, at all.

A quantizer's library may make a layer that it cannot compute (bitsandbytes has CPU kernels for some shapes only), and
an architecture may do something that this project cannot score. Either ends the run before anything is evaluated.
"""

import torch

from quantharm.common.errors import UserError, first_line
from quantharm.common.stage import sentence_for
from quantharm.quantizers.quantized_layers import QuantizedMatrix
from quantharm.scoring.forward import is_near, last_hidden_states, output_head
from quantharm.speed.decoding import decode_one_token, prefill

TRIED_TOKENS = list(range(5, 13))


def try_model(model, matrices: list[QuantizedMatrix]) -> None:
    """Computes one pass over a few tokens and one decoded token; matrices: the quantized ones.

    Raises UserError where that fails, naming the layer. Of an unquantized model also where a prediction depends on a
    later token, so that the model is not causal.
    """
    entered: list[str] = []  # descriptions of the matrices, in the order of their calls
    hooks = [
        model.get_submodule(m.name).register_forward_pre_hook(lambda *_, m=m: entered.append(describe(m)))
        for m in matrices
    ]
    try:
        device = model.get_input_embeddings().weight.device
        tokens = torch.tensor([TRIED_TOKENS], device=device)
        _, cache = prefill(model, tokens[:, :-1])
        decode_one_token(model, tokens[:, -1:], cache)
        output_head(model)
        if not matrices:
            check_causal(model)
    except UserError:
        raise
    except Exception as error:  # whatever a library raises
        if sentence_for(error):
            raise
        where = f" in {entered[-1]}" if entered else ""
        raise UserError(
            f"{type(model).__name__} cannot be computed on {device.type} as this method leaves it: "
            f"{first_line(error)} ({type(error).__name__}{where}); use another method or device"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def describe(matrix: QuantizedMatrix) -> str:
    """`name, rows × columns`"""
    return f"{matrix.name}, {matrix.rows} × {matrix.columns}"


def check_causal(model) -> None:
    """Raises UserError where changing the last token changes the states before it."""
    first = last_hidden_states(model, TRIED_TOKENS)[:-1]
    second = last_hidden_states(model, [*TRIED_TOKENS[:-1], TRIED_TOKENS[-1] + 1])[:-1]
    if not is_near(first, second):
        raise UserError(
            f"{type(model).__name__} lets a token see those after it, so it is no causal language model; name a model "
            "that is one"
        )
