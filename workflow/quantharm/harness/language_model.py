"""A loaded model behind lm-evaluation-harness's interface: log-likelihoods of endings, and greedy answers.

Every request is one forward pass of its own, batch 1, no padding: LLM.int8 picks its outlier columns over all tokens of
a pass, so in a batch an answer would depend on the other requests. Logits are float32, as in every stage.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from quantharm.common.chat import SWITCHES, Asking, today
from quantharm.common.errors import UserError
from quantharm.common.text import context_length
from quantharm.scoring.forward import check_ids, last_hidden_states, output_head, slices_of
from quantharm.speed.answers import answer_suite
from quantharm.speed.decoding import eos_token_ids_of

ANSWER_TOKENS = 256  # of a task that does not say how long an answer may be


class LoadedModel(TemplateLM):
    """lm-evaluation-harness's interface to a model that is loaded already.

    answer_tokens: longest answer, whatever a task says. `cut` counts prompts whose beginning did not fit the context;
    `decoding` is `captured` or `eager`, and None where no answers were generated.
    """

    def __init__(self, model, tokenizer, asking: Asking, answer_tokens: int | None = None) -> None:
        super().__init__()
        if asking.chat_template == "required" and not getattr(tokenizer, "chat_template", None):
            raise UserError("`task_options.chat_template: true` but the tokenizer has no chat template; take it out")
        self.model, self.tokenizer, self.asking, self.answer_tokens = model, tokenizer, asking, answer_tokens
        self.head = output_head(model)
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        self.context = context_length(model.config)
        self.eos_token_ids = eos_token_ids_of(model, tokenizer)
        self.cut = 0
        self.decoding: str | None = None

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds, unless the text begins with BOS already."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(bos))
        return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation by the tokenizer's chat template."""
        with today(self.asking.template_date):
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **dict.fromkeys(SWITCHES, False),
            )

    def fitted(self, ids: list[int], room: int) -> list[int]:
        """The last `room` ids of a prompt, which counts as cut where it has more."""
        self.cut += len(ids) > room
        return ids[-room:]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        """[(ln p(ending) in nats, whether the ending is the greedy one)].

        requests: [((context, ending) as texts, prompt's ids, ending's ids)].
        """
        answers = []
        asked: list[int] | None = None
        hidden = torch.empty(0)
        for _, prompt, ending in tqdm(requests, desc="tasks", unit="ending", mininterval=5, disable=disable_tqdm):
            ids = (prompt + ending)[:-1]
            if self.context is not None:
                if len(ending) > self.context:
                    raise UserError(
                        f"an ending has {len(ending)} tokens but the model's context is {self.context}; take the task "
                        "out"
                    )
                ids = self.fitted(ids, self.context)
            if ids != asked:  # endings of one token share their prompt's pass
                check_ids(self.model, ids)
                hidden, asked = last_hidden_states(self.model, ids), ids
            answers.append(self.score(hidden[-len(ending) :], torch.tensor(ending)))
        return answers

    def score(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[float, bool]:
        """(Σ ln p(target) in nats, whether each target is the most probable); hidden: [n, width], targets: [n]."""
        total, greedy = 0.0, True
        for part in slices_of(len(hidden), self.vocabulary):
            logits = self.head(hidden[part])  # [n, vocabulary] float32
            expected = targets[part].to(logits.device)
            ln_p = logits.log_softmax(-1).gather(-1, expected[:, None])
            total += float(ln_p.double().sum())
            greedy = greedy and bool((logits.argmax(-1) == expected).all())
        if not math.isfinite(total):
            raise UserError(
                "a log-likelihood is NaN or infinite; this checkpoint cannot be scored: take its method out"
            )
        return total, greedy

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("whole texts are scored by the stage perplexity")

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each up to the first of the task's stop words. A task's own sampling settings are ignored."""
        texts = [""] * len(requests)
        alike: dict[tuple[tuple[str, ...], int], list[int]] = {}  # {(stop words, longest answer): requests}
        for i, request in enumerate(requests):
            alike.setdefault(self.limits(request.args[1]), []).append(i)
        for (until, longest), places in alike.items():
            prompts = [self.room_for(requests[i].args[0], longest) for i in places]
            for i, text in zip(places, self.answer(prompts, until, longest), strict=True):
                texts[i] = text
        return texts

    def limits(self, options: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
        """(stop words, tokens of the longest answer); options: a task's generation_kwargs."""
        until = options.get("until") or []
        longest = int(options.get("max_gen_toks") or ANSWER_TOKENS)
        return (
            tuple(word for word in ([until] if isinstance(until, str) else until) if word),
            longest if self.answer_tokens is None else min(longest, self.answer_tokens),
        )

    def room_for(self, prompt: str, longest: int) -> list[int]:
        """Token ids of a prompt, its beginning cut so that the context holds the longest answer as well."""
        ids = self.tok_encode(prompt)
        if self.context is not None:
            if self.context <= longest:
                raise UserError(
                    f"answers of {longest} tokens leave no room for a question in the model's context of "
                    f"{self.context}; lower `task_options.answer_tokens:`"
                )
            ids = self.fitted(ids, self.context - longest)
        check_ids(self.model, ids)
        return ids

    def answer(self, prompts: list[list[int]], until: tuple[str, ...], longest: int) -> list[str]:
        """Texts of greedy answers to prompts of token ids, by the captured step where there is one."""

        def text_of(tokens: list[int]) -> str:
            return self.tokenizer.decode(tokens, skip_special_tokens=True)

        def stopped(tokens: list[int]) -> bool:
            text = text_of(tokens)
            return any(word in text for word in until)

        answers = answer_suite(self.model, prompts, longest, self.eos_token_ids, stopped)
        if not all(continuation.finite for continuation in answers.continuations):
            raise UserError("a logit is NaN or infinite; this checkpoint cannot answer: take its method out")
        self.decoding = answers.decoding
        texts = [text_of(continuation.token_ids) for continuation in answers.continuations]
        return [min((text.split(word)[0] for word in until), key=len, default=text) for text in texts]
