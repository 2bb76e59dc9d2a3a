"""What charts draw, without drawing it."""

from types import SimpleNamespace

from quantharm.reporting.charts.quality import lower_left, size_key


def cell(method: str, loaded: int, on_disk: int, kl: float, unpacked: bool = False):
    row = {"weight_bytes": loaded, "checkpoint_bytes": on_disk, "kl_nats_mean": kl}
    return SimpleNamespace(method=method, row=row, quantization={"held_dequantized": unpacked})


def test_a_format_that_is_unpacked_as_it_is_loaded_has_the_size_of_its_file():
    packed, gguf = cell("nf4", 40, 50, 0.3), cell("gguf", 160, 45, 0.2, unpacked=True)
    assert size_key([packed]) == "weight_bytes"
    assert size_key([packed, gguf]) == "checkpoint_bytes"
    assert lower_left([packed, gguf]) == ["gguf"]  # loaded, neither beats the other
    assert lower_left([packed, cell("gguf", 160, 45, 0.2)]) == ["nf4", "gguf"]
