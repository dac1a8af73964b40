"""The one error that is the user's to mend: main.py prints its sentence and exits with code 2."""


class UserError(ValueError):
    """Bad input from the user: what was expected, what came, what to do next, in one sentence."""
