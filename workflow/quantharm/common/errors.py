"""The exception for faults that the user can mend."""

from quantharm.common.sanitize import visible


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
