"""What was measured, as one hash: two cards with the same one asked the same of their models in the same way."""

import json
from typing import Any

from quantharm.common.files import sha256_of_text

PERPLEXITY = ("protocol", "dataset_sha256")
GENERATION = (
    "suite_sha256",
    "prompts_per_category",
    "max_new_tokens",
    "chat_template",
    "thinking",
    "template_date",
    "system_prompt",
)
BENCHMARK = ("prompt_tokens", "new_tokens")
TASK = ("metric", "few_shot", "limit", "prompts_sha256")


def protocol_of(
    perplexity: dict[str, Any], generation: dict[str, Any], tasks: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a cell's records that decide what its figures are of; nothing of the model or the machine."""
    return {
        "perplexity": {key: perplexity[key] for key in PERPLEXITY},
        "generation": {key: generation.get(key) for key in GENERATION},
        "benchmark": {key: generation["benchmark"][key] for key in BENCHMARK},
        "tasks": {name: {key: task.get(key) for key in TASK} for name, task in (tasks or {}).items()},
    }


def protocol_sha256(protocol: dict[str, Any]) -> str:
    return sha256_of_text(json.dumps(protocol, sort_keys=True))
