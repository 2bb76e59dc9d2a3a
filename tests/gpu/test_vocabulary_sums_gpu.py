"""The fused kernel against PyTorch's operations on the GPU and against float64 on the host."""

import pytest
import torch

from quantharm.scoring.vocabulary_sums import fastest_on_gpu, sums_by_torch, vocabulary_sums

NAMES = ("kl", "reverse", "js", "ln_z_p", "ln_z_q", "largest")


def pair(vocabulary: int, noise: float, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(vocabulary)
    baseline = 4 * torch.randn(37, vocabulary, generator=generator)
    logits = baseline + noise * torch.randn(37, vocabulary, generator=generator)
    return baseline.to("cuda", dtype), logits.cuda()


def test_this_gpu_has_the_fused_kernel():
    assert fastest_on_gpu(torch.device("cuda", 0)).__name__ == "sums_by_triton"


@pytest.mark.parametrize("noise", [1e-4, 0.3, 5.0])
@pytest.mark.parametrize("vocabulary", [3, 1024, 32000, 151936])
def test_of_float64(vocabulary, noise):
    baseline, logits = pair(vocabulary, noise)
    ln_p, ln_q = (torch.log_softmax(t.double().cpu(), -1) for t in (baseline, logits))
    ln_m = torch.logaddexp(ln_p, ln_q) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    expected = {
        "kl": (ln_p.exp() * (ln_p - ln_q)).sum(-1),
        "reverse": (ln_q.exp() * (ln_q - ln_p)).sum(-1),
        "js": (ln_p.exp() * (ln_p - ln_m) + ln_q.exp() * (ln_q - ln_m)).sum(-1) / 2,
        "ln_z_p": torch.logsumexp(baseline.double().cpu(), -1),
        "ln_z_q": torch.logsumexp(logits.double().cpu(), -1),
        "largest": logits.double().cpu().amax(-1),
    }
    for name, values in zip(NAMES, vocabulary_sums(baseline, logits), strict=True):
        assert torch.allclose(values.cpu(), expected[name], rtol=1e-6, atol=2e-8), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_of_what_torch_gives(dtype):
    baseline, logits = pair(32000, 0.3, dtype)
    part = slice(5, 20)  # rows of a larger tensor
    for one, other in zip(
        vocabulary_sums(baseline[part], logits[part]), sums_by_torch(baseline[part], logits[part]), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)


def test_equal_logits_diverge_by_nothing():
    logits = pair(32000, 1.0)[1]
    assert not torch.stack(vocabulary_sums(logits, logits.clone())[:3]).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_show(bad):
    baseline, logits = pair(32000, 1.0)
    logits[3, 7] = bad
    kl = vocabulary_sums(baseline, logits)[0]
    assert not torch.isfinite(kl[3])
    assert torch.isfinite(kl[[2, 4]]).all()
