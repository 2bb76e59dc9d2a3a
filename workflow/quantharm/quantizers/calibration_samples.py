"""Calibration samples: the settings that choose them, and how a text is packed into them.

All have one length: autoawq silently drops samples longer than its limit, and gptqmodel up to 7.3 calibrated on the
last batch alone where lengths differ.
"""

import random
from pathlib import Path

from quantharm.common.constants import CORRUPTIONS
from quantharm.common.records.quantization import CalibrationReached, Settings
from quantharm.common.records.source import Located
from quantharm.quantizers import SettingsSchema

CALIBRATION_SETTINGS: SettingsSchema = {
    "calibration_samples": {
        "type": "integer",
        "minimum": 1,
        "default": 128,
        "description": "Samples of calibration text.",
    },
    "calibration_tokens": {
        "type": "integer",
        "minimum": 16,
        "default": 512,
        "description": "Tokens in each sample.",
    },
    "calibration_text": {
        "type": ["string", "null"],
        "default": None,
        "description": "A text of its own for this method; null means the config's `calibration`.",
    },
    "calibration_seed": {
        "type": ["integer", "null"],
        "minimum": 0,
        "default": None,
        "description": "Draws the samples from all of the text; null takes the first ones in order.",
    },
    "calibration_bos": {
        "enum": ["auto", "true", "false"],
        "default": "auto",
        "description": "Whether each sample begins with BOS; auto, for models that are lost without it (Gemma).",
    },
    "calibration_corruption": {
        "enum": [None, *CORRUPTIONS],
        "default": None,
        "description": "Bad samples on purpose, to see their effect and whether the checks notice.",
    },
}


def pack_calibration(tokenizer, text: str, samples: int, tokens: int, bos: int | None = None) -> list[list[int]]:
    """Up to `samples` consecutive samples of exactly `tokens` token ids each.

    bos: a token id put in front of each sample, counted in `tokens`.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    front = [] if bos is None else [bos]
    step = tokens - len(front)
    return [front + ids[i : i + step] for i in range(0, len(ids) - step + 1, step)][:samples]


def calibration_samples(tokenizer, text: str, settings: Settings, model_type: str | None = None) -> list[list[int]]:
    """The samples that a method's settings ask for; the same settings and text give the same samples."""
    from quantharm.common.text import bos_in_front

    bos = bos_in_front(settings.get("calibration_bos", "auto"), tokenizer, model_type)
    samples, tokens = settings["calibration_samples"], settings["calibration_tokens"]
    seed, corruption = settings.get("calibration_seed"), settings.get("calibration_corruption")
    draw = random.Random(seed or 0)
    if corruption == "random_tokens":
        return [draw.choices(range(len(tokenizer)), k=tokens) for _ in range(samples)]
    if corruption == "repeated_token":
        return [[draw.randrange(len(tokenizer))] * tokens] * samples
    if seed is None:
        return pack_calibration(tokenizer, text, samples, tokens, bos)
    packed = pack_calibration(tokenizer, text, len(text), tokens, bos)
    return draw.sample(packed, min(samples, len(packed)))


def samples_for(source: Located, settings: Settings, calibration: Path) -> list[list[int]]:
    """The samples for a run of a quantizer; raises UserError for a text shorter than one of them."""
    from quantharm.common.checkpoint_files import read_checkpoint_config
    from quantharm.common.errors import UserError
    from quantharm.common.text import read_text
    from quantharm.models.loading import load_tokenizer

    model_type = read_checkpoint_config(Path(source["path"])).get("model_type")
    packed = calibration_samples(load_tokenizer(source), read_text(calibration), settings, model_type)
    if not packed:
        raise UserError(
            f"{calibration} is shorter than one sample of {settings['calibration_tokens']} tokens; name a longer "
            "text, or lower `calibration_tokens:`"
        )
    return packed


def calibration_record(
    packed: list[list[int]], settings: Settings, calibration: Path, samples_reached: int, tokens_reached: int
) -> CalibrationReached:
    """`calibration` of quantization.json: samples and tokens asked for, packed, and seen by the quantizer."""
    from quantharm.common.text import sha256_of_windows
    from quantharm.quantizers.calibration import sample_statistics

    return {
        "file": str(calibration),
        "samples_asked": settings["calibration_samples"],
        "tokens_asked": settings["calibration_samples"] * settings["calibration_tokens"],
        "samples_packed": len(packed),
        "samples_reached": samples_reached,
        "tokens_reached": tokens_reached,
        "tokens_sha256": sha256_of_windows(packed),
        **sample_statistics(packed),
    }
