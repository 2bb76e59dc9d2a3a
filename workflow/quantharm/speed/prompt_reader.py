"""Reading prompts by captured passes: a small model's pass takes the host longer to launch than the GPU to compute.

A graph holds one length, so a prompt is padded at its end to the next of a few. What follows a prompt changes none of
its keys, values and logits, unless layers round the inputs of all tokens by one scale or sort them to experts: then
other padding gives other logits, and prompts are read in the ordinary way. Decoding writes over the padding before a
step sees it. A length is captured where enough prompts share it.
"""

import torch

from quantharm.common.errors import UserError, first_line
from quantharm.common.records.generation import PromptsRead
from quantharm.models import attention
from quantharm.speed.cuda_graph import (
    KL_LIMIT,
    NOISE_FACTOR,
    eager_logits,
    kl_of_another_attention,
    largest_kl,
    limit_beside,
    raise_beyond,
)
from quantharm.speed.recording import record_graph
from quantharm.speed.static_decoder import StaticDecoder

STEP = 64  # tokens between two captured lengths
SAME = 1e-5  # of a norm: sums of float32 in another order
TRIES = 3  # comparisons of two paddings
LONGEST = 512  # tokens; over a longer prompt the GPU computes for as long as the host launches
FEWEST = 6  # prompts that share a length: it takes as long to capture and check it as to read these


def padded(tokens: int, room: int) -> int:
    """The length of the graph for a prompt of so many tokens; room: tokens that the cache holds."""
    return min(-(-tokens // STEP) * STEP, room)


def by_shared_length(prompts: list[list[int]], room: int) -> dict[int, list[list[int]]]:
    """{padded length that is worth a graph: the prompts that share it}, ascending."""
    sharing: dict[int, list[list[int]]] = {}
    for ids in prompts:
        sharing.setdefault(padded(len(ids), room), []).append(ids)
    return {n: sharing[n] for n in sorted(sharing) if n <= LONGEST and len(sharing[n]) >= FEWEST}


class PromptReader:
    """Fills a captured decoder's cache with prompts, batch 1: by a graph of the padded length, or in the ordinary way.

    room: tokens of the cache. graphs: by padded length. reason: why a shared length has no graph.
    """

    def __init__(self, decoder: StaticDecoder):
        self.decoder = decoder
        self.room = len(decoder.columns)
        device = decoder.token.device
        self.tokens = torch.zeros((1, LONGEST), dtype=torch.long, device=device)
        self.last = torch.zeros(1, dtype=torch.long, device=device)  # index of the prompt's last token
        self.logits: torch.Tensor | None = None  # [1, vocabulary] after the prompt
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self.kl_nats_max: float | None = None  # of the check of all graphs
        self.reason: str | None = None

    def length_of(self, ids: list[int]) -> int:
        """The padded length of a prompt."""
        return padded(len(ids), self.room)

    def captures(self, ids: list[int]) -> bool:
        """Whether a graph reads this prompt."""
        return self.length_of(ids) in self.graphs

    def record(self, prompts: list[list[int]]) -> PromptsRead:
        """For generation.json."""
        return {
            "captured": sum(map(self.captures, prompts)),
            "reason": self.reason,
            "kl_nats_max": self.kl_nats_max,
        }

    def read(self, ids: list[int]) -> None:
        """Starts an answer: the decoder's cache holds the prompt's token ids, and the token after it is chosen."""
        if not self.captures(ids):
            self.decoder.prefill(torch.tensor([ids], device=self.tokens.device))
            return
        self.place(ids, ids[-1:])
        self.replay(self.length_of(ids))

    def place(self, ids: list[int], padding: list[int]) -> None:
        """Puts a prompt where its pass reads it, and `padding` after it, again and again."""
        rest = self.length_of(ids) - len(ids)
        given = torch.tensor([ids + (padding * rest)[:rest]])
        self.tokens[:, : given.shape[1]].copy_(given, non_blocking=True)
        self.last.fill_(len(ids) - 1)

    def replay(self, length: int) -> torch.Tensor:
        """Runs the pass over a padded length; returns logits [1, vocabulary], which the next pass overwrites."""
        graph = self.graphs[length]
        if graph is None:
            self.compute(length)
        else:
            graph.replay()
        assert self.logits is not None  # the pass has written them
        return self.logits

    def compute(self, length: int) -> None:
        """The pass over the first `length` of `tokens`, as a graph records it: the host waits for nothing."""
        decoder = self.decoder
        positions = torch.arange(length, device=self.tokens.device)
        for layer in decoder.cache.layers:
            layer.cumulative_length.zero_()
        with attention.of_one_length():
            output = decoder.model(
                input_ids=self.tokens[:, :length],
                position_ids=positions[None],
                attention_mask=decoder.masks(positions),
                past_key_values=decoder.cache,
                use_cache=True,
                logits_to_keep=self.last,
            )
        for layer in decoder.cache.layers:  # the next token's keys and values follow the prompt's
            layer.cumulative_length.copy_(self.last[0] + 1)
        logits = output.logits[:, -1]
        if self.logits is None:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)
        decoder.choose(logits)
        decoder.position.copy_(self.last[None] + 1)

    def capture(self, ids: list[int]) -> None:
        """Records the pass over a prompt's padded length. Raises RuntimeError where something cannot be recorded."""
        length = self.length_of(ids)
        self.place(ids, ids[-1:])
        self.graphs[length] = record_graph(lambda: self.compute(length), 1, self.decoder.graph)

    def check(self, ids: list[int]) -> float:
        """Largest KL in nats between eager decoding and two rows of logits: after a prompt, and one step later.

        The step reads the keys and values of the prompt. Raises UserError where KL is beyond the limit of a captured
        step, which another attention kernel's difference widens, or where other padding gives other logits.
        """
        decoder = self.decoder
        self.check_padding(ids)
        self.read(ids)
        assert self.logits is not None  # read has written them
        first, token = self.logits.clone(), decoder.token.clone()
        decoder.decode(1)
        assert decoder.logits is not None
        prompt = torch.tensor([ids], device=token.device)
        eager = eager_logits(decoder.model, prompt, token)
        kl, limit = largest_kl(eager, torch.stack([first, decoder.logits])), KL_LIMIT
        if not kl <= limit:
            limit = limit_beside(kl_of_another_attention(decoder.model, prompt, token, eager))
        raise_beyond("of a prompt", kl, limit)
        return kl

    def check_padding(self, ids: list[int]) -> None:
        """Raises UserError where what follows a prompt changes its logits by more than two passes differ by.

        Passes that add in varying order may agree by chance: then others are compared.
        """
        rows = self.decoder.model.get_input_embeddings().weight.shape[0]
        others = [token % rows for token in range(5, 5 + STEP)]  # a token that a GPU does not know ends the process
        for _ in range(TRIES):
            passes = []
            for padding in (others, ids[-1:], ids[-1:]):
                self.place(ids, padding)
                passes.append(self.replay(self.length_of(ids)).float().clone())
            moved, noise = (passes[0] - passes[1]).norm(), (passes[1] - passes[2]).norm()
            if moved <= NOISE_FACTOR * noise + SAME * passes[1].norm():
                return
        share = float(moved / passes[1].norm())
        raise UserError(f"what follows a prompt changes its logits by {share:.1e} of their norm in this model")


def prompt_reader(decoder: StaticDecoder, prompts: list[list[int]]) -> PromptReader:
    """A reader of these prompts, with a checked graph for each shared length, or for none and the reason."""
    reader = PromptReader(decoder)
    try:
        for alike in by_shared_length(prompts, reader.room).values():
            reader.capture(alike[0])
            for ids in (min(alike, key=len), max(alike, key=len)):  # the most padding, and the most of its rows
                reader.kl_nats_max = max(reader.kl_nats_max or 0.0, reader.check(ids))
    except Exception as error:  # whatever a model, a kernel or a library raises that cannot be recorded
        reader.graphs, reader.kl_nats_max, reader.reason = {}, None, first_line(error)
    return reader
