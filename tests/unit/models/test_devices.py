"""The device that is asked for, and the GPUs that a model is spread over."""

import pytest
import torch

from quantharm.common.errors import UserError
from quantharm.models.devices import choose_device, device_map


def message_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused_and_auto_means_the_cpu():
    assert "PyTorch sees no GPU here" in message_of(choose_device, "cuda", 1)
    assert choose_device("auto", 1) == choose_device("cpu", 1) == "cpu"
    assert "`gpus: 2` is asked for but PyTorch sees 0" in message_of(device_map, "cuda", 2)


def test_device_map_of_the_cpu():
    assert device_map("cpu", 4) == {"": "cpu"}


def test_a_model_is_spread_over_the_gpus_that_it_asks_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_map("cuda", 1) == {"": 0}
    assert device_map("cuda", 2) == "balanced"
    assert "`gpus: 3` is asked for but PyTorch sees 2" in message_of(device_map, "cuda", 3)
