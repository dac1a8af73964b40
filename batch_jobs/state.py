"""What is on disk of a batch: the list of its jobs in ``batch.json``, and the state of each in its folder.

Every file is written as a whole, so whoever is killed leaves the old one or the new one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from batch_jobs.jobs import Job
from nerf.core.errors import UserError
from nerf.core.files import check_writable, read_json, write_json

BATCH_FILE, JOB_FILE, PAGE = "batch.json", "job.json", "index.html"
STOP_FILE = ".stop"  # while it is there, the jobs that run save a checkpoint and end
FORMAT = 1
WAY_OUT = "choose another --out"

Stage = Literal["running", "done", "failed", "dropped"]


class State(msgspec.Struct):
    """How far a job is, as ``job.json`` in its folder says."""

    state: Stage
    words: list[str] = []  # flags of main.py, without --workspace and --threads
    tries: int = 1  # processes that have begun it
    step: int = 0  # steps taken in the present stage
    total: int = 0  # steps of that stage
    stage: str = ""  # its name, or what is being done after the training
    rate: float = 0.0  # steps a second of this try
    seconds: float = 0.0  # of the try that it was done by
    error: str = ""  # the sentence of the last try that failed
    scores: dict[str, float] = {}  # see :mod:`batch_jobs.scores`
    unjudged: str = ""  # why it has none, if it was to be judged
    picked: bool = False  # the best of its seeds, after --pick best
    process: int = 0  # of the worker
    host: str = ""


def is_finished(found: State | None, scorer: str | None = None) -> bool:
    """Whether nothing is left to do for a job.

    Args:
        found: its state.
        scorer: the model that it is to be judged by, whose figures alone can be compared; None: it is not to be judged.
    """
    if found is None or found.state not in ("done", "dropped"):
        return False
    return scorer is None or found.state == "dropped" or any(figure.endswith(f"_{scorer}") for figure in found.scores)


class _Listed(msgspec.Struct):
    """What ``batch.json`` says of a job."""

    words: list[str]
    title: str = ""
    seed: int = 0
    group: str = ""


class _Batch(msgspec.Struct):
    """What ``batch.json`` holds."""

    format: int
    jobs: dict[str, _Listed]


def read(folder: Path) -> State | None:
    """The state of a job, from its folder; None if it has not begun, or the file is damaged."""
    path = folder / JOB_FILE
    if not path.is_file():
        return None
    try:
        found: State = read_json(path, WAY_OUT, State)
    except UserError:  # its checkpoints say how far it is
        return None
    return found


def write(folder: Path, state: State, durable: bool = False) -> None:
    """Write the state of a job; its folder is made if need be.

    Raises:
        OSError: it cannot be written.
    """
    write_json(folder / JOB_FILE, msgspec.to_builtins(state), durable)


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot become, or is not, that of a batch.

    Raises:
        UserError: why.
    """
    check_writable(out, "--out")
    others = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.exists() else []
    if others and not (out / BATCH_FILE).is_file():
        raise UserError(f"--out {out} is not empty and holds no batch (it has {others[0]!r:.80}); {WAY_OUT}")


def check_jobs(out: Path, jobs: Sequence[Job]) -> None:
    """Refuse jobs that the batch in a folder has begun with other flags.

    Raises:
        UserError: the first of them, with what it was begun with.
    """
    known = _read(out).jobs
    for job in jobs:
        old = known.get(job.name)
        if old is not None and old.words != list(job.words):
            then = [word for word in old.words if word not in job.words] or ["fewer flags"]
            now = [word for word in job.words if word not in old.words] or ["fewer"]
            raise UserError(
                f"{job.place}: the job {job.name} was begun in {out} with {' '.join(then)}, and now has {' '.join(now)}; give "
                "the same flags again, or choose another --out"
            )


def record_jobs(out: Path, jobs: Sequence[Job]) -> None:
    """Add jobs to the list of a batch; those that it has stay in it.

    Raises:
        OSError: it cannot be written.
    """
    new = {job.name: _Listed(list(job.words), job.title, job.seed, job.group) for job in jobs}
    write_json(out / BATCH_FILE, msgspec.to_builtins(_Batch(FORMAT, _read(out).jobs | new)), durable=True)


def _read(out: Path) -> _Batch:
    """The list of a batch; empty if there is none yet.

    Raises:
        UserError: it is damaged, or of a later version.
    """
    path = out / BATCH_FILE
    if not path.is_file():
        return _Batch(FORMAT, {})
    found: _Batch = read_json(path, WAY_OUT, _Batch)
    if found.format != FORMAT:
        raise UserError(f"{path} is of format {found.format}, and this version knows {FORMAT}; {WAY_OUT}")
    return found


def checkpoints(folder: Path) -> list[str]:
    """The names of the checkpoints of a job; a try that changes them got further than the one before."""
    inside = folder / "checkpoints"
    return sorted(path.name for path in inside.glob("*.safetensors")) if inside.is_dir() else []
