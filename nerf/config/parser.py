"""How a dataclass becomes command-line flags: the field's metadata, its checks, and the text of ``--help``.

The flags themselves are in ``nerf/config/groups.py``; ``nerf/config/typed.py`` reads them. Nothing here imports
torch, so that ``--help`` is fast.
"""

import dataclasses
import os
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from nerf.config.ramps import Weight, parse_ramp
from nerf.core.errors import UserError
from nerf.core.ranges import Check
from nerf.core.words import did_you_mean, expected_words, quoted

Field = dataclasses.Field[Any]

RUN = "run"  # ``kept`` of an option that a workspace keeps once it holds a checkpoint of any stage
LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes of a path, and of a name in it; more can be the path of no file
HELP_WIDTH = 118  # columns of --help
USAGE_WIDTH = 34  # columns of a flag and its values; a longer one has its help on the next line
INDENT = USAGE_WIDTH + 2
EXAMPLES = {
    "text": '"a hamburger"',
    "data": "photographs/",
    "mesh_crop": "-1 -1 -1 1 1 1",
}  # of the values of flags without a default


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    extensible: bool = False,
    check: Check | None = None,
    kept: str | None = None,
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
        check: a test of the value; None values are not tested. Every number has one, with two finite ends, that --help shows.
        kept: the stage whose first checkpoint fixes the value for its workspace, or :data:`RUN` for that of any stage:
            a resumed run that asks for another value is refused (see ``kept.merge_kept_options``). None: never fixed.
        path: the value names a file or folder, where ``~`` is the user's home and the bytes need not be UTF-8.
        each: the option belongs to each guidance model: so many words are one value, and there is one value for all models
            or one for each, in the order of ``--guidance``; ``check`` tests each of them. 0: it does not.
    """
    metadata: dict[str, Any] = {"help": help, "flag": flag, "choices": choices, "extensible": extensible}
    metadata |= {"check": check, "kept": kept, "path": path, "each": each}
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
    ramp: bool = False  # a number may also be a ramp over steps, see ``ramps.py``


def kind_of(field: Field) -> Kind:
    """Read ``int``, ``str | None``, ``tuple[float, float]`` or ``tuple[str, ...]`` off the annotation."""
    annotation: Any = field.type
    if annotation == Weight:
        return Kind(float, None, False, ramp=True)
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
    if kind.ramp and isinstance(value, str):
        try:
            parse_ramp(value)
        except UserError as error:
            raise UserError(f"{name} must be {error}, got {quoted(value)}") from None
        return
    words = value if kind.count is not None and isinstance(value, tuple | list) else [value]
    if (kind.count is not None) != isinstance(value, tuple | list) or not all(_is_a(w, kind.scalar) for w in words):
        several = "" if kind.count is None else " each (several words)"
        raise UserError(f"{name} must be {_NOUNS[kind.scalar]}{several}, got {value!r}")
    for word in words if kind.scalar is str else ():
        _check_text(name, word, meta["path"])
        if not word.strip() and field.default != "":
            raise UserError(f"{name} is empty; give a value, as in {name} {example_of(field)}, or leave the flag out")
    if kind.count and len(words) != kind.count:
        raise UserError(f"{name} takes {kind.count} values, got {len(words)}")
    for word in words if meta["choices"] and not meta["extensible"] else ():
        check_choice(name, word, meta["choices"])
    for one in _each_value(field, name, value) if meta["each"] else (value,):
        if meta["check"] and not meta["check"].holds(one):
            raise UserError(f"{name} must be {meta['check'].expected}, got {as_words(one)}")


def check_choice(name: str, word: str, choices: typing.Collection[str]) -> None:
    """Refuse a word that is not one of some, with those that it may stand for.

    Args:
        name: the flag, with its dashes.
        word: as it was typed.
        choices: the words that are allowed.
    """
    if word not in choices:
        raise UserError(f"{name} must be {expected_words(choices)}, got {quoted(word)}{did_you_mean(word, choices)}")


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
        coded = os.fsencode(word) if path else word.encode()
    except UnicodeEncodeError:
        what = "the name of a file here" if path else "text in UTF-8"
        raise UserError(f"{name} is not {what}, got {word!r:.80}; set the locale of the terminal to UTF-8") from None
    if path and (len(coded) > LONGEST_PATH or max(map(len, coded.split(b"/"))) > LONGEST_NAME):
        raise UserError(f"{name} is longer than the name of a file can be, got {quoted(word)}")


def _unpacked(words: tuple[Any, ...]) -> tuple[Any, ...]:
    """The words of a list, which may also be separated by commas."""
    return tuple(part.strip() for word in words for part in word.split(","))


def as_given(field: Field, value: Any) -> Any:
    """A value as it is meant: ``~`` in a path is the user's home, and text that the locale hid is UTF-8 again.

    The shell replaces ``~`` in ``--data ~/x`` but not in ``--data=~/x``. Under the C locale, Python stores the bytes of other
    characters as lone surrogates.
    """
    if isinstance(value, tuple):
        listed = kind_of(field).scalar is str and not field.metadata["path"]  # the name of a file may have a comma
        words = _unpacked(value) if listed else value
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


def as_words(value: Any) -> str:
    """A value as a person would type it, with all its digits; nothing for None."""
    if isinstance(value, tuple | list):
        return " ".join(map(as_words, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "" if value is None else str(value)


def example_of(field: Field) -> str:
    """A value of an option as it could be typed: its default, where there is one."""
    check: Check | None = field.metadata["check"]
    if field.default not in (None, "", ()) or check is None or check.low is None or flag_of(field) in EXAMPLES:
        return as_words(field.default) or EXAMPLES.get(flag_of(field), "VALUE")
    several = kind_of(field).count is not None
    return next(as_words(v) for v in (check.low, check.low + 1, check.high) if check.holds((v,) if several else v))


def iterate(groups: dict[str, type[Group]]) -> Iterator[tuple[str, Field]]:
    """(group name, field) of every option, in the order of ``--help``."""
    for name, group in groups.items():
        for field in fields(group):
            yield name, field


def _usage_of(field: Field) -> str:
    flag, kind = flag_of(field), kind_of(field)
    if kind.scalar is bool:
        return dashed(flag)
    noun = {int: "N", float: "X", str: "WORD"}[kind.scalar]
    if field.metadata["choices"]:
        noun = "{" + ",".join(field.metadata["choices"]) + "}"
    count = kind.count or field.metadata["each"] or 1
    return f"{dashed(flag)} {' '.join([noun] * count)}{' ...' if kind.count == 0 else ''}"


def _range_of(field: Field) -> str:
    """The range of a number, for its help."""
    check: Check | None = field.metadata["check"]
    return f" ({check.span})" if check is not None and check.span else ""


def _default_of(field: Field) -> str:
    if field.default in (None, "", ()) or field.default is False:
        return ""
    return f" [{'on, see --no_' + flag_of(field) if field.default is True else as_words(field.default)}]"


def help_text(groups: dict[str, type[Group]], opening: str, closing: str) -> str:
    """The whole of ``--help``: grouped, one entry per flag with its default in brackets; the same on every Python."""
    lines = [opening.rstrip()]
    for group in groups.values():
        lines += ["", (group.__doc__ or "").splitlines()[0]]
        for field in fields(group):
            meta = field.metadata
            about = f"{meta['help']}{_range_of(field)}{_default_of(field)}"
            text = textwrap.wrap(about, HELP_WIDTH - INDENT)
            usage = f"  {_usage_of(field)}"
            if len(usage) > USAGE_WIDTH:
                lines.append(usage)
                usage = ""
            lines.append(f"{usage:<{INDENT}}{text[0]}")
            lines += [f"{'':<{INDENT}}{line}" for line in text[1:]]
    return "\n".join([*lines, "", closing.rstrip(), ""])
