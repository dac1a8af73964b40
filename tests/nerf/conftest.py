"""Datasets of photographs that several tests read."""

import pytest

from tests.nerf.photo_folders import SIZES, pattern, write


@pytest.fixture
def mixed(tmp_path):
    """Three opaque photographs of three sizes."""
    return write(tmp_path, [pattern(i, *size) for i, size in enumerate(SIZES)])


@pytest.fixture
def transparent(tmp_path):
    """Three photographs with alpha."""
    return write(tmp_path, [pattern(i, *size, channels=4) for i, size in enumerate(SIZES)])


@pytest.fixture
def short_fits(monkeypatch):
    """Vectors of unseen photographs are fitted in 3 steps, where nobody looks how well; the fit has its own tests."""
    from nerf.run.appearance_fit import RATE, fit_appearance

    monkeypatch.setattr(fit_appearance, "__defaults__", (3, RATE, None))
