"""What ends a run with a sentence and an exit code: bad input (2), a run that diverged (1), a signal (130, 143)."""


class UserError(ValueError):
    """Bad input from the user: what was expected, what came, what to do next, in one sentence."""


class DivergenceError(RuntimeError):
    """Training went somewhere from which it does not come back; the message says what was seen and what to try."""


class Stopped(Exception):
    """The run was asked to stop by a signal, and everything is saved.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, as shells expect.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.exit_code = 128 + number


class ExportError(UserError):
    """There is no mesh to write, and why: an empty, solid or broken field, or a mesh that is wrong."""
