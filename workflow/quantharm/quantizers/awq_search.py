"""autoawq's quantizer with four parts replaced: keeping a layer's weights, clipping, position embeddings, packing.

The search is autoawq's own. The replaced parts give the same numbers, bit for bit, and work for more models:

Keeping. The search keeps `{name: tensor.cpu()}` of a layer, scales the weights in place and loads the copies, twenty
times a group of layers. On a CPU `.cpu()` is the tensor itself, so each trial would scale the weights for good (a 10M
model went from perplexity 52 to 597); on a GPU every trial copies the layer over the bus. Copies that stay on the
device mend both.

Clipping. The search takes 64 rows at a time and only multiples of that; zero rows fill up the last 64.

Positions. autoawq asks the model for rotary embeddings where a layer was given none; OPT, BLOOM and GPT-J have none.

Packing. autoawq launches some kernels for every input channel and every eight output channels; one expression does.

complete_for_loading adds to a quantized model what autoawq leaves out and transformers needs to load it.
"""

import inspect
from types import SimpleNamespace

import torch

from quantharm.quantizers.formats.awq import GEMM_CHANNELS

CLIP_ROWS = 64
PACKED = 8  # 4-bit codes in an int32


def pack(codes: torch.Tensor) -> torch.Tensor:
    """[n, outputs] integers of 0 to 15 → [n, outputs / 8] int32."""
    groups = codes.to(torch.int32).unflatten(-1, (-1, PACKED))[..., list(GEMM_CHANNELS)]
    shifts = 4 * torch.arange(PACKED, dtype=torch.int32, device=codes.device)
    return (groups << shifts).sum(-1, dtype=torch.int32)  # no bit is in two of them, so the sum is their union


def packed_linear(linear: torch.nn.Linear, group_size: int, scales: torch.Tensor, zeros: torch.Tensor):
    """autoawq's GEMM layer for a linear layer whose weights are already multiples of their scales.

    scales, zeros: [inputs / group_size, outputs] float16.
    """
    from awq.modules.linear import WQLinear_GEMM

    device = linear.weight.device
    layer = WQLinear_GEMM(4, group_size, linear.in_features, linear.out_features, linear.bias is not None, device)
    layer.scales = scales.clone().half()
    if linear.bias is not None:
        layer.bias = linear.bias.clone().half()

    def by_input(groups: torch.Tensor) -> torch.Tensor:  # [groups, outputs] → [inputs, outputs]
        return groups.repeat_interleave(group_size, dim=0)

    codes = torch.round((linear.weight.data.t() + by_input(zeros * scales)) / by_input(layer.scales))
    layer.qweight = pack(codes)
    layer.qzeros = pack(zeros)
    return layer


def repaired_quantizer():
    """autoawq's `quantizer_cls`, with the parts replaced; a function, because importing autoawq is slow."""
    from awq.quantize.quantizer import AwqQuantizer
    from awq.utils.module import set_op_by_name
    from awq.utils.utils import get_best_device

    class RepairedAwqQuantizer(AwqQuantizer):
        def _compute_best_scale(self, x, w_mean, x_mean, module2inspect, *arguments, **keywords):
            state_dict = module2inspect.state_dict
            # autoawq keeps the tensors that `.cpu()` returns; here those are copies.
            module2inspect.state_dict = lambda: {n: SimpleNamespace(cpu=t.clone) for n, t in state_dict().items()}
            try:
                return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *arguments, **keywords)
            finally:
                del module2inspect.state_dict

        def _compute_best_clip(self, w, *arguments, **keywords):
            padded = torch.nn.functional.pad(w, (0, 0, 0, -len(w) % CLIP_ROWS))
            return super()._compute_best_clip(padded, *arguments, **keywords)[: len(w)]

        def init_quant(self, *arguments, **keywords):
            layers, settings, states = super().init_quant(*arguments, **keywords)
            if "position_embeddings" not in inspect.signature(layers[0].forward).parameters:
                settings["position_embeddings"] = ()  # autoawq then asks for none
            return layers, settings, states

        def _apply_quant(self, module, named_linears):
            for name, linear in named_linears.items():
                linear = linear.to(get_best_device()).half()
                linear.weight.data, scales, zeros = self.pseudo_quantize_tensor(linear.weight.data)
                packed = packed_linear(linear, self.group_size, scales.t().contiguous(), zeros.t().contiguous())
                linear.cpu()
                set_op_by_name(module, name, packed.to(next(module.parameters()).device))

    return RepairedAwqQuantizer


def complete_for_loading(model) -> None:
    """Adds what transformers needs to load a model that autoawq has quantized.

    transformers takes every linear layer but the head for quantized unless config.json names it, and autoawq quantizes
    only the layers of the decoder (OPT has others). For some architectures transformers expects scales of the
    activations, which autoawq may not have written (Falcon); missing, they would be random numbers.
    """
    from awq.modules.act import ScaledActivation
    from transformers.integrations.awq import AWQ_SCALES_MAPPINGS

    inner, kept = model.model, model.quant_config.modules_to_not_convert or []
    others = [name for name, module in inner.named_modules() if type(module) is torch.nn.Linear]
    others = [name for name in others if inner.get_submodule(name) is not inner.get_output_embeddings()]
    model.quant_config.modules_to_not_convert = [*kept, *others] or None
    expected = AWQ_SCALES_MAPPINGS.get(inner.config.model_type)
    for module in list(inner.modules()) if expected else []:
        activation = getattr(module, expected["act"], None)
        before = getattr(module, expected["layer_before_act"], None)
        if activation is not None and before is not None and not isinstance(activation, ScaledActivation):
            setattr(module, expected["act"], ScaledActivation(activation, torch.ones(before.out_features)))
