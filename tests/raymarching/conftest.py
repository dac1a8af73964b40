"""Fixtures that run a test on every backend that works here."""

import pytest

from tests.helpers import kernel_backends


@pytest.fixture(params=kernel_backends.ALL, ids=kernel_backends.name)
def device(request):
    """The device of every backend in turn, with that backend requested."""
    with kernel_backends.on(*request.param):
        yield request.param[0]


@pytest.fixture(params=kernel_backends.KERNELS, ids=kernel_backends.name)
def native(request):
    """The device of every backend that has kernels in turn, with that backend requested."""
    with kernel_backends.on(*request.param):
        yield request.param[0]
