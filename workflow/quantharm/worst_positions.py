"""The positions where a method departs farthest from the baseline, with what both models would have said there.

Kept while the divergence is scored, so memory does not grow with the number of positions; decoded at the end, so that
a report shows text and needs no tokenizer.
"""

import heapq
from typing import Any

import torch

LIMIT = 20  # positions kept
TOP = 5  # tokens of each model
CONTEXT_TOKENS = 48  # shown before the predicted token

Ranked = list[list[float]]  # [[token id, probability], …], the most probable first


def top_tokens(stored: torch.Tensor, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Ids [n, 5] and log-probabilities or logits [n, 5] of both models' first choices.

    stored: [n, vocabulary] float16 log-probabilities of the baseline; logits: [n, vocabulary] float32 of the method.
    """
    count = min(TOP, stored.shape[-1])
    baseline, method = stored.float().topk(count, dim=-1), logits.topk(count, dim=-1)
    return {
        "baseline_ids": baseline.indices,
        # as the divergence does, stored log-probabilities are renormalised
        "baseline_p": (baseline.values.double() - torch.logsumexp(stored.double(), -1, keepdim=True)).exp(),
        "method_ids": method.indices,
        "method_p": (method.values.double() - torch.logsumexp(logits.double(), -1, keepdim=True)).exp(),
    }


class WorstPositions:
    """The `limit` positions of largest KL among all that were offered; equal ones stay in the order of arrival."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self.heap: list[tuple[float, int, dict[str, Any]]] = []
        self.offered = 0

    def offer(self, prompt_id: str, category: str, rows: dict, targets, stored, logits: torch.Tensor) -> None:
        """Positions of one prompt; rows: [n] arrays position and kl_nats, as in divergence.parquet.

        targets: [n] token ids; stored, logits: [n, vocabulary] as scored.
        """
        kl = rows["kl_nats"]
        floor = self.heap[0][0] if len(self.heap) == self.limit else float("-inf")
        chosen = (kl > floor).nonzero()[0]
        chosen = chosen[(-kl[chosen]).argsort(kind="stable")[: self.limit]]  # no more of them can stay
        if not len(chosen):
            return
        picked = torch.from_numpy(chosen).to(logits.device)
        tops = {key: value.cpu().numpy() for key, value in top_tokens(stored[picked], logits[picked]).items()}
        for k, i in enumerate(chosen):
            self.offered += 1
            record = {
                "prompt_id": prompt_id,
                "category": category,
                "position": int(rows["position"][i]),
                "kl_nats": float(kl[i]),
                "target_id": int(targets[i]),
                "baseline_top5": ranked(tops["baseline_ids"][k], tops["baseline_p"][k]),
                "method_top5": ranked(tops["method_ids"][k], tops["method_p"][k]),
            }
            entry = (float(kl[i]), -self.offered, record)
            if len(self.heap) < self.limit:
                heapq.heappush(self.heap, entry)
            else:
                heapq.heappushpop(self.heap, entry)

    def records(self) -> list[dict[str, Any]]:
        """The largest KL first."""
        return [record for _, _, record in sorted(self.heap, key=lambda entry: entry[:2], reverse=True)]


def ranked(ids, probabilities) -> Ranked:
    return [[int(i), float(p)] for i, p in zip(ids, probabilities, strict=True)]


def token_text(tokenizer, before: list[int], token: int) -> str:
    """The text that a token adds after some others; decoded with them, because a token alone may lose its space."""
    known = tokenizer.decode(before[-4:])
    longer = tokenizer.decode([*before[-4:], token])
    return longer[len(known) :] if longer.startswith(known) else tokenizer.decode([token])


def with_texts(records: list[dict[str, Any]], tokenizer, sequences: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Adds `context` (the text before), `target` and the tokens' texts; sequences: prompt_id → all its token ids."""
    result = []
    for record in records:
        before = sequences[record["prompt_id"]][: record["position"]]
        texts = {i: token_text(tokenizer, before, i) for i, _ in record["baseline_top5"] + record["method_top5"]}
        result.append(
            record
            | {
                "context": tokenizer.decode(before[-CONTEXT_TOKENS:]),
                "context_is_cut": len(before) > CONTEXT_TOKENS,
                "target": token_text(tokenizer, before, record["target_id"]),
                "token_texts": {str(i): text for i, text in texts.items()},
            }
        )
    return result
