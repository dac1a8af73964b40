"""The page of a batch: one file with a sortable table, turntables, and the models in a viewer that ships with it.

Everything is in the page up to :data:`LIMIT`; larger batches have further files in ``index_files`` beside it. A browser opens
it from the disk, and it asks no other address for anything.
"""

import base64
import html
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch_jobs import state
from batch_jobs.jobs import Job
from batch_jobs.state import State
from nerf.core.errors import UserError
from nerf.core.files import read_json, write_atomically
from nerf.core.words import counted

ASSETS = Path(__file__).resolve().parent / "gallery"
FILES = "index_files"
LIMIT = 96 << 20  # bytes of files in the page; browsers open one of a hundred megabytes, and not one of a thousand
TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".glb": "model/gltf-binary"}
LAST = ("seconds", "tries")  # columns
UNSHOWN = ("seed", "train_seconds", "seconds")  # numbers of result.json that are no measures


def write_page(out: Path, jobs: Sequence[Job], title: str) -> Path:
    """Write ``index.html`` of the jobs as they are now.

    Raises:
        OSError: it cannot be written.
    """
    files = _Files(out)
    rows = [_row(out, job, files) for job in jobs]
    columns = [name for name in dict.fromkeys(name for row in rows for name in row["numbers"]) if name not in LAST] + list(LAST)
    count = {name: sum(row["state"] == name for row in rows) for name in ("done", "failed", "waiting")}
    summary = ", ".join(f"{number} {name}" for name, number in count.items() if number)
    data = {"jobs": rows, "columns": columns, "summary": f"{counted(len(rows), 'job')}: {summary}"}
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _asset("page.css"),
        "VIEWER": _asset("viewer.js"),
        "SCRIPT": _asset("page.js"),
        "DATA": json.dumps(data, ensure_ascii=True).replace("<", "\\u003c"),
        "FILES": "\n".join(files.tags),
    }
    text = re.sub("@([A-Z]+)@", lambda found: parts[found[1]], _asset("page.html"))
    path = write_atomically(out / state.PAGE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    files.remove_old()
    return path


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


class _Files:
    """The files that a page shows: in it as base64, or beside it."""

    def __init__(self, out: Path) -> None:
        self.out, self.size = out, 0
        self.tags: list[str] = []
        self.beside: set[str] = set()

    def add(self, path: Path) -> dict[str, Any]:
        """What the page must know of a file."""
        data = path.read_bytes()
        text = base64.b64encode(data).decode()
        place = path.relative_to(self.out).as_posix()
        name = f"file:{place}"
        entry = {"name": name, "type": TYPES[path.suffix.lower()], "bytes": len(data)}
        if self.size + len(text) <= LIMIT:
            self.size += len(text)
            self.tags.append(f'<script type="text/plain" id="{html.escape(name)}">{text}</script>')
            return entry
        script = f"{place.replace('/', '__')}.js"
        self.beside.add(script)
        call = f"somniaFile({json.dumps(name)}, {json.dumps(text)});\n"
        write_atomically(self.out / FILES / script, lambda temporary: temporary.write_text(call, encoding="utf-8"))
        return entry | {"beside": f"{FILES}/{script}"}

    def remove_old(self) -> None:
        """Remove the files of an earlier page."""
        folder = self.out / FILES
        for path in folder.glob("*.js") if folder.is_dir() else ():
            if path.name not in self.beside:
                path.unlink()
        if folder.is_dir() and not self.beside:
            shutil.rmtree(folder, ignore_errors=True)


def _row(out: Path, job: Job, files: _Files) -> dict[str, Any]:
    """What the page says of a job."""
    folder = out / job.name
    found = state.read(folder) or State("running")
    result = _result(folder)
    numbers = (
        {"steps": found.step} | dict(_numbers(result)) | dict(found.scores) | {"seconds": found.seconds, "tries": found.tries}
    )
    turntable, model = _turntable(folder), _model(folder, result)
    return {
        "name": job.name,
        "title": job.title,
        "seed": job.seed,
        "state": {"running": "waiting", "dropped": "done"}.get(found.state, found.state),
        "error": found.error if found.state in ("failed", "running") else "",
        "picked": found.picked,
        "remark": "best of its seeds"
        if found.picked
        else "another seed is kept"
        if found.state == "dropped"
        else found.unjudged,
        "numbers": numbers,
        "command": shlex.join([*job.words, f"--workspace={job.name}"]),
        "result": {key: value for key, value in result.items() if key != "mesh"} or None,
        "turntable": None if turntable is None else files.add(turntable),
        "model": None if model is None else files.add(model),
    }


def _result(folder: Path) -> dict[str, Any]:
    """``result.json`` of a job, as far as it can be read."""
    try:
        found = read_json(folder / "result.json", "")
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _numbers(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The measures of a run: the numbers of ``result.json``, and the faces of its mesh."""
    for name, value in result.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in UNSHOWN:
            yield name, value
    mesh = result.get("mesh")
    faces = mesh.get("faces") if isinstance(mesh, dict) else None
    if isinstance(faces, int):
        yield "faces", faces


def _turntable(folder: Path) -> Path | None:
    """The newest turntable of a job, or else its newest sheet or preview."""
    for pattern in ("results/*_rgb.mp4", "results/*_rgb.gif", "results/*_sheet.png", "validation/*_preview.png"):
        found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        if found:
            return found[-1]
    return None


def _model(folder: Path, result: Mapping[str, Any]) -> Path | None:
    """The GLB of a job, if it wrote one."""
    path = folder / "mesh" / "mesh.glb"
    return path if isinstance(result.get("mesh"), dict) and path.is_file() else None
