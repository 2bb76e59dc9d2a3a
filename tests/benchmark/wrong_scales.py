"""Is one wrong scale in a quantized checkpoint noticed, and how often is a sound one called wrong? By finished cells.

    PYTHONPATH=workflow python tests/benchmark/wrong_scales.py results/reference [METHOD …]

Of each cell, every matrix is compared with the original's (check `stored_weights`): what is called wrong is a false
alarm. Then one scale in a copy of its file is multiplied, zeroed, negated or made NaN, at 8 random places of each of 8
matrices, one at a time; counted are those that the check notices. Places whose weights are a tenth of the matrix's
root mean square, or less, are passed over: a scale of nothing changes nothing.

At one place of each damage the file is given to the stages as well: as a cell's own, whose sha256 is recorded, and as
a third party's, through loading and the check `kernel`. Writes wrong_scales.csv and prints a table as Markdown.
"""

import argparse
import csv
import json
import math
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from quantharm.common.checkpoint_files import gguf_file
from quantharm.common.errors import UserError
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.models import loading
from quantharm.models.safety import hash_weights, verify_weights
from quantharm.quantizers import against_original, quantized_layers
from quantharm.quantizers.formats import gguf_file as stored_gguf
from quantharm.quantizers.formats.files import module_headers, read_tensor

DAMAGES = {"× 8": 8.0, "× 2": 2.0, "× ½": 0.5, "zero": 0.0, "× −1": -1.0, "NaN": math.nan}
MATRICES, PLACES, TRIES = 8, 8, 40
SCALES = ("scales", "weight_scale", "weight_scale_inv", "_weight_scale", "weight.absmax", "SCB")
DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}  # fmt: skip
HALF_AT = {"Q6_K": 208, "Q3_K": 108}  # where a block's scale lies, if not at its beginning
WEAK = 0.1


class Place(NamedTuple):
    """A number of a file that stands for a scale."""

    file: Path
    offset: int  # bytes
    dtype: torch.dtype
    change: Callable[[float, float], float | None]  # (number, factor) → what is written, None: it cannot be


def times(number: float, factor: float) -> float:
    return number * factor


def as_exponent(code: float, factor: float) -> float | None:
    """E8M0: a byte is a power of two, 255 none; nothing is negative."""
    if factor < 0:
        return None
    return 255.0 if math.isnan(factor) else 0.0 if factor == 0 else min(code + math.log2(factor), 254.0)


def nearest_code(levels: torch.Tensor, unit: float, offset: float) -> Callable[[float, float], float | None]:
    """bitsandbytes' nested scales: a byte is one of 256 levels, in units, around an offset; NaN is none of them."""

    def change(code: float, factor: float) -> float | None:
        if math.isnan(factor):
            return None
        wanted = factor * (float(levels[int(code)]) * unit + offset)
        distances = (levels * unit + offset - wanted).abs()  # the largest level may be too small for × 2 and × 8
        return float(distances.argmin()) if distances.min() < 0.1 * max(abs(wanted), offset) else None

    return change


def data_offset(file: Path, key: str) -> int:
    """Where a tensor begins in a safetensors file."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return 8 + length + json.loads(stream.read(length))[key]["data_offsets"][0]


def place_in(checkpoint: Path, name: str, chosen: random.Random) -> Place:
    """A random scale of a matrix."""
    if path := gguf_file(checkpoint):
        tensor = stored_gguf.stored_tensor(checkpoint, name)
        kind = gguf_type(tensor.tensor_type.name)
        block = chosen.randrange(int(tensor.n_bytes) // kind.bytes)
        at = int(tensor.data_offset) + block * kind.bytes + HALF_AT.get(tensor.tensor_type.name, 0)
        return Place(path, at, torch.float16, times)
    headers = module_headers(checkpoint, name)
    part = next(part for part in SCALES if part in headers)
    header = headers[part]
    index, dtype = chosen.randrange(max(1, header.elements)), DTYPES[header.dtype]
    offset = data_offset(header.file, header.key) + index * dtype.itemsize
    change: Callable[[float, float], float | None] = as_exponent if dtype == torch.uint8 else times
    if "weight.nested_absmax" in headers:
        tensors = {rest: read_tensor(headers[rest]) for rest in ("weight.nested_absmax", "weight.nested_quant_map")}
        states = [read_tensor(header) for rest, header in headers.items() if ".quant_state.bitsandbytes__" in rest]
        state = json.loads(bytes(states[0].tolist()))
        unit = float(tensors["weight.nested_absmax"][index // state["nested_blocksize"]])
        change = nearest_code(tensors["weight.nested_quant_map"], unit, state["nested_offset"])
    return Place(header.file, offset, dtype, change)


def gguf_type(name: str):
    from quantharm.quantizers.formats.ggml import TYPES

    return TYPES[name]


def written(place: Place, factor: float) -> bytes | None:
    """What a damage writes at a place, None where it changes nothing."""
    with place.file.open("rb") as stream:
        stream.seek(place.offset)
        before = stream.read(place.dtype.itemsize)
    number = float(torch.frombuffer(bytearray(before), dtype=place.dtype).float())
    wanted = place.change(number, factor)
    if wanted is None:
        return None
    after = bytes(torch.tensor([wanted]).to(place.dtype).view(torch.uint8).tolist())
    return None if after == before else after


class Damaged:
    """A file with other bytes at a place, for as long as it lasts."""

    def __init__(self, place: Place, data: bytes):
        self.place, self.data = place, data

    def swap(self) -> None:
        times = self.place.file.stat()
        with self.place.file.open("r+b") as stream:
            stream.seek(self.place.offset)
            held = stream.read(len(self.data))
            stream.seek(self.place.offset)
            stream.write(self.data)
        os.utime(self.place.file, ns=(times.st_atime_ns, times.st_mtime_ns))  # else its header is read again each time
        self.data = held

    def __enter__(self) -> None:
        self.swap()

    def __exit__(self, *_) -> None:
        self.swap()


def places_of(cell: Path, matrix) -> Iterator[Place]:
    """Random places of a matrix that stand for more than next to nothing."""
    chosen, sound = random.Random(matrix.name), matrix.dequantize()
    usual, found = float(sound.square().mean().sqrt()), 0
    for _ in range(TRIES):
        place = place_in(cell, matrix.name, chosen)
        data = written(place, 8.0) or written(place, 0.5)
        with Damaged(place, data or b""):
            changed = matrix.dequantize() != sound
        if bool(changed.any()) and float(sound[changed].square().mean().sqrt()) > WEAK * usual:
            yield place
            found += 1
        if found == PLACES:
            return


def measure(cell: Path) -> dict:
    record = loading.read_quantization(cell / "quantization.json")
    source = Path(record["source"]["path"])
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "checkpoint"
        shutil.copytree(record["checkpoint"], copy)
        own = record | {"checkpoint": str(copy)}
        model = loading.load_as_stored(own, "cpu")
        matrices = quantized_layers.quantized_matrices(model, copy, record["quantizer"])
        weighed = against_original.rounding_was_weighed(record)
        sound = against_original.compare(model, matrices, source, weighed)
        tried, noticed = dict.fromkeys(DAMAGES, 0), dict.fromkeys(DAMAGES, 0)
        stages: dict[str, str] = {}
        for matrix in matrices[:: max(1, len(matrices) // MATRICES)][:MATRICES]:
            for place in places_of(copy, matrix):
                for damage, factor in DAMAGES.items():
                    if (data := written(place, factor)) is None:
                        continue
                    with Damaged(place, data):
                        tried[damage] += 1
                        part = against_original.compare(model, [matrix], source, weighed)[matrix.name]
                        noticed[damage] += bool(against_original.faults_of(matrix.name, part))
                        if damage not in stages:
                            stages[damage] = by_stages(record, own, matrix.name)
    return {
        "method": record["method"],
        "matrices": len(sound),
        "false_alarms": sum(bool(against_original.faults_of(*item)) for item in sound.items()),
        "largest_factor": round(max(part.factor for part in sound.values()), 3),
        "gain_lowest": round(min(part.matrix_gain for part in sound.values()), 4),
        "gain_highest": round(max(part.matrix_gain for part in sound.values()), 4),
        "cosine_lowest": round(min(part.cosine for part in sound.values()), 4),
        **{
            f"{damage}: {what}": of[damage]
            for damage in DAMAGES
            for what, of in (("tried", tried), ("noticed", noticed))
        },
        **{f"{damage}: loaded": stages.get(damage, "") for damage in DAMAGES},
    }


def by_stages(recorded: dict, own: dict, name: str) -> str:
    """What becomes of a damaged copy: by its sha256, when loaded, in the check `kernel` of the matrix."""
    copy = Path(own["checkpoint"])
    try:
        verify_weights(copy, recorded["weight_files"], in_full=True)
        said = ["its sha256 is the recorded one"]
    except UserError:
        said = ["sha256 refused"]
    try:
        anew = own | {"weight_files": hash_weights(copy, allow_pickle=True)}
        model = loading.load_as_stored(anew, "cpu")
    except UserError:
        return "; ".join([*said, "loading refused"])
    matrices = quantized_layers.quantized_matrices(model, copy, own["quantizer"])
    chosen = [matrix for matrix in matrices if matrix.name == name]
    kernel = check_kernel(model, chosen, list(range(2, 66)))
    return "; ".join([*said, f"kernel {kernel['status']}"])


def share(row: dict, damage: str) -> str:
    tried, noticed = row[f"{damage}: tried"], row[f"{damage}: noticed"]
    return f"{noticed} of {tried}" if tried else "has none"


def table(rows: list[dict]) -> str:
    lines = [f"| method | sound matrices accused | {' | '.join(DAMAGES)} |", f"|---|--:|{'--:|' * len(DAMAGES)}"]
    for row in rows:
        figures = [f"{row['false_alarms']} of {row['matrices']}", *(share(row, damage) for damage in DAMAGES)]
        lines.append(f"| `{row['method']}` | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="result folder of a model")
    parser.add_argument("methods", nargs="*", help="all that are finished")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    loading.quiet()
    methods = arguments.methods or sorted(p.parent.name for p in arguments.model.glob("*/quantization.json"))
    rows = []
    for method in methods:
        if method != "baseline":
            rows.append(measure(arguments.model / method))
            print(rows[-1], flush=True)
    with open(arguments.output, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
