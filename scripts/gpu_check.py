"""Check the project on a machine with a GPU, with the interpreter's own torch: build, test, measure.

The stages, each within --minutes: ``build`` compiles every kernel for the GPU that is there, ``kernels`` runs the tests of the
kernels with CUDA among their devices, ``suite`` all other tests, ``bench`` every kernel benchmark on CUDA, and ``guidance``
measures the UNet of a guided step under the flags that may make it faster, of which compiling takes minutes. Results are
added to gpu.json, from which gpu.md is written anew, so that stages can run on different days; what everything printed goes
to files of its own. It installs nothing: packages that are missing are named, and a folder that has them can be given in
PYTHONPATH; tests that need one of them are skipped.
"""

import concurrent.futures
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nerf.core.ranges import above  # noqa: E402
from nerf.core.script import Parser, refuse  # noqa: E402

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
STAGES, TESTS, MEASURED = ("build", "kernels", "suite", "bench", "guidance"), ("kernels", "suite"), ("bench", "guidance")
COUNTED = ("passed", "failed", "skipped")
KERNEL_FOLDERS = ("extension", "raymarching", "gridencoder", "freqencoder", "shencoder", "mlp", "rasterizer")  # of tests/
PYTEST = ["-m", "pytest", "-q", "-rs", "--continue-on-collection-errors", "-p", "tests.helpers.missing_packages"]
PROCESSES = 8  # of pytest at once, each with a context of its own on the GPU
NO_TESTS = 5  # pytest's exit status where it has collected none
FAILURES_SHOWN = 20
# What the tests import beside torch, and its name on PyPI.
PACKAGES = {
    "accelerate": "accelerate", "diffusers": "diffusers", "embreex": "embreex", "imageio": "imageio",
    "imageio_ffmpeg": "imageio-ffmpeg", "fast_simplification": "fast-simplification", "filelock": "filelock",
    "msgspec": "msgspec", "ninja": "ninja", "numpy": "numpy", "onnxruntime": "onnxruntime", "peft": "peft",
    "PIL": "pillow", "pytest": "pytest", "pytest_timeout": "pytest-timeout", "safetensors": "safetensors",
    "scipy": "scipy", "skimage": "scikit-image", "tensorboard": "tensorboard", "tqdm": "tqdm",
    "transformers": "transformers", "trimesh": "trimesh", "xatlas": "xatlas",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One process of a stage."""

    name: str
    command: list[str]  # the interpreter's arguments
    report: Path | None = None  # that the process writes: pytest's XML, or a benchmark's JSON


@dataclass
class Result:
    """What came out of a step."""

    passed: bool
    seconds: float
    tests: dict[str, int] = field(default_factory=dict)  # passed, failed, skipped
    failures: list[str] = field(default_factory=list)  # of tests
    figures: dict[str, Any] = field(default_factory=dict)  # of a benchmark
    error: str = ""  # the last lines of a step that failed and has no tests to blame


def main() -> int:
    """Run the chosen stages, also after a failed one; returns 0 if all of them passed."""
    parser = Parser(description=__doc__.split("\n", 1)[0])
    parser.number("--minutes", float, 9, above(0, 1e5), "for each stage")
    parser.add_argument("--only", nargs="+", help=f"stages ({', '.join(STAGES)}) or steps, such as bench_mlp; default: all")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where gpu.json and gpu.md go [docs/benchmarks]"
    )
    parser.add_argument(
        "--logs", type=Path, default=ROOT / "build" / "gpu_check", help="where the processes' output goes [build/gpu_check]"
    )
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
        print(f"gpu-check: {sys.executable} lacks {', '.join(absent)}, and tests that need them are skipped; "
              "pip install --target FOLDER puts them where PYTHONPATH=FOLDER finds them", flush=True)  # fmt: skip
    for folder in (arguments.out, arguments.logs):
        folder.mkdir(parents=True, exist_ok=True)
    read_results(arguments.out)  # before anything takes time
    chosen = choose(steps(arguments.logs), arguments.only)
    if not any(chosen.values()):
        return refuse(
            f"--only {' '.join(arguments.only)} names no stage and no step; stages are {', '.join(STAGES)}", "gpu-check"
        )
    success = True
    for stage, of_stage in chosen.items():
        found = run_stage(stage, of_stage, arguments.logs, 60 * arguments.minutes)
        if found:
            success &= all(result.passed for result in found.values())
            save(arguments.out, stage, found, machine(torch))
    return 0 if success else 1


def missing() -> list[str]:
    """The packages that the tests import and this interpreter lacks, by their names on PyPI."""
    return [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]


# ---- What there is to do ----------------------------------------------------------------------------------------------


def steps(logs: Path) -> dict[str, list[Step]]:
    """The steps of every stage, in order; reports go to ``logs``."""
    kernels = [str(path) for folder in KERNEL_FOLDERS for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    others = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if str(path) not in kernels]
    return {
        "build": [Step("build", ["-c", BUILD])],
        "kernels": [tests_step("kernels", shard, i, logs) for i, shard in enumerate(shards(kernels))],
        "suite": [tests_step("suite", shard, i, logs) for i, shard in enumerate(shards(others))],
        "bench": [benchmark(name, logs) for name in kernel_benchmarks()],
        "guidance": [benchmark("guidance", logs)],
    }


def benchmark(name: str, logs: Path) -> Step:
    """A benchmark on CUDA."""
    report = logs / f"bench_{name}.json"
    return Step(f"bench_{name}", ["-m", f"benchmarks.{name}", "--device", "cuda", "--json", str(report)], report)


def tests_step(stage: str, paths: list[str], number: int, logs: Path) -> Step:
    """A process of pytest on some files."""
    report = logs / f"{stage}_{number}.xml"
    return Step(f"{stage}_{number}", [*PYTEST, f"--junitxml={report}", *paths], report)


def shards(paths: list[str]) -> list[list[str]]:
    """Test files for PROCESSES processes at most, the longest files dealt out first."""
    count = min(PROCESSES, os.cpu_count() or 1, len(paths))
    ordered = sorted(paths, key=lambda path: (-Path(path).stat().st_size, path))
    return [ordered[first::count] for first in range(count)]


def kernel_benchmarks() -> list[str]:
    """The benchmarks that take --device, those that have the flags of benchmarks/timing.py, but for that of the guidance."""
    found = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        flags = re.search(r"^\s+(timing\.)?add_arguments\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        if flags and path.stem != "guidance":
            found.append(path.stem)
    return found


def choose(every: dict[str, list[Step]], only: list[str] | None) -> dict[str, list[Step]]:
    """The steps that ``--only`` names, itself or by their stage; all without it."""
    if not only:
        return every
    return {stage: [step for step in found if stage in only or step.name in only] for stage, found in every.items()}


# ---- Running it --------------------------------------------------------------------------------------------------------


def run_stage(stage: str, of_stage: list[Step], logs: Path, seconds: float) -> dict[str, Result]:
    """Run a stage's steps within a time; returns the results by name.

    Processes of tests run at once and have one result together; others, whose times count, run one after the other.
    """
    deadline = time.monotonic() + seconds
    if not of_stage:
        return {}
    if stage in TESTS:
        with concurrent.futures.ThreadPoolExecutor(len(of_stage)) as pool:
            found = {stage: merged(list(pool.map(lambda step: run(step, logs, deadline), of_stage)))}
            show(stage, found[stage])
        return found
    found = {}
    for step in of_stage:
        found[step.name] = run(step, logs, deadline)
        show(step.name, found[step.name])
    return found


def merged(results: list[Result]) -> Result:
    """One result of processes that shared the tests of a stage."""
    tests = {word: sum(result.tests.get(word, 0) for result in results) for word in COUNTED}
    failures = [line for result in results for line in result.failures]
    errors = "\n".join(result.error for result in results if result.error)
    return Result(all(r.passed for r in results), max(r.seconds for r in results), tests, failures, error=errors)


def show(name: str, result: Result) -> None:
    """Print a result."""
    counts = ", ".join(f"{number} {word}" for word, number in result.tests.items())
    word = "passed" if result.passed else "FAILED"
    print(f"gpu-check: {name}: {word} in {result.seconds:.0f} s{counts and f' ({counts})'}", flush=True)
    for line in result.failures[:FAILURES_SHOWN] + result.error.splitlines():
        print(f"    {line}", flush=True)


def run(step: Step, logs: Path, deadline: float) -> Result:
    """Run one step, write its output to ``logs/<name>.txt``, and read its report."""
    start = time.monotonic()
    if deadline <= start:
        return Result(False, 0.0, error=f"no time was left; run it alone with --only {step.name}")
    if step.report is not None:
        step.report.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, *step.command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=deadline - start,
            check=False,
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = (error.stdout or b"") + b"\nran out of time\n", 1
    text = output.decode(errors="replace").replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
    (logs / f"{step.name}.txt").write_text(text, encoding="utf-8")
    result = Result(code == 0, round(time.monotonic() - start, 1))
    if step.report is not None and step.report.exists():
        if step.report.suffix == ".xml":
            result.tests, result.failures = read_tests(step.report)
            result.passed = code in (0, NO_TESTS)
        else:
            try:
                result.figures = json.loads(step.report.read_text(encoding="utf-8"))["figures"]
            except (ValueError, LookupError, TypeError):  # it was stopped while it wrote
                result.passed = False
    if not result.passed and not result.failures:
        result.error = "\n".join(text.splitlines()[-15:])
    return result


def read_tests(path: Path) -> tuple[dict[str, int], list[str]]:
    """Counts and the names of failed tests from pytest's XML."""
    counts, failures = dict.fromkeys(COUNTED, 0), []
    for case in ElementTree.parse(path).iter("testcase"):
        trouble = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = any(child.tag == "skipped" for child in case)
        counts["failed" if trouble is not None else "skipped" if skipped else "passed"] += 1
        if trouble is not None:
            reason = (trouble.get("message") or "").strip().partition("\n")[0][:200]
            failures.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
    return counts, failures


# ---- Reporting it -----------------------------------------------------------------------------------------------------


def machine(torch: Any) -> dict[str, str]:
    """What the results depend on."""
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # a copy of the tree on a machine without git
        commit = ""
    return {
        "GPU": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "commit": commit or "unknown",
    }


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """The results of earlier stages in gpu.json, by stage and name; none if there is no file.

    By hand, as the package that checks shapes elsewhere may be missing on this machine. Exits with 2 if it is damaged.
    """
    path = out / "gpu.json"
    needed = {each.name for each in fields(Result)} | {"machine"}
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        whole = all(needed <= set(result) for results in known.values() for result in results.values())
    except (ValueError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise SystemExit(refuse(f"{path} is damaged; restore it from version control, or remove it"))
    return dict(known)


def save(out: Path, stage: str, found: dict[str, Result], where: dict[str, str]) -> None:
    """Add a stage's results to gpu.json and write gpu.md anew; steps that did not run this time stay."""
    path, known = out / "gpu.json", read_results(out)
    known.setdefault(stage, {}).update({name: {**asdict(result), "machine": where} for name, result in found.items()})
    known = {name: known[name] for name in STAGES if name in known}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text("\n".join(markdown(known)) + "\n", encoding="utf-8")


def markdown(known: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The results as a page."""
    yield "# On a GPU\n\n`make gpu-check` writes this page; the figures are in gpu.json.\n"
    yield "| step | result | seconds | tests passed, failed, skipped | where |\n|---|---|---|---|---|"
    for results in known.values():
        for name, result in results.items():
            counts = ", ".join(str(number) for number in result["tests"].values())
            where = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
            yield f"| {name} | {'passed' if result['passed'] else '**failed**'} | {result['seconds']} | {counts} | {where} |"
    for results in known.values():
        for name, result in results.items():
            if not result["passed"]:
                yield f"\n## What failed in {name}\n\n```"
                yield from result["failures"][:FAILURES_SHOWN]
                yield from filter(None, [result["error"]])
                yield "```"
    for name, result in (item for stage in MEASURED for item in known.get(stage, {}).items()):
        for title, timings in result["figures"].items():
            yield f"\n## {name}: {title}\n\n| | median ms | fastest ms |\n|---|---|---|"
            for each in timings.values():
                yield f"| {each['name']} | {1e3 * each['median']:.3f} | {1e3 * each['fastest']:.3f} |"


if __name__ == "__main__":
    sys.exit(main())
