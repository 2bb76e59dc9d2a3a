"""`backend:` of a method: families whose kernels it cannot choose refuse it, all by one sentence."""

from pathlib import Path

import pytest

from quantharm.common.errors import UserError
from quantharm.quantizers.formats import awq, families, gptq

OTHERS = [method for family in families.FAMILIES if family not in (awq, gptq) for method in family.METHODS]


@pytest.mark.parametrize("method", [*OTHERS, None])
def test_a_backend_is_for_awq_and_gptq(method, monkeypatch):
    monkeypatch.setattr(families, "stated_quantization", lambda _: {"quant_method": method} if method else {})
    refused = families.loading(Path("their-checkpoint"), "marlin", "bfloat16", "cpu")
    with pytest.raises(
        UserError, match="`backend: marlin` is for AWQ and GPTQ checkpoints; their-checkpoint is neither"
    ):
        refused.__enter__()
