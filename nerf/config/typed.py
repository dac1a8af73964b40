"""Reading the words of a command line, and of a file of flags, into {flag: value}.

argparse is not used: its errors name neither the cause nor a way out, and it takes values that begin with a dash for flags.
"""

import io
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from nerf.config.parser import Field, Kind, dashed, example_of, kind_of
from nerf.config.ramps import read_weight
from nerf.core import words
from nerf.core.errors import UserError
from nerf.core.files import decode_text, read_bytes

MAX_FLAG_BYTES = 1 << 20  # of a file of flags
HELP = ("-h", "--help")
# What other programs, and people, call a flag of this one.
SYNONYMS = {
    "batch": "batch_size",
    "checkpoint": "ckpt",
    "epochs": "iters",
    "fov": "fovy_range",
    "gpu": "device",
    "height": "h",
    "images": "data",
    "learning_rate": "lr",
    "max_steps_per_ray": "max_steps",
    "negative_prompt": "negative",
    "out": "workspace",
    "output": "workspace",
    "photos": "data",
    "prompt": "text",
    "resume": "ckpt",
    "scale": "guidance_scale",
    "steps": "iters",
    "width": "w",
}
_READERS: dict[type, Callable[[str], Any]] = {**words.READERS, str: str}
_NOUNS = {int: "a whole number", float: "a number", str: "a value"}
_COUNTS = {2: "two", 3: "three", 6: "six"}


@dataclass(frozen=True)
class Flag:
    """What is known of a flag before its value is read."""

    kind: Kind
    example: str = "VALUE"  # of a value
    repeated: bool = False  # it may be given several times, and its values come as a list


def flag_for(field: Field) -> Flag:
    """The flag of an option."""
    return Flag(kind_of(field), example_of(field))


FILE = Flag(Kind(str, None, False), "run.args", repeated=True)  # --file


class _Reader:
    """The words, and how far they have been read."""

    def __init__(self, typed: list[str], flags: Mapping[str, Flag]) -> None:
        self.words, self.flags, self.at = typed, flags, 0
        self.names: dict[str, tuple[str, bool]] = {}  # as typed -> (flag, value if it is a switch)
        for flag, known in flags.items():
            self.names[dashed(flag)] = (flag, True)
            if known.kind.scalar is bool:
                self.names[f"--no_{flag}"] = (flag, False)
        self.values: dict[str, Any] = {}
        self.last = ""  # the flag that was read last, as it was typed

    def read(self) -> dict[str, Any]:
        while self.at < len(self.words):
            word = self.words[self.at]
            name, inline, value = word.partition("=")
            if name not in self.names:
                self.refuse(word)
            self.at, self.last = self.at + 1, name
            flag, on = self.names[name]
            if self.flags[flag].kind.scalar is not bool:
                read = self.value(flag, name, [value] if inline else [])
                self.values[flag] = [*self.values.get(flag, []), read] if self.flags[flag].repeated else read
            elif inline:
                raise UserError(f"{name} takes no value, got {words.quoted(value)}; give {dashed(flag)} or --no_{flag}")
            else:
                self.values[flag] = on
        return self.values

    def value(self, flag: str, name: str, found: list[str]) -> Any:
        """The value of a flag: ``found`` behind an equals sign, and the words that follow."""
        kind = self.flags[flag].kind
        most = 1 - len(found) if kind.count is None else len(self.words)
        for word in self.words[self.at : self.at + most]:
            if self.is_flag(word):
                break
            found.append(word)
            self.at += 1
        if not found:
            self.refuse_missing(flag, name)
        try:
            if kind.count is None:
                return read_weight(found[0]) if kind.ramp else _READERS[kind.scalar](found[0])
            split = found
            if kind.scalar is not str:  # 3,3.5 or 3, 3.5
                split = [part.strip() for word in found for part in word.split(",") if part.strip()] or found
            if kind.count and len(split) != kind.count:
                count = f"{_COUNTS[kind.count]} {'numbers' if kind.scalar is not str else 'values'}"
                raise UserError(f"takes {count}, as in {self.example(flag, name)}, got {words.quoted(' '.join(found))}")
            return tuple(map(_READERS[kind.scalar], split))
        except UserError as error:
            raise UserError(f"{name} {error}") from None

    def is_flag(self, word: str) -> bool:
        """Whether a word is meant as a flag: it begins with a dash, and is neither a number nor several words in quotes."""
        if word.partition("=")[0] in self.names or word == "--":
            return True
        number = all(words.is_number(part) for part in word.split(","))
        return word[:1] == "-" and len(word) > 1 and not number and len(word.split()) == 1

    def example(self, flag: str, name: str) -> str:
        """A flag with a value as it could be typed."""
        return f"{name} {self.flags[flag].example}"

    def refuse_missing(self, flag: str, name: str) -> NoReturn:
        """There is no word left for the value, or the next one is a flag."""
        following = self.words[self.at] if self.at < len(self.words) else None
        dash = "" if following is None or following.partition("=")[0] in self.names else (
            f"; a value that begins with a dash is written {name}=VALUE, as {name}={following:.40}"
        )  # fmt: skip
        kind = self.flags[flag].kind
        noun = _NOUNS[kind.scalar] if not kind.count else f"{_COUNTS[kind.count]} {_NOUNS[kind.scalar].split()[-1]}s"
        raise UserError(f"{name} needs {noun}, as in {self.example(flag, name)}{dash}")

    def refuse(self, word: str) -> NoReturn:
        """A word is at the place of a flag and is none."""
        name = word.partition("=")[0]
        if word == "--" or not word or word[0] not in words.DASHES:
            self.refuse_stray(word)
        first = word.split()[0] if word.split() else word
        if first != word and first in self.names:
            raise UserError(f"{first} and its value are two words: write {first} {words.quoted(word[len(first) :].strip())}")
        plain = name.strip(words.DASHES)
        opposite = plain.startswith("no_")
        known = [name for name, (_, on) in self.names.items() if on != opposite] + ["--help"] * (not opposite)
        if plain[:1] == "O" and plain[1:].isdigit():
            hint = "; did you mean -O or -O2?"
        elif opposite and plain[3:] in self.flags:
            hint = f"; --{plain[3:]} is no switch: leave it out"
        else:
            hint = words.did_you_mean(name, known, SYNONYMS)
        raise UserError(f"unknown flag {name:.80}{hint or '; see --help'}")

    def refuse_stray(self, word: str) -> NoReturn:
        """A word that belongs to no flag."""
        shown = words.quoted(word)
        if not self.last:
            raise UserError(f'unexpected word {shown}; every value follows its flag, as in --text "a hamburger"')
        flag, on = self.names[self.last]
        kind = self.flags[flag].kind
        if kind.scalar is bool:
            other = f"--no_{flag}" if on else dashed(flag)
            raise UserError(f"unexpected word {shown}: {self.last} takes no value; {other} is its opposite")
        if kind.scalar is str:
            raise UserError(
                f"unexpected word {shown} after the value of {self.last}; put quotes around a value with spaces, as in "
                '--text "a hamburger"'
            )
        raise UserError(f"unexpected word {shown}: {self.last} takes one number; leave the word out")


def read_words(typed: list[str], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Read words into {flag: value} of what they name; several values of a flag come as a tuple, the last flag counts.

    Args:
        typed: the words.
        flags: by name, without dashes.

    Raises:
        UserError: an unknown flag (with those it may mean), a stray word, a value that is missing or no number.
    """
    return _Reader(typed, flags).read()


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
