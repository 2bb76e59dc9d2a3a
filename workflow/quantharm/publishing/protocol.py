"""One hash of the protocol: two cards with the same one asked the same of their models in the same way."""

import json
from collections.abc import Mapping

from quantharm.common.files import sha256_of_text
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.perplexity import PerplexityRecord
from quantharm.common.records.tasks import OneTask

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


Protocol = dict[str, dict[str, object]]  # {stage: {setting: value}}


def protocol_of(
    perplexity: PerplexityRecord, generation: GenerationRecord, tasks: Mapping[str, OneTask] | None
) -> Protocol:
    """The settings of a cell's records that decide what its figures are of; nothing of the model or the machine."""
    return {
        "perplexity": {"protocol": perplexity["protocol"], "dataset_sha256": perplexity["dataset_sha256"]},
        "generation": {key: generation.get(key) for key in GENERATION},
        "benchmark": {key: generation["benchmark"].get(key) for key in BENCHMARK},
        "tasks": {name: {key: task.get(key) for key in TASK} for name, task in (tasks or {}).items()},
    }


def protocol_sha256(protocol: Protocol) -> str:
    """In hexadecimal; whatever the order of the settings."""
    return sha256_of_text(json.dumps(protocol, sort_keys=True))
