"""Training of the prior on a GPU as a program: what is missing is named, and the flags are those of the training."""

import pytest

from tests.helpers.scripts import load_script


@pytest.fixture
def program():
    """scripts/gpu_prior.py as a module."""
    return load_script("gpu_prior")


def test_packages_that_are_missing_are_named_before_anything_else(program, monkeypatch, capsys):
    monkeypatch.setattr(program, "PACKAGES", ("torch", "no_such_package", "nor_this_one"))
    assert program.main() == 2
    assert "lacks no_such_package, nor_this_one; choose another with make PYTHON=" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused_with_exit_code_2(program, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["scripts/gpu_prior.py", "--device", "cuda"])
    assert program.run(program.main) == 2
    assert capsys.readouterr().err.startswith("gpu_prior.py: --device cuda: torch sees no CUDA device here")
