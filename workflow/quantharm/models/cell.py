"""The cell that a stage evaluates: its record, and the model and tokenizer loaded from disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantharm import engines
from quantharm.common.memory import forget_device_peaks, memory_bytes
from quantharm.common.provenance import provenance
from quantharm.common.records.parts import CellNames, Provenance
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.stage import Timing
from quantharm.config.engines import is_served
from quantharm.models.devices import choose_device, dtype_of
from quantharm.models.loading import load_cell, load_tokenizer, read_quantization, verify_config


@dataclass(frozen=True)
class Cell:
    """A cell, loaded on a device."""

    record: QuantizationRecord
    device: str  # cpu or cuda
    tokenizer: Any
    model: Any

    @property
    def title(self) -> str:
        return f"{self.record['model']} × {self.record['method']}"

    def names(self) -> CellNames:
        """The keys that each record of a cell begins with."""
        return {
            "model": self.record["model"],
            "method": self.record["method"],
            "synthetic": self.record["source"]["synthetic"],
        }

    @property
    def shows_top_tokens(self) -> int | None:
        """Tokens that a server shows of each position, so that divergences are lower bounds; None for all."""
        return self.model.top_tokens if is_served(self.record["settings"]) else None

    @property
    def kept_answers(self) -> list[Path]:
        """Files of a server's answers that a stopped run of this stage left, and that took no time now."""
        return self.model.kept if is_served(self.record["settings"]) else []

    def peak_memory_bytes(self) -> int | None:
        """Most memory that this process held on the device; None where the model is behind an address."""
        return None if is_served(self.record["settings"]) else memory_bytes(self.device)["peak_bytes"]

    def finished(self) -> None:
        """Deletes a server's answers that were kept for this stage, since its results are written."""
        if is_served(self.record["settings"]):
            self.model.finished()

    def provenance(self) -> Provenance:
        """Provenance of this stage's record, with the cell's engine."""
        record = provenance(self.device, self.record["dtype"], dtype_of(self.model))
        if engines.other_engine(self.record["settings"]):
            record["engine"] = self.model.description()
        return record


def open_cell(quantization: Path, device: str, timing: Timing) -> Cell:
    """The cell of a quantization.json, loaded on `device` (cpu, cuda or auto); timed as `load`."""
    record = read_quantization(quantization)
    device = choose_device(device, record["gpus"])
    with timing.part("load"):
        verify_config(record)
        tokenizer = load_tokenizer(record["source"])
        model = load_cell(record, device)
    forget_device_peaks(device)
    return Cell(record, device, tokenizer, model)
