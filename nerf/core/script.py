"""Command lines of scripts and benchmarks: argparse whose errors are one sentence, and numbers with documented ranges."""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from nerf.core import words
from nerf.core.errors import DivergenceError, UserError, visible
from nerf.core.ranges import Check, between, shown

POINTS = between(1, 2**28)  # of a benchmark of kernels
FAILURE, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr with the program's name, and exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def number(self, flag: str, kind: type, default: Any, check: Check, help: str, **kwargs: Any) -> None:
        """A flag whose value is an int or a float in a range, which its help gives.

        Args:
            flag: with its dashes.
            kind: int or float.
            default: of the flag; a list where ``nargs`` is given.
            check: the range.
            help: one line.
            kwargs: passed on to ``add_argument``.
        """
        assert check.bounded, flag
        given = "" if default is None else f" [{' '.join(map(shown, default if isinstance(default, list) else [default]))}]"
        text = f"{help} ({check.span}){given}".replace("%", "%%")
        self.add_argument(flag, type=reader(kind, check), default=default, help=text, metavar="N", **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong in one line, and exit with 2."""
        message = re.sub(r"^argument ([^:]+): (?=must )", lambda m: m[1].split("/")[0] + " ", message)
        message = re.sub(r"^argument ([^:]+):", lambda m: m[1].split("/")[0] + ":", message)
        unknown = re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown is not None:
            first = unknown[1].split()[0] if unknown[1].split() else ""
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            name = first.split("=")[0]
            hint = words.did_you_mean(name, known) if first.startswith("-") else ""
            message = f"{'unknown flag' if first.startswith('-') else 'unexpected word'} {name}{hint or '; see --help'}"
        raise SystemExit(refuse(message, self.prog))


def reader(kind: type, check: Check) -> Callable[[str], Any]:
    """What argparse calls with a word: the number, if it is one in the range."""

    def read(word: str) -> Any:
        try:
            value = words.READERS[kind](word)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if not check.holds(value):
            raise argparse.ArgumentTypeError(f"must be {check.expected}, got {word}")
        return value

    return read


class _Visible(logging.Formatter):
    """The message of a record in one line, whose control characters are escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(record.getMessage())


def log_to_stderr() -> None:
    """Show what the modules log, a line for each record."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def refuse(message: str, program: str = "", code: int = BAD_INPUT) -> int:
    """Print what is wrong in one line that begins with the program's name; returns the exit code."""
    print(visible(f"{os.path.basename(program or sys.argv[0])}: {message}"), file=sys.stderr)
    return code


def run(main: Callable[[], int | None], program: str = "") -> int:
    """Run the main function of a script; returns its exit code.

    A UserError, and a file that cannot be read or written, are printed in one line, with exit code 2. An exception that nobody
    foresaw is one line, too, with exit code 1, and its traceback in a file of the temporary folder.
    """
    try:
        return main() or 0
    except UserError as error:
        return refuse(str(error), program)
    except DivergenceError as error:
        return refuse(str(error), program, FAILURE)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return _fail(error, program)
        return refuse(f"{error.filename or 'a file'}: {error.strerror or error}", program)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # also what a library written in Rust raises, which is no Exception
        return _fail(error, program)


def _fail(error: BaseException, program: str) -> int:
    """Say what an exception means that nothing else explains; returns the exit code."""
    from nerf.core import crash

    return refuse(crash.sentence_of(error, None), program, FAILURE)
