"""How a dataclass becomes command-line flags: the field's metadata, its checks, the parser and the text of ``--help``.

The flags themselves are in ``nerf/config/groups.py``. Nothing here imports torch, so that ``--help`` is fast.
"""

import argparse
import dataclasses
import difflib
import io
import math
import os
import re
import shlex
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from nerf.core.errors import UserError
from nerf.core.files import decode_text, read_bytes

Field = dataclasses.Field[Any]

HELP_WIDTH = 118  # columns of --help
USAGE_WIDTH = 34  # columns of a flag and its values; a longer one has its help on the next line
INDENT = USAGE_WIDTH + 2
MAX_FLAG_BYTES = 1 << 20  # of a file of flags
RUN = "run"  # an option that a workspace keeps once it holds a checkpoint of any stage
NEAR = 0.6  # similarity in [0, 1] from which a known word is suggested for an unknown one; difflib's own default


RUN = "run"  # an option that a workspace keeps once it holds a checkpoint of any stage


@dataclass(frozen=True)
class Check:
    """A test of one value and the words that finish the sentence "--flag must be ..."."""

    holds: Callable[[Any], bool]
    expected: str


def at_least(low: float) -> Check:
    """The value is ``low`` or more."""
    return Check(lambda v: v >= low, f"at least {low:g}")


def above(low: float) -> Check:
    """The value is more than ``low``."""
    return Check(lambda v: v > low, "positive" if low == 0 else f"more than {low:g}")


def between(low: float, high: float) -> Check:
    """The value lies in [low, high]."""
    return Check(lambda v: low <= v <= high, f"between {low:g} and {high:g}")


def ordered(low: float, high: float, what: str) -> Check:
    """The value is a pair with ``low <= first <= second <= high``."""
    expected = f"two {what} with {low:g} <= low <= high"
    expected += f" <= {high:g}" if math.isfinite(high) else ""
    return Check(lambda v: len(v) == 2 and low <= v[0] <= v[1] <= high, expected)


def each(check: Check) -> Check:
    """Every value of a tuple holds to a check."""
    return Check(lambda values: all(check.holds(v) for v in values), f"{check.expected} each")


def power_of_two(low: int, high: int) -> Check:
    """The value is a power of two in [low, high]."""
    return Check(lambda v: low <= v <= high and v & (v - 1) == 0, f"a power of two between {low} and {high}")


def expected_words(words: list[str]) -> str:
    """The end of the sentence "--flag must be ..." for a value that is one of some words."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    extensible: bool = False,
    check: Check | None = None,
    kept: str | None = None,
    unbuilt: str | tuple[str, ...] | None = None,
    path: bool = False,
    each: int = 0,
) -> Any:
    """A config field that is also a command-line flag.

    Args:
        default: value if no other source gives one; the field's annotation is the flag's type (a tuple takes several words).
        help: one line for ``--help``.
        flag: name on the command line if it is not the field's.
        choices: the words a str (or each word of a tuple of str) may take.
        extensible: other words may be registered; whoever builds what the word names refuses those that are not.
        check: a test of the value; None values are not tested.
        kept: the stage whose first checkpoint fixes the value for its workspace, or :data:`RUN` for that of any stage:
            a resumed run that asks for another value is refused (see ``resolve.merge_kept_options``). None: never fixed.
        unbuilt: a str names the feature behind the flag that does not exist yet, a tuple the choices that do not.
        path: the value names a file or folder, where ``~`` is the user's home and the bytes need not be UTF-8.
        each: the option belongs to each guidance model: so many words are one value, and there is one value for all models
            or one for each, in the order of ``--guidance``; ``check`` tests each of them. 0: it does not.
    """
    metadata: dict[str, Any] = {"help": help, "flag": flag, "choices": choices, "extensible": extensible}
    metadata |= {"check": check, "kept": kept, "unbuilt": unbuilt, "path": path, "each": each}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Group:
    """Base of every group of options: on construction each value is checked against what its option declares.

    Raises:
        UserError: a value of the wrong kind or outside its range, with the flag's name and what was expected.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            check_value(field, getattr(self, field.name))


def flag_of(field: Field) -> str:
    """The flag's name without dashes."""
    return str(field.metadata["flag"] or field.name)


def dashed(name: str) -> str:
    """The flag as it is typed: ``-O`` and ``-O2`` as in stable-dreamfusion, ``--name`` otherwise."""
    return f"-{name}" if name in ("O", "O2") else f"--{name}"


@dataclass(frozen=True)
class Kind:
    """What a field's annotation asks of the command line."""

    scalar: Any  # bool, int, float or str
    count: int | None  # None: one word; 0: any number of words; n: exactly n words
    optional: bool  # None is allowed


def kind_of(field: Field) -> Kind:
    """Read ``int``, ``str | None``, ``tuple[float, float]`` or ``tuple[str, ...]`` off the annotation."""
    annotation: Any = field.type
    optional = False
    if isinstance(annotation, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not types.NoneType]
        annotation, optional = inner[0], True
    if typing.get_origin(annotation) is tuple:
        inside = typing.get_args(annotation)
        return Kind(inside[0], 0 if inside[-1] is Ellipsis else len(inside), optional)
    return Kind(annotation, None, optional)


def _is_a(value: Any, scalar: Any) -> bool:
    if scalar is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, scalar) and not (scalar is int and isinstance(value, bool))


_NOUNS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def check_value(field: Field, value: Any) -> None:
    """Refuse a value of the wrong kind or range with one sentence."""
    kind, name, meta = kind_of(field), dashed(flag_of(field)), field.metadata
    if value is None and kind.optional:
        return
    words = value if kind.count is not None and isinstance(value, tuple | list) else [value]
    if (kind.count is not None) != isinstance(value, tuple | list) or not all(_is_a(w, kind.scalar) for w in words):
        several = "" if kind.count is None else " each (several words)"
        raise UserError(f"{name} must be {_NOUNS[kind.scalar]}{several}, got {value!r}")
    for word in words if kind.scalar is str else ():
        _check_text(name, word, meta["path"])
    if kind.count and len(words) != kind.count:
        raise UserError(f"{name} takes {kind.count} values, got {len(words)}")
    for word in words if meta["choices"] and not meta["extensible"] else ():
        if word not in meta["choices"]:
            hint = did_you_mean(word, meta["choices"])
            raise UserError(f"{name} must be one of {', '.join(meta['choices'])}, got {word!r}{hint}")
    for one in _each_value(field, name, value) if meta["each"] else (value,):
        if meta["check"] and not meta["check"].holds(one):
            raise UserError(f"{name} must be {meta['check'].expected}, got {_shown(one)}")


def split_each(words: Sequence[Any], each: int) -> list[Any]:
    """The values of an option of each guidance model: single words, or tuples of ``each`` of them."""
    return list(words) if each == 1 else [tuple(words[i : i + each]) for i in range(0, len(words), each)]


def value_of(field: Field, value: Any, index: int) -> Any:
    """The value of an option as the guidance model at some place of ``--guidance`` sees it."""
    each = field.metadata["each"]
    if not each:
        return value
    values = split_each(value, each)
    return values[0] if len(values) == 1 else values[index]


def with_value_of(field: Field, value: Any, index: int, count: int, new: Any) -> tuple[Any, ...]:
    """A value of an option of each of ``count`` guidance models, in which the model at one place has another."""
    each = field.metadata["each"]
    values = [value_of(field, value, i) for i in range(count)]
    values[index] = new
    return tuple(values) if each == 1 else tuple(word for one in values for word in one)


def _each_value(field: Field, name: str, words: Sequence[Any]) -> list[Any]:
    """The values of an option of each guidance model, if the number of words is a multiple of what one of them takes."""
    each = field.metadata["each"]
    if not words or len(words) % each:
        number = "a value" if each == 1 else f"{each} values"
        raise UserError(f"{name} takes {number} for all guidance models or for each of them, got {len(words)}")
    return split_each(words, each)


def _check_text(name: str, word: str, path: bool) -> None:
    """Refuse text that no file system, or for anything but a path no UTF-8 file, can hold."""
    if "\0" in word:
        raise UserError(f"{name} holds a null character, got {word!r:.80}; leave it out")
    try:
        os.fsencode(word) if path else word.encode()
    except UnicodeEncodeError:
        what = "the name of a file here" if path else "text in UTF-8"
        raise UserError(f"{name} is not {what}, got {word!r:.80}; set the locale of the terminal to UTF-8") from None


def as_given(field: Field, value: Any) -> Any:
    """A value as it is meant: ``~`` in a path is the user's home, and text that the locale hid is UTF-8 again.

    The shell replaces ``~`` in ``--data ~/x`` but not in ``--data=~/x``. Under the C locale, Python stores the bytes of other
    characters as lone surrogates.
    """
    if isinstance(value, tuple):
        words = value if field.metadata["path"] else _unpacked(value)  # the name of a file may have a comma
        return tuple(_word_as_given(field, word) for word in words)
    return _word_as_given(field, value)


def _word_as_given(field: Field, value: Any) -> Any:
    """See :func:`as_given`."""
    if not isinstance(value, str):
        return value
    if field.metadata["path"]:
        return os.path.expanduser(value)
    try:
        return os.fsencode(value).decode()
    except UnicodeError:  # check_value says what is wrong
        return value


def refuse_unbuilt(field: Field, value: Any) -> None:
    """Raise a UserError if the value asks for something that does not exist yet."""
    meta, name = field.metadata, dashed(flag_of(field))
    if isinstance(meta["unbuilt"], str) and value != field.default:
        raise UserError(f"{name}: {meta['unbuilt']} is not built yet; leave the flag out")
    if isinstance(meta["unbuilt"], tuple):
        wanted = value if isinstance(value, tuple) else (value,)
        missing = [w for w in wanted if w in meta["unbuilt"]]
        if missing:
            rest = [c for c in meta["choices"] if c not in meta["unbuilt"]]
            raise UserError(f"{name} {missing[0]} is not built yet; take {' or '.join(rest)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean --x?"`` for the nearest known word, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=NEAR)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    """A value as a person would type it."""
    if isinstance(value, tuple | list):
        return " ".join(_shown(v) for v in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _whole_number(word: str) -> int:
    """An int, also written as 5e4."""
    try:
        value = float(word)
        if value != int(value):
            raise ValueError(word)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected a whole number, got {word!r}") from None
    return int(value)


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {word!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {word!r}")
    return value


_READERS: dict[Any, Callable[[str], Any]] = {int: _whole_number, float: _number, str: str}


class _Switch(argparse.Action):
    """``--flag`` and ``--no_flag`` for a bool."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, not (option_string or "").startswith("--no_"))


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError where argparse would print a usage and exit."""

    def error(self, message: str) -> typing.NoReturn:
        message = re.sub(r"^argument ([^:]+):", lambda m: m[1].split("/")[0] + ":", message)
        if message.endswith(": expected one argument"):
            message += f", as in {message.split(':')[0]}=VALUE, which may begin with a dash too"
        raise UserError(message)


def iterate(groups: dict[str, type[Group]]) -> Iterator[tuple[str, Field]]:
    """(group name, field) of every option, in the order of ``--help``."""
    for name, group in groups.items():
        for field in fields(group):
            yield name, field


def build_parser(groups: dict[str, type[Group]]) -> argparse.ArgumentParser:
    """A parser whose namespace holds only what was typed (argparse.SUPPRESS), keyed by flag name."""
    parser = _Parser(prog="main.py", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for _, field in iterate(groups):
        flag, kind = flag_of(field), kind_of(field)
        if kind.scalar is bool:
            names = [dashed(flag)] if dashed(flag).startswith("-O") else [f"--{flag}", f"--no_{flag}"]
            parser.add_argument(*names, dest=flag, action=_Switch, nargs=0)
        else:
            nargs = {None: None, 0: "+"}.get(kind.count, kind.count)
            parser.add_argument(dashed(flag), dest=flag, type=_READERS[kind.scalar], nargs=nargs)
    return parser


def _plain_negative(word: str) -> str:
    """-1e-3 as -0.001: argparse takes only the second for a number."""
    return f"{float(word):.20f}".rstrip("0") if re.fullmatch(r"-\d+(\.\d*)?[eE][+-]?\d+", word) else word


def read_words(parser: argparse.ArgumentParser, words: list[str], known: list[str]) -> dict[str, Any]:
    """Parse words into {flag: value} of what they name; lists come as tuples.

    Raises:
        UserError: an unknown flag (with the nearest known one), a stray word, a value that does not parse.
    """
    namespace, extra = parser.parse_known_args([_plain_negative(w) for w in words])
    for word in extra:
        if word.startswith("-") and word != "--":
            name = word.split("=")[0]
            raise UserError(f"unknown flag {name}{did_you_mean(name, known) or '; see --help'}")
        raise UserError(f'unexpected word {word!r}; put quotes around a value with spaces, as in --text "a hamburger"')
    return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(namespace).items()}


def _unpacked(words: tuple[Any, ...]) -> tuple[Any, ...]:
    """The words of a list, which may also be separated by commas."""
    return tuple(part for word in words for part in (word.split(",") if isinstance(word, str) else (word,)))


def split_file(path: str) -> list[str]:
    """The words of a file of flags: shell quoting, one or many lines, lines that start with # are left out.

    Raises:
        UserError: the file cannot be read, is not text, or a quote is not closed.
    """
    what, hint = f"--file {path}", "expected flags as on the command line"
    text = decode_text(read_bytes(os.path.expanduser(path), hint, MAX_FLAG_BYTES, pipe=True, what=what), what, hint)
    lines = [line for line in io.StringIO(text) if not line.lstrip().startswith("#")]
    try:
        words = shlex.split("".join(lines))
    except ValueError as error:
        raise UserError(f"--file {path}: {str(error).lower()}; quotes are read as a shell reads them") from None
    if any(w == "--file" or w.startswith("--file=") for w in words):
        raise UserError(f"--file {path}: a file of flags cannot name another file")
    return words


def _usage_of(field: Field) -> str:
    flag, kind = flag_of(field), kind_of(field)
    if kind.scalar is bool:
        return dashed(flag)
    noun = {int: "N", float: "X", str: "WORD"}[kind.scalar]
    if field.metadata["choices"]:
        noun = "{" + ",".join(field.metadata["choices"]) + "}"
    count = kind.count or field.metadata["each"] or 1
    return f"{dashed(flag)} {' '.join([noun] * count)}{' ...' if kind.count == 0 else ''}"


def _default_of(field: Field) -> str:
    if field.default in (None, "", ()) or field.default is False:
        return ""
    return f" [{'on, see --no_' + flag_of(field) if field.default is True else _shown(field.default)}]"


def help_text(groups: dict[str, type[Group]], opening: str, closing: str) -> str:
    """The whole of ``--help``: grouped, one entry per flag with its default in brackets; the same on every Python."""
    lines = [opening.rstrip()]
    for group in groups.values():
        lines += ["", (group.__doc__ or "").splitlines()[0]]
        for field in fields(group):
            meta = field.metadata
            note = " (not built yet)" if isinstance(meta["unbuilt"], str) else ""
            note = f" (not built yet: {', '.join(meta['unbuilt'])})" if isinstance(meta["unbuilt"], tuple) else note
            text = textwrap.wrap(f"{meta['help']}{note}{_default_of(field)}", HELP_WIDTH - INDENT)
            usage = f"  {_usage_of(field)}"
            if len(usage) > USAGE_WIDTH:
                lines.append(usage)
                usage = ""
            lines.append(f"{usage:<{INDENT}}{text[0]}")
            lines += [f"{'':<{INDENT}}{line}" for line in text[1:]]
    return "\n".join([*lines, "", closing.rstrip(), ""])
