"""The exception for faults that the user can mend."""

import os
import sys

from quantharm.common.sanitize import visible

PINS = "envs/evaluation.txt (what only some methods need: the other files in envs/)"


class UserError(Exception):
    """A mistake or fault that the user can mend; its message is the sentence that they read.

    Messages often quote a file, so control characters and line breaks are replaced by their codes.
    """

    def __str__(self) -> str:
        return visible(super().__str__()).replace("\n", "⏎")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's class where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def host_is_full(error: BaseException) -> bool:
    """Whether the host's memory did not suffice; torch says so in a RuntimeError's words."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def remedy_for(error: BaseException, otherwise: str) -> str:
    """What to do about an error of a library: install the package that it asks for, or what `otherwise` says."""
    if isinstance(error, ImportError) or "pip install" in first_line(error):
        return f"install what it asks for into {sys.executable}, in the versions of {PINS}"
    return otherwise


def refuse_unread(path: str | os.PathLike[str], error: BaseException) -> None:
    """Raises UserError, or the MemoryError, where a file could not be read for another reason than what it holds.

    Permissions, too many open files, a disk that does not work, too little memory: such a file is not damaged, and is
    not to be deleted. safetensors says `(os error 5)` in words, or that an existing file does not exist.
    """
    if isinstance(error, MemoryError):
        raise error
    of_system = getattr(error, "errno", None) or "(os error" in str(error) or isinstance(error, FileNotFoundError)
    if of_system and os.path.exists(path):
        what_to_see = "see that this job may read it and that the disk works, then run the same command again"
        raise UserError(f"{path} cannot be read ({first_line(error)}); {what_to_see}") from None
