"""The one exception for what a user can mend."""


class UserError(Exception):
    """A mistake or a fault that the user can mend; its message is the one sentence they will read."""
