"""What can go wrong, as one line a person can act on."""

from __future__ import annotations

from collections.abc import Sequence


class BlurrerankError(Exception):
    """Anything this library refuses to do. The message is one line and names the next step."""


class ParameterError(BlurrerankError, ValueError):
    """A parameter lies outside what the method is defined for."""


class BudgetError(ParameterError):
    """A memory budget is too small for the work to be done at all."""


class OutputError(BlurrerankError):
    """A result cannot be written where it was asked for."""


class InputError(BlurrerankError):
    """A file or an array cannot be used as it is.

    `problems` lists everything that was found, one line each; the message joins them.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


class BlurrerankWarning(UserWarning):
    """Something legal that is probably not what was meant."""
