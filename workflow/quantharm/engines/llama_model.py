"""A GGUF file in llama.cpp, as the stages see a model: token ids in, logits out.

llama.cpp keeps keys and values in a cache of its own and reads them from there, also within one call: with a quantized
cache (`kv_cache:`) every score is that of the keys and values which attention reads when the file is served.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy
import torch

from quantharm.common.errors import UserError
from quantharm.common.records.parts import EngineRecord
from quantharm.config.engines import LLAMA_CACHE_TYPES, KvCache
from quantharm.engines.llama_library import ANY_LAYERS, identity, last_errors, library

MOST_TOKENS = 512  # of one call: the library holds their logits at once, in float32
DEFAULT_CACHE = "f16"
EXACT_CACHES = ("f16", "f32", "bf16")
FIRST_CONTEXT = 4096  # tokens of the first context that is made
MORE_TOKENS = 1024  # by which a sequence may grow after its prompt
MORE_TOKENS_OF_SEVERAL = 64  # by which each of several sequences may
PARTS: tuple[Literal["keys", "values"], ...] = ("keys", "values")


class Answer(dict):
    """The result of a call, in the form of transformers: logits [batch, n, vocabulary], and the cache for the next."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class LlamaCppModel:
    """A loaded file. Not a torch module: it has the attributes and methods that the stages use of a model.

    Its states are its logits.
    """

    def __init__(self, path: Path, config, threads: int, kv_cache: KvCache, device: str) -> None:
        """config: transformers' configuration of the model; device: cpu or cuda.

        Raises UserError where llama.cpp does not load the file.
        """
        self.library, self.path, self.config, self.threads = library(), path, config, threads
        self.kv_cache: dict[str, str] = {name: kv_cache.get(name, DEFAULT_CACHE) for name in PARTS}
        self.on_gpu = device == "cuda" and self.library.llama_supports_gpu_offload()
        parameters = self.library.llama_model_default_params()
        parameters.gpu_layers = ANY_LAYERS if self.on_gpu else 0
        last_errors().clear()
        self.model = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise UserError(f"llama.cpp cannot load {path} ({', '.join(last_errors())}); fetch or make the file again")
        self.vocabulary = self.library.llama_model_get_vocab(self.model)
        self.vocabulary_size = self.library.llama_vocab_n_tokens(self.vocabulary)
        self.batch = self.library.llama_batch_init(MOST_TOKENS, 0, 1)
        self.memory = None
        self.state = None  # llama.cpp's context: the cache and the buffers of computing
        self.context = self.kept = 0  # tokens of a sequence: those that fit into it, and those in it
        self.sequences = 1
        self.make_room(FIRST_CONTEXT)
        self.device = torch.device("cpu")  # of the logits
        self.dtype = torch.float32
        self.weight_bytes_per_token = self.library.llama_model_size(self.model)
        self.generation_config = SimpleNamespace(eos_token_id=self.eos_token_ids())

    def make_room(self, tokens: int, sequences: int = 1) -> None:
        """Makes a context of at least so many tokens a sequence, unless there is one; UserError without memory."""
        if tokens <= self.context and sequences == self.sequences:
            return
        parameters = self.library.llama_context_default_params()
        parameters.context, parameters.sequences = tokens * sequences, sequences
        parameters.batch = parameters.physical_batch = MOST_TOKENS
        parameters.threads = parameters.threads_batch = self.threads
        parameters.type_k, parameters.type_v = (LLAMA_CACHE_TYPES[self.kv_cache[name]] for name in PARTS)
        if self.kv_cache["values"] not in EXACT_CACHES:
            parameters.flash_attention = 1  # no other attention reads quantized values
        if self.state:
            self.library.llama_free(self.state)
        last_errors().clear()
        self.state = self.library.llama_init_from_model(self.model, parameters)
        if not self.state:
            size = f"{sequences} × {tokens}" if sequences > 1 else tokens
            packed = any(name not in EXACT_CACHES for name in self.kv_cache.values())
            raise UserError(
                f"llama.cpp cannot make a context of {size} tokens for {self.path} ({', '.join(last_errors())}); "
                + ("choose other types for `kv_cache:`, " if packed else "")
                + "free memory, or lower `max_new_tokens:` or `window_tokens:`"
            )
        self.memory = self.library.llama_get_memory(self.state)
        self.context, self.kept, self.sequences = tokens, 0, sequences

    def close(self) -> None:
        """Frees the library's memory."""
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.state)
        self.library.llama_model_free(self.model)

    def begin(self, tokens: int, sequences: int = 1) -> None:
        """Begins new sequences, with room for so many tokens and for the answers to them."""
        self.make_room(tokens + (MORE_TOKENS if sequences == 1 else MORE_TOKENS_OF_SEVERAL), sequences)
        self.library.llama_memory_clear(self.memory, True)
        self.kept = 0

    def append(self, ids: list[list[int]], last_only: bool = False) -> torch.Tensor:
        """Logits [sequences, n or 1, vocabulary], float32, of the next n tokens of each sequence.

        Raises UserError where llama.cpp fails.
        """
        count = len(ids[0])
        if self.kept + count > self.context:
            raise UserError(
                f"{self.path}: {self.kept + count} tokens do not fit into a context of {self.context}; lower "
                "`max_new_tokens:`"
            )
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
                raise UserError(
                    f"llama.cpp failed on {self.path} (llama_decode gave {code}: {', '.join(last_errors())}); run the "
                    "same command again, and report this if it fails again"
                )
            if outputs:
                array = numpy.ctypeslib.as_array(
                    self.library.llama_get_logits(self.state), (outputs, self.vocabulary_size)
                )
                parts.append(torch.from_numpy(array.copy()))  # the library's own is overwritten by the next call
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unflatten(0, (len(ids), -1))

    def fill(self, entries: list[tuple[int, int, int, bool]]) -> int:
        """Fills the library's batch with (token, position, sequence, is wanted); returns how many logits are wanted."""
        batch = self.batch
        batch.count = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.tokens[i], batch.positions[i] = token, position
            batch.sequence_counts[i], batch.sequences[i][0] = 1, sequence
            batch.wanted[i] = wanted
        return sum(entry[-1] for entry in entries)

    def __call__(self, input_ids: torch.Tensor, use_cache: bool = False, logits_to_keep: int = 0, **cache) -> Answer:
        """As transformers' models are called; input_ids: [batch, n]. With `past_key_values` the sequences go on."""
        if cache.get("past_key_values") is None:
            self.begin(input_ids.shape[1], len(input_ids))
        logits = self.append(input_ids.tolist(), last_only=logits_to_keep == 1)
        return Answer(logits=logits, past_key_values=self if use_cache else None)

    def base_model(self, input_ids: torch.Tensor, use_cache: bool = False) -> Answer:
        """The states of a sequence, which here are its logits, [1, n, vocabulary]."""
        return Answer(last_hidden_state=self(input_ids).logits)

    def own_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [n, vocabulary] of states, which they are already."""
        return states

    def get_input_embeddings(self) -> SimpleNamespace:
        """A stand-in whose weight has as many rows as the vocabulary: the stages look at no more of it."""
        return SimpleNamespace(weight=torch.empty(self.vocabulary_size, 0))

    get_output_embeddings = get_input_embeddings

    def eos_token_ids(self) -> list[int]:
        """The file's end-of-sequence token, if it has one."""
        token = self.library.llama_vocab_eos(self.vocabulary)
        return [token] if token >= 0 else []

    def token_text(self, token: int) -> str:
        """A token as the file writes it."""
        return self.library.llama_vocab_get_text(self.vocabulary, token).decode(errors="replace")

    def cache_bytes(self) -> int:
        """Bytes of keys and values of the tokens in the cache, as llama.cpp would save them."""
        return sum(self.library.llama_state_seq_get_size(self.state, i) for i in range(self.sequences))

    def description(self) -> EngineRecord:
        """The engine and its settings, for the records of a cell."""
        device = "cuda" if self.on_gpu else "cpu"
        return {**identity(), "threads": self.threads, "kv_cache": self.kv_cache, "device": device}
