"""Fixture that runs a test on every backend with kernels that works here."""

import pytest
import torch

from tests.helpers import kernel_backends


@pytest.fixture(params=kernel_backends.KERNELS, ids=kernel_backends.name)
def device(request):
    """The device of every backend that has kernels in turn, with that backend requested."""
    with kernel_backends.on(*request.param):
        yield torch.device(request.param[0])
