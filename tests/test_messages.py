"""What messages and help name exists: every flag in a text of the program is one of main.py, or of the program that says it."""

import ast
import functools
import re
from pathlib import Path

from nerf.config.compat import IGNORED, REFUSED
from nerf.config.config import OPTIONS
from nerf.config.parser import dashed
from nerf.config.typed import SYNONYMS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nerf", "guidance", "extension", "raymarching", "rasterizer", "gridencoder", "shencoder", "freqencoder", "mlp",
            "scripts", "benchmarks")  # fmt: skip
FILES = sorted([*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))])
OF_MAIN = {"--file", "--help"} | {name for flag in (*OPTIONS, *REFUSED, *IGNORED) for name in (dashed(flag), f"--no_{flag}")}
# Flags of the programs whose parts are in packages: the script of a package, and what it has.
OF_PROGRAMS = {
    "nerf/data": "preprocess_image.py",
    "nerf/evaluation": "scripts/evaluate.py",
    "nerf/run/published.py": "preprocess_image.py",
    "guidance/base.py": "scripts/guidance_2d.py",
    "guidance/preview.py": "scripts/guidance_2d.py",
    "extension/toolchain.py": "",
    "scripts/doctor.py": "preprocess_image.py",
    "scripts/fetch_weights.py": "preprocess_image.py",
    "benchmarks/mlp.py": "benchmarks/timing.py",
    "benchmarks/surfaces.py": "benchmarks/runs.py",
    "benchmarks/wild.py": "benchmarks/runs.py",
}
OF_OTHERS = {"--version", "--expt-relaxed-constexpr", "--only-binary", "--force-reinstall", "--target", "--query-gpu",
             "--format", "--junitxml", "--nproc_per_node",
             "--max-restarts"}  # fmt: skip # of nvcc, pip, nvidia-smi, pytest and torchrun
PATTERNS = {"--angle_", "--lambda_", "--no_"}  # the beginning of a flag whose end is filled in
METAVARIABLES = {"--flag", "--name", "--x", "--NAME"}  # a flag in general, in docstrings


@functools.cache
def texts(path):
    """(line, text) of every string in a file that could name a flag."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)]
    return [(node.lineno, node.value) for node in nodes if isinstance(node.value, str) and "--" in node.value]


@functools.cache
def flags_of(path):
    """The flags that a program adds itself."""
    return {flag for _, text in texts(path) for flag in re.findall(r"^--[a-zA-Z][\w-]*$", text)}


def named(path):
    """(line, flag) of every flag that a text of a file names."""
    return [(line, flag) for line, text in texts(path) for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text)]


def unknown(path):
    """(line, flag) of every flag that a text of a file names, and that does not exist."""
    place = path.relative_to(ROOT).as_posix()
    programs = [ROOT / program for start, program in OF_PROGRAMS.items() if place.startswith(start) and program]
    known = OF_MAIN | OF_OTHERS | METAVARIABLES | PATTERNS | flags_of(path)
    known = known.union(*map(flags_of, programs))
    siblings = path.parent.glob("*.py") if "prior" in place else ()
    known = known.union(*map(flags_of, siblings))
    return [(line, flag) for line, flag in named(path) if flag not in known]


def test_every_flag_that_a_text_names_exists():
    assert len(FILES) > 300
    assert {str(path.relative_to(ROOT)): found for path in FILES if (found := unknown(path))} == {}


def test_synonyms_stand_for_flags_that_exist():
    assert set(SYNONYMS.values()) <= set(OPTIONS) and not set(SYNONYMS) & set(OPTIONS)


def test_the_check_finds_flags_that_do_not_exist(tmp_path):
    file = tmp_path / "some.py"
    file.write_text('raise UserError(f"{name}: give --iterations or --iters")')
    assert [flag for _, flag in named(file) if flag not in OF_MAIN] == ["--iterations"]
