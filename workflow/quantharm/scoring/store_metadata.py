"""What a store of the baseline's log-probabilities was made with: the metadata that it carries."""

import pandas

from quantharm.common.provenance import device_name, how_computed, versions
from quantharm.common.records.logits import StoreIdentity
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.text import sha256_of_windows
from quantharm.models.compute import compute_dtype


def store_metadata_of(record: QuantizationRecord, trace: pandas.DataFrame, device: str, protocol: str) -> StoreIdentity:
    """Everything the stored figures depend on; the divergence stage refuses a store that differs in any of it."""
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
        "protocol": protocol,
        "trace_sha256": sha256_of_windows([list(map(int, ids)) for ids in trace["token_ids"]]),
        "versions": versions(),
    }
