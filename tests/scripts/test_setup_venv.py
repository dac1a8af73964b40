"""The set-up of a fresh machine: what it installs is what pyproject.toml says, and an unsuitable Python gets a message."""

import re
import subprocess
import tomllib

import pytest

from tests.helpers.scripts import ROOT, load_script


@pytest.fixture
def setup_venv():
    """scripts/setup_venv.py as a module."""
    return load_script("setup_venv")


def names(lines):
    """The bare names of requirements, as pip compares them."""
    return {re.split(r"[=<>\[]", line)[0].strip().lower() for line in lines}


def test_everything_that_is_installed_has_a_tested_version(setup_venv):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = names(line for line in lines if not line.startswith("#"))
    assert names(setup_venv.requirements()) <= pinned


def test_every_extra_of_the_program_is_installed_so_that_no_test_is_skipped(setup_venv):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {name for line in extras["all"] for name in line.partition("[")[2].rstrip("]").split(",")}
    assert {"matting", "guidance"} <= wanted <= set(setup_venv.EXTRAS)
    assert "onnxruntime" in names(setup_venv.requirements())


@pytest.mark.parametrize("version", [(3, 10, 4), (3, 14, 0)])
def test_an_unsuitable_python_is_told_which_to_take(setup_venv, monkeypatch, capsys, version):
    monkeypatch.setattr(setup_venv.sys, "version_info", version)
    monkeypatch.setattr(setup_venv, "make_venv", lambda: pytest.fail("went on"))
    assert setup_venv.main() == 2
    assert "3.11 to 3.13" in (said := capsys.readouterr().err) and ".".join(map(str, version)) in said


def test_a_failed_installation_leaves_no_mark_of_success(setup_venv, monkeypatch, tmp_path, capsys):
    def fail(*_):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(setup_venv, "VENV", tmp_path)
    monkeypatch.setattr(setup_venv, "make_venv", lambda: "python")
    monkeypatch.setattr(setup_venv, "install_torch", fail)
    assert setup_venv.main() == 1
    assert list(tmp_path.iterdir()) == [] and "same make command again" in capsys.readouterr().err


def test_the_usual_index_is_taken_where_that_of_cpu_builds_cannot_be_reached(setup_venv, monkeypatch):
    calls = []

    def pip(python, *arguments):
        calls.append(arguments)
        if setup_venv.CPU_WHEELS in arguments:
            raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(setup_venv, "succeeds", lambda *_: False)
    monkeypatch.setattr(setup_venv.shutil, "which", lambda _: None)
    monkeypatch.setattr(setup_venv, "pip", pip)
    setup_venv.install_torch("python")
    assert [call[-1] for call in calls] == ["torch", "torch"] and calls[1] == ("torch",)
