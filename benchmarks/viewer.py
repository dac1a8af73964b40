"""The window of the viewer on a finished hamburger: frames a second under the mouse, answers while it trains, and memory.

Run from the project's folder, on a virtual display: ``python -m benchmarks.viewer`` (needs Xvfb and libXtst). The input is
synthetic, but goes through the X server, the window and the trainer as a user's does.
"""

import ctypes
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import main as program
from benchmarks.timing import machine
from benchmarks.virtual_display import virtual_display
from nerf import gui
from nerf.config.config import Config, parse
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from nerf.core.files import read_json, write_json
from nerf.core.ranges import between
from nerf.core.script import Parser, run
from nerf.run import workspace
from nerf.run.logger import Report
from nerf.viewer.session import Session, show_run

ROOT = Path(__file__).resolve().parent.parent
PROMPT = ("--text", "a hamburger", "-O", "--seed", "0")
FRAMES_BAR, ANSWER_BAR = 10.0, 0.2  # frames a second, seconds
HAND_SECONDS = 0.02  # between two movements of the mouse
SETTLE_SECONDS = 3.0  # before anything is counted
PAUSE_SECONDS = 0.5  # between two clicks
FLAT_MEGABYTES = 20.0  # that the memory may grow by

Show = Callable[[Session, Config, Callable[[], bool]], None]


class Hand:
    """The mouse: movements that the X server reports as a user's (XTEST).

    Args:
        window: whose scene it drags, with the left button.
    """

    def __init__(self, window: gui.Window):
        self._x11, self._test = ctypes.CDLL("libX11.so.6"), ctypes.CDLL("libXtst.so.6")
        self._x11.XOpenDisplay.restype = ctypes.c_void_p
        self._display = ctypes.c_void_p(self._x11.XOpenDisplay(None))
        self._sign = 1
        x, y = (side // 2 for side in window.size)
        left, top = window.dpg.get_viewport_pos()
        self._test.XTestFakeMotionEvent(self._display, -1, int(left) + x, int(top) + y, 0)
        self._x11.XFlush(self._display)

    def button(self, down: bool) -> None:
        """Press or release the left button."""
        self._test.XTestFakeButtonEvent(self._display, 1, int(down), ctypes.c_ulong(0))
        self._x11.XFlush(self._display)

    def move(self, dx: int, dy: int = 0) -> None:
        """Move by so many pixels."""
        self._test.XTestFakeRelativeMotionEvent(self._display, dx, dy, ctypes.c_ulong(0))
        self._x11.XFlush(self._display)

    def push(self, dx: int) -> None:
        """Move to the right, then to the left, in turn."""
        self.move(self._sign * dx)
        self._sign = -self._sign

    def close(self) -> None:
        """Let go."""
        self.button(False)
        self._x11.XCloseDisplay(self._display)


def step_for(window: gui.Window, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Draw the window for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        window.step()
        meanwhile()


def orbiting(window: gui.Window, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Turn the scene by hand for so long, to and fro."""
    hand, stop = Hand(window), threading.Event()
    step_for(window, 0.3)
    hand.button(True)

    def move() -> None:
        left = 0
        while not stop.wait(HAND_SECONDS):
            left = (left + 1) % 60
            hand.move(4 if left < 30 else -4, 1 if left % 30 < 15 else -1)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        step_for(window, seconds, meanwhile)
    finally:
        stop.set()
        mover.join()
        hand.close()


def measured_orbit(found: dict[str, Any], seconds: float) -> Show:
    """A front end that counts the frames that are drawn while the scene is turned."""

    def show(session: Session, config: Config, stopped: Callable[[], bool]) -> None:
        window = gui.Window(session)
        try:
            step_for(window, SETTLE_SECONDS)
            orbiting(window, 1.5)
            before, began, scales = window.picture.uploads, time.monotonic(), []
            orbiting(window, seconds, lambda: scales.append(window.view.frame.scale if window.view.frame else 0.0))
            took = time.monotonic() - began
            found["frames_per_second"] = round((window.picture.uploads - before) / took, 2)
            found["scale"] = round(statistics.median(scales), 3)
            found["size"] = list(window.size)
            found["frame_ms"] = round(1e3 * window.view.frame.seconds) if window.view.frame else 0
        finally:
            window.close()

    return show


def measured_clicks(found: dict[str, Any], count: int) -> Show:
    """A front end that times answers to the mouse while the run trains: from the event to the frame in the window."""

    def show(session: Session, config: Config, stopped: Callable[[], bool]) -> None:
        window, times = gui.Window(session), []
        try:
            step_for(window, SETTLE_SECONDS)
            hand, first = Hand(window), session.status.step
            step_for(window, 0.3)
            hand.button(True)
            step_for(window, 0.3)
            for i in range(count):
                step_for(window, PAUSE_SECONDS + 0.037 * (i % 9))  # not in step with the training
                version, began = window.view.show(), time.monotonic()
                threading.Timer(0.0, hand.push, [60]).start()
                while window.drawn <= version and time.monotonic() - began < 5.0:
                    window.step()
                times.append(time.monotonic() - began)
            hand.close()
            found["steps_meanwhile"] = session.status.step - first
        finally:
            window.close()
        times.sort()
        found["answers"] = count
        found["median_ms"] = round(1e3 * statistics.median(times))
        found["percentile_95_ms"] = round(1e3 * times[min(round(0.95 * count), count - 1)])
        found["slowest_ms"] = round(1e3 * times[-1])

    return show


def megabytes() -> float:
    """Main memory of this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0


def measured_memory(found: dict[str, Any], minutes: float) -> Show:
    """A front end that turns the scene for minutes, and notes the memory of the process."""

    def show(session: Session, config: Config, stopped: Callable[[], bool]) -> None:
        window = gui.Window(session)
        noted: list[float] = []
        due = [0.0]

        def note() -> None:
            if time.monotonic() >= due[0]:
                due[0] = time.monotonic() + 5.0
                noted.append(round(megabytes(), 1))

        try:
            step_for(window, SETTLE_SECONDS)
            orbiting(window, min(20.0, 30.0 * minutes))  # caches fill
            orbiting(window, 60.0 * minutes, note)
            found["frames"] = window.picture.uploads
        finally:
            window.close()
        third = max(len(noted) // 3, 1)
        found["minutes"] = minutes
        found["megabytes"] = noted[:: max(len(noted) // 24, 1)]
        found["growth_megabytes"] = round(statistics.median(noted[-third:]) - statistics.median(noted[:third]), 1)

    return show


def watch(show: Show, folder: Path, *flags: str) -> None:
    """A run of main.py with a front end of this file."""
    asked = parse([*PROMPT, *flags, "--workspace", str(folder), "--viewer", "desktop"])
    gui.check(asked)
    plan = resolve(asked, program.read_disk(asked), program.choose_weights)
    device = program.prepare_machine(plan.config)
    workspace.open_workspace(plan)
    with Report(folder, plan.lines, terminal=False) as report:
        made = program.Run(plan, program.make_inputs(plan, device), device, report, time.monotonic())
        show_run(made, made.make(plan.pending[0]), show)


def finished(folder: Path) -> Path:
    """A hamburger that was trained for 500 steps, made where it is missing."""
    if not list((folder / "checkpoints").glob("df_step_00000500.safetensors")):
        command = [sys.executable, "main.py", *PROMPT, "--iters", "500", "--workspace", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)
    return folder


def measure(args: Namespace) -> dict[str, Any]:
    """The parts that are asked for, each with its figures."""
    if len(args.parts) > 1:  # each with a process and a window of its own
        return {name: value for part in args.parts for name, value in _apart(args, part).items()}
    found: dict[str, Any] = {}
    hamburger = finished(args.work / "hamburger")
    with virtual_display() as os.environ["DISPLAY"]:
        if "orbit" in args.parts:
            watch(measured_orbit(found.setdefault("orbit", {}), args.seconds), hamburger, "--test")
            found["orbit"]["passes"] = found["orbit"]["frames_per_second"] >= FRAMES_BAR
        if "clicks" in args.parts:
            training = args.work / "training"
            shutil.rmtree(training, ignore_errors=True)
            shutil.copytree(hamburger, training)
            watch(measured_clicks(found.setdefault("clicks", {}), args.clicks), training, "--iters", "100000")
            found["clicks"]["passes"] = found["clicks"]["percentile_95_ms"] <= 1e3 * ANSWER_BAR
        if "memory" in args.parts:
            watch(measured_memory(found.setdefault("memory", {}), args.minutes), hamburger, "--test")
            found["memory"]["passes"] = abs(found["memory"]["growth_megabytes"]) <= FLAT_MEGABYTES
    return found


def _apart(args: Namespace, part: str) -> dict[str, Any]:
    """:func:`measure` of one part, in another process.

    Raises:
        UserError: it failed.
    """
    out = args.work / f"{part}.json"
    out.unlink(missing_ok=True)
    flags = ["--seconds", args.seconds, "--clicks", args.clicks, "--minutes", args.minutes, "--work", args.work, "--json", out]
    subprocess.run([sys.executable, "-m", "benchmarks.viewer", "--parts", part, *map(str, flags)], cwd=ROOT)
    if not out.is_file():
        raise UserError(f"the part {part} ended early; what it printed says why")
    figures: dict[str, Any] = read_json(out, "run the benchmark again")["figures"]
    return figures


def main() -> int:
    """Measure, print and write the figures; exit code 1 if a bar is missed."""
    if "OMP_WAIT_POLICY" not in os.environ:  # as main.py sets it, which has to be before torch is loaded
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.viewer", *sys.argv[1:]])
    parser = Parser(prog="benchmarks.viewer", description=__doc__)
    parts = ("orbit", "clicks", "memory")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="what is measured")
    parser.number("--seconds", float, 15.0, between(1, 3600), "seconds of turning that frames are counted in")
    parser.number("--clicks", int, 60, between(3, 10_000), "answers that are timed")
    parser.number("--minutes", float, 10.0, between(0.1, 600), "minutes of turning that memory is noted in")
    parser.add_argument("--work", type=Path, default=ROOT / "local" / "viewer", help="where the workspaces are")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    before = machine().splitlines()
    found = measure(args)
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    if args.json is not None:
        kept = read_json(args.json, "delete it").get("figures", {}) if args.json.is_file() else {}
        write_json(args.json, {"machine": before, "figures": kept | found})
    return 0 if all(figures["passes"] for figures in found.values()) else 1


if __name__ == "__main__":
    sys.exit(run(main, "benchmarks.viewer"))
