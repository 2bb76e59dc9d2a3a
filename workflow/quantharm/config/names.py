"""The names that a configuration refers to, and those that the workflow keeps for itself."""

import difflib
from collections.abc import Iterator
from typing import Literal

from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.config.entries import Configuration, Named, Study

RESERVED_MODELS = ("logs", "benchmarks", "texts", "gate")
RESERVED_METHODS = ("synthetic",)
KINDS: tuple[Literal["models", "methods"], ...] = ("models", "methods")
STUDIES: tuple[Study, ...] = ("defense", "calibration_study")


def check_names(config: Configuration) -> None:
    """Raises UserError for a name that stands for nothing, or that the workflow needs for a folder of its own."""
    if BASELINE not in config["evaluate"]["methods"]:
        raise UserError(
            "`evaluate.methods` in the config lacks `baseline`, which every method is compared with; add it"
        )
    for kind, names, reserved in (
        ("model", config["models"], RESERVED_MODELS),
        ("method", config["methods"], RESERVED_METHODS),
    ):
        for name in sorted(set(names) & set(reserved)):
            raise UserError(f"a {kind} in the config is called `{name}`, which is a folder of the workflow; rename it")
    for kind, name, where in references(config):
        refer(config, kind, name, where)


def references(config: Configuration) -> Iterator[tuple[Named, str, str]]:
    """(section, name of an entry there, key that names it), in the order in which they are checked."""
    for kind in KINDS:
        yield from ((kind, name, f"evaluate.{kind}") for name in config["evaluate"][kind])
    yield "models", config["monitor"]["model"], "monitor.model"
    yield "methods", config["monitor"]["method"], "monitor.method"
    for study in STUDIES:
        yield from (("models", name, f"{study}.models") for name in config[study]["models"] or [])
    for name, model in config["models"].items():
        yield "protocols", model["protocol"], f"models.{name}.protocol"
    for name, protocol in config["protocols"].items():
        yield "texts", protocol["text"], f"protocols.{name}.text"
    for name, method in config["methods"].items():
        yield from (("models", model, f"methods.{name}.models") for model in method.get("models", []))
    for kind in KINDS:
        yield from ((kind, name, f"budget.{kind}") for name in config["budget"][kind])


def refer(config: Configuration, kind: Named, name: str, where: str) -> None:
    """Raises UserError where a name that stands at `where` is not one of the config's `kind`."""
    if name not in config[kind]:
        close = difflib.get_close_matches(name, list(config[kind]), 1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(config[kind])}"
        raise UserError(f"`{where}` in the config names `{name}`, which is not under `{kind}`; {hint}")


def models_of(config: Configuration, study: Study) -> list[str]:
    """`models` of a study, or those of the default run where it is null."""
    chosen = config[study]["models"]
    return config["evaluate"]["models"] if chosen is None else chosen
