"""Whether a model can decode over keys and values of a fixed size, and the tokens that each of its layers sees then."""

import inspect

from transformers.cache_utils import CacheLayerMixin, DynamicCache

from quantharm.common.text import language_config

GROWING_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")  # of keys and values; a fixed size can replace them


def cache_layers(model) -> list[CacheLayerMixin]:
    """The layers of the cache that the model decodes with, empty."""
    return DynamicCache(config=model.config).layers


def why_no_fixed_cache(model) -> str | None:
    """The reason why a model cannot decode over keys and values of a fixed size, None where it can."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} keeps recurrent states instead of keys and values"
    if hasattr(model, "new_cache"):
        return "the method's `kv_cache:` quantizes keys and values, which a fixed cache holds as they are"
    others = {type(layer).__name__ for layer in cache_layers(model)} - set(GROWING_LAYERS)
    if others:
        return f"{type(model).__name__} keeps more than keys and values ({', '.join(sorted(others))})"
    if getattr(language_config(model.config), "attention_chunk_size", None):
        return f"{type(model).__name__} attends in chunks, for which no mask over a fixed cache is made here"
    return None


def sliding_windows(model) -> dict[str, int | None]:
    """{kind of layer, as the model's configuration names it: tokens that it sees, None for all}."""
    layers = cache_layers(model)
    kinds = getattr(language_config(model.config), "layer_types", None) or [""] * len(layers)
    return {kind: getattr(layer, "sliding_window", None) for kind, layer in zip(kinds, layers, strict=True)}
