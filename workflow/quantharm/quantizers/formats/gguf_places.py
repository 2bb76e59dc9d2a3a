"""Where transformers puts the tensors of a GGUF file.

It makes a configuration of the file's metadata, in which biases, the scaling of positions, the width of heads and soft
caps get lost, and leaves out tensors without a place. So the original's configuration is used where there is one
(`config_for`), and a tensor without a place is refused.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.checkpoint_files import listed
from quantharm.common.errors import UserError
from quantharm.common.text import language_config
from quantharm.quantizers.formats.gguf_file import tensors_of, value

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
SCALED_POSITIONS = ("rope_freqs", "rope_factors_")  # tensors by which Llama 3.1 and Phi-3 multiply positions


def config_for(checkpoint: Path, original: "PretrainedConfig") -> "PretrainedConfig":
    """The configuration for loading a file that was made of a model; original: that model's own.

    A file may have a head of its own where the model shares it with the embeddings, never the other way round; and
    more embeddings, for padding.
    """
    config, tensors = copy.deepcopy(language_config(original)), tensors_of(checkpoint)
    if EMBEDDINGS in tensors:
        config.vocab_size = max(config.vocab_size, int(tensors[EMBEDDINGS].shape[1]))
    tied = config.tie_word_embeddings or original.tie_word_embeddings
    config.tie_word_embeddings = tied and HEAD not in tensors
    return config


@contextlib.contextmanager
def every_tensor_in_its_place(checkpoint: Path) -> Iterator[None]:
    """While this lasts, transformers looks names up by the file's architecture, and leaves no tensor out.

    By itself it asks for the architecture that the configuration names (mistral), which may have no table of its own.
    """
    from transformers import modeling_gguf_pytorch_utils as reader

    places = reader.get_gguf_hf_weights_map
    architecture = value(checkpoint, "general.architecture")

    def places_of(model, processor, model_type=None, num_layers=None, qual_name=""):
        table = places(model, processor, model_type or architecture, num_layers, qual_name)
        if not qual_name:  # the whole model, not one of its parts
            refuse_left_out(checkpoint, table, model)
        return table

    reader.get_gguf_hf_weights_map = places_of
    try:
        yield
    finally:
        reader.get_gguf_hf_weights_map = places


def refuse_left_out(checkpoint: Path, places: "Mapping[str, str]", model) -> None:
    """Raises UserError for tensors of the file that have no place in the model; places: {tensor: parameter}."""
    left = [name for name in tensors_of(checkpoint) if not {name, name.removesuffix(".weight")} & places.keys()]
    if scales_positions(model.config):
        left = [name for name in left if not name.startswith(SCALED_POSITIONS)]  # those of the configuration are used
    if left:
        raise UserError(
            f"{checkpoint} has {len(left)} tensors that transformers has no place for in {type(model).__name__} "
            f"({listed(left)}), which it would leave out; name a checkpoint in another format"
        )


def scales_positions(config: "PretrainedConfig") -> bool:
    """Whether a configuration scales the positions, for all layers or for those of one kind."""
    stated = getattr(config, "rope_parameters", None) or {}
    parts = [stated, *(part for part in stated.values() if isinstance(part, dict))]
    return any(part.get("rope_type", "default") != "default" for part in parts)
