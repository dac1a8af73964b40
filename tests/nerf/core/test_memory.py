"""Memory that runs out is recognised whoever says so, and the innermost work explains it."""

import errno

import numpy as np
import pytest
import torch

from nerf.core.memory import OutOfMemoryError, explained, is_out_of_memory

HUGE = 1 << 50  # bytes, beyond any address space


def real(make):
    """The exception of a real attempt."""
    try:
        make()
    except Exception as error:
        return error
    raise AssertionError("there is that much memory")


OUT_OF_MEMORY = {
    "numpy": lambda: np.empty(HUGE, np.uint8),
    "torch on a CPU": lambda: torch.empty(HUGE, dtype=torch.uint8),
    "bytes": lambda: bytearray(HUGE),
}
SAID = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
)


@pytest.mark.parametrize("make", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_a_real_lack_of_memory_is_recognised(make):
    assert is_out_of_memory(real(make))


@pytest.mark.parametrize("error", SAID, ids=str)
def test_what_libraries_say_is_recognised(error):
    with pytest.raises(OutOfMemoryError, match=r"^memory ran out while baking; lower --texture_size$"):
        with explained("baking", "lower --texture_size"):
            raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "No space left"), ValueError("memory")])
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)) as caught, explained("baking", "lower --texture_size"):
        raise error
    assert caught.value is error


def test_the_innermost_work_explains():
    with pytest.raises(OutOfMemoryError, match="rendering a view; lower --W"):
        with explained("making the video", "lower --dataset_size_test"), explained("rendering a view", "lower --W"):
            raise MemoryError
