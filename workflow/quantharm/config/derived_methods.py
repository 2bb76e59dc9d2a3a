"""Methods derived from others by their name: with noise on the weights, or with other calibration samples."""

import copy
import re

from quantharm.common.constants import BASELINE, CORRUPTIONS
from quantharm.common.errors import UserError
from quantharm.common.records.quantization import Settings
from quantharm.common.records.studies import CalibrationCell, NoiseCells
from quantharm.config import noise
from quantharm.config.entries import Configuration, Study
from quantharm.config.methods import completed_method, own_grid
from quantharm.config.names import refer

NOISE_NAME = re.compile(
    rf"(?:(?P<method>.+)\+)?noise-(?P<sigma>\d+(?:\.\d+)?(?:e-?\d+)?)(?:-(?P<target>{'|'.join(noise.GRID_NAMES)}))?"
)
NOISE_TARGET = "nf4"  # of noise alone, where its name has none


def noise_method(config: Configuration, name: str) -> Settings | None:
    """The entry of a name like `noise-0.3`, `noise-0.3-int8` or `nf4+noise-0.3`; None for other names.

    σ is in half steps of the grid in the name, or else of the method's own.
    """
    match = NOISE_NAME.fullmatch(name)
    method = match and (match["method"] or BASELINE)
    if not match or method not in config["methods"]:
        return None
    target = match["target"] or (NOISE_TARGET if method == BASELINE else None)
    settings = {"sigma": float(match["sigma"]), "target": target, "seed": config["defense"]["seed"]}
    return completed_method(name, copy.deepcopy(config["methods"][method]) | {"noise": settings})


def rounding_methods(config: Configuration, study: Study) -> list[str]:
    """`methods` of a study; where it is null, those of the default run that round to a grid and carry no noise."""
    named = config[study]["methods"]
    for name in named or []:
        refer(config, "methods", name, f"{study}.methods")
        if own_grid(config, name) is None:
            raise UserError(f"`{study}.methods` in the config names `{name}`, which rounds to no grid; leave it out")
    if named is not None:
        return named
    known = (name for name in config["evaluate"]["methods"] if name in config["methods"])
    return [name for name in known if own_grid(config, name) and "noise" not in config["methods"][name]]


def noise_sweep(config: Configuration) -> list[NoiseCells]:
    """The sweep of `snakemake defense`: every method with every size of the noise."""
    return [
        {
            "method": method,
            "sigma": sigma,
            "alone": f"noise-{sigma:g}-{own_grid(config, method)}",
            "quantized": f"{method}+noise-{sigma:g}",
        }
        for method in rounding_methods(config, "defense")
        for sigma in config["defense"]["sigmas"]
    ]


def calibration_cells(config: Configuration) -> list[CalibrationCell]:
    """The cells of `snakemake calibration`: every method with every text and seed, and with every fault of samples."""
    study = config["calibration_study"]
    cells: list[CalibrationCell] = []
    for method in rounding_methods(config, "calibration_study"):
        if "calibration_samples" not in config["methods"][method]:
            if study["methods"] is not None:
                raise UserError(
                    f"`calibration_study.methods` in the config names `{method}`, which calibrates on nothing; leave "
                    "it out"
                )
            continue
        for text in study["texts"]:
            cells += [
                {"method": method, "text": text, "seed": seed, "corruption": None, "cell": f"{method}+{text}-{seed}"}
                for seed in study["seeds"]
            ]
        for corruption in CORRUPTIONS:
            cell = f"{method}+{corruption.replace('_', '-')}"
            cells.append({"method": method, "text": None, "seed": 0, "corruption": corruption, "cell": cell})
    return cells


def calibration_method(config: Configuration, cell: CalibrationCell) -> Settings:
    """The entry of a cell of the calibration study."""
    study = config["calibration_study"]
    settings = {
        "calibration_text": None if cell["text"] is None else study["texts"][cell["text"]],
        "calibration_samples": study["samples"],
        "calibration_seed": cell["seed"],
        "calibration_corruption": cell["corruption"],
    }
    return completed_method(cell["cell"], copy.deepcopy(config["methods"][cell["method"]]) | settings)


def add_derived_methods(config: Configuration) -> None:
    """Adds the entries of derived methods: those with noise, and those of the calibration study."""
    entries = {cell["cell"]: calibration_method(config, cell) for cell in calibration_cells(config)}
    swept = [name for cells in noise_sweep(config) for name in (cells["alone"], cells["quantized"])]
    for name in [*config["evaluate"]["methods"], *swept]:
        entry = None if name in config["methods"] else noise_method(config, name)
        if entry is not None:
            entries[name] = entry
    config["methods"] |= {name: entry for name, entry in entries.items() if name not in config["methods"]}
