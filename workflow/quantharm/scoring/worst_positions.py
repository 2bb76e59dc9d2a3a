"""The worst positions: those of largest KL from the baseline, with both models' first choices there.

They are kept while the divergence is scored, so memory does not grow with the number of positions, and decoded at the
end, so that a report shows text and needs no tokenizer.
"""

import pandas
import torch

from quantharm.common.records.divergence import Ranked, WorstPosition, WorstPositionInWords

LIMIT = 20  # positions kept
TOP = 5  # tokens of each model
CONTEXT_TOKENS = 48  # shown before the predicted token


def top_tokens(baseline: torch.Tensor, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Ids [n, 5] and probabilities [n, 5] of the five most probable tokens of both models.

    baseline: [n, vocabulary] float32 logits or float16 log-probabilities; logits: [n, vocabulary] float32 of the
    method.
    """
    tops = {}
    for name, values in (("baseline", baseline), ("method", logits)):
        top = values.float().topk(min(TOP, values.shape[-1]), dim=-1)
        tops[f"{name}_ids"] = top.indices
        tops[f"{name}_p"] = (top.values.double() - torch.logsumexp(values.double(), -1, keepdim=True)).exp()
    return tops


class WorstPositions:
    """The `limit` positions of largest KL among all that were offered; of equal ones the earlier ones.

    Their tensors stay on the device of the scores, and an offer waits for none of them: on a GPU the host goes on
    launching.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self.offered = 0
        self.kept: tuple[torch.Tensor, ...] | None = None  # KL, number of the offered position, both models' entries

    def offer(self, kl: torch.Tensor, baseline: torch.Tensor, logits: torch.Tensor) -> None:
        """Offers n more positions; kl: [n] nats; baseline, logits: [n, vocabulary] as for top_tokens."""
        numbers = torch.arange(self.offered, self.offered + len(kl), device=kl.device)
        self.offered += len(kl)
        new = self.largest(kl, numbers, baseline, logits)
        self.kept = new if self.kept is None else self.largest(*map(torch.cat, zip(self.kept, new, strict=True)))

    def largest(self, kl: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The `limit` largest of `kl` [n] and the same rows of the other tensors [n, …]."""
        order = kl.argsort(descending=True, stable=True)[: self.limit]
        return kl[order], *(other[order] for other in others)

    def records(self, rows: pandas.DataFrame, sequences: dict[str, list[int]]) -> list[WorstPosition]:
        """The worst positions, the largest KL first.

        rows: those of all offered positions, in order, as in divergence.parquet; sequences: {prompt_id: all token ids}.
        """
        if self.kept is None:
            return []
        kl, numbers, baseline, logits = self.kept
        tops = {key: value.cpu().numpy() for key, value in top_tokens(baseline, logits).items()}
        records: list[WorstPosition] = []
        for k, row in enumerate(rows.iloc[numbers.tolist()].itertuples()):
            records.append(
                {
                    "prompt_id": row.prompt_id,
                    "category": row.category,
                    "position": int(row.position),
                    "kl_nats": float(kl[k]),
                    "target_id": sequences[row.prompt_id][row.position],
                    "baseline_top5": ranked(tops["baseline_ids"][k], tops["baseline_p"][k]),
                    "method_top5": ranked(tops["method_ids"][k], tops["method_p"][k]),
                }
            )
        return records


def ranked(ids, probabilities) -> Ranked:
    """[[id, probability]] of tokens, the most probable first."""
    return [[int(i), float(p)] for i, p in zip(ids, probabilities, strict=True)]


def token_text(tokenizer, before: list[int], token: int) -> str:
    """The text that a token adds to the tokens before it; decoded with them, since alone it may lose its space."""
    without = tokenizer.decode(before[-4:])
    with_token = tokenizer.decode([*before[-4:], token])
    return with_token[len(without) :] if with_token.startswith(without) else tokenizer.decode([token])


def with_texts(records: list[WorstPosition], tokenizer, sequences: dict[str, list[int]]) -> list[WorstPositionInWords]:
    """Adds `context` (the text before), `target` and the tokens' texts; sequences: {prompt_id: all token ids}."""
    in_words: list[WorstPositionInWords] = []
    for record in records:
        before = sequences[record["prompt_id"]][: record["position"]]
        tokens = [int(token) for token, _ in record["baseline_top5"] + record["method_top5"]]
        texts = {token: token_text(tokenizer, before, token) for token in tokens}
        in_words.append(
            {
                **record,
                "context": tokenizer.decode(before[-CONTEXT_TOKENS:]),
                "context_is_cut": len(before) > CONTEXT_TOKENS,
                "target": token_text(tokenizer, before, record["target_id"]),
                "token_texts": {str(token): text for token, text in texts.items()},
            }
        )
    return in_words
