"""A file of this folder that is named on the command line of an ordinary session is skipped."""

import sys

import pytest


@pytest.fixture(autouse=True)
def fake_device():
    """Skip unless the plugin has installed the device."""
    if "tests.helpers.fake_cuda.plugin" not in sys.modules:
        pytest.skip("for the fake device: python -m pytest -p tests.helpers.fake_cuda.plugin tests/cuda/on_device")
