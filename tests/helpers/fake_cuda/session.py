"""Test sessions on the fake device, each in a process of its own; as a program, the kernels' tests under the sanitizers.

    python -m tests.helpers.fake_cuda.session [--modes contracted address thread]

It exits with 1 if a test fails or a sanitizer finds something.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from extension import toolchain
from extension.toolchain import BuildError
from tests.helpers.fake_cuda import builder
from tests.helpers.fake_cuda.waits import ROOT

KERNEL_TESTS = ("tests/raymarching", "tests/gridencoder", "tests/freqencoder", "tests/shencoder", "tests/rasterizer")
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # what the interpreter keeps to its end is no leak of the kernels
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
}


@dataclass(frozen=True)
class Outcome:
    """How a session ended."""

    code: int  # of the process; 0 if every test passed
    passed: int
    launches: int
    kernels: dict[str, int]  # name -> calls
    output: str


def run(paths: tuple[str, ...], mode: str = "plain", order: str = "forward") -> Outcome:
    """Run those tests that use CUDA, on the fake device.

    Args:
        paths: files or folders, from the root of the project.
        mode: one of :data:`builder.MODES`.
        order: of the threads of a kernel: "forward", "reversed", "shuffled" or "threads".
    """
    builder.build_all(mode)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        settings = {"FAKE_CUDA_MODE": mode, "FAKE_CUDA_ORDER": order, "FAKE_CUDA_REPORT": str(report), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.helpers.fake_cuda.plugin", "--durations=0"]
        command += ["--durations-min=5", *paths]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **settings, **sanitizer(mode)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        written = json.loads(report.read_text()) if report.exists() else {"launches": 0, "kernels": {}}
    passed = re.findall(r"(\d+) passed", done.stdout)
    return Outcome(done.returncode, int(passed[-1]) if passed else 0, written["launches"], written["kernels"], done.stdout)


def sanitizer(mode: str) -> dict[str, str]:
    """The environment in which a mode's sanitizer comes before everything else in the process.

    Raises:
        BuildError: the compiler has no such library.
    """
    if mode not in builder.SANITIZER_LIBRARIES:
        return {}
    compiler = toolchain.compiler("cpu")[0]
    names = (builder.SANITIZER_LIBRARIES[mode], "libstdc++.so.6")  # the second so that its exceptions are known to the first
    paths = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    if not Path(paths[0]).exists():
        raise BuildError(f"the compiler has no {paths[0]}; install its sanitizers")
    return {"LD_PRELOAD": " ".join(paths), **SANITIZER_OPTIONS}


def main() -> int:
    """Run the kernels' tests in each mode; returns 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--modes", nargs="+", choices=builder.MODES, default=["contracted", "address", "thread"])
    failed = False
    for mode in parser.parse_args().modes:
        start = time.monotonic()
        if mode == "contracted" and not builder.has_contraction():
            print("contracted: left out, because this processor has no fused multiply-add", flush=True)
            continue
        print(f"{mode}: ...", flush=True)
        outcome = run(KERNEL_TESTS, mode, "threads" if mode == "thread" else "shuffled")
        failed |= outcome.code != 0
        if outcome.code != 0:
            print(outcome.output)
        word = "FAILED" if outcome.code else "passed"
        seconds = time.monotonic() - start
        print(f"{mode}: {word}, {outcome.passed} tests, {outcome.launches} launches, {seconds:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
