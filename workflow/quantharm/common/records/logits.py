"""logits.json: the store that the baseline filled, and the metadata that the store itself carries."""

from typing import Literal, NotRequired, TypedDict

from quantharm.common.records.parts import Finished, HowComputed


class HardwareFloor(TypedDict):
    """The effect of other hardware on the baseline's distributions, beside that of the mildest quantization."""

    rounding_kl_nats: float | None  # between the model as it is and the same in a wider dtype
    eight_bit_kl_nats: float | None  # between the model as it is and with weights rounded to 8 bits
    prompts: int  # that they were measured on
    reason: str | None  # why they were not measured


class CellIdentity(HowComputed):
    """Keys that must be equal in two cells that are compared."""

    model: str
    revision: str | None
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    dtype: str
    device: str


class StoreIdentity(CellIdentity):
    """Everything that the stored figures depend on."""

    protocol: str  # of the text's windows
    trace_sha256: str  # of all token ids
    versions: dict[str, str]


class HiddenStates(TypedDict):
    """The content of a row in a store of hidden states."""

    width: int
    dtype: str  # of the forward pass


class HeadSettings(TypedDict):
    """The output head that makes logits of hidden states; output_head.safetensors holds its tensors."""

    dtype: str
    shape: list[int]  # vocabulary, width
    bias: bool
    scale: float  # of the logits
    softcap: float | None


class HeadDescription(HeadSettings):
    sha256: str  # of all of the above and of the tensors


class FormOfStore(TypedDict):
    """The content of a row of the store."""

    stored: Literal["hidden_states", "log_probabilities"]
    hidden_states: NotRequired[HiddenStates]
    output_head: NotRequired[HeadDescription]
    reason: NotRequired[str | None]  # why log-probabilities are stored


class StoreMetadata(StoreIdentity, FormOfStore):
    text_windows: int
    text_tokens_sha256: str  # of the windows' token ids
    prompt_tokens_sha256: str
    thinking: bool
    template_date: str
    system_prompt: str | None
    hardware_floor: HardwareFloor
    format: NotRequired[int]  # of the file; in the file itself
    vocabulary: NotRequired[int]  # entries a position; in the file itself


class LogitsRecord(Finished):
    model: str
    stored: Literal["hidden_states", "log_probabilities"]
    reason: str | None  # why log-probabilities are stored
    positions: int  # that are stored
    vocabulary: int
    width: int  # numbers a position: of a hidden state, or the vocabulary
    bytes: int  # of logits.parquet
    bytes_per_entry: float  # of these numbers
    output_head_bytes: int
    metadata: StoreMetadata
