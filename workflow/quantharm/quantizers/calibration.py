"""Statistics of calibration samples: lengths, repetition, the model's loss on them, coverage of the prompts.

A quantizer that is calibrated on the wrong text still gives a checkpoint that loads and answers. These figures show
samples that repeat each other, samples on which the model's loss is far from that on natural text (random tokens; one
token over and over), and prompts whose tokens the samples do not hold.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from quantharm.common.chat import Asking, encode_prompt
from quantharm.common.prompts import Prompt
from quantharm.common.records.checks import PromptCoverage
from quantharm.common.records.quantization import SampleStatistics

NLL_FACTOR = 2.0  # mean loss of the samples, as a multiple or a fraction of the evaluation text's
DUPLICATE_LIMIT = 0.1  # share of samples that repeat another one
VARIETY_LIMIT = 0.05  # share of a sample's tokens that are distinct; in 512: prose 0.5 to 0.65, code 0.17 to 0.46
NLL_SAMPLES = 4  # samples that are scored


def sample_statistics(samples: list[list[int]]) -> SampleStatistics:
    """Lengths, repetition and variety of the samples, and the entropy of their token frequencies, bits a token."""
    counts = Counter(token for sample in samples for token in sample)
    total = sum(counts.values())
    return {
        "sample_tokens_min": min(len(sample) for sample in samples),
        "sample_tokens_max": max(len(sample) for sample in samples),
        "duplicate_samples": len(samples) - len({tuple(sample) for sample in samples}),
        "distinct_tokens": len(counts),
        "distinct_share_min": min(len(set(sample)) / len(sample) for sample in samples),
        "unigram_entropy_bits": -sum(n / total * math.log2(n / total) for n in counts.values()),
    }


def coverage(samples: list[list[int]], ids: list[int]) -> float | None:
    """Share of the tokens `ids`, repetitions counted, that occur in the samples; None where there are none."""
    known = {token for sample in samples for token in sample}
    return sum(token in known for token in ids) / len(ids) if ids else None


def prompt_coverage(samples: list[list[int]], tokenizer, prompts: list[Prompt], asking: Asking) -> PromptCoverage:
    """Coverage of each category's prompts, and of the chat template's own tokens (None without a template)."""
    by_category: dict[str, list[int]] = {}
    for prompt in prompts:
        ids = tokenizer(prompt["prompt"], add_special_tokens=False)["input_ids"]
        by_category.setdefault(prompt["category"], []).extend(ids)
    framed = Counter(encode_prompt(tokenizer, "x", asking))
    bare = Counter(encode_prompt(tokenizer, "x", Asking("never")))
    return {
        "coverage_by_category": {category: coverage(samples, ids) for category, ids in by_category.items()},
        "template_coverage": coverage(samples, list((framed - bare).elements())),
    }


def mean_loss(model, head, samples: list[list[int]]) -> float:
    """Mean NLL in nats of the first NLL_SAMPLES samples' tokens; head: as scoring.output_head returns it."""
    import torch

    from quantharm.scoring.forward import last_hidden_states, negative_log_likelihoods

    vocabulary = model.get_output_embeddings().weight.shape[0]
    losses = [
        negative_log_likelihoods(last_hidden_states(model, sample)[:-1], torch.tensor(sample[1:]), head, vocabulary)
        for sample in samples[:NLL_SAMPLES]
    ]
    return float(torch.cat([loss.cpu() for loss in losses]).double().mean())


def faults(evidence: Mapping[str, Any]) -> list[str]:
    """The faults of a calibration, a sentence each.

    evidence: `calibration` of quantization.json; where the cell is finished also overlaps, nll_mean_nats and
    text_nll_mean_nats (CalibrationEvidence).
    """
    wrong = []
    for unit in ("samples", "tokens"):
        if evidence[f"{unit}_reached"] < evidence[f"{unit}_asked"]:
            wrong.append(f"{evidence[f'{unit}_reached']} of {evidence[f'{unit}_asked']} {unit} reached the quantizer")
    if evidence.get("overlaps"):
        wrong.append(f"{evidence['overlaps']} sequences of words are shared with the evaluation text or the prompts")
    share = evidence.get("duplicate_samples", 0) / max(1, evidence["samples_reached"])
    if share > DUPLICATE_LIMIT:
        wrong.append(f"{share:.0%} of the samples repeat another one (limit {DUPLICATE_LIMIT:.0%})")
    if evidence.get("distinct_share_min", 1.0) < VARIETY_LIMIT:
        wrong.append(f"a sample holds {evidence['distinct_share_min']:.1%} distinct tokens (limit {VARIETY_LIMIT:.0%})")
    if "nll_mean_nats" in evidence:
        ratio = evidence["nll_mean_nats"] / evidence["text_nll_mean_nats"]
        if not 1 / NLL_FACTOR <= ratio <= NLL_FACTOR:
            wrong.append(
                f"the model's loss on the samples is {ratio:.2f} times that on the evaluation text (limits "
                f"{1 / NLL_FACTOR:g} and {NLL_FACTOR:g}): they are not natural text to it"
            )
    return wrong
