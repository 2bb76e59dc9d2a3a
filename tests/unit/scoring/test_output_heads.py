"""The output head beside a store: what is kept, found again, and refused."""

import dataclasses

import pytest
import torch
import zoo
from test_zoo import CAUSAL, IDS

from quantharm.common.errors import UserError
from quantharm.scoring import output_heads
from quantharm.scoring.forward import last_hidden_states, output_head
from quantharm.scoring.head_file import read_head, write_head
from quantharm.scoring.output_heads import OutputHead, is_same, logits_of, plain_head
from quantharm.scoring.store_filling import head_to_keep


def head(rows: int = 7, columns: int = 4, bias: bool = True, dtype=torch.bfloat16) -> OutputHead:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    return OutputHead(weight, torch.randn(rows, generator=generator).to(dtype) if bias else None, 1.0, None)


def read(path, description) -> OutputHead:
    found, compared = read_head(path, description)
    compared.result()
    return found


@pytest.mark.parametrize("name", CAUSAL)
def test_what_is_kept_gives_the_models_own_logits(name, tmp_path):
    """Of each architecture, to the last bit: written, read, and applied to hidden states."""
    model = zoo.build(name)
    kept, reason = head_to_keep(model, "hidden_states", "float32")
    assert reason is None
    write_head(tmp_path / "head", kept)
    again = read(tmp_path / "head", kept.described())
    states = last_hidden_states(model, IDS)
    assert torch.equal(logits_of(again)(states), output_head(model)(states))
    assert is_same(again, plain_head(model))


MPT = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}
GRIFFIN = {"lru_width": 64, "attention_window_size": 32, "block_types": ["recurrent", "attention"]}
NAMED_OTHERWISE = {  # what architectures do to their logits, under other keys than Cohere, Granite and Gemma have
    "a multiplier": zoo.Animal("FalconH1Config", zoo.ZOO["Falcon-H1"].settings | {"lm_head_multiplier": 0.3}),
    "a factor called scaling": zoo.Animal("HyperCLOVAXConfig", {"logits_scaling": 0.25}),
    "a factor that is not used": zoo.Animal("MptConfig", MPT | {"logit_scale": 0.125}),
    "a factor in words": zoo.Animal("MptConfig", MPT | {"logit_scale": "inv_sqrt_d_model"}),
    "a soft cap": zoo.Animal("RecurrentGemmaConfig", GRIFFIN | {"logits_soft_cap": 5.0}),
}


@pytest.mark.parametrize("name", NAMED_OTHERWISE)
def test_what_an_architecture_does_to_its_logits_is_part_of_the_head(name, monkeypatch, tmp_path):
    monkeypatch.setitem(zoo.ZOO, name, NAMED_OTHERWISE[name])
    model = zoo.build(name)
    kept, _ = head_to_keep(model, "hidden_states", "float32")
    write_head(tmp_path / "head", kept)
    again = read(tmp_path / "head", kept.described())
    own = model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    torch.testing.assert_close(logits_of(again)(last_hidden_states(model, IDS)), own, rtol=1e-5, atol=1e-5)


def test_a_soft_cap_of_another_name_is_seen_in_the_largest_logits(monkeypatch):
    """All logits together differ by less than rounding may; the likely tokens' are 7 % off."""
    monkeypatch.setitem(zoo.ZOO, "capped", NAMED_OTHERWISE["a soft cap"])
    monkeypatch.setattr(output_heads, "SOFT_CAPS", ())
    with pytest.raises(UserError, match="changes its logits after the output head"):
        output_head(zoo.build("capped"))


def test_logits_by_hand():
    one = OutputHead(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0.5, 0.0]), 2.0, 4.0)
    logits = logits_of(one)(torch.tensor([[1.0, 1.0]]))
    expected = 4 * torch.tanh(2 * torch.tensor([[3.5, 2.0]]) / 4)
    torch.testing.assert_close(logits, expected)


CHANGES = {
    "an entry": lambda h: dataclasses.replace(h, weight=h.weight + torch.eye(7, 4) * 0.01),
    "the bias": lambda h: dataclasses.replace(h, bias=h.bias * 1.01),
    "no bias": lambda h: dataclasses.replace(h, bias=None),
    "the scale": lambda h: dataclasses.replace(h, scale=0.5),
    "the soft cap": lambda h: dataclasses.replace(h, softcap=30.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_head_has_another_hash_and_is_not_the_same(change, tmp_path):
    one = head()
    other = CHANGES[change](one)
    assert one.sha256() != other.sha256()
    assert not is_same(one, other)
    write_head(tmp_path / "head", other)
    if change not in ("the scale", "the soft cap"):  # those stand in the store's metadata
        with pytest.raises(UserError, match="is not the output head that its store was filled with"):
            read(tmp_path / "head", one.described())
    else:
        assert is_same(read(tmp_path / "head", one.described()), one)


def test_the_dtype_is_part_of_the_hash_but_not_of_what_it_computes():
    one = head()
    wide = OutputHead(one.weight.float(), one.bias.float(), one.scale, one.softcap)
    assert is_same(one, wide)
    assert one.sha256() != wide.sha256()


def test_a_head_that_is_held_wider_than_its_numbers_is_kept_narrow():
    wide = head(bias=False, dtype=torch.float32)
    assert output_heads.narrowed(wide, torch.bfloat16) is wide  # its numbers need all of float32
    rounded = dataclasses.replace(wide, weight=wide.weight.bfloat16().float())
    kept = output_heads.narrowed(rounded, torch.bfloat16)
    assert kept.weight.dtype == torch.bfloat16
    assert is_same(kept, rounded)


def test_the_narrow_head_is_the_same_in_a_slice_and_in_the_next(monkeypatch):
    """Heads are compared some rows at a time."""
    monkeypatch.setattr(output_heads, "ROWS_AT_ONCE", 3)
    one = head()
    assert is_same(one, head())
    for row in range(7):
        other = one.weight.clone()
        other[row, 1] += 1
        assert not is_same(one, dataclasses.replace(one, weight=other))
        assert not is_same(dataclasses.replace(one, weight=other), one)


def test_a_head_that_is_no_plain_matrix_is_not_kept(tiny):
    class Packed(torch.nn.Linear):
        pass

    model = tiny("llama")
    packed = Packed(64, 384, bias=False)
    packed.weight = model.get_output_embeddings().weight
    model.set_output_embeddings(packed)
    kept, reason = head_to_keep(model, "hidden_states", "float32")
    assert kept is None
    assert "the output head is a Packed and no plain matrix" in reason


def test_a_damaged_head_is_seen_in_slices(tiny, monkeypatch):
    """Of a whole head at once, isfinite makes two and a half: 3 GB beside a 7B model with 152,000 entries."""
    monkeypatch.setattr(output_heads, "ROWS_AT_ONCE", 100)
    looked_at, isfinite = [], torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda rows: looked_at.append(len(rows)) or isfinite(rows))
    model = tiny("llama")
    assert head_to_keep(model, "hidden_states", "float32")[1] is None
    assert looked_at == [100, 100, 100, 84]
    model.get_output_embeddings().weight[383, 63] = torch.nan
    assert head_to_keep(model, "hidden_states", "float32") == (None, "the output head holds NaN or infinity")


def test_a_quantized_head_of_a_model_with_a_soft_cap_is_capped(tiny):
    """A module of its own kind gives what a matrix of the same numbers gives, scale and cap included."""
    for kind in ("gemma2", "cohere", "granite"):
        model = tiny(kind)
        states = last_hidden_states(model, IDS)
        expected = output_head(model)(states)

        class Packed(torch.nn.Linear):
            pass

        packed = Packed(*reversed(model.get_output_embeddings().weight.shape), bias=False)
        packed.weight = model.get_output_embeddings().weight
        model.set_output_embeddings(packed)
        torch.testing.assert_close(output_head(model)(states), expected, rtol=1e-5, atol=1e-5)
        packed.weight.mul_(1.0)
    bare = model.get_output_embeddings()(states).float()
    assert not torch.allclose(bare, expected, rtol=0.1)


def test_a_damaged_file_ends_in_one_sentence(tmp_path):
    one = head()
    write_head(tmp_path / "head", one)
    content = (tmp_path / "head").read_bytes()
    for damaged in (b"", content[:30], content[:-4], content[:-3] + b"\x07" + content[-2:]):
        (tmp_path / "head").write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged|is not the output head") as caught:
            read(tmp_path / "head", one.described())
        assert "\n" not in str(caught.value)
    (tmp_path / "head").unlink()
    with pytest.raises(UserError, match="run the stage `logits`, or copy the file with the store"):
        read(tmp_path / "head", one.described())


def test_a_store_of_log_probabilities_needs_none(tmp_path):
    write_head(tmp_path / "head", None, "the protocol asks for log-probabilities")
    with pytest.raises(UserError, match="is not the output head"):
        read(tmp_path / "head", head().described())
