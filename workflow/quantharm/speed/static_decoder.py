"""Greedy decoding over keys and values of a fixed size: one step that may be captured as a CUDA graph and replayed.

A prompt is read in the ordinary way, over a growing cache with the model's own masks; its keys and values are then
copied into buffers of a fixed size, in which decoding goes on. (prompt_reader.py reads into these buffers at once.) A
step has a mask of its own: it hides the columns that hold no token yet and, in layers with a sliding window, those
before the window.
"""

import time
from collections.abc import Callable

import torch
from transformers.cache_utils import Cache, StaticLayer

from quantharm.models import attention
from quantharm.scoring.host_copy import HostCopy
from quantharm.speed.decoding import Continuation, Stopped, never, prefill, why_ended
from quantharm.speed.device_meters import synchronise
from quantharm.speed.fixed_cache import cache_layers, sliding_windows
from quantharm.speed.recording import record_graph

WARM_UP_STEPS = 3
NOT_FINITE = -1  # in place of a token whose logits are not all finite


class StaticDecoder:
    """Greedy decoding of a batch of prompts of one length; all of its state lies on the device.

    length: tokens that the cache holds. compiled: torch.compile fuses the step's small kernels before it is captured.
    """

    def __init__(self, model, length: int, batch: int = 1, compiled: bool = False):
        self.model = model
        device = model.get_input_embeddings().weight.device
        dtype = model.get_input_embeddings().weight.dtype
        self.cache = Cache(layers=[StaticLayer(max_cache_len=length) for _ in cache_layers(model)])
        self.windows = {k: w if w and w < length else None for k, w in sliding_windows(model).items()}
        self.token = torch.zeros((batch, 1), dtype=torch.long, device=device)
        self.outcome = torch.zeros((batch, 1), dtype=torch.long, device=device)  # the token, or NOT_FINITE
        self.position = torch.zeros((batch, 1), dtype=torch.long, device=device)
        self.columns = torch.arange(length, device=device)
        self.masked = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=device)
        self.logits: torch.Tensor | None = None  # [batch, vocabulary]
        self.graph: torch.cuda.CUDAGraph | None = None
        # The uncompiled step is not kept: an object that refers to itself holds its memory until some collection.
        self.compiled = torch.compile(self.next_logits, dynamic=False) if compiled else None

    def mask(self, rows: torch.Tensor, window: int | None) -> torch.Tensor:
        """[1, 1, len(rows), length]: 0 where a row may attend to a column, the dtype's lowest number elsewhere.

        rows: positions; window: tokens that a layer sees, None for all.
        """
        age = rows.unsqueeze(-1) - self.columns
        seen = age >= 0 if window is None else (age >= 0) & (age < window)
        return torch.where(seen, torch.zeros_like(self.masked), self.masked)[None, None]

    def masks(self, rows: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """One mask, or one for each kind of layer where their windows differ."""
        if len(set(self.windows.values())) == 1:
            return self.mask(rows, next(iter(self.windows.values())))
        return {kind: self.mask(rows, window) for kind, window in self.windows.items()}

    def prefill(self, prompt: torch.Tensor) -> None:
        """Starts anew with a prompt [batch, T] and chooses the token after it."""
        logits, cache = prefill(self.model, prompt)
        self.cache.reset()
        for fixed, grown in zip(self.cache.layers, cache["past_key_values"].layers, strict=True):
            left_out = prompt.shape[1] - grown.keys.shape[-2]  # tokens before the window, which no step sees again
            fixed.update(*(torch.nn.functional.pad(kept, (0, 0, left_out, 0)) for kept in (grown.keys, grown.values)))
        self.choose(logits)
        self.position.fill_(prompt.shape[1])

    def choose(self, logits: torch.Tensor) -> None:
        """Makes the most probable token of logits [batch, vocabulary] the next one."""
        self.token.copy_(logits.argmax(-1, keepdim=True))
        finite = torch.isfinite(logits).all(-1, keepdim=True)
        self.outcome.copy_(torch.where(finite, self.token, torch.full_like(self.token, NOT_FINITE)))

    def next_logits(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocabulary] after one more token at a position, both [batch, 1]."""
        output = self.model(
            input_ids=token,
            position_ids=position,
            attention_mask=self.masks(position[0]),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def step(self) -> None:
        """Decodes one token: logits, next token, next position. The host waits for none of them."""
        with attention.of_one_length():
            logits = (self.compiled or self.next_logits)(self.token, self.position)
        if self.logits is None:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)
        self.choose(logits)
        self.position.add_(1)

    def capture(self, prompt: torch.Tensor) -> None:
        """Records one step, which `decode` then replays. Raises RuntimeError where something cannot be recorded."""
        self.prefill(prompt)
        self.graph = record_graph(self.step, WARM_UP_STEPS)

    def decode(self, steps: int, replay: bool = True) -> None:
        """Decodes `steps` tokens; replay: by the recorded step, where there is one."""
        for _ in range(steps):
            if replay and self.graph is not None:
                self.graph.replay()
            else:
                self.step()

    def trajectory(
        self, prompt: torch.Tensor, steps: int, replay: bool, tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(choices [steps + 1, batch], logits [steps, batch, vocabulary]) after a prompt [batch, T].

        tokens: [steps, batch], fed in place of the choices.
        """
        self.prefill(prompt)
        choices, logits = [self.token[:, 0].clone()], []
        for step in range(steps):
            if tokens is not None:
                self.token.copy_(tokens[step].view(-1, 1))
            self.decode(1, replay)
            choices.append(self.token[:, 0].clone())
            assert self.logits is not None  # decode has written them
            logits.append(self.logits.clone())
        return torch.stack(choices), torch.stack(logits)

    def continue_greedily(
        self,
        ids: list[int],
        new_tokens: int,
        eos_token_ids: set[int],
        context: int | None,
        stopped: Stopped = never,
        read: Callable[[list[int]], None] | None = None,
    ) -> Continuation:
        """The answer of decoding.continue_greedily, by steps over the fixed cache, batch 1.

        While the host checks whether a token ends the answer, the device computes the next one. read: fills the cache
        with a prompt in place of `prefill`.
        """
        room = new_tokens if context is None else min(new_tokens, context - len(ids))
        tokens: list[int] = []
        synchronise(self.token.device)
        begin = time.perf_counter()
        if read is None:
            self.prefill(torch.tensor([ids], device=self.token.device))
        else:
            read(ids)
        ahead = HostCopy(self.outcome)
        ahead.tensor()
        first = time.perf_counter() - begin
        reason = "length" if room == new_tokens else "context"
        for step in range(room):
            current = ahead
            if step + 1 < room:
                self.decode(1)
                ahead = HostCopy(self.outcome)
            token = int(current.tensor())
            if token == NOT_FINITE:
                self.cache.reset()  # NaN in a masked column, too, would make the next answer NaN
                reason = "not_finite"
                break
            tokens.append(token)
            if ended := why_ended(tokens, eos_token_ids, stopped):
                reason = ended
                break
        seconds = time.perf_counter() - begin
        return Continuation(tokens, reason, seconds, first, reason != "not_finite")
