"""The backends that tests of the operations run on, each with a device of this machine."""

import importlib.util

import pytest
import torch

import extension

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# (device, backend): native kernels of each device and Taichi's, which are held to the same results; then torch as well.
KERNELS = [*((device, device) for device in DEVICES), ("cpu", "taichi")]
ALL = [*KERNELS, *((device, "torch") for device in DEVICES)]


def name(parameter):
    """The name of a parameter in the name of a test."""
    return "-".join(parameter)


def on(device, backend):
    """Request a backend; the test is skipped where no compiler, or no Taichi, is installed."""
    if backend == "taichi" and importlib.util.find_spec("taichi") is None:
        pytest.skip("Taichi is not installed")
    if backend in DEVICES:
        with extension.scope("auto"):
            if extension.backend(device) != backend:
                pytest.skip(f"no kernels for {device} can be built here")
    return extension.scope(backend)
