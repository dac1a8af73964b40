"""The jobs of a batch: a text file with a prompt a line, a CSV or JSONL file with a flag a column, times seeds."""

import csv
import hashlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerf.config import config as options
from nerf.config.config import ASKED, OPTIONS, Config
from nerf.config.parser import dashed, kind_of
from nerf.config.typed import HELP, SYNONYMS
from nerf.core.errors import UserError
from nerf.core.files import parse_json, read_text
from nerf.core.words import did_you_mean, quoted

NAME = "name"  # the column that names the folder of a job
SUFFIXES = {".txt": "text", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
MAX_JOBS = 100_000
LONGEST_SLUG = 48  # letters of a prompt in the name of a folder
PLAIN = re.compile(r"[a-z0-9]+(?: [a-z0-9]+)*")  # prompts that the name of a folder can hold
HINT = "give a text file with a prompt a line, or a .csv or .jsonl file with a flag of main.py a column"
# Flags that a batch sets itself, or that have no place in one.
REFUSED = {
    "workspace": "a batch gives every job a folder in --out; leave it out, or name the folder in a column called name",
    "ckpt": "a job goes on from its own newest checkpoint; leave it out",
    "gui": "nobody looks at the jobs of a batch; leave it out",
    "viewer": "nobody looks at the jobs of a batch; leave it out",
    "test": "a batch trains; run main.py with it in the folder of the job",
    "six_views": "a batch trains; run main.py with it in the folder of the job",
}


@dataclass(frozen=True)
class Job:
    """One run of a batch."""

    name: str  # of its folder in --out
    words: tuple[str, ...]  # flags of main.py, without --workspace
    place: str  # where it was asked for, as a message begins: "jobs.csv, line 3"
    title: str  # for people: the prompt, or what the run is given instead
    prompt: str | None
    seed: int
    group: str  # jobs with the same group differ in their seed alone


@dataclass(frozen=True)
class Row:
    """What a line of a job file says."""

    place: str
    flags: dict[str, Any]  # by name of the flag
    name: str | None = None


def read_rows(path: Path) -> list[Row]:
    """The rows of a job file, by its suffix; a file with another one is text.

    Raises:
        UserError: it cannot be read, holds no job, or names no flags in its first line.
    """
    kind = SUFFIXES.get(path.suffix.lower(), "text")
    text = read_text(path, HINT)
    if "\0" in text:
        raise UserError(f"{path} is not a text file; {HINT}")
    reader = {"text": _text_rows, "csv": _csv_rows, "jsonl": _json_rows}[kind]
    rows = list(reader(path, text))
    if not rows:
        raise UserError(f"{path} holds no job; {HINT}")
    return rows


def _place(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, as an editor counts them; U+2028, which may stand in JSON, ends none."""
    return enumerate(io.StringIO(text, newline=None), start=1)


def _text_rows(path: Path, text: str) -> Iterator[Row]:
    """A prompt a line; empty lines and those that begin with # are left out."""
    for number, line in _lines(text):
        if line.strip() and not line.lstrip().startswith("#"):
            yield Row(_place(path, number), {"text": line.strip()})


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    """The flags are named in the first line; an empty cell leaves the flag out."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            place = _place(path, reader.line_num)
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(place, header)
                continue
            if len(cells) > len(header):
                raise UserError(
                    f"{place} has {len(cells)} columns, and the first line names {len(header)}; put a value with a comma "
                    "into double quotes"
                )
            given = {flag: cell.strip() for flag, cell in zip(header, cells, strict=False) if cell.strip()}
            name = given.pop(NAME, None)
            yield Row(place, {flag: _cell(place, flag, cell) for flag, cell in given.items()}, name)
    except csv.Error as error:
        raise UserError(f"{_place(path, reader.line_num)} is not CSV ({error}); {HINT}") from None


def _check_header(place: str, header: list[str]) -> None:
    """Refuse columns that are no flags.

    Raises:
        UserError: one is unknown, empty or named twice.
    """
    for flag in header:
        _check_flag(place, flag, "a column")
        if header.count(flag) > 1:
            raise UserError(f"{place} names the column {flag} twice; name it once")


def _check_flag(place: str, flag: str, what: str) -> None:
    """Refuse the name of a flag that does not exist or that a batch sets itself.

    Raises:
        UserError: why.
    """
    if flag == NAME:
        return
    if flag not in OPTIONS:
        plain = flag.lstrip("-")
        hint = f"; write {plain}" if plain in OPTIONS else did_you_mean(flag, [*OPTIONS, NAME], SYNONYMS)
        raise UserError(f"{place}: {what} is called {quoted(flag)}, which is no flag of main.py{hint or '; see its --help'}")
    if flag in REFUSED:
        raise UserError(f"{place}: --{flag}: {REFUSED[flag]}")


def _cell(place: str, flag: str, cell: str) -> Any:
    """The value of a flag as a cell of a CSV file gives it.

    Raises:
        UserError: a switch that is neither on nor off, or quotes that are not closed.
    """
    kind = kind_of(OPTIONS[flag][1])
    if kind.scalar is bool:
        if cell.lower() not in SWITCH:
            raise UserError(f"{place}: {flag} is a switch, true or false, and got {quoted(cell)}")
        return SWITCH[cell.lower()]
    if kind.count is None and not OPTIONS[flag][1].metadata["each"]:
        return cell
    try:
        return shlex.split(cell)
    except ValueError as error:
        raise UserError(
            f"{place}: {flag} is {quoted(cell)}: {str(error).lower()}; quotes are read as a shell reads them"
        ) from None


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    """An object a line: name of the flag -> value, list of values, true or false; null leaves the flag out."""
    for number, line in _lines(text):
        place = _place(path, number)
        if not line.strip():
            continue
        value = parse_json(line, place, "a line of JSONL is one object")
        if not isinstance(value, dict):
            raise UserError(f'{place}: expected an object such as {{"text": "a hamburger"}}, got {quoted(line.strip())}')
        name = value.pop(NAME, None)
        if name is not None and not isinstance(name, str):
            raise UserError(f"{place}: name is the name of a folder, got {name!r:.80}")
        for flag, one in value.items():
            _check_flag(place, flag, "a key")
            if isinstance(one, dict) or isinstance(one, list) and (not one or any(isinstance(v, dict | list) for v in one)):
                raise UserError(f"{place}: {flag} is a value or a list of values, got {quoted(str(one))}")
            if kind_of(OPTIONS[flag][1]).scalar is bool and not isinstance(one, bool | None):
                raise UserError(f"{place}: {flag} is a switch, true or false, and got {one!r:.80}")
        yield Row(place, {flag: one for flag, one in value.items() if one is not None}, name)


def words_of(flags: dict[str, Any]) -> list[str]:
    """Flags by name as the words of a command line."""
    words: list[str] = []
    for flag, value in flags.items():
        if isinstance(value, bool):
            words.append(dashed(flag) if value else f"--no_{flag}")
        else:
            first, *rest = value if isinstance(value, list | tuple) else (value,)
            words += [f"{dashed(flag)}={first}", *map(str, rest)]  # with =, as it may begin with a dash
    return words


def expand(rows: Sequence[Row], common: Sequence[str], seeds: int | None) -> list[Job]:
    """The jobs of rows, each of which has been read by the parser of ``main.py``.

    Args:
        rows: what the jobs differ in; a flag of a row counts more than one of ``common``.
        common: flags of all jobs, as they were typed.
        seeds: runs of each row with seeds of their own, from the row's on; None: one.

    Raises:
        UserError: flags that the parser refuses, the same job twice, or a name that cannot be that of a folder.
    """
    if any(word in HELP for word in common):
        raise UserError("flags of main.py are listed by python main.py --help")
    if len(rows) * (seeds or 1) > MAX_JOBS:
        raise UserError(f"expected at most {MAX_JOBS} jobs, got {len(rows) * (seeds or 1)}; split the file")
    jobs: dict[str, Job] = {}  # by the name of the folder
    told: dict[tuple[str, int], str] = {}  # what a run depends on -> where
    for row in rows:
        for job in _jobs_of(row, common, seeds):
            identity = (job.group, job.seed)
            folder = job.name.lower()  # on some systems x and X are one folder
            other = told.get(identity) or (jobs[folder].place if folder in jobs else None)
            if other is not None:
                what = "is the same job as" if identity in told else f"is called {job.name} as is"
                raise UserError(f"{job.place} {what} {other}; leave one of them out, or give them other seeds or names")
            told[identity], jobs[folder] = job.place, job
    return list(jobs.values())


def _jobs_of(row: Row, common: Sequence[str], seeds: int | None) -> Iterator[Job]:
    """The jobs of a row."""
    try:
        own = words_of(row.flags)
        words = [*common, *own]
        asked = options.parse(words)
        _check(asked)
        first, last = asked.runtime.seed or 0, (asked.runtime.seed or 0) + (seeds or 1) - 1
        options.parse([*words, f"--seed={last}"])  # refuses seeds that are too large
        name, digest, prompt = _checked_name(row.name or _slug(asked)), "", asked.prompt.text
        if row.name is None and (row.flags.keys() - {"text", "seed"} or not PLAIN.fullmatch(prompt or "")):
            digest = f"_{_digest(sorted(own))[:6]}"
        title = prompt or ", ".join(asked.prompt.image) or asked.data.data or "a run"
        group = _digest([f"{flag}={value!r}" for flag, value, source in asked.items() if source in ASKED and flag != "seed"])
        for seed in range(first, last + 1):
            full = name + (f"_seed{seed}" if seeds or row.name is None else "") + digest
            yield Job(full, (*words, f"--seed={seed}"), row.place, title, prompt, seed, group)
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(row.place) else f"{row.place}: {said}") from None


def _check(asked: Config) -> None:
    """Refuse what a batch sets itself, or has no place in one.

    Raises:
        UserError: why.
    """
    for flag, reason in REFUSED.items():
        if asked.asked(flag):
            raise UserError(f"--{flag}: {reason}")
    if re.fullmatch(r"cuda:[1-9]\d*", asked.runtime.device):
        raise UserError(
            f"--device {asked.runtime.device}: Ray chooses the GPU of a job and hides the others; give --device cuda"
        )


def _slug(asked: Config) -> str:
    """A name of a folder that says what a job makes."""
    what = asked.prompt.text or Path((*asked.prompt.image, asked.data.data or "run")[0]).stem
    plain = re.sub(r"[^a-z0-9]+", "_", what.lower()).strip("_")
    return plain[:LONGEST_SLUG].strip("_") or "run"


def _checked_name(name: str) -> str:
    """A name that is that of a folder on any system.

    Raises:
        UserError: it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name) or name.lower().rstrip(".") != name.lower():
        raise UserError(f"name must be letters, digits, dots, - and _, at most 100, got {quoted(name)}")
    if name.lower() in ("index.html", "index_files", "batch.json"):
        raise UserError(f"name {name} is that of a file of the batch; give another one")
    return name


def _digest(value: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(value).encode(errors="surrogatepass")).hexdigest()


def as_words(job: Job, workspace: Path, threads: int) -> list[str]:
    """The command line of a job; ``threads`` counts where it gives no number of its own."""
    return [f"--threads={threads}", *job.words, f"--workspace={workspace}"]
