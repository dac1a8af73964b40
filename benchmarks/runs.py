"""What the benchmarks of complete runs share: flags, starting ``main.py`` as a user would, and a list of runs in a budget."""

import json
import os
import shlex
import subprocess
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from guidance.prior import replies
from nerf.core.ranges import between
from nerf.core.script import Parser

ROOT = Path(__file__).resolve().parent.parent


def add_flags(parser: Parser, what: str, minutes: float, work: str, parallel: bool = True) -> None:
    """Add the flags that all of them have.

    Args:
        parser: gets them.
        what: is run, in the singular.
        minutes: by default.
        work: folder in ``local/`` for the workspaces, by default.
        parallel: whether there is ``--jobs``, which is 1 otherwise.
    """
    parser.number("--minutes", float, minutes, between(0, 1e7), f"start no new {what} after this many minutes")
    parser.add_argument("--work", type=Path, default=ROOT / "local" / work, help="where the workspaces are")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where the report goes")
    parser.add_argument("--again", action="store_true", help=f"repeat {what}s that have been measured already")
    parser.add_argument("--extra", type=split_words, default=[], help="more flags for main.py, in one string")
    parser.set_defaults(jobs=1)
    if parallel:
        parser.number("--jobs", int, 1, between(1, 256), f"{what}s in parallel; each then takes longer")


def split_words(text: str) -> list[str]:
    """Words as a shell splits them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ArgumentTypeError(f"expected words as in a shell, got {text!r:.80} ({str(error).lower()})") from error


def check_prompts(prompts: Iterable[str]) -> None:
    """Refuse prompts that the embedded prior does not know: they could not be measured.

    Raises:
        UserError: one of them.
    """
    for prompt in prompts:
        replies.check(prompt, strict=False)


def parse_flags(parser: Parser, check: Callable[[Namespace], None] = lambda args: None) -> Namespace:
    """What was typed; the folders for it are made once it is checked."""
    args = parser.parse_args()
    check(args)
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    return args


def run_main(flags: list[str], workspace: Path, program: tuple[str, ...] = ("main.py",)) -> dict[str, object]:
    """Run the command line once, as a user would.

    Args:
        flags: of ``main.py``, without ``--workspace``.
        workspace: of the run; the output goes to ``<workspace>.log``.
        program: what is run in place of ``main.py``.

    Returns:
        ``seconds`` from start to end, ``cpu_seconds`` of all its threads, ``returncode``, ``command``, ``megabytes`` of main
        memory at the peak.
    """
    command = [sys.executable, *program, *flags, "--workspace", os.path.relpath(workspace, ROOT)]
    start = time.monotonic()
    with open(workspace.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for, which the object does not know
    return {
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "returncode": process.returncode,
        "command": shlex.join(command[1:]),
        "megabytes": round(used.ru_maxrss / 1024),
    }


def failure(result: dict[str, object], mesh: Path) -> str | None:
    """Why a run gave no mesh; None if it gave one."""
    if result["returncode"]:
        return f"exit code {result['returncode']}"
    return None if mesh.is_file() else f"{mesh.name} was not written"


def work_through(
    todo: Iterable[str], one: Callable[[str], dict], done: Callable[[str, dict], None], minutes: float, jobs: int
) -> int:
    """Measure what is left to do, in its order; start nothing new once the minutes are over.

    Args:
        todo: names.
        one: runs and measures one of them.
        done: takes each result as it comes, one at a time.
        minutes: budget.
        jobs: how many at a time.

    Returns:
        How many were not started.
    """
    start, lock = time.monotonic(), Lock()

    def skipped(name: str) -> bool:
        if time.monotonic() - start > 60 * minutes:
            return True
        result = one(name) | {"jobs": jobs}
        with lock:
            print(json.dumps(result), flush=True)
            done(name, result)
        return False

    if jobs == 1:  # in this thread, so that an error or Ctrl-C ends it at once
        return sum(map(skipped, todo))
    with ThreadPoolExecutor(jobs) as pool:
        return sum(pool.map(skipped, todo))


def report(table: str, skipped: int, minutes: float, what: str) -> None:
    """Print the table, and how to go on if some of the runs, each called ``what``, were not started."""
    print(table)
    if skipped:
        print(f"{minutes:g} minutes are over; run the same command again for the remaining {skipped} {what}s")
