"""The keys `engine` and `kv_cache` of a method."""

import pytest

from quantharm.common.errors import UserError
from quantharm.config.engines import conflict, extra_packages, module_of, with_quantizer
from quantharm.config.methods import completed_method

NF4 = {"quantizer": "bitsandbytes_4bit", "quant_type": "nf4"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"engine": "llama.cpp"}, "reads GGUF files; quantizer `bitsandbytes_4bit` makes none"),
        ({"kv_cache": {"keys": "q8_0"}}, "without `backend: fp8` or `quanto`"),
        ({"kv_cache": {"backend": "fp8", "keys": "q8_0"}}, "without `backend: fp8` or `quanto`"),
        ({"kv_cache": {"bits": 4}}, "without `backend: fp8` or `quanto`"),
        ({"kv_cache": {"backend": "fp8", "bits": 4}}, "set `bits` of its `kv_cache`"),
        ({"engine": "vllm"}, "engine"),
        ({"kv_cache": {"backend": "quanto", "residual_tokens": 40}}, "residual_tokens"),
        ({"kv_cache": {}}, "kv_cache"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(keys, words):
    with pytest.raises(UserError, match="mine") as raised:
        completed_method("mine", NF4 | keys)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_llama_cpp_takes_types_of_its_own():
    served = {"engine": "llama.cpp", "kv_cache": {"keys": "q8_0", "values": "q4_0"}}
    assert conflict("pretrained", served) is None
    assert "`backend`" in conflict("pretrained", served | {"kv_cache": {"backend": "fp8"}})


ADDRESS = {"engine": "openai", "url": "http://127.0.0.1:8000/v1", "model": "mine"}


def test_an_endpoint_is_one_entry_without_a_quantizer():
    entry = completed_method("mine", with_quantizer(ADDRESS))
    assert (entry["quantizer"], entry["top_tokens"], entry["api_key_variable"]) == ("endpoint", 20, None)
    assert (module_of(entry), extra_packages(entry)) == ("endpoint", None)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"url": "ftp://host:1/x"}, "no address"),
        ({"url": "127.0.0.1:8000"}, "no address"),
        ({"url": "http://me:sk-secret@host:1"}, "name the environment variable"),
        ({"url": "http://host:1/v1?key=sk-secret"}, "name the environment variable"),
        ({"api_key_variable": "sk-secret"}, "it is the NAME of an environment variable"),
        ({"api_key": "sk-secret"}, "api_key_variable"),
        ({"kv_cache": {"keys": "q8_0"}}, "somebody serves"),
        ({"noise": {"sigma": 0.1, "relative_to": "absolute"}}, "cannot"),
        ({"quantizer": "bitsandbytes_4bit"}, "`url`"),
        ({"engine": None}, "`engine: transformers`"),
        ({"url": None}, "url"),
    ],
)
def test_what_an_endpoint_cannot_have_is_refused_without_repeating_a_key(keys, words):
    with pytest.raises(UserError, match="mine") as raised:
        completed_method("mine", with_quantizer(ADDRESS) | keys)
    assert words in str(raised.value)
    assert "sk-secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "module", "packages"),
    [
        ({}, None, None),
        ({"engine": "transformers"}, None, None),
        ({"engine": "llama.cpp", "kv_cache": {"keys": "q8_0"}}, "llama_cpp", "llama-cpp"),
        ({"kv_cache": {"backend": "fp8"}}, "quantized_cache", None),
        ({"kv_cache": {"backend": "quanto"}}, "quantized_cache", "quanto"),
    ],
)
def test_what_a_cell_needs_follows_from_its_keys(keys, module, packages):
    assert (module_of(keys), extra_packages(keys)) == (module, packages)
    assert completed_method("mine", NF4 | keys) if module != "llama_cpp" else True
