"""Is one wrong scale in a quantized checkpoint noticed, and how often is a sound one called wrong? By finished cells.

    PYTHONPATH=workflow python tests/benchmark/wrong_scales.py results/reference [METHOD …]

Of each cell, every matrix is compared with the original's (check `stored_weights`): what is called wrong is a false
alarm. Then the weights of 32 neighbours of a row (of a group, where columns are in any order) are multiplied by what a
wrong scale would multiply them by, at 8 random places of each of 8 matrices, one at a time; counted are those noticed.
Writes wrong_scales.csv beside this file.
"""

import argparse
import csv
import random
from pathlib import Path

import torch

from quantharm.common.checkpoint_files import weight_files
from quantharm.models import loading
from quantharm.quantizers import against_original, quantized_layers
from quantharm.quantizers.formats.files import headers_of_files

FACTORS = (8.0, 2.0, 1.5, 0.5, 0.0, -1.0)
MATRICES, PLACES = 8, 8


def pairs(model, matrices: list, source: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, bool]]:
    """{matrix: (dequantized, original, whether channels were rescaled)}, columns in the order of groups."""
    headers = headers_of_files(weight_files(source))
    rescaled, found = against_original.is_rescaled(model, headers), {}
    for matrix in matrices:
        original = against_original.original_weight(headers, matrix.name, matrix.rows, matrix.columns)
        dequantized = matrix.dequantize()
        order = torch.arange(matrix.columns) if matrix.column_order is None else matrix.column_order()
        found[matrix.name] = (dequantized[:, order], original[:, order], rescaled)
    return found


def worst(dequantized: torch.Tensor, original: torch.Tensor, rescaled: bool) -> against_original.Worst:
    if rescaled:
        original = against_original.without_factors(dequantized, original)
    return against_original.worst_part(dequantized, original)


def is_wrong(part: against_original.Worst) -> bool:
    most = against_original.GAIN_LIMIT
    return part.factor > against_original.FACTOR_LIMIT or not 1 / most < part.matrix_gain < most


def measure(cell: Path) -> dict:
    record = loading.read_quantization(cell / "quantization.json")
    model = loading.load_as_stored(record, "cpu")
    matrices = quantized_layers.quantized_matrices(model, Path(record["checkpoint"]), record["quantizer"])
    of_cell = pairs(model, matrices, Path(record["source"]["path"]))
    del model
    sound = {name: worst(*pair) for name, pair in of_cell.items()}
    chosen = random.Random(0)
    noticed = dict.fromkeys(FACTORS, 0)
    named = list(of_cell)[:: max(1, len(of_cell) // MATRICES)][:MATRICES]
    for name in named:
        dequantized, original, rescaled = of_cell[name]
        for _ in range(PLACES):
            row = chosen.randrange(len(dequantized))
            start = 32 * chosen.randrange(dequantized.shape[1] // 32)
            for factor in FACTORS:
                wrong = dequantized.clone()
                wrong[row, start : start + 32] *= factor
                noticed[factor] += is_wrong(worst(wrong, original, rescaled))
    return {
        "method": record["method"],
        "matrices": len(sound),
        "false_alarms": sum(map(is_wrong, sound.values())),
        "largest_factor": round(max(part.factor for part in sound.values()), 3),
        "gain_lowest": round(min(part.matrix_gain for part in sound.values()), 4),
        "gain_highest": round(max(part.matrix_gain for part in sound.values()), 4),
        "cosine_lowest": round(min(part.cosine for part in sound.values()), 4),
        "places": len(named) * PLACES,
        **{f"noticed_times_{factor:g}": count for factor, count in noticed.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="result folder of a model")
    parser.add_argument("methods", nargs="*", help="all that are finished")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    methods = arguments.methods or sorted(p.parent.name for p in arguments.model.glob("*/quantization.json"))
    rows = []
    for method in methods:
        if method != "baseline":
            rows.append(measure(arguments.model / method))
            print(rows[-1], flush=True)
    with open(Path(__file__).with_suffix(".csv"), "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
