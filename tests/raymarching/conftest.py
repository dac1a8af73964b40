"""Fixtures that run a test on every rung of the ladder that works here."""

import pytest
import torch

import extension

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _on(device, name):
    """Enter a rung, or skip if it cannot be built."""
    if name != "torch":
        with extension.scope("auto"):
            if extension.backend(device) == "torch":
                pytest.skip(f"no kernels for {device} can be built here")
    return extension.scope(name)


@pytest.fixture(params=[(d, r) for d in DEVICES for r in (d, "torch")], ids=lambda p: f"{p[0]}-{p[1]}")
def rung(request):
    """Every rung that serves a device; the value is the device."""
    with _on(*request.param):
        yield request.param[0]


@pytest.fixture(params=DEVICES)
def native(request):
    """Every device's own kernels; the value is the device."""
    with _on(request.param, request.param):
        yield request.param
