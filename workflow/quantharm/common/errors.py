"""The one exception for what a user can mend."""

from quantharm.common.sanitize import visible


class UserError(Exception):
    """A mistake or a fault that the user can mend; its message is the one sentence they will read.

    It often quotes a file, so what would command a terminal or begin a new line is shown by its code.
    """

    def __str__(self) -> str:
        return visible(super().__str__()).replace("\n", "⏎")


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
