"""Measures a batch: how much faster two workers are than one, and that killing a worker and the driver loses nothing.

Example: python benchmarks/batch.py                        # 24 prompts x 2 seeds, over an hour on two quiet cores
         python benchmarks/batch.py --prompts 2 --baseline 1 --extra "--iters 20"
"""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image  # noqa: E402

from batch_jobs import state  # noqa: E402
from batch_jobs.state import State  # noqa: E402
from benchmarks.runs import ROOT, split_words  # noqa: E402
from guidance.prior.benchmark import PROMPTS  # noqa: E402
from nerf.core.errors import UserError  # noqa: E402
from nerf.core.files import read_json, write_atomically, write_json  # noqa: E402
from nerf.core.ranges import between  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

TILE = 96  # pixels of a picture in the gallery
SHEET_COLUMNS = 4  # of a contact sheet


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.split("\n", 1)[0])
    parser.number("--prompts", int, 24, between(1, 24), "of the embedded vocabulary")
    parser.number("--seeds", int, 2, between(1, 100), "of each prompt")
    parser.number("--workers", int, 2, between(1, 256), "at a time")
    parser.number("--baseline", int, 4, between(1, 24), "prompts that one worker alone runs first, one seed each")
    parser.add_argument("--no_kill", action="store_true", help="kill neither a worker nor the driver")
    parser.add_argument("--extra", type=split_words, default=[], help="more flags for main.py, in one string")
    parser.add_argument("--work", type=Path, default=ROOT / "local" / "batch", help="where the batches are")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where the report goes")
    return parser


def start(folder: Path, prompts: list[str], seeds: int, workers: int, extra: list[str]) -> subprocess.Popen:
    """Start, or go on with, a batch."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = folder / "prompts.txt"
    jobs.write_text("\n".join(prompts) + "\n")
    command = [sys.executable, "scripts/batch.py", str(jobs), "--out", str(folder / "out"), "--seeds", str(seeds)]
    command += ["--workers", str(workers), "--no_dashboard", "--", "-O", "--sd_version", "embedded", *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=open(folder / "batch.log", "a"))


def states(folder: Path) -> dict[str, State]:
    """Job -> its state, of those that have begun."""
    found = {path.parent.name: state.read(path.parent) for path in (folder / "out").glob(f"*/{state.JOB_FILE}")}
    return {name: one for name, one in sorted(found.items()) if one is not None}


def wait(folder: Path, driver: subprocess.Popen, done: float) -> bool:
    """Whether a share of ``done`` jobs ends before the driver does; that a job runs then is waited for, too."""
    while driver.poll() is None:
        found = states(folder).values()
        if sum(one.state == "done" for one in found) >= done and any(one.state == "running" and one.step > 0 for one in found):
            return True
        time.sleep(0.5)
    return False


def disturbed(folder: Path, begin: Any, count: int) -> list[str]:
    """Run a batch in which a worker is killed after a third of its jobs, and the driver after a half; what was done."""
    said, driver = [], begin()
    if wait(folder, driver, count / 3):
        name, victim = next((name, one) for name, one in states(folder).items() if one.state == "running" and one.step > 0)
        os.kill(victim.process, signal.SIGKILL)
        said.append(f"killed the worker of {name} at step {victim.step}")
    if wait(folder, driver, count / 2):
        driver.kill()
        said.append(f"killed the driver after {sum(one.state == 'done' for one in states(folder).values())} jobs")
        driver.wait()
        driver = begin()
    driver.wait()
    return said


def gallery(folder: Path, names: list[str], columns: int) -> Image.Image:
    """The first view of each turntable, the jobs in their order."""
    whole = Image.new("RGB", (columns * TILE, -(-len(names) // columns) * TILE), "white")
    for i, name in enumerate(names):
        sheets = sorted((folder / "out" / name / "results").glob("*_sheet.png"))
        if sheets:
            with Image.open(sheets[-1]) as sheet:
                side = sheet.width // SHEET_COLUMNS
                tile = sheet.convert("RGB").crop((0, 0, side, side)).resize((TILE, TILE))
            whole.paste(tile, (i % columns * TILE, i // columns * TILE))
    return whole


def measure(args: Namespace) -> dict[str, Any]:
    """Run both batches; the figures.

    Raises:
        UserError: there are batches already.
    """
    prompts = list(PROMPTS[: args.prompts])
    alone, both = args.work / "alone", args.work / "both"
    if states(alone) or states(both):
        raise UserError(f"--work {args.work} holds a batch, whose times would not count; remove it, or choose another --work")
    few = prompts[: min(args.baseline, len(prompts))]
    began = time.monotonic()
    start(alone, few, 1, 1, args.extra).wait()
    baseline = time.monotonic() - began
    began, count = time.monotonic(), len(prompts) * args.seeds

    def begin() -> subprocess.Popen:
        return start(both, prompts, args.seeds, args.workers, args.extra)

    said = [] if args.no_kill else disturbed(both, begin, count)
    if args.no_kill:
        begin().wait()
    wall, found, single = time.monotonic() - began, states(both), states(alone)
    paired = [(single[name].seconds, found[name].seconds) for name in single if name in found and found[name].tries == 1]
    slower = statistics.mean(b for _, b in paired) / statistics.mean(a for a, _ in paired) if paired else float("nan")
    busy = sum(one.seconds for one in found.values() if one.state == "done") / (args.workers * wall)
    return {
        "prompts": len(prompts),
        "jobs": count,
        "done": sum(one.state == "done" for one in found.values()),
        "workers": args.workers,
        "disturbances": said,
        "seconds": round(wall, 1),
        "baseline_jobs": len(single),
        "baseline_seconds": round(baseline, 1),
        "slower_beside_others": round(slower, 4),
        "busy": round(busy, 4),
        "throughput": round(args.workers * busy / slower, 4),
        "load": os.getloadavg()[1],
        "extra": shlex.join(args.extra),
        "rows": {name: {"state": one.state, "seconds": one.seconds, "tries": one.tries} for name, one in found.items()},
    }


def page(figures: dict[str, Any]) -> str:
    """The report in Markdown."""
    extra = f" --extra {shlex.quote(figures['extra'])}" if figures["extra"] else ""
    alone = f"a job beside others takes, of its time with one worker alone ({figures['baseline_jobs']} jobs)"
    rows = {
        "jobs that are done": f"{figures['done']} of {figures['jobs']}",
        "disturbances": "; ".join(figures["disturbances"]) or "none",
        "seconds in all": f"{figures['seconds']:.0f}",
        alone: f"{figures['slower_beside_others']:.3f}",
        "share of the workers' time that went into finished jobs": f"{figures['busy']:.3f}",
        "**throughput, as a multiple of one worker with one thread**": f"**{figures['throughput']:.2f}**",
    }
    what = f"{figures['prompts']} prompts, {figures['jobs']} jobs, {figures['workers']} workers, load {figures['load']:.1f}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    opening = f"`python benchmarks/batch.py{extra}`: {what}.\n\n| figure | value |\n|---|---|\n"
    return f"{opening}{table}\n\n![The first view of every job](batch.png)\n"


def main() -> int:
    """Measure, and write the report; returns 0 if every job is done."""
    args = parser_of().parse_args()
    figures = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "batch.json", figures)
    write_atomically(args.out / "batch.md", lambda path: path.write_text(page(figures), encoding="utf-8"))
    names = list(read_json(args.work / "both" / "out" / state.BATCH_FILE, "")["jobs"])
    gallery(args.work / "both", names, 4 * args.seeds).save(args.out / "batch.png")
    print(json.dumps({name: value for name, value in figures.items() if name != "rows"}, indent=1))
    return 0 if figures["done"] == figures["jobs"] else 1


if __name__ == "__main__":
    sys.exit(run(main))
