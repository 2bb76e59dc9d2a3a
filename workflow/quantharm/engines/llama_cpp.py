"""A GGUF file in llama.cpp, as the stages see a model: token ids in, logits out.

llama.cpp keeps keys and values in a cache of its own and reads them from there, also within one call: with a quantized
cache (`kv_cache:`) every score is of what attention reads when the file is served.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch

from quantharm.common.checkpoint_files import gguf_file
from quantharm.common.errors import UserError
from quantharm.common.provenance import threads_of_process
from quantharm.common.records.parts import EngineRecord
from quantharm.common.records.quantization import CheckpointRecord
from quantharm.config.engines import LLAMA_CACHE_TYPES
from quantharm.engines.llama_library import ANY_LAYERS, identity, library, said

MOST_TOKENS = 512  # of one call: their logits exist at once in the library, in float32
DEFAULT_CACHE = "f16"
EXACT_CACHES = ("f16", "f32", "bf16")
FIRST_CONTEXT = 4096  # tokens
MORE_TOKENS = 1024  # that a sequence may grow by
MORE_TOKENS_OF_SEVERAL = 64


class Answer(dict):
    """Logits [1, n, vocabulary] of a call, and the cache that the next one goes on from, as transformers gives them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class LlamaCppModel:
    """A loaded file. Not a torch module: it has what the stages ask a model for, and its states are its logits."""

    def __init__(self, path: Path, config, threads: int, kv_cache: dict[str, str], device: str) -> None:
        """config: the model's, as transformers has it. Raises UserError where llama.cpp does not load the file."""
        self.library, self.path, self.config, self.threads = library(), path, config, threads
        self.kv_cache = {part: kv_cache.get(part, DEFAULT_CACHE) for part in ("keys", "values")}
        self.on_gpu = device == "cuda" and self.library.llama_supports_gpu_offload()
        parameters = self.library.llama_model_default_params()
        parameters.gpu_layers = ANY_LAYERS if self.on_gpu else 0
        self.model = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise UserError(f"llama.cpp cannot load {path}: {'; '.join(said())}")
        self.vocabulary = self.library.llama_model_get_vocab(self.model)
        self.vocabulary_size = self.library.llama_vocab_n_tokens(self.vocabulary)
        self.batch = self.library.llama_batch_init(MOST_TOKENS, 0, 1)
        self.memory = None
        self.state = None  # llama.cpp's context: the cache and the buffers of computing
        self.context = self.kept = 0  # tokens of a sequence that fit into it, and that are in it
        self.sequences = 1
        self.make_room(FIRST_CONTEXT)
        self.device = torch.device("cpu")  # where logits are given
        self.dtype = torch.float32
        self.weight_bytes_per_token = self.library.llama_model_size(self.model)
        self.generation_config = SimpleNamespace(eos_token_id=self.end_ids())

    def make_room(self, tokens: int, sequences: int = 1) -> None:
        """A context of at least so many tokens a sequence, empty, unless there is one; UserError without memory."""
        if tokens <= self.context and sequences == self.sequences:
            return
        parameters = self.library.llama_context_default_params()
        parameters.context, parameters.sequences = tokens * sequences, sequences
        parameters.batch = parameters.physical_batch = MOST_TOKENS
        parameters.threads = parameters.threads_batch = self.threads
        parameters.type_k, parameters.type_v = (LLAMA_CACHE_TYPES[self.kv_cache[part]] for part in ("keys", "values"))
        if self.kv_cache["values"] not in EXACT_CACHES:
            parameters.flash_attention = 1  # quantized values are read by it alone
        if self.state:
            self.library.llama_free(self.state)
        self.state = self.library.llama_init_from_model(self.model, parameters)
        if not self.state:
            size = f"{sequences} × {tokens}" if sequences > 1 else tokens
            raise UserError(f"llama.cpp cannot make a context of {size} tokens for {self.path}: {'; '.join(said())}")
        self.memory = self.library.llama_get_memory(self.state)
        self.context, self.kept, self.sequences = tokens, 0, sequences

    def close(self) -> None:
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.state)
        self.library.llama_model_free(self.model)

    def begin(self, tokens: int, sequences: int = 1) -> None:
        """Begin new sequences of so many tokens, and some more after them."""
        self.make_room(tokens + (MORE_TOKENS if sequences == 1 else MORE_TOKENS_OF_SEVERAL), sequences)
        self.library.llama_memory_clear(self.memory, True)
        self.kept = 0

    def append(self, ids: list[list[int]], last_only: bool = False) -> torch.Tensor:
        """Logits [sequences, n or 1, vocabulary], float32, of the next n tokens of each sequence.

        Raises UserError where llama.cpp fails.
        """
        count = len(ids[0])
        if self.kept + count > self.context:
            raise UserError(f"{self.path}: {self.kept + count} tokens do not fit into a context of {self.context}")
        entries = [
            (token, self.kept + i, sequence, not last_only or i == count - 1)
            for sequence, tokens in enumerate(ids)
            for i, token in enumerate(tokens)
        ]
        self.kept += count
        parts = []
        for start in range(0, len(entries), MOST_TOKENS):
            outputs = self.fill(entries[start : start + MOST_TOKENS])
            if code := self.library.llama_decode(self.state, self.batch):
                raise UserError(f"llama.cpp failed on {self.path} (llama_decode gave {code}): {'; '.join(said())}")
            if outputs:
                array = numpy.ctypeslib.as_array(
                    self.library.llama_get_logits(self.state), (outputs, self.vocabulary_size)
                )
                parts.append(torch.from_numpy(array.copy()))  # the library's own is overwritten by the next call
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unflatten(0, (len(ids), -1))

    def fill(self, entries: list[tuple[int, int, int, bool]]) -> int:
        """The library's batch: (token, position, sequence, whether its logits are wanted); returns how many are."""
        batch = self.batch
        batch.count = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.tokens[i], batch.positions[i] = token, position
            batch.sequence_counts[i], batch.sequences[i][0] = 1, sequence
            batch.wanted[i] = wanted
        return sum(entry[-1] for entry in entries)

    def __call__(self, input_ids: torch.Tensor, use_cache: bool = False, logits_to_keep: int = 0, **cache) -> Answer:
        """As a model of transformers: input_ids [batch, n]; `past_key_values` goes on with the last sequences."""
        if cache.get("past_key_values") is None:
            self.begin(input_ids.shape[1], len(input_ids))
        logits = self.append(input_ids.tolist(), last_only=logits_to_keep == 1)
        return Answer(logits=logits, past_key_values=self if use_cache else None)

    def base_model(self, input_ids: torch.Tensor, use_cache: bool = False) -> Answer:
        """States of a sequence [1, n, vocabulary]: an engine has none to give but its logits."""
        return Answer(last_hidden_state=self(input_ids).logits)

    def own_logits(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def get_input_embeddings(self) -> SimpleNamespace:
        """Something with as many rows as the vocabulary, which is what the stages ask of it."""
        return SimpleNamespace(weight=torch.empty(self.vocabulary_size, 0))

    get_output_embeddings = get_input_embeddings

    def end_ids(self) -> list[int]:
        end = self.library.llama_vocab_eos(self.vocabulary)
        return [end] if end >= 0 else []

    def token_text(self, token: int) -> str:
        return self.library.llama_vocab_get_text(self.vocabulary, token).decode(errors="replace")

    def cache_bytes(self) -> int:
        """Bytes of keys and values of the tokens in the cache, as llama.cpp would save them."""
        return sum(self.library.llama_state_seq_get_size(self.state, i) for i in range(self.sequences))

    def description(self) -> EngineRecord:
        """What the engine is and how it was set: for the record of a cell."""
        device = "cuda" if self.on_gpu else "cpu"
        return {**identity(), "threads": self.threads, "kv_cache": self.kv_cache, "device": device}


def check_vocabulary(model: LlamaCppModel, tokenizer) -> None:
    """Raises UserError unless the file's tokens are the model's, id by id: ids go in as they are.

    A file may have more tokens at its end (padding). Tokens that the tokenizer added to its vocabulary are written
    as they read, all others in the vocabulary's own letters.
    """
    own = tokenizer.get_vocab()
    if model.vocabulary_size < max(own.values()) + 1:
        raise UserError(
            f"{model.path} has {model.vocabulary_size} tokens, the model's tokenizer {max(own.values()) + 1}; it is "
            "not a file of this model"
        )
    for text, token in own.items():
        theirs = model.token_text(token)
        if theirs != text and theirs.replace("▁", " ") != text.replace("▁", " "):
            raise UserError(
                f"token {token} is {theirs!r} in {model.path} and {text!r} in the model's tokenizer; it is not a file "
                "of this model"
            )
    first, ours = model.library.llama_vocab_bos(model.vocabulary), tokenizer.bos_token_id
    if ours is not None and first >= 0 and ours != first:
        raise UserError(f"{model.path} begins texts with token {first}, the model's tokenizer with token {ours}")


def open_cell(record: CheckpointRecord, device: str) -> LlamaCppModel:
    """The model of a cell; raises UserError where its checkpoint is no GGUF file of the cell's model."""
    from transformers import AutoConfig

    from quantharm.models.loading import load_tokenizer, verify_weights

    checkpoint, source = Path(record["checkpoint"]), record["source"]
    verify_weights(checkpoint, record["weight_files"])
    file = gguf_file(checkpoint)
    if file is None:
        raise UserError(f"engine llama.cpp reads GGUF files, and {checkpoint} is none; choose another `engine:`")
    config = AutoConfig.from_pretrained(
        source["path"], trust_remote_code=source["trust_remote_code"], local_files_only=True
    )
    kv_cache = record["settings"].get("kv_cache") or {}
    model = LlamaCppModel(file, config, threads_of_process(), kv_cache, device)
    check_vocabulary(model, load_tokenizer(source))
    return model
