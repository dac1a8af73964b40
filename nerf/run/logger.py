"""What a run tells people and programs: log lines, progress, scalars, and the result.

In the workspace: ``log_df.txt`` (every line said), ``metrics.jsonl`` (one JSON object a line), ``run/df`` (TensorBoard,
if it is installed) and ``result.json``. On the screen, all on stderr: the lines, and a bar on a terminal or a line now
and then without one.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from nerf.config.config import Config, describe
from nerf.core.files import write_atomically, write_json
from nerf.run.checkpoint import FIRST_STAGE

SCALAR_STEPS = 10  # reading a loss stalls CUDA, so terms are read back once in so many steps
LINE_SECONDS = 10.0  # without a terminal: a line of progress this often
LOGGER = "somnia"  # every room of the house logs below it


class Report:
    """The one place where a run writes and prints; use it in a ``with`` block, or ``close`` it.

    Args:
        workspace: its folder, which exists.
        config: the frozen options; the log opens with where they came from. None: nothing to tell of them.
        terminal: draw a bar; None asks stderr whether it is a terminal.
    """

    def __init__(self, workspace: str | Path, config: Config | None = None, terminal: bool | None = None):
        self.workspace = Path(workspace)
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.results: dict[str, Any] = {}
        self._log_file = open(self.workspace / "log_df.txt", "a", encoding="utf-8")  # noqa: SIM115
        self._metrics_file = None
        self._bar: tqdm | None = None
        self._board = None
        self.stage = FIRST_STAGE
        self._next_step = 0  # the first step that this process takes, or would take
        self._rate: _Rate | None = None
        self._handler = _Handler(self)
        logging.getLogger(LOGGER).addHandler(self._handler)
        logging.getLogger(LOGGER).setLevel(logging.INFO)
        for line in describe(config) if config is not None else ():
            self.log(line)

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        """Close; what ended the run goes into ``log_df.txt`` alone, as whoever catches it says it on the screen."""
        if error is not None:
            with suppress(OSError):  # a full disk has a sentence of its own
                self._keep(f"ended by {type(error).__name__}: {error}")
        self.close()

    def begin_stage(self, stage: str) -> None:
        """From here on steps count in another stage of the run; the bar, the metrics and TensorBoard follow."""
        if stage == self.stage:
            return
        self.log(f"stage {stage}")
        self._close_stage()
        self.stage = stage

    def _close_stage(self) -> None:
        for open_thing in (self._bar, self._metrics_file, self._board):
            if open_thing is not None:
                open_thing.close()
        self._bar = self._metrics_file = self._board = self._rate = None

    def log(self, line: str) -> None:
        """Say one line, on the screen and in ``log_df.txt`` with the time."""
        self._keep(line)
        tqdm.write(line, file=sys.stderr)

    def _keep(self, line: str) -> None:
        """Write one line to ``log_df.txt`` with the time, past all buffers: what a full disk refuses is not tried again."""
        os.write(self._log_file.fileno(), f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())

    def scalars(self, step: int, terms: Mapping[str, Tensor | float], total: int) -> None:
        """Take the named scalars of a training step; every :data:`SCALAR_STEPS` they are read and written.

        Args:
            step: 1-based number of the step just taken; the first one seen is where a resumed run goes on.
            terms: scalars; 0-d tensors on any device are read only when they are written.
            total: steps of the run.
        """
        if self._rate is None:
            self._start(step, total)
        self._rate.tick(step)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        due = step % SCALAR_STEPS == 0 or step == total
        late = self._bar is None and self._rate.line_is_due(step == total)
        if not (due or late):
            return
        values = {name: float(value) for name, value in terms.items()}
        if due:
            self._write(step, {f"train/{name}": value for name, value in values.items()})
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif late:
            self.log(f"step {step}/{total} {self._rate.text(total - step)} {shown}")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Say and write measured values, such as the PSNR of held-out photographs."""
        if not values:
            return
        self.log(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        self._open_metrics(step + 1)
        self._write(step, {f"eval/{name}": float(value) for name, value in values.items()})

    def result(self, **values: Any) -> Path:
        """Add to ``result.json`` what the run came to; the file always holds everything said so far.

        Raises:
            OSError: it cannot be written.
        """
        self.results |= {name: _finite(value) for name, value in values.items()}
        return write_json(self.workspace / "result.json", self.results)

    def close(self) -> None:
        """End the bar and close every file; may be called twice."""
        logging.getLogger(LOGGER).removeHandler(self._handler)
        self._close_stage()
        self._log_file.close()

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _start(self, step: int, total: int) -> None:
        """The first training step of this process: open the files where an earlier one left off, and start the bar."""
        self._open_metrics(step)
        self._rate = _Rate()
        if self.terminal:
            self._bar = tqdm(total=total, initial=step - 1, unit="it", dynamic_ncols=True, file=sys.stderr)

    def _open_metrics(self, next_step: int) -> None:
        """Open ``metrics.jsonl``; what an interrupted process wrote about ``next_step`` and later goes."""
        if self._metrics_file is not None:
            return
        self._next_step = next_step
        path = self.workspace / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _stands(line, self.stage, next_step)]
            text = "".join(f"{line}\n" for line in kept)
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._metrics_file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def _write(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, "time": round(time.time(), 3)} | {name: _finite(value) for name, value in values.items()}
        row |= {} if self.stage == FIRST_STAGE else {"stage": self.stage}
        self._metrics_file.write(json.dumps(row) + "\n")
        self._metrics_file.flush()
        board = self._tensorboard()
        for name, value in values.items() if board is not None else ():
            board.add_scalar(name, value, step)

    def _tensorboard(self):
        """The TensorBoard writer, made when first needed; None where it is not installed."""
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._board = _Nothing()
            else:
                name = "df" if self.stage == FIRST_STAGE else f"df_{self.stage}"
                self._board = SummaryWriter(str(self.workspace / "run" / name), purge_step=self._next_step)
        return None if isinstance(self._board, _Nothing) else self._board


class _Nothing:
    """Stands where TensorBoard is not installed, so that it is looked for once."""

    def close(self) -> None:
        """Nothing was opened."""


class _Handler(logging.Handler):
    """Passes what the rooms of the house log on to the report."""

    def __init__(self, report: Report):
        super().__init__(logging.INFO)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Say the record's message; warnings say that they are."""
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.report.log(prefix + record.getMessage())


class _Rate:
    """Steps per second over this process, and whether a line about it is due."""

    def __init__(self):
        self.began = self.last_line = time.monotonic()
        self.first: int | None = None
        self.step = 0

    def tick(self, step: int) -> None:
        """Take note of a step."""
        self.first = step - 1 if self.first is None else self.first
        self.step = step

    def line_is_due(self, last: bool) -> bool:
        """Whether :data:`LINE_SECONDS` went by since the last line, or this is the last step."""
        now = time.monotonic()
        if not last and now - self.last_line < LINE_SECONDS:
            return False
        self.last_line = now
        return True

    def text(self, left: int) -> str:
        """ "3.2 it/s, 01:20 left"."""
        rate = (self.step - self.first) / max(time.monotonic() - self.began, 1e-9)
        return f"{rate:.2f} it/s, {tqdm.format_interval(left / max(rate, 1e-9))} left"


def _stands(line: str, stage: str, next_step: int) -> bool:
    """Whether a line of ``metrics.jsonl`` is of another stage or of a step before ``next_step``; a cut one is neither."""
    try:
        row = json.loads(line)
        return row.get("stage", FIRST_STAGE) != stage or row["step"] < next_step
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return False


def _finite(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities become null, paths text; looks into lists and dicts."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inside) for inside in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
