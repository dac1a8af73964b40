"""Exceptions that end a run with a message and an exit code: bad input (2), no result (1), a signal (129, 130, 143)."""

import re

# Characters that would break a line, move the cursor or change the terminal; a name inside a damaged file may hold any.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text in one line, with the characters that would change the terminal (newline, escape, direction marks) as escapes."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


class UserError(ValueError):
    """Bad input from the user: what was expected, what came, what to do next, in one sentence.

    Control characters of the message, which come with names out of files, are shown as escapes.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(visible(str(message)))


class DivergenceError(RuntimeError):
    """Training diverged; the message says what was observed and what to try."""


class PeerError(RuntimeError):
    """Another process of a run on several GPUs is gone; the message says how that was noticed."""


class Stopped(Exception):
    """A signal stopped the run, after it saved a checkpoint.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, as shells expect.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.exit_code = 128 + number


class ExportError(UserError):
    """There is no mesh to write or to train, for the reason in the message: an empty, solid or invalid field or mesh."""
