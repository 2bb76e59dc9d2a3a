"""source.json: the files of a model and its description, by the stage `fetch`."""

from typing import NotRequired, TypedDict

from quantharm.common.records.parts import Sealed, WeightFile


class TokenizerHashes(TypedDict):
    """Hashes of the files that decide the token ids."""

    tokenizer_sha256: str  # over the tokenizer's files
    chat_template_sha256: str | None  # null where there is none


class Shape(TypedDict):
    """Of the language model; null where its configuration does not say."""

    hidden_size: int | None
    layers: int | None
    vocabulary: int | None  # tokens
    context: int | None  # tokens


class Trust(TypedDict):
    """Permissions of a checkpoint."""

    allow_pickle: bool  # weights that can run code are accepted
    trust_remote_code: bool  # the checkpoint's own Python code is run


class Located(Trust):
    path: str  # folder that it is loaded from
    config_files: NotRequired[dict[str, str]]  # {name: sha256} of its configuration, tokenizer and trusted code


class SourceRecord(Located, TokenizerHashes, Shape, Sealed):
    model: str  # name in the config
    source: str  # folder or hub id; of random weights, which shape they have
    revision: str | None  # commit of a hub model
    architecture: str  # class of transformers
    checkpoint_bytes: int  # of the files that are loaded
    weight_files: list[WeightFile]
    weights_sha256: str  # over the files' hashes
    synthetic: bool  # random weights in the shape of a model
    huggingface_hub: NotRequired[str | None]  # version of the package that fetched it


class TextRecord(Sealed):
    """results/texts/<text>.json: where an evaluation text came from."""

    text: str  # its name in the config
    source: str  # a file, or a data set's id
    revision: str | None
    bytes: int
    sha256: str
