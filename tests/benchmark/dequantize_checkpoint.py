"""The attack that the integrity stage is for: a quantized cell, dequantized and handed on as if it were the original.

    PYTHONPATH=workflow python tests/benchmark/dequantize_checkpoint.py results/reference nf4 /tmp/handed-on

Writes a checkpoint in the original's own format and dtype, with the original's tokenizer.
"""

import argparse
import shutil
from pathlib import Path

from quantharm.models.loading import load_cell, quiet, read_quantization
from quantharm.quantizers import quantized_layers


def dequantized(results: Path, method: str):
    """The baseline's model with the method's weights: what it would be handed on as, and fast to run on a CPU."""
    model = load_cell(read_quantization(results / "baseline" / "quantization.json"), "cpu")
    if method == "baseline":
        return model
    record = read_quantization(results / method / "quantization.json")
    quantized = load_cell(record, "cpu")
    matrices = quantized_layers.quantized_matrices(quantized, Path(record["checkpoint"]), record["quantizer"])
    weights = {f"{m.name}.weight": m.dequantize() for m in matrices}
    rest = {name: p for name, p in quantized.named_parameters() if name.rpartition(".")[0] not in weights}
    unknown = set(weights) - set(dict(model.named_parameters()))
    assert not unknown, unknown
    model.load_state_dict({n: p for n, p in rest.items() if "proj" not in n} | weights, strict=False)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results folder of a model")
    parser.add_argument("method", help="one of its cells")
    parser.add_argument("folder", type=Path, help="checkpoint to write")
    arguments = parser.parse_args()
    quiet()
    dequantized(arguments.results, arguments.method).save_pretrained(arguments.folder)
    source = read_quantization(arguments.results / "baseline" / "quantization.json")["source"]["path"]
    for path in Path(source).glob("token*"):
        shutil.copy(path, arguments.folder / path.name)
    print(f"{arguments.folder}: {arguments.method} of {arguments.results.name}, dequantized")


if __name__ == "__main__":
    main()
