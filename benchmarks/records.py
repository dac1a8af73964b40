"""Reading what runs and earlier measurements wrote, with a sentence for what is damaged."""

from pathlib import Path
from typing import Any

import msgspec

from nerf.core.files import as_shape, read_json


class Row(msgspec.Struct):
    """What every measurement in a record has, beside its figures."""

    prompt: str
    seed: int
    group: str
    seconds: float = 0.0
    failure: str = ""


def read_record(path: Path) -> dict[str, dict[str, Any]]:
    """The measurements in a record, by name; none if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    hint = "restore it from version control, or give --again to measure all of them anew"
    found: dict[str, dict[str, Any]] = read_json(path, hint, dict[str, dict[str, Any]])
    as_shape(found, path, hint, dict[str, Row])
    return found


class Mesh(msgspec.Struct):
    """What a run says of its mesh."""

    faces: int
    watertight: bool


class Result(msgspec.Struct):
    """What benchmarks read of a ``result.json``."""

    seconds: float
    train_seconds: float
    mesh: Mesh | None = None


def read_result(workspace: Path, shape: Any = Result) -> Any:
    """The ``result.json`` of a finished run.

    Args:
        workspace: of the run.
        shape: what is expected; see :func:`nerf.core.files.as_shape`.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_json(workspace / "result.json", "run the benchmark again", shape)
