"""Engines: programs that run a checkpoint in place of transformers, and transformers with a quantized cache.

An engine's module gives `open_cell(record, device)`: a model as the stages know those of transformers. This file
imports none of the engines, so every room may ask for one by its name.
"""

import importlib
from typing import Any

from quantharm.common.records.quantization import CheckpointRecord, Settings
from quantharm.config.engines import TRANSFORMERS, engine_of, module_of


def other_engine(settings: Settings) -> str | None:
    """The engine of a method where it is not transformers."""
    engine = engine_of(settings)
    return None if engine == TRANSFORMERS else engine


def open_cell(record: CheckpointRecord, device: str) -> Any:
    """The model of a cell whose engine is not transformers; raises UserError where the engine cannot run it."""
    return importlib.import_module(f"quantharm.engines.{module_of(record['settings'])}").open_cell(record, device)


def serve_from_cache(model: Any, settings: Settings) -> None:
    """Makes a model of transformers keep keys and values as a method's `kv_cache` says."""
    importlib.import_module("quantharm.engines.quantized_cache").serve_from_cache(model, settings["kv_cache"])
