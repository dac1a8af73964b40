"""Options from Python: keyword arguments with the names of the flags become the words of a command line."""

from typing import Any

from nerf.config.config import Config, parse
from nerf.config.parser import dashed
from nerf.core.errors import UserError


def configure(**flags: Any) -> Config:
    """The options of a run, read and checked as those of a command line.

    Args:
        flags: value by name of the flag without dashes, as in ``configure(text="a lion", O=True, fovy_range=(10, 30))``. Lists
            and tuples are several values, False is the ``--no_`` form, None leaves the flag out.

    Raises:
        UserError: an unknown flag, a value out of range, or flags that exclude each other.
    """
    words: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(dashed(name) if value else f"--no_{name}")
        elif value is not None:
            several = isinstance(value, list | tuple)
            if several and not value:
                raise UserError(
                    f"{dashed(name)} needs at least one value, got an empty {type(value).__name__}; leave it out instead"
                )
            first, *rest = value if several else (value,)
            words += [f"{dashed(name)}={first}", *map(str, rest)]  # with =, as it may begin with a dash
    return parse(words)
