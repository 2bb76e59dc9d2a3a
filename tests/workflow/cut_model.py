"""A model that costs next to nothing: the first and the last layer of the built-in one, its embedding and its head.

Read and written without libraries: the workflow environment has none that knows safetensors, which is 8 bytes for the
length of a header, the header (JSON: dtype, shape and place of each tensor), and the tensors.
"""

import json
import re
import struct
from pathlib import Path

KEPT = (0, 7)  # of 8; of all pairs the one with the lowest loss


def read_tensors(path: Path) -> dict[str, tuple[dict, bytes]]:
    """{name: (dtype and shape, bytes)}"""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    return {name: (entry, data[slice(*entry.pop("data_offsets"))]) for name, entry in header.items()}


def write_tensors(path: Path, tensors: dict[str, tuple[dict, bytes]]) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (entry, data) in tensors.items():
        header[name] = entry | {"data_offsets": [end, end := end + len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))


def quarter(numbers: bytes) -> bytes:
    """Of bfloat16 numbers that are not tiny: the exponent, from the eighth bit on, less two."""
    return struct.pack(f"<{len(numbers) // 2}H", *(n - (2 << 7) for (n,) in struct.iter_unpack("<H", numbers)))


def cut_to_two_layers(folder: Path) -> None:
    """In place, and in new files: the old ones may be links.

    Its logits are a quarter of what they were. A model that is sure of what is wrong has no reason to pass the check
    `consistency`: how much worse it gets is not how much it changes.
    """
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink()
    kept = {}
    for name, tensor in sorted(tensors.items()):
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if not layer:
            kept[name] = tensor
        elif int(layer[1]) in KEPT:
            kept[f"model.layers.{KEPT.index(int(layer[1]))}.{name[layer.end() :]}"] = tensor
    entry, norm = kept["model.norm.weight"]
    kept["model.norm.weight"] = entry, quarter(norm)
    write_tensors(folder / "model.safetensors", kept)
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"num_hidden_layers": len(KEPT)}
    config.write_text(json.dumps(settings), encoding="utf-8")
