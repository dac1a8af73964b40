"""What the benchmarks of complete runs share: starting ``main.py`` as a user would, and working through a list in a budget."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_main(flags: list[str], workspace: Path) -> dict[str, object]:
    """Run the command line once, as a user would.

    Args:
        flags: of ``main.py``, without ``--workspace``.
        workspace: of the run; the output goes to ``<workspace>.log``.

    Returns:
        ``seconds`` from start to end, ``returncode``, ``command``, ``megabytes`` of main memory at the peak.
    """
    command = [sys.executable, "main.py", *flags, "--workspace", os.path.relpath(workspace, ROOT)]
    start = time.monotonic()
    with open(workspace.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for, which the object does not know
    return {
        "seconds": round(time.monotonic() - start, 1),
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
    """Measure what is left to do; start nothing new once the minutes are over.

    Args:
        todo: names.
        one: runs and measures one of them.
        done: takes each result as it comes; it is called from this thread.
        minutes: budget.
        jobs: how many at a time.

    Returns:
        How many were not started.
    """
    start = time.monotonic()

    def within(name: str) -> tuple[str, dict | None]:
        return name, None if time.monotonic() - start > 60 * minutes else one(name) | {"jobs": jobs}

    skipped = 0
    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(within, name) for name in todo]):
            name, result = future.result()
            if result is None:
                skipped += 1
                continue
            print(json.dumps(result), flush=True)
            done(name, result)
    return skipped
