"""The command of a job, `STAGE --flag value …`, from a rule's values: constants, functions, texts with places to fill.

Needs no Snakemake: its wildcards, inputs and outputs are objects whose attributes are words or paths.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

PLACE = re.compile(r"\{(wildcards|input|output)(\.\w+)?\}")


def words_of(flags: Mapping[str, Any]) -> Iterator[str]:
    """{flag: value} as words: nothing for None and False, the flag alone for True, one word more for each of a list."""
    for key, value in flags.items():
        if value is not None and value is not False:
            yield f"--{key.replace('_', '-')}"
            yield from map(str, value if isinstance(value, list) else [] if value is True else [value])


def filled(text: str, **job: Any) -> str | None:
    """A text with its places `{input.x}`, `{output.x}` and `{wildcards.x}` filled in; None where nothing is left."""
    return PLACE.sub(lambda place: place[0].format(**job), text) or None


def command(stage: str, **flags: Any) -> dict[str, Callable[..., str]]:
    """Parameters of a rule: `command`, the stage and its flags as the shell takes them, and `settings`, what they set.

    A value may be a function of the wildcards; a dictionary stands for flags of its own. Places are filled in, and a
    flag for which a rule has no such file is left out. Snakemake does not look for changes in a parameter that is made
    of inputs and outputs, as the command is: so the settings are one of their own.
    """

    def valued(wildcards: Any) -> dict[str, Any]:
        return {flag: value(wildcards) if callable(value) else value for flag, value in flags.items()}

    def text(wildcards: Any, input: Any, output: Any) -> str:  # Snakemake gives each by its name
        values: dict[str, Any] = {}
        for flag, value in valued(wildcards).items():
            if isinstance(flags[flag], str):
                value = filled(value, wildcards=wildcards, input=input, output=output)
            values |= value if isinstance(value, dict) else {flag: value}
        return shlex.join([stage, *words_of(values)])

    return {"command": text, "settings": lambda wildcards: json.dumps(valued(wildcards), default=str)}
