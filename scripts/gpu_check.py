"""Check the project on a machine with a GPU, with the interpreter's own torch: build, test, measure.

Every kernel is compiled for the GPU that is there, the whole test suite runs with CUDA among its devices, and every
kernel benchmark runs on CUDA; their output goes to docs/benchmarks/gpu_*.txt. It installs nothing: packages that are
missing are named, and a folder that has them can be given in PYTHONPATH.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = """
from concurrent.futures import ThreadPoolExecutor
import extension, torch
print(torch.__version__, torch.cuda.get_device_name())
targets = [(f, d) for d in ("cpu", "cuda") for f in extension.KERNEL_FOLDERS if extension.toolchain.sources(f, d)]
with ThreadPoolExecutor() as pool:
    print(*pool.map(lambda item: extension.shared_object(*item), targets), sep="\\n")
extension.use("cuda")
print("backend", extension.backend("cuda"))
"""
PROCESSES = 8  # of pytest-xdist, each with a context of its own on the GPU
# What the tests import beside torch, and its name on PyPI.
PACKAGES = {
    "accelerate": "accelerate", "diffusers": "diffusers", "embreex": "embreex", "imageio": "imageio",
    "imageio_ffmpeg": "imageio-ffmpeg", "fast_simplification": "fast-simplification", "ninja": "ninja", "numpy": "numpy",
    "PIL": "pillow", "pytest": "pytest", "pytest_timeout": "pytest-timeout", "safetensors": "safetensors",
    "scipy": "scipy", "skimage": "scikit-image", "tensorboard": "tensorboard", "tqdm": "tqdm",
    "transformers": "transformers", "trimesh": "trimesh", "xatlas": "xatlas",
}  # fmt: skip


def main() -> int:
    """Run every step, also after a failed one; returns 0 if all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=25, help="for all steps together")
    parser.add_argument("--only", nargs="+", help="names of steps, such as build tests bench_mlp; default: all of them")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where the reports go")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or not torch.cuda.is_available():
        print(f"gpu-check: {sys.executable} has no torch that sees a GPU; choose another with make PYTHON=... gpu-check")
        return 2
    absent = missing()
    if absent:
        print(f"gpu-check: {sys.executable} lacks {', '.join(absent)}, and tests that need them will fail; "
              "pip install --target FOLDER puts them where PYTHONPATH=FOLDER finds them", flush=True)  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    chosen = [(name, command) for name, command in steps() if not arguments.only or name in arguments.only]
    passed = {name: run(name, command, arguments.out, deadline) for name, command in chosen}
    for name, success in passed.items():
        print(f"gpu-check: {name}: {'passed' if success else 'FAILED'}")
    return 0 if all(passed.values()) else 1


def missing() -> list[str]:
    """The packages that the tests import and this interpreter lacks, by their names on PyPI."""
    return [name for module, name in PACKAGES.items() if not has(module)]


def has(module: str) -> bool:
    """Whether this interpreter has a module."""
    return importlib.util.find_spec(module) is not None


def steps() -> list[tuple[str, list[str]]]:
    """(name, arguments of the interpreter) of every step, in order; tests run in parallel where pytest-xdist is."""
    parallel = ["-n", str(min(PROCESSES, os.cpu_count() or 1)), "--dist", "loadfile"] if has("xdist") else []
    tests = [("build", ["-c", BUILD]), ("tests", ["-m", "pytest", "-q", *parallel])]
    return tests + [(f"bench_{name}", ["-m", f"benchmarks.{name}", "--device", "cuda"]) for name in kernel_benchmarks()]


def kernel_benchmarks() -> list[str]:
    """The benchmarks that take --device: those that have the flags of benchmarks/timing.py."""
    found = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        if re.search(r"^\s+(timing\.)?add_arguments\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(path.stem)
    return found


def run(name: str, command: list[str], out: Path, deadline: float) -> bool:
    """Run one step and write its output to ``out/gpu_<name>.txt``; returns whether it passed."""
    start = time.monotonic()
    left = deadline - start
    if left <= 0:
        print(f"gpu-check: no time left for {name}")
        return False
    print(f"gpu-check: {name} ...", flush=True)
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=left,
            check=False,
        )
        output, success = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, success = (error.stdout or b"") + b"\nran out of time\n", False
    text = output.decode(errors="replace").replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
    (out / f"gpu_{name}.txt").write_text(f"{text}\n{time.monotonic() - start:.1f} s\n", encoding="utf-8")
    print("\n".join(text.splitlines()[-15:]), flush=True)
    return success


if __name__ == "__main__":
    sys.exit(main())
