"""What the web viewer costs a training: python -m benchmarks.web_viewer

A hamburger trains with the embedded prior, in turn alone, with the viewer served and nobody looking, and with one browser that
looks at a still view, whose frames take a quarter of the time. On one thread, the default, the clock is the CPU time of the
process, server and frames included, which other programs do not touch; on more it is the wall clock. The bar is 1.15 times the
time of a step alone while nobody looks.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import main as program
from benchmarks import timing
from nerf.config.keywords import configure
from nerf.core.ranges import between
from nerf.core.script import Parser, run
from nerf.utils import StepRecord, Trainer
from nerf.viewer.session import Session
from nerf.viewer.web_access import Access, listen
from nerf.viewer.web_server import serving
from nerf.web import Page

ALONE, SERVED, LOOKED = "alone", "served, nobody looks", "served, a still view"
KINDS = {ALONE: (False, False), SERVED: (True, False), LOOKED: (True, True)}  # whether it is served, and looked at
FIRST = 5  # steps before the clock runs: buffers find their sizes
BAR = 1.15


def steps(folder: Path, count: int, threads: int, served: bool, looked_at: bool) -> list[float]:
    """Seconds of each of ``count`` steps of a new run."""
    config = configure(text="a hamburger", workspace=folder, O=True, seed=0, threads=threads, save_mesh=False, ema_decay=0.99)
    times: list[float] = []
    clock = time.process_time if threads == 1 else time.perf_counter
    with program.ready(config) as (made, trainer, _):
        if not served:
            for _ in trainer.run():
                times.append(clock())
                if len(times) > count + FIRST:
                    break
        else:
            _train_served(made, trainer, count, looked_at, times, clock)
    return [b - a for a, b in zip(times[FIRST:-1], times[FIRST + 1 :], strict=True)]


def _train_served(
    made: program.Run, trainer: Trainer, count: int, looked_at: bool, times: list[float], clock: Callable[[], float]
) -> None:
    """Train in a session whose page is served."""
    session = Session(made, trainer)
    after_step, enough = session.after_step, threading.Event()

    def timed(trainer: Trainer, record: StepRecord) -> None:
        after_step(trainer, record)
        times.append(clock())
        if len(times) > count + FIRST:
            enough.set()
            session.stop()

    session.after_step = timed  # type: ignore[method-assign]
    listener = listen("127.0.0.1", 0)
    with serving(Access("127.0.0.1", listener.getsockname()[1]), listener) as server:
        page = Page(server, session, made.config)
        view = session.open_view() if looked_at else None
        session.begin()
        while not enough.wait(0.25):
            page.update()
        if view is not None:
            view.close()
        page.end()
    session.close()


def measure(arguments: argparse.Namespace) -> dict[str, timing.Timing]:
    """The three of them, in turn."""
    found: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(arguments.rounds):
        for name, (served, looked_at) in KINDS.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name] += steps(Path(folder, "run"), arguments.steps, arguments.threads, served, looked_at)
    return {name: timing.Timing(name, median(each), min(each), len(each)) for name, each in found.items()}


def main() -> int:
    """Measure and print; exit code 1 if the bar is missed."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.number("--threads", int, 1, between(1, 1024), "CPU threads of the training")
    parser.number("--rounds", int, 3, between(1, 1000), "runs of each kind, in turn")
    parser.number("--steps", int, 60, between(2, 100_000), "timed steps of each run")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    print(timing.machine(), flush=True)
    timings = measure(arguments)
    print(timing.table("a step of a hamburger", timings, ALONE))
    ratio = timings[SERVED].median / timings[ALONE].median
    print(f"  served and nobody looks: {ratio:.3f} times a step alone (bar {BAR})")
    timing.save(arguments.json, "cpu", {"a step of a hamburger": timings})
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(run(main))
