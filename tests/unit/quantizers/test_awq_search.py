"""What replaces parts of autoawq gives autoawq's numbers, bit for bit."""

import pytest
import torch

from quantharm.quantizers.awq_search import pack, packed_linear

GROUP = 32


def pseudo_quantized(bias: bool) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A float16 linear of 96 → 64 whose weights are (code - zero) × scale, with scales and zeros [3, 64]."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.rand((3, 64), generator=generator).mul(0.02).add(0.001).half()
    zeros = torch.randint(16, (3, 64), generator=generator).half()
    codes = torch.randint(16, (96, 64), generator=generator).half()
    linear = torch.nn.Linear(96, 64, bias=bias).half()
    weight = (codes - zeros.repeat_interleave(GROUP, 0)) * scales.repeat_interleave(GROUP, 0)
    linear.weight.data = weight.t().contiguous()
    return linear, scales, zeros


@pytest.mark.parametrize("bias", [False, True])
def test_packing_equals_autoawqs(bias):
    from awq.modules.linear import WQLinear_GEMM

    linear, scales, zeros = pseudo_quantized(bias)
    ours = packed_linear(linear, GROUP, scales, zeros)
    theirs = WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales, zeros=zeros)
    names = ["qweight", "qzeros", "scales"] + (["bias"] if bias else [])
    assert sorted(ours.state_dict()) == sorted(theirs.state_dict()) == sorted(names)
    for name in names:
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_pack_by_hand():
    codes = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 15]])  # low bits first: channels 0, 2, 4, 6, 1, 3, 5, 7
    expected = sum(code << (4 * i) for i, code in enumerate([0, 2, 4, 6, 1, 3, 5, 15]))
    assert pack(codes).tolist() == [[expected - 2**32]]  # the highest bit is an int32's sign
