"""Errors a person can act on, and interruptions."""

import signal
from typing import TypeVar


class UserError(Exception):
    """What the user asked for cannot be done; the message is one sentence that says why and what would work.

    Entry points print it and exit with code 2, without a traceback.
    """


class Damaged(UserError):
    """A file cannot be read or its contents are malformed; where there is an older one, that may serve instead.

    `origin` is the file, `reason` what is wrong with it, as the rest of a sentence about it.
    """

    def __init__(self, origin: object, reason: str):
        super().__init__(f"{origin} {reason}")
        self.origin, self.reason = origin, reason


def refuse_below(least: dict[str, tuple]) -> None:
    """Raise UserError for a value below its least, `{name: (value, least)}`, or that is no number."""
    for name, (value, lowest) in least.items():
        if not isinstance(value, int | float) or not value >= lowest:
            raise UserError(f"{name} must be {lowest} or more, not {value}")


class GaveUp(UserError):
    """A launcher or sweeper that is not ours has ended with an error of its own."""


class WorkerDied(UserError):
    """A process that reads images was killed. Raised between two steps, so that what was learned can be saved."""


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop; a KeyboardInterrupt, so that no `except Exception` on the way stops it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


Error = TypeVar("Error", bound=BaseException)


def mark_told(error: Error) -> Error:
    """Note on an error that the user has been told of it; returns it."""
    error.said = True  # type: ignore[attr-defined]
    return error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
