"""The metadata of a store of the baseline's logits; a stage that reads it compares them with those of its cell."""

import pandas

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.provenance import device_name, how_computed
from quantharm.common.records.logits import CellIdentity, StoreIdentity
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.text import sha256_of_windows
from quantharm.common.versions import versions
from quantharm.models.compute import compute_dtype


def text_id(window: int) -> str:
    """The prompt_id of the text's window number 0, 1, …"""
    return f"{TEXT_CATEGORY}-{window + 1:02d}"


def cell_metadata_of(record: QuantizationRecord, device: str) -> CellIdentity:
    """The part that must be equal in the baseline and in every cell compared with it; record: of any cell."""
    source = record["source"]
    return {
        "model": record["model"],
        "revision": source["revision"],
        "weights_sha256": source["weights_sha256"],
        "tokenizer_sha256": source["tokenizer_sha256"],
        "chat_template_sha256": source["chat_template_sha256"],
        "dtype": record["dtype"],
        "device": device_name(device),
        **how_computed(device, compute_dtype(record["dtype"], device)),
    }


def store_metadata_of(record: QuantizationRecord, trace: pandas.DataFrame, device: str, protocol: str) -> StoreIdentity:
    """Everything that the stored figures depend on. A stage refuses a store that differs in any key but `versions`."""
    return {
        **cell_metadata_of(record, device),
        "protocol": protocol,
        "trace_sha256": sha256_of_windows([list(map(int, ids)) for ids in trace["token_ids"]]),
        "versions": versions(),
    }
