"""The two errors that end a run with a sentence: bad input (exit code 2) and a run that diverged (exit code 1)."""


class UserError(ValueError):
    """Bad input from the user: what was expected, what came, what to do next, in one sentence."""


class DivergenceError(RuntimeError):
    """Training went somewhere from which it does not come back; the message says what was seen and what to try."""
