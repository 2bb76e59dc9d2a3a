"""What the check `engine` measures of each type of GGUF file, and whether it notices kernels that are broken.

    PYTHONPATH=workflow python tests/benchmark/engine_noise.py MODEL [TYPE …]

MODEL: a folder in 16 bits. Of each type a file is made (quantizer `gguf`) and compared with its own weights, unpacked
by transformers and multiplied in float32, over the check's 256 positions: mean KL divergence in nats of llama.cpp
(package xllamacpp) and of the fork that made the file (ik-llama-cpp-python). A file with the scale of every 16th row
of each layer's last matrix doubled stands for a kernel that takes a wrong scale: llama.cpp runs it, and is compared
with the sound one. Prints a table as Markdown.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch

from quantharm import engines
from quantharm.common.text import read_text
from quantharm.forensics.checks.logits import ENGINE_LIMIT, check_engine
from quantharm.models import loading
from quantharm.models.safety import hash_weights
from quantharm.models.source import describe
from quantharm.quantizers import gguf as maker

TEXT = Path(__file__).parents[2] / "data/evaluation.txt"
KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "IQ4_XS", "Q4_1", "Q4_0")
WRONG_ROWS = 16


class Fork:
    """A file in ik_llama.cpp, as far as the check asks for it."""

    def __init__(self, path: Path):
        from ik_llama_cpp import _internals

        self.internals = _internals
        self.model = _internals.IkModel(str(path))
        self.context = _internals.IkContext(self.model, n_ctx=512, n_threads=1, flash_attn=False)

    def own_states(self, ids: list[int], given: int) -> torch.Tensor:
        """Logits [T, vocabulary], which stand for the states."""
        self.context.kv_cache_clear()
        batch = self.internals.make_batch(ids)
        for i in range(len(ids)):
            batch.logits[i] = 1
        assert self.context.decode(batch) == 0
        rows = [self.context.get_logits(i)[: self.model.n_vocab] for i in range(len(ids))]
        return torch.tensor(rows, dtype=torch.float32)

    def own_logits(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def close(self) -> None:
        self.context.close()


def with_wrong_scales(sound: Path, path: Path) -> Path:
    """A copy in which the first scale of each block is doubled, in every 16th row of each layer's last matrix."""
    shutil.copyfile(sound, path)
    reader = gguf.GGUFReader(path, "r+")
    places = {"Q6_K": -2, "Q3_K": -2, "Q2_K": -4}  # of the block's float16 scale, in bytes; else the first two
    for tensor in reader.tensors:
        if tensor.name.endswith("ffn_down.weight") and tensor.tensor_type.name not in ("F32", "BF16", "F16"):
            _, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
            blocks = tensor.data[::WRONG_ROWS].reshape(-1, tensor.data.shape[1] // size, size)
            first = places.get(tensor.tensor_type.name, 0) % size
            scales = blocks[..., first : first + 2].copy().view(np.float16)
            blocks[..., first : first + 2] = (2 * scales).view(np.uint8)
            tensor.data[::WRONG_ROWS] = blocks.reshape(-1, tensor.data.shape[1])
    reader.data.flush()
    return path


def types_of(path: Path) -> str:
    """The types of the file's layers, most frequent first."""
    held = [t.tensor_type.name for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.")]
    kinds = sorted({kind for kind in held if kind != "F32"}, key=lambda kind: -held.count(kind))
    return ", ".join(f"{held.count(kind)} {kind}" for kind in kinds)


def record_of(folder: Path, source: dict) -> dict:
    return {
        "checkpoint": str(folder),
        "weight_files": hash_weights(folder),
        "quantizer": "gguf",
        "settings": {"engine": "llama.cpp"},
        "source": source,
        "dtype": "bfloat16",
        "gpus": 1,
    }


@contextlib.contextmanager
def opened_by(opener):
    """Has the check open a cell by another function."""
    right = engines.open_cell
    engines.open_cell = opener
    try:
        yield
    finally:
        engines.open_cell = right


def measure(kind: str, source: dict, tokenizer, folder: Path) -> list[str]:
    """A row of the table."""
    folder.mkdir()
    settings = {"type": kind, "head_type": "BF16", "embedding_type": "BF16", "importance": False}
    with contextlib.redirect_stdout(sys.stderr):  # the tools' words
        maker.quantize(source, settings, "bfloat16", "cpu", 1, folder, None)
    record, text, path = record_of(folder, source), read_text(TEXT), folder / maker.FILE

    def found(opener) -> str:
        with opened_by(opener):
            check = check_engine(record, loading.load_in_transformers(record, "cpu"), "cpu", tokenizer, text)
        return f"{check['value']:.4f} {'' if check['status'] == 'pass' else 'fails'}".strip()

    wrong = folder.parent / f"{kind}-wrong"
    wrong.mkdir()
    with_wrong_scales(path, wrong / maker.FILE)
    shutil.copyfile(folder / "config.json", wrong / "config.json")
    broken, right = record_of(wrong, source), engines.open_cell
    row = [kind, types_of(path), found(right), found(lambda _, __: Fork(path))]
    row.append(found(lambda _, device: right(broken, device)))
    shutil.rmtree(wrong)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a model in 16 bits")
    parser.add_argument("types", nargs="*", default=KINDS, help="as the quantizer `gguf` calls them")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    loading.quiet()
    source = describe("model", str(arguments.model), arguments.model, None, False, False)
    tokenizer = loading.load_tokenizer(source)
    table = [f"limit {ENGINE_LIMIT} nats", "", "| type | its layers | llama.cpp | the fork | wrong scales |"]
    table.append("|---|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as temporary:
        for kind in arguments.types:
            row = measure(kind, source, tokenizer, Path(temporary) / kind)
            print(row, file=sys.stderr, flush=True)
            table.append(f"| {' | '.join(row)} |")
            shutil.rmtree(Path(temporary) / kind)
    print("\n".join(table))


if __name__ == "__main__":
    main()
