"""Checks that a checkpoint holds the tensors of its model's class: none missing, none besides, all of its shapes.

transformers fills missing tensors with random numbers and only warns. Its account of a load names them, without tied
weights and those that the class ignores. A load onto the `meta` device gives the account from the files' headers,
without reading weights. For quantized checkpoints the account is not enough: their quantizer's module states the
tensors that it stores of each matrix (`stored_shapes`).
"""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypedDict, cast

from quantharm.common.checkpoint_files import gguf_file, listed, read_checkpoint_config, weight_files
from quantharm.common.errors import UserError, first_line, host_is_full, refuse_unread, remedy_for

HOW_TO_MEND = "fetch the model again, or take the config.json that belongs to it"
READS_TENSORS = "convert_and_load_state_dict_in_model"  # a function of transformers
RAISED = re.compile(r"^([\w.]+(?:Error|Exception))(?:: (.*))?$", re.MULTILINE)  # the last line of a traceback


class LoadAccount(TypedDict):
    """transformers' account of a load, as far as it is used here."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, Sequence[int], Sequence[int]]]  # (tensor, stored shape, shape of the class)


def open_weights(path: Path):
    """A safetensors file, opened; raises UserError where it is shorter than its header says, or has no header."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        refuse_unread(path, error)
        raise UserError(f"{path} is not a whole safetensors file ({first_line(error)}); fetch it again") from None


def load_whole(folder: Path, **settings):
    """AutoModelForCausalLM.from_pretrained; raises UserError unless the folder is the whole model and nothing else."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    place: Path | str = folder
    if packed := gguf_file(folder):
        place, settings = packed.parent, settings | {"gguf_file": packed.name, "use_safetensors": None}
    else:
        for path in weight_files(folder):
            open_weights(path)
    try:
        model, account = AutoModelForCausalLM.from_pretrained(
            place, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except (OSError, ValueError, TypeError, ImportError, KeyError, SafetensorError, NotImplementedError) as error:
        refuse_as_accounted(folder, error)
        remedy = remedy_for(error, "fetch it again, or name another")
        raise UserError(f"the model in {folder} cannot be loaded ({first_line(error)}); {remedy}") from None
    except RuntimeError as error:
        refuse_as_accounted(folder, error)
        raise
    refuse_other_tensors(folder, account, type(model).__name__)
    return model


def refuse_other_tensors(folder: Path, account: LoadAccount, name: str) -> None:
    """Raises UserError for tensors that are missing, of another shape, or unknown to the class `name`."""
    missing, unexpected = sorted(account["missing_keys"]), sorted(account["unexpected_keys"])
    mismatched = sorted(account["mismatched_keys"])
    shapes = [f"{key}: {list(stored)}, not {list(expected)}" for key, stored, expected in mismatched]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing, which would be random numbers ({listed(missing)})")
    if shapes:
        faults.append(f"{len(shapes)} of another shape ({listed(shapes)})")
    if unexpected:
        faults.append(f"{len(unexpected)} that {name} has no place for ({listed(unexpected)})")
    if faults and gguf_file(folder):
        raise UserError(
            f"{folder} is no file of the model that it is compared with, by its tensors: {'; '.join(faults)}; name "
            "another file, or its own model"
        )
    if faults:
        raise UserError(
            f"{folder} is not the model that its config.json describes, by its tensors: {'; '.join(faults)}; "
            f"{HOW_TO_MEND}"
        )


def refuse_as_accounted(folder: Path, error: Exception) -> None:
    """Raises UserError where transformers' account of a load that failed shows that tensors are missing or do not fit.

    Its exception may be about something else: the random numbers, say, that a missing matrix of bytes cannot be given.
    While tensors are still being read, the account calls those missing that are not read yet: what broke that off, as
    little memory does, is no fault of the model.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(frame.f_code.co_name == READS_TENSORS for frame in frames):
        return
    for frame in frames:
        account = frame.f_locals.get("loading_info")
        if unmade := getattr(account, "conversion_errors", None):
            refuse_conversion(folder, unmade)
        if account is not None:
            model = frame.f_locals.get("model")
            refuse_other_tensors(folder, cast(LoadAccount, account.to_dict()), type(model).__name__)


def refuse_conversion(folder: Path, unmade: dict[str, str]) -> NoReturn:
    """Raises what kept tensors from being made: too little memory, a quantizer that refused, parts that do not fit.

    unmade: {tensor: traceback, then a line `Error` with the name of the operation}, as transformers keeps them.
    """
    import torch

    names = sorted(unmade)
    raised, _, operation = unmade[names[0]].rpartition("\nError")
    kind, reason = (RAISED.findall(raised) or [("", first_line(Exception(raised)))])[-1]
    if kind.endswith("OutOfMemoryError"):
        raise torch.OutOfMemoryError(reason) from None
    if host_is_full(Exception(reason)):
        raise MemoryError(reason) from None
    if "Quantize" in operation:
        refused = f"{len(names)} of its tensors, the first {names[0]}"
        why = f"{(reason or kind).rstrip('.')} ({refused})"
        raise UserError(f"{folder} cannot be quantized here: {why}; choose another method, or another device") from None
    raise UserError(
        f"{folder} is not the model that its config.json describes: {len(names)} tensors cannot be put together from "
        f"its parts ({listed(names)}), because parts are missing or of other shapes; {HOW_TO_MEND}"
    ) from None


def check_whole(folder: Path, trust_remote_code: bool) -> None:
    """Raises UserError unless an unquantized folder is the whole model, judged by its files' headers.

    Of a quantized one only the files are judged: its quantizer knows the tensors, and checks them when it loads it.
    """
    if gguf_file(folder):
        return
    if "quantization_config" in read_checkpoint_config(folder):
        for path in weight_files(folder):
            open_weights(path)
        return
    load_whole(
        folder, device_map={"": "meta"}, trust_remote_code=trust_remote_code, use_safetensors=bool(weight_files(folder))
    )
