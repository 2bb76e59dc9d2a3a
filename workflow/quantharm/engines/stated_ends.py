"""The tokens with which a model ends its answers, for engines that do not read its generation config themselves."""

from quantharm.common.text import language_config


def stated_eos_token_ids(folder: str, config) -> list[int]:
    """The end-of-sequence tokens of a model's generation config, or else of its config, as transformers takes them."""
    from transformers import GenerationConfig

    try:
        stated = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:
        stated = language_config(config).eos_token_id
    return stated if isinstance(stated, list) else [] if stated is None else [stated]
