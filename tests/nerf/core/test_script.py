"""Command lines of scripts and benchmarks: each number has a range, each mistake is one sentence and exit code 2."""

import ast
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nerf.core import script
from nerf.core.errors import DivergenceError, UserError
from nerf.core.ranges import between
from nerf.core.script import Parser

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = [
    path
    for folder in ("scripts", "benchmarks", "guidance", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "Parser(" in path.read_text(encoding="utf-8")
]


@pytest.fixture
def parser():
    """A program with two numbers, a choice and a switch."""
    made = Parser(prog="bench", description="measures")
    made.number("--count", int, 3, between(1, 9), "how many")
    made.number("--sizes", float, [1.0, 2.0], between(0, 4), "of each, 50 % at least", nargs="+")
    made.add_argument("--kind", choices=("one", "other"), default="one")
    made.add_argument("--again", action="store_true")
    return made


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--count 0", "bench: --count must be between 1 and 9, got 0"),
        ("--count ten", "bench: --count must be a whole number, got 'ten'"),
        ("--sizes 1 nan", "bench: --sizes must be a finite number, got 'nan'"),
        ("--sizes 1 5", "bench: --sizes must be between 0 and 4, got 5"),
        ("--coutn 3", "bench: unknown flag --coutn; did you mean --count?"),
        ("--cou 3", "bench: unknown flag --cou; did you mean --count?"),
        ("--zzz", "bench: unknown flag --zzz; see --help"),
        ("more", "bench: unexpected word more; see --help"),
        ("--count", "bench: --count: expected one argument"),
        ("--again=1", "bench: --again: ignored explicit argument '1'"),
        ("--kind none", "bench: --kind: invalid choice: 'none'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(parser, capsys, words, sentence):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(words.split())
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith(sentence) and said.count("\n") == 1


def test_values_in_the_range_are_read_and_help_gives_it(parser):
    found = parser.parse_args(["--count", "1e0", "--sizes", "0", "4"])
    assert (found.count, found.sizes) == (1, [0.0, 4.0]) and parser.parse_args([]).sizes == [1.0, 2.0]
    text = " ".join(parser.format_help().split())
    assert "how many (1 to 9) [3]" in text and "of each, 50 % at least (0 to 4) [1 2]" in text


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_number_of_every_program_has_a_range(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    names = [ast.unparse(call.func) for call in calls]
    # The doctor starts where nothing is installed yet, and takes no numbers.
    assert "argparse.ArgumentParser" not in names or path.stem == "doctor"
    kinds = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "type"]
    assert not {"int", "float"} & {ast.unparse(kind) for kind in kinds}


def test_programs_are_found():
    assert len(PROGRAMS) >= 18


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("gpu.json is damaged\x1b[2J"), 2, "measure.py: gpu.json is damaged\\x1b[2J\n"),
        (PermissionError(13, "Permission denied", "gpu.json"), 2, "measure.py: gpu.json: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
        (DivergenceError("the loss is NaN"), 1, "measure.py: the loss is NaN\n"),
    ],
)
def test_an_error_of_a_script_is_one_sentence(capsys, monkeypatch, error, code, said):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["scripts/measure.py"])
    assert script.run(main) == code and capsys.readouterr().err == said
    assert (script.run(lambda: None), script.run(lambda: 3)) == (0, 3)


def test_logged_lines_do_not_change_the_terminal():
    record = logging.LogRecord("x", logging.INFO, "", 0, "wrote %s", ("a\x1b[1m\nb",), None)
    assert script._Visible().format(record) == "wrote a\\x1b[1m\\nb"


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("scripts/mesh_report.py x.glb --samples -1", "mesh_report.py: --samples must be between 0 and 1e9, got -1"),
        ("scripts/gpu_check.py --minutes 0", "gpu_check.py: --minutes must be above 0 and at most 100000, got 0"),
        ("scripts/soak.py --rounds 0", "soak.py: --rounds must be between 1 and 1e9, got 0"),
        ("-m benchmarks.mlp --points 1e99", "mlp.py: --points must be between 1 and 268435456, got 1e99"),
        ("-m benchmarks.mlp --device cuda:9", "mlp.py: --device: invalid choice: 'cuda:9'"),
        ("-m guidance.prior.dataset --shards 5", "dataset.py: --shards must be first:last or first:last:step"),
        ("benchmarks/text_to_3d.py --jobs 0", "text_to_3d.py: --jobs must be between 1 and 256, got 0"),
    ],
)
def test_programs_refuse_what_cannot_work(program, sentence):
    done = subprocess.run([sys.executable, *program.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(sentence), done.stderr
    assert re.fullmatch("[^\n]+\n", done.stderr)


def test_an_exception_that_nobody_foresaw_is_one_sentence_of_a_script_too(capsys, monkeypatch, tmp_path):
    def main():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(sys, "argv", ["scripts/measure.py"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert script.run(main) == 1
    (path,) = tmp_path.iterdir()
    said = capsys.readouterr().err
    assert said.startswith("measure.py: an error that was not foreseen (two lines); ") and str(path) in said
    assert said.count("\n") == 1 and "in main" in path.read_text()


@pytest.mark.parametrize("path", [path for path in PROGRAMS if "__main__" in path.read_text(encoding="utf-8")], ids=str)
def test_every_program_ends_in_sentences(path):
    own = ("gpu_check", "doctor")  # they report what is wrong with the machine themselves
    assert re.search(r"run\((main|lambda)", path.read_text(encoding="utf-8")) or path.stem in own


@pytest.mark.parametrize(
    "program", ["main.py", "preprocess_image.py", "scripts/mesh_report.py", "scripts/guidance_2d.py", "scripts/soak.py"]
)
def test_an_interrupt_while_a_program_imports_is_no_traceback(tmp_path, program):
    (tmp_path / "sitecustomize.py").write_text(  # as if Ctrl-C came in the middle of an import of the program
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('nerf.core.errors', 'nerf.core.ranges'): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = subprocess.run([sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode in (-signal.SIGINT, 130) and done.stderr == ""
