"""The results of one model as the report sees them: its cells, their records, and the differences from its baseline."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.left_out import LeftOut
from quantharm.common.records.checks import ChecksRecord
from quantharm.common.records.divergence import CategoryDivergence, DivergenceRecord
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.integrity import IntegrityRecord
from quantharm.common.records.perplexity import PerplexityRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.records.studies import CalibrationStudyRecord, NoiseRow
from quantharm.common.records.summary import SummaryRow
from quantharm.config.engines import is_served
from quantharm.reporting.differences import Changes, Difference, captured_rate
from quantharm.reporting.format import Bounds
from quantharm.reporting.thresholds import Thresholds


def other_hardware_kl(divergence: DivergenceRecord, thresholds: Thresholds) -> float:
    """Mean KL in nats of one checkpoint between two processors: the config's for its dtype, or what its store measured.

    The store's figure is of rounding on one machine, and two add up to at most twice that. divergence: of any cell.
    """
    store = divergence["store"]
    floor = store.get("hardware_floor")
    rounding = (floor and floor["rounding_kl_nats"]) or 0.0
    return max(thresholds["other_hardware_kl_nats"].get(store["dtype"], 0.0), 2 * rounding)


@dataclass
class Cell:
    """One model × method: the row of summary.json, the stages' records, and differences from the baseline."""

    method: str
    row: SummaryRow
    quantization: QuantizationRecord
    perplexity: PerplexityRecord
    divergence: DivergenceRecord
    generation: GenerationRecord
    checks: ChecksRecord
    integrity: IntegrityRecord | None
    folder: Path
    changes: Changes = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        return self.checks["failed"]

    @property
    def synthetic(self) -> bool:
        """Whether the weights are random numbers, so that no figure of quality means anything."""
        return self.row["synthetic"]

    @property
    def served(self) -> bool:
        """Whether it is behind an address: no sizes, no memory, and times of other hardware."""
        return is_served(self.quantization.get("settings") or {})

    @property
    def weight_bytes(self) -> int:
        """Loaded; of a cell that is not served."""
        assert self.row["weight_bytes"] is not None
        return self.row["weight_bytes"]

    @property
    def saved_bytes(self) -> int:
        """The baseline's loaded weights less its own; of a cell that is not served."""
        assert self.row["saved_bytes"] is not None
        return self.row["saved_bytes"]

    def figure(self, key: str) -> float:
        """A figure of the summary."""
        row: Mapping[str, Any] = self.row
        return row[key]

    def interval(self, key: str) -> Bounds:
        """The 95 % interval of a figure of the summary."""
        row: Mapping[str, Any] = self.row
        return row[f"{key.removesuffix('_mean')}_ci95"]

    @property
    def marked_name(self) -> str:
        """Its method; `†` marks one whose figures are not to be believed."""
        return f"{self.method}{' †' if self.failed else ''}"

    @property
    def name_of_kl(self) -> str:
        """Its marked name over figures of KL, of which `≥` says that they are lower bounds."""
        return f"{self.method}{' ≥' if self.bounded else ''}{' †' if self.failed else ''}"

    @property
    def bounded(self) -> bool:
        """Whether its KL, reverse KL and JS are lower bounds."""
        return bool(self.row.get("kl_is_lower_bound"))

    @property
    def decoding(self) -> str:
        """The faster way to decode that a user can have: captured where it could be, else eager."""
        return "captured" if captured_rate(self.generation["benchmark"]) else "eager"

    @property
    def decode_change(self) -> tuple[float, Bounds]:
        """Change in percent of the decode rate that a user can reach, with its interval."""
        return self.changes["reachable_decode_percent"]

    @property
    def by_category(self) -> dict[str, CategoryDivergence]:
        """KL by prompt category, the text apart."""
        return {c: v for c, v in self.divergence["by_category"].items() if c != TEXT_CATEGORY}


@dataclass
class Results:
    """All cells of one model, the baseline's first."""

    model: str
    folder: Path
    cells: list[Cell]
    thresholds: Thresholds
    left_out: list[LeftOut] = field(default_factory=list)  # cells that could not be finished
    kl_differences: dict[tuple[str, str], Difference] = field(default_factory=dict)
    calibration_study: CalibrationStudyRecord | None = None  # where `snakemake calibration` was run
    noise_study: list[NoiseRow] | None = None  # the rows of noise_sweep.json, where `snakemake defense` was run
    monitor_history: pandas.DataFrame | None = None  # a row a run, where `snakemake monitor` was run

    @property
    def baseline(self) -> Cell:
        return self.cells[0]

    @property
    def methods(self) -> list[Cell]:
        return self.cells[1:]

    @property
    def believed(self) -> list[Cell]:
        """The cells that passed their checks."""
        return [cell for cell in self.cells if not cell.failed]

    @property
    def believed_methods(self) -> list[Cell]:
        return [cell for cell in self.methods if not cell.failed]

    @property
    def sized(self) -> list[Cell]:
        """The cells that passed their checks and whose weights are seen."""
        return [cell for cell in self.believed if not cell.served]

    @property
    def synthetic(self) -> bool:
        return self.baseline.synthetic

    @property
    def device(self) -> str:
        """The device that the model ran on: `NVIDIA H200`, `NVIDIA H200 × 2` or `CPU: …`."""
        ran = self.baseline.generation["provenance"]
        return ran["device"] + (f" × {ran['gpus']}" if ran.get("gpus", 1) > 1 else "")

    @property
    def noise_floor(self) -> float:
        """Mean KL in nats of the baseline against its own store."""
        return self.baseline.row["kl_nats_mean"]

    @property
    def other_hardware_kl(self) -> float:
        """Mean KL in nats of one checkpoint between two processors, in this run's dtype."""
        return other_hardware_kl(self.baseline.divergence, self.thresholds)

    @property
    def least_kl(self) -> float:
        """A mean KL up to here says nothing about quality: noise of this device, or what other hardware changes."""
        return max(self.thresholds["noise_floor_factor"] * self.noise_floor, self.other_hardware_kl)

    @property
    def calibration_ranges(self) -> dict[str, float]:
        """Range of KL in nats over the calibration samples that a method could have had."""
        spreads = self.calibration_study["spread_kl_nats"] if self.calibration_study else {}
        return {method: spread["range"] for method, spread in spreads.items()}

    @property
    def categories(self) -> list[str]:
        return list(self.baseline.generation["by_category"])

    @property
    def prompts_per_category(self) -> tuple[int, int]:
        """The fewest and the most."""
        counts = [v["prompts"] for v in self.baseline.generation["by_category"].values()]
        return min(counts), max(counts)

    @property
    def categories_are_descriptive(self) -> bool:
        """Whether there are too few prompts to test a single category."""
        return self.prompts_per_category[0] < self.thresholds["prompts_to_test_a_category"]
