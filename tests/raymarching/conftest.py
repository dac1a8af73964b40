"""Fixtures that run a test on every backend that works here."""

import pytest
import torch

import extension

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _on(device, name):
    """Request a backend, or skip where it cannot be built."""
    if name != "torch":
        with extension.scope("auto"):
            if extension.backend(device) == "torch":
                pytest.skip(f"no kernels for {device} can be built here")
    return extension.scope(name)


@pytest.fixture(params=[(d, b) for d in DEVICES for b in (d, "torch")], ids=lambda p: f"{p[0]}-{p[1]}")
def device(request):
    """The device of every backend in turn, with that backend requested."""
    with _on(*request.param):
        yield request.param[0]


@pytest.fixture(params=DEVICES)
def native(request):
    """The device of every native backend in turn, with that backend requested."""
    with _on(request.param, request.param):
        yield request.param
