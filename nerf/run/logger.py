"""What a run prints and writes about itself: log lines, progress, scalars, and the result.

In the workspace: ``log_df.txt`` (every line), ``metrics.jsonl`` (one JSON object a line), ``run/df`` (TensorBoard, if it is
installed) and ``result.json``. On the screen, all on stderr: the lines, and a progress bar on a terminal or a line every few
seconds without one. Of several processes only rank 0 prints and writes.
"""

import json
import logging
import math
import os
import sys
import threading
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import msgspec
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from nerf.config.stages import FIRST, StageKind
from nerf.core import progress
from nerf.core.console import SafeStream
from nerf.core.errors import UserError, visible
from nerf.core.files import as_shape, is_file, parse_json, read_json, write_atomically, write_json
from nerf.core.transfer import read_scalars
from nerf.core.words import counted
from nerf.run.distributed import is_main
from nerf.run.task_display import LINE_SECONDS, TaskDisplay

SCALAR_STEPS = 10  # reading a loss stalls CUDA, so terms are read back once in so many steps
TINY = 1e-9  # seconds, or steps per second: keeps divisions finite
RESULT_FILE = "result.json"
LOGGER = "somnia"  # parent of the loggers of all modules


class Report:
    """The one place where a run writes and prints; use it in a ``with`` block, or ``close`` it.

    Args:
        workspace: its folder.
        lines: the first lines of the log, such as those of a run plan.
        terminal: draw a progress bar; None asks stderr whether it is a terminal.
        hold: print lines but write no file until :meth:`open` is called; the lines up to then are written there.
    """

    def __init__(
        self, workspace: str | Path, lines: Sequence[str] = (), terminal: bool | None = None, hold: bool = False
    ) -> None:
        self.workspace = Path(workspace)
        self._screen = SafeStream(lambda: sys.stderr)  # what the screen refuses is in the log
        self.terminal = self._screen.isatty() if terminal is None else terminal
        self.results: dict[str, Any] = {}
        self.stage: StageKind = FIRST
        self._main = is_main()
        self._held: list[str] = []
        self._log_file: TextIO | None = None
        self._metrics_file: TextIO | None = None
        self._bar: tqdm | None = None
        self._board: Any = None
        self._folder: tuple[int, int] | None = None  # what the workspace was when the log was opened
        self._next_step = 0  # the first step that this process takes, or would take
        self._rate: _Rate | None = None
        self.after_training: Callable[[], AfterTraining | None] = lambda: None  # asked for every line and bar
        self._handler = _Handler(self)
        logging.getLogger(LOGGER).addHandler(self._handler)
        logging.getLogger(LOGGER).setLevel(logging.INFO)
        self._tasks = TaskDisplay(self._screen, self.terminal, self.log)
        if self._main:
            progress.listen(self._tasks)
        if not hold:
            self.open()
        for line in lines:
            self.log(line)

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close; the exception goes into ``log_df.txt`` alone, as the caller prints it."""
        if error is not None:
            with suppress(OSError):  # a full disk has a message of its own
                self._keep(visible(f"ended by {type(error).__name__}: {error}"))
        self.close()

    def open(self) -> None:
        """Open ``log_df.txt`` in the folder, which exists by now, and write the lines so far; a second call does nothing."""
        if self._log_file is not None or not self._main:
            return
        self._log_file = open(self.workspace / "log_df.txt", "a", encoding="utf-8")  # noqa: SIM115
        self._folder = _identity(self.workspace)
        self.results |= _earlier_mesh(self.workspace / RESULT_FILE)
        held, self._held = self._held, []
        for line in held:
            self._write_line(line)

    def begin_stage(self, stage: StageKind) -> None:
        """Count the following steps in another stage of the run; the bar, the metrics and TensorBoard follow."""
        if stage == self.stage:
            return
        self.log(f"stage {stage.name}")
        self._close_stage()
        self.stage = stage

    def begin_anew(self) -> None:
        """The stage starts over: the bar begins again, and the rows of its earlier steps are left out of the metrics."""
        self._close_stage()

    def _close_stage(self) -> None:
        for open_thing in (self._bar, self._metrics_file):
            if open_thing is not None:
                open_thing.close()
        if self._board is not None:
            with suppress(OSError):  # its files were removed
                self._board.close()
        self._bar = self._metrics_file = self._board = self._rate = None

    def log(self, line: str) -> None:
        """Print one line, and write it to ``log_df.txt`` with the time; control characters are shown as escapes."""
        if self._main:
            line = visible(line)
            self._keep(line)
            tqdm.write(line, file=self._screen)

    def _keep(self, line: str) -> None:
        """Write one line to ``log_df.txt`` with the time, or hold it until the file is open."""
        if not self._main:
            return
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n"
        if self._log_file is None:
            self._held.append(stamped)
        else:
            self._write_line(stamped)

    def _write_line(self, stamped: str) -> None:
        """Write past all buffers: what a full disk refuses is not tried again on closing."""
        assert self._log_file is not None
        try:
            os.write(self._log_file.fileno(), stamped.encode(errors="backslashreplace"))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._log_file.name) from error

    def scalars(self, step: int, terms: Mapping[str, Tensor | float], total: int) -> None:
        """Take the named scalars of a training step; every :data:`SCALAR_STEPS` they are read and written.

        Args:
            step: 1-based number of the step just taken; the first one is where a resumed run continues.
            terms: scalars; 0-d tensors on any device are read only when they are written.
            total: steps of the run.
        """
        if not self._main:
            return
        self.check_folder()
        rate = self._rate = self._rate or self._start(step, total)
        rate.tick(step)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        due = step % SCALAR_STEPS == 0 or step == total
        late = self._bar is None and rate.line_is_due(step == total)
        if not (due or late):
            return
        values = read_scalars(terms)
        if due:
            self._write(step, {f"train/{name}": value for name, value in values.items()})
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        after = self.after_training()
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate.run_text(total - step, after)}{shown}")
        elif late:
            self.log(f"step {step}/{total} {rate.text(total - step)}{rate.run_text(total - step, after)}{shown}")

    def check_folder(self) -> None:
        """Refuse to go on in a workspace that somebody has removed or moved; writing would make a new one of a few files.

        Raises:
            UserError: it is not the folder that it was.
        """
        if self._folder is not None and _identity(self.workspace) != self._folder:
            raise UserError(
                f"the workspace {self.workspace} was removed or moved while it was written to; where it was moved, give its "
                "new place as --workspace to go on from its newest checkpoint, else start again"
            )

    def end_training(self) -> None:
        """Leave the bar as it is after the last step: what follows neither moves it nor counts in its rate."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Print and write measured values, such as the PSNR of held-out photographs."""
        if not values or not self._main:
            return
        self.log(f"step {step}: " + ", ".join(_measure(name, value) for name, value in values.items()))
        self._open_metrics(step + 1)
        self._write(step, {f"eval/{name}": float(value) for name, value in values.items()})

    def result(self, **values: Any) -> Path:
        """Add values to ``result.json``; the file always holds all values so far, and the ``mesh`` that is in the folder.

        Returns:
            Its path.

        Raises:
            OSError: it cannot be written.
        """
        self.check_folder()
        self.results |= {name: _finite(value) for name, value in values.items()}
        path = self.workspace / RESULT_FILE
        return write_json(path, self.results) if self._main else path

    def close(self) -> None:
        """End the bar and close every file; may be called twice."""
        logging.getLogger(LOGGER).removeHandler(self._handler)
        progress.ignore(self._tasks)
        self._close_stage()
        if self._log_file is not None:
            self._log_file.close()

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _start(self, step: int, total: int) -> "_Rate":
        """The first training step of this process: open the metrics where an earlier process stopped, and start the bar."""
        self._open_metrics(step)
        if self.terminal:
            self._bar = tqdm(total=total, initial=step, unit="it", dynamic_ncols=True, file=self._screen)
        return _Rate(step)

    def _open_metrics(self, next_step: int) -> TextIO:
        """Open ``metrics.jsonl`` without the rows that an interrupted process wrote about ``next_step`` and later."""
        if self._metrics_file is not None:
            return self._metrics_file
        self._next_step = next_step
        path = self.workspace / "metrics.jsonl"
        if path.is_file():
            lines = path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
            rows = [(line, _row(line)) for line in lines if line.strip()]
            damaged = [number for number, (_, row) in enumerate(rows, 1) if row is None]
            if damaged:
                self.log(
                    f"{path}: {counted(len(damaged), 'damaged line is', 'damaged lines are')} left out, first line {damaged[0]}"
                )
            kept = [line for line, row in rows if row is not None and _remains(row, self.stage.name, next_step)]
            data = b"".join(line + b"\n" for line in kept)
            write_atomically(path, lambda temporary: temporary.write_bytes(data))
        self._metrics_file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        return self._metrics_file

    def _write(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, "time": round(time.time(), 3)} | {name: _finite(value) for name, value in values.items()}
        row |= {} if self.stage.starts_from is None else {"stage": self.stage.name}
        file = self._open_metrics(step)
        file.write(json.dumps(row) + "\n")
        file.flush()
        board = self._tensorboard()
        try:
            for name, value in values.items() if board is not None else ():
                board.add_scalar(name, value, step)
        except OSError as error:
            self.log(f"{self.workspace / 'run'}: nothing more is written for TensorBoard ({error.strerror or error})")
            self._board = _Nothing()

    def _tensorboard(self) -> Any:
        """The TensorBoard writer, made when first needed; None where it is not installed."""
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._board = _Nothing()
            else:
                threading.excepthook = _quiet_about_tensorboard
                folder = self.workspace / "run" / self.stage.file_prefix
                try:
                    self._board = SummaryWriter(str(folder), purge_step=self._next_step)
                except UnicodeError:
                    self.log(f"{folder}: nothing is written for TensorBoard, which takes no folder whose name is not UTF-8")
                    self._board = _Nothing()
        return None if isinstance(self._board, _Nothing) else self._board


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one at its place; None if there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _quiet_about_tensorboard(args: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, unless it is the writer of TensorBoard: the next value for it raises the same error."""
    if not type(args.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(args)


class _Nothing:
    """A placeholder where TensorBoard is not installed, so that it is imported only once."""

    def close(self) -> None:
        """Nothing was opened."""


class _Handler(logging.Handler):
    """Passes the records of other modules' loggers on to the report."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.INFO)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record's message, with its level if that is a warning or worse."""
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.report.log(prefix + record.getMessage())


@dataclass(frozen=True)
class AfterTraining:
    """What comes after the training of a stage."""

    seconds: float  # estimated from measured rates
    complete: bool  # nothing else comes after it


class _Rate:
    """Steps per second of this process since its first step, which may load and compile things; and whether a line is due."""

    def __init__(self, step: int) -> None:
        self.started = self.last_line = time.monotonic()
        self.first = self.step = step  # that has just ended

    def tick(self, step: int) -> None:
        """Count a step."""
        self.step = step

    def line_is_due(self, last: bool) -> bool:
        """Whether :data:`LINE_SECONDS` went by since the last line, or this is the last step."""
        now = time.monotonic()
        if not last and now - self.last_line < LINE_SECONDS:
            return False
        self.last_line = now
        return True

    @property
    def per_second(self) -> float | None:
        """Steps per second; None before the second step."""
        done = self.step - self.first
        return done / max(time.monotonic() - self.started, TINY) if done > 0 else None

    def text(self, left: int) -> str:
        """ "3.2 it/s, 01:20 left, " with so many steps left; empty if nothing is known."""
        rate = self.per_second
        return "" if rate is None else f"{rate:.3g} it/s, {tqdm.format_interval(left / max(rate, TINY))} left, "

    def run_text(self, left: int, after: AfterTraining | None) -> str:
        """ "run 03:05 left, " with what comes after the steps, and a plus where that is not all; empty if nothing is known."""
        rate = self.per_second
        if after is None or rate is None:
            return ""
        seconds = left / max(rate, TINY) + after.seconds
        return f"run {tqdm.format_interval(seconds)}{'' if after.complete else '+'} left, "


class _Row(msgspec.Struct):
    """What every line of ``metrics.jsonl`` has, beside the values."""

    step: int
    stage: str = FIRST.name


def _row(line: bytes) -> _Row | None:
    """A line of ``metrics.jsonl``, None if it is damaged or was cut off."""
    if line.startswith(BOM_UTF8):
        return None
    try:
        return as_shape(parse_json(line, "", ""), "", "", _Row)
    except UserError:
        return None


def _remains(row: _Row, stage: str, next_step: int) -> bool:
    """Whether a line of ``metrics.jsonl`` is of another stage, or of a step before ``next_step``."""
    return row.stage != stage or row.step < next_step


def _measure(name: str, value: float) -> str:
    """A measured value with its unit: a PSNR is in decibels, a SSIM a plain number."""
    return f"{name} {value:.2f} dB" if name.endswith("psnr") else f"{name} {value:.4f}"


def _earlier_mesh(path: Path) -> dict[str, Any]:
    """The ``mesh`` section of the ``result.json`` of an earlier run, if the files that it lists are still there."""
    try:
        mesh = read_json(path, "")["mesh"]
        return {"mesh": mesh} if all(is_file(file) for file in mesh["files"].values()) else {}
    except (UserError, KeyError, TypeError, AttributeError):
        return {}


def _finite(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities become null, paths text; looks into lists and dicts."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inside) for inside in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
