"""The files that a configuration names: texts, prompts, signatures, an earlier run, an interpreter."""

import os
import shutil

from quantharm.common.errors import UserError
from quantharm.common.files import LARGEST_INPUT_BYTES
from quantharm.config.entries import Configuration
from quantharm.config.methods import uses_calibration

SHOWN = 200  # characters of a path in a message


def check_files(config: Configuration) -> None:
    """Raises UserError unless every file that is named is here, small enough to be read, and fit for Snakemake."""
    files = input_files(config) | signature_files(config)
    for key, path in (sources(config) | files).items():
        if set("{}") & set(path) or not path.isprintable():
            raise UserError(
                f"`{key}` in the config is {path[:SHOWN]!r}; Snakemake takes no file names with braces or control "
                "characters: rename it"
            )
    for key, path in files.items():
        if not os.path.isfile(path):  # os.path, because pathlib raises OSError for a name that is too long
            raise UserError(f"`{key}` in the config is {path[:SHOWN]!r}, which is no file here; correct the path")
        if os.path.getsize(path) > LARGEST_INPUT_BYTES:
            raise UserError(
                f"`{key}` in the config is {path[:SHOWN]!r}, which is larger than {LARGEST_INPUT_BYTES >> 20} MB; "
                "take a part of it"
            )


def input_files(config: Configuration) -> dict[str, str]:
    """{key: path} of evaluation texts, prompt suites, and the calibration text where a method uses one."""
    files = {f"texts.{name}.path": text["path"] for name, text in config["texts"].items() if "path" in text}
    files |= {f"protocols.{name}.prompts": protocol["prompts"] for name, protocol in config["protocols"].items()}
    if any(uses_calibration(method) for method in config["methods"].values()):
        files["calibration"] = config["calibration"]
    return files


def signature_files(config: Configuration) -> dict[str, str]:
    """{key: path} of signatures and of the keys that verify them; raises UserError for one without the other."""
    monitor = config["monitor"]
    signed = {"monitor": (monitor["signature"], monitor["public_key"])}
    signed |= {f"models.{name}": (model["signature"], model["public_key"]) for name, model in config["models"].items()}
    files: dict[str, str] = {}
    for where, (signature, public_key) in signed.items():
        if signature is not None and public_key is not None:
            files |= {f"{where}.signature": signature, f"{where}.public_key": public_key}
        elif signature is not None or public_key is not None:
            alone = "signature" if public_key is None else "public_key"
            raise UserError(f"`{where}` in the config has `{alone}` alone; `signature` and `public_key` go together")
    return files


def sources(config: Configuration) -> dict[str, str]:
    """{key: path or hub id} of models, of third parties' checkpoints and of the earlier run that a budget names."""
    named: dict[str, object] = {f"models.{name}.source": model["source"] for name, model in config["models"].items()}
    named |= {f"methods.{name}.source": method.get("source") for name, method in config["methods"].items()}
    named["budget.against"] = config["budget"]["against"]
    return {key: source for key, source in named.items() if isinstance(source, str) and source}


def check_earlier_run(config: Configuration) -> None:
    """Raises UserError where the earlier run that a budget compares with is not here."""
    against = config["budget"]["against"]
    if against is not None and not os.path.exists(against):
        raise UserError(
            f"`budget.against` in the config is {against[:SHOWN]!r}, which is not here; name the summary.json of an "
            "earlier run, or its folder of results"
        )


def check_python(interpreter: str | None) -> None:
    """Raises UserError where the interpreter is not here: else only the shell of a job, on a cluster, would say so."""
    if interpreter is not None and shutil.which(interpreter) is None:
        raise UserError(
            f"`python` in the config is {interpreter[:SHOWN]!r}, which is no program here; name an interpreter that "
            "has the packages of envs/evaluation.txt, or null to have one built"
        )
