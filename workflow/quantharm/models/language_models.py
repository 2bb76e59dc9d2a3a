"""Recognises causal language models, which predict the next token from those before it.

An encoder (BERT), an encoder-decoder (T5), a classifier or a vision model has no perplexity and no greedy answer.
"""

from pathlib import Path

from quantharm.common.checkpoint_files import CheckpointConfig, folder_of, gguf_file
from quantharm.common.errors import UserError, first_line
from quantharm.common.records.source import Shape, Trust
from quantharm.common.text import context_length, language_config

REFUSAL = "only causal language models (such as Llama, Qwen or GPT-2) can be evaluated; name another `source:`"


def causal_classes(model_type: str) -> tuple[str, ...]:
    """transformers' classes of causal language models of a type; empty for a type without any."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ())
    return (names,) if isinstance(names, str) else tuple(names)


def named_gguf(folder: Path) -> dict[str, str]:
    """Arguments of from_pretrained for a checkpoint in GGUF."""
    packed = gguf_file(folder)
    return {"gguf_file": packed.name} if packed else {}


def shape_of(folder: Path, trust_remote_code: bool) -> Shape:
    """Width, layers, vocabulary and context of a model, under whatever keys its config.json has them."""
    from transformers import AutoConfig

    try:
        config = language_config(
            AutoConfig.from_pretrained(
                folder_of(folder), trust_remote_code=trust_remote_code, local_files_only=True, **named_gguf(folder)
            )
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}/config.json cannot be read: {first_line(error)}; fetch the model again") from None
    return {
        "hidden_size": getattr(config, "hidden_size", None),
        "layers": getattr(config, "num_hidden_layers", None),
        "vocabulary": getattr(config, "vocab_size", None),
        "context": context_length(config),
    }


def empty_model(folder: Path, source: Trust):
    """The model of a folder without weights, on the meta device; source: permissions of its record."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from quantharm.models.safety import refuse_unsafe

    refuse_unsafe(folder, source["allow_pickle"], source["trust_remote_code"])
    trusted = {"trust_remote_code": source["trust_remote_code"]}
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **trusted)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **trusted)


def refuse_unless_causal(settings: CheckpointConfig, where: str, trust_remote_code: bool) -> None:
    """Raises UserError unless a config.json is that of a causal language model; settings: its content.

    `architectures` names the class that a checkpoint was saved from. transformers has classes that predict next tokens
    for BERT and T5, too, but checkpoints of other classes do not hold their heads.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = settings.get("model_type")
    if trust_remote_code and settings.get("auto_map"):
        return
    if kind is None or kind not in CONFIG_MAPPING_NAMES:
        from transformers import __version__

        raise UserError(
            f"{where} is a model of type {kind!r}, which transformers {__version__} does not know; choose a model that "
            "it knows"
        )
    saved = (settings.get("architectures") or ["no stated architecture"])[0]
    classes = causal_classes(kind)
    if not classes:
        raise UserError(f"{where} is a model of type {kind!r} ({saved}), which predicts no next token; {REFUSAL}")
    if settings.get("is_encoder_decoder") or (saved not in classes and names_another_head(saved)):
        raise UserError(f"{where} was saved as {saved}, which is no causal language model; {REFUSAL}")


def names_another_head(architecture: str) -> bool:
    """Whether a class of transformers is made for another task; a class that it does not know passes."""
    import transformers

    return hasattr(transformers, architecture) and not architecture.endswith(("ForCausalLM", "LMHeadModel"))
