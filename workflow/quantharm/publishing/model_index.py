"""A cell's figures as the metadata of a model card (`model-index`), made and read back by huggingface_hub."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from quantharm.common.errors import UserError
from quantharm.common.records.source import TextRecord
from quantharm.common.records.summary import SummaryRow

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
TASK = {"task_type": "text-generation", "task_name": "Text Generation"}


def results_of(row: SummaryRow, text: TextRecord, protocol: str) -> list[EvalResult]:
    """row: the cell's in summary.json."""
    of_text = {
        "dataset_type": text["source"] if HUB_ID.fullmatch(text["source"]) and text["revision"] else text["text"],
        "dataset_name": text["text"],
        "dataset_revision": text["revision"],
    }
    of_prompts = {"dataset_type": "quantharm-prompts", "dataset_name": f"quantharm, {row['prompts']} prompts"}

    def result(dataset: Mapping[str, str | None], metric: str, name: str, value: float, **arguments: Any) -> EvalResult:
        details = {"protocol_sha256": protocol, **{key: v for key, v in arguments.items() if v is not None}}
        return EvalResult(
            **TASK, **dataset, metric_type=metric, metric_name=name, metric_value=value, metric_args=details
        )

    results = [
        result(
            of_text,
            "perplexity",
            f"Perplexity ({row['perplexity_protocol']})",
            row["perplexity"],
            ci95=row["perplexity_ci95"],
            tokens=row["perplexity_tokens_scored"],
        ),
        result(
            of_text,
            "perplexity_change_percent",
            "Perplexity, change from the unquantized model in percent",
            row["perplexity_change_percent"],
            ci95=row["perplexity_change_percent_ci95"],
        ),
        result(
            of_prompts,
            "kl_divergence",
            "Mean KL divergence from the unquantized model in nats",
            row["kl_nats_mean"],
            ci95=row["kl_nats_ci95"],
        ),
        result(
            of_prompts,
            "top1_agreement",
            "Share of positions with the unquantized model's first choice",
            row["top1_agreement"],
        ),
    ]
    for name, task in (row.get("tasks") or {}).items():
        dataset = {"dataset_type": name, "dataset_name": name}
        results.append(
            result(
                dataset,
                "accuracy",
                "Accuracy",
                task["accuracy"],
                ci95=task["accuracy_ci95"],
                items=task["items"],
                recovery=task["recovery"],
            )
        )
    return results


def card_of(row: SummaryRow, results: list[EvalResult], body: str) -> ModelCard:
    """The section with its metadata before it, read back and compared; raises UserError where they are not the same."""
    name = f"{row['model']} {row['method']}"
    known: dict[str, str | list[EvalResult]] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if row["revision"] and HUB_ID.fullmatch(row["source"]):
        known |= {"base_model": row["source"], "base_model_relation": "quantized"}
    if results:
        known |= {"model_name": name, "eval_results": results}
    metadata = ModelCardData(tags=["quantized", "quantharm"], **known)
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")
    again = ModelCard(str(card))
    if (again.data.eval_results or []) != results or (results and again.data.model_name != name):
        raise UserError(f"the metadata of {name}'s card are not what huggingface_hub reads back; report this")
    return card
