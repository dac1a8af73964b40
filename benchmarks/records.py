"""Records of measurements, written and read again, and results of runs; a sentence for what is damaged."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nerf.core.files import as_shape, read_json
from nerf.core.images import write_png


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
    hint = "restore it from version control, or delete it to measure all of them anew"
    found: dict[str, dict[str, Any]] = read_json(path, hint, dict[str, dict[str, Any]])
    as_shape(found, path, hint, dict[str, Row])
    return found


def write_record(out: Path, name: str, results: dict[str, dict], table: str, rows: list[np.ndarray]) -> None:
    """Write measurements as JSON, as a Markdown table, and pictures of them in two columns.

    Args:
        out: folder.
        name: of the files.
        results: by name, as :func:`read_record` gives them.
        table: of the results.
        rows: pictures of one size, uint8 [H, W, 3]; none, no sheet.
    """
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{name}.md").write_text(table)
    if rows:
        rows = rows + [np.full_like(rows[0], 255)] * (len(rows) % 2)
        half = len(rows) // 2
        columns = [np.concatenate(rows[:half], 0), np.concatenate(rows[half:], 0)]
        write_png(out / f"{name}.png", np.concatenate(columns, 1))


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
