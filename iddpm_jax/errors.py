"""The exceptions that reach a user as a single line."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    str() is one line: what is wrong, what is allowed, what to change. The command line prints it
    and exits with code 2.
    """


class DivergedError(RuntimeError):
    """The loss is no longer finite. str() is one line: the step, and what to go back to."""
