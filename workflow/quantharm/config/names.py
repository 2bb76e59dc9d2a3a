"""Names that a configuration refers to, and those that the workflow keeps for itself."""

import difflib
from typing import Any

from quantharm.common.errors import UserError

RESERVED_MODELS = ("logs", "benchmarks", "texts", "gate")
RESERVED_METHODS = ("synthetic",)


def refer(config: dict[str, Any], kind: str, name: str, where: str) -> None:
    """Raises UserError where a name that stands at `where` is not one of the config's `kind`."""
    if name not in config[kind]:
        close = difflib.get_close_matches(name, list(config[kind]), 1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(config[kind])}"
        raise UserError(f"`{where}` in the config names `{name}`, which is not under `{kind}`; {hint}")


def models_of(config: dict[str, Any], section: str) -> list[str]:
    """`models` of a section, or those of the default run where it is null."""
    return config["evaluate"]["models"] if config[section]["models"] is None else config[section]["models"]
