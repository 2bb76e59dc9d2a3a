"""What the check `engine` measures of finished cells, and of a fork whose Q4_1 kernel is broken.

    python tests/benchmark/engine_noise.py results/MODEL/METHOD/quantization.json …

Of each cell's GGUF file: mean KL in nats of llama.cpp, and of the fork ik_llama.cpp where its package is installed
(envs/gguf.txt), from the same weights multiplied in float32 by transformers, over the check's positions; its limit.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

from quantharm.common.checkpoint_files import gguf_file  # noqa: E402
from quantharm.common.text import read_text  # noqa: E402
from quantharm.forensics.checks import logits  # noqa: E402
from quantharm.models.loading import load_in_transformers, load_tokenizer, read_quantization  # noqa: E402

TEXT = ROOT / "data/evaluation.txt"


class Fork:
    """A file in ik_llama.cpp, as far as the check asks for it."""

    def __init__(self, path: Path):
        from ik_llama_cpp import _ctypes_api as api
        from ik_llama_cpp import _internals

        self.api, self.internals = api, _internals
        self.model = _internals.IkModel(str(path))
        self.context = _internals.IkContext(self.model, n_ctx=512, n_threads=1, flash_attn=False)
        self.vocabulary = api.llama_n_vocab(self.model.model)

    def own_states(self, ids: list[int], given: int) -> torch.Tensor:
        """Logits [T, vocabulary]."""
        self.context.kv_cache_clear()
        batch = self.internals.make_batch(ids)
        for i in range(len(ids)):
            batch.logits[i] = 1
        assert self.context.decode(batch) == 0
        rows = [self.context.get_logits(i)[: self.vocabulary] for i in range(len(ids))]
        return torch.tensor(rows, dtype=torch.float32)

    def own_logits(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def close(self) -> None:
        self.context.close()


def main() -> None:
    right = logits.engines.open_cell
    text = read_text(TEXT)
    print(f"{'cell':30}{'type':12}{'engine':12}{'KL, nats':>12}{'limit':>8}")
    for argument in sys.argv[1:]:
        record = read_quantization(Path(argument))
        record["settings"] = record["settings"] | {"engine": "llama.cpp"}
        openers = {"llama.cpp": right, "fork": lambda record, _: Fork(gguf_file(Path(record["checkpoint"])))}
        for name, opener in openers.items():
            logits.engines = SimpleNamespace(other_engine=lambda settings: "llama.cpp", open_cell=opener)
            model = load_in_transformers(record, "cpu")
            try:
                found = logits.check_engine(record, model, "cpu", load_tokenizer(record["source"]), text)
            except ImportError:
                print(f"{record['method']:30}{'':12}{name:12}the package is not installed")
                continue
            kind = record["settings"].get("type", "")
            print(f"{record['method']:30}{kind:12}{name:12}{found['value']:12.5f}{found['limit']:8} {found['status']}")


if __name__ == "__main__":
    main()
