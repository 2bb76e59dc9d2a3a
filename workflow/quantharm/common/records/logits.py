"""logits.json: the log-prob store that the baseline filled, and the metadata that the store itself carries."""

from typing import NotRequired, TypedDict

from quantharm.common.records.parts import Finished, HowComputed


class HardwareFloor(TypedDict):
    """What other hardware may change of the baseline's distributions, and what the mildest quantization does."""

    rounding_kl_nats: float | None  # between the model as it is and the same in a wider dtype
    eight_bit_kl_nats: float | None  # between the model as it is and with weights rounded to 8 bits
    prompts: int  # that they were measured on
    reason: str | None  # why they were not measured


class StoreIdentity(HowComputed):
    """Everything that the stored figures depend on; a cell that differs in any of it is not compared."""

    model: str
    revision: str | None
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    dtype: str
    device: str
    protocol: str  # of the text's windows
    trace_sha256: str  # of all token ids
    versions: dict[str, str]


class StoreMetadata(StoreIdentity):
    prompt_tokens_sha256: str
    thinking: bool
    template_date: str
    system_prompt: str | None
    hardware_floor: HardwareFloor
    format: NotRequired[int]  # of the file; in the file itself
    vocabulary: NotRequired[int]  # entries a position; in the file itself


class LogitsRecord(Finished):
    model: str
    positions: int  # that are stored
    vocabulary: int  # entries a position
    bytes: int  # of logits.parquet
    bytes_per_entry: float
    metadata: StoreMetadata
