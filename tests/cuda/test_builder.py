"""The emulation is honest only for threads that do not depend on each other, and shows where they do."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
import torch

from extension import toolchain
from extension.toolchain import BuildError, Target
from tests.helpers.fake_cuda import builder, session
from tests.helpers.fake_cuda.device import STREAM

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")

SUM = """
#include "launch.h"
#include "portable.h"
struct Sum {
    double* out;
    __device__ void operator()(int64_t i) const { ADD }
};
EXPORT int sum_cuda(double* out, int64_t count, int64_t device, void* stream) {
    return somnia::for_each(count, device, stream, Sum{out});
}
"""
CALL = """
import ctypes, sys
path, count, device, stream = sys.argv[1], *map(int, sys.argv[2:])
libc = ctypes.CDLL(None)
libc.calloc.restype, libc.calloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t] * 2
out = ctypes.c_double.from_address(libc.calloc(1, 8))
integers = [ctypes.c_int64(count), ctypes.c_int64(device)]
print(ctypes.CDLL(path).sum_cuda(ctypes.byref(out), *integers, ctypes.c_void_p(stream)), out.value)
"""
ATOMIC, LAST_WRITER = "atomicAdd(out, double(i));", "*out = double(i);"


def compiled(folder, body, mode="plain"):
    """A library of one kernel whose threads do ``body``."""
    source = folder / "sum_cuda.cu"
    source.write_text(SUM.replace("ADD", body))
    output = folder / f"sum_{len(list(folder.iterdir()))}.so"
    builder.compile_to(output, Target("sum", "cuda", (source,), (), builder.flags(mode)))
    return output


def summed(library, order, count=1000, device=0, stream=STREAM, mode="plain"):
    """Status and sum of a call in a process of its own, where the order is chosen."""
    command = [sys.executable, "-c", CALL, str(library), str(count), str(device), str(stream)]
    environment = {**os.environ, "FAKE_CUDA_ORDER": order, **session.sanitizer(mode)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    status, value = said.stdout.split()
    return int(status), float(value)


def test_kernels_are_launched_in_one_place_and_their_threads_do_not_depend_on_each_other():
    builder.require_emulable()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("__shared__ float tile[32];", "found __shared__"),
        ("__syncthreads();", "found __syncthreads"),
        ("x = __shfl_down_sync(~0u, x, 1);", "found __shfl_down_sync"),
        ("if (__any_sync(~0u, x)) return;", "found __any_sync"),
        ("step<<<1, 32>>>(x);", "found 1 launches here"),
        ("cudaLaunchKernel(step, 1, 32, arguments);", "found 1 launches here"),
    ],
)
def test_a_source_that_cannot_be_emulated_is_refused_by_name(tmp_path, line, reason):
    (tmp_path / "march" / "src").mkdir(parents=True)
    (tmp_path / "march" / "src" / "march_cuda.cu").write_text(f"__global__ void step(float* x) {{ {line} }}\n")
    with pytest.raises(ValueError, match=f"march/src/march_cuda.cu: .*{reason}"):
        builder.require_emulable(tmp_path)


@needs_compiler
def test_every_order_runs_every_thread_once_and_a_kernel_that_depends_on_it_shows(tmp_path):
    library = compiled(tmp_path, ATOMIC)
    assert {summed(library, order) for order in ("forward", "reversed", "shuffled", "threads")} == {(0, 499500.0)}
    library = compiled(tmp_path, LAST_WRITER)
    assert summed(library, "forward") == (0, 999.0) and summed(library, "reversed") == (0, 0.0)
    assert 0.0 < summed(library, "shuffled")[1] < 999.0


@needs_compiler
@pytest.mark.parametrize(
    ("mode", "order", "body", "found"),
    [
        ("address", "forward", "out[i] = double(i);", "heap-buffer-overflow"),  # one number was allocated
        ("address", "forward", "*out = double(int32_t(2147483000 + i) + int32_t(i));", "signed integer overflow"),
        ("thread", "threads", LAST_WRITER, "data race"),
    ],
    ids=["beyond the end", "overflow", "race"],
)
def test_the_sanitizers_find_what_they_are_for(tmp_path, mode, order, body, found):
    try:
        session.sanitizer(mode)
    except BuildError as error:
        pytest.skip(str(error))
    harmless, wrong = compiled(tmp_path, ATOMIC, mode), compiled(tmp_path, body, mode)
    assert summed(harmless, order, mode=mode) == (0, 499500.0)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        summed(wrong, order, mode=mode)
    assert found in caught.value.stderr


@needs_compiler
def test_another_device_or_stream_is_an_error_as_on_a_gpu(tmp_path):
    library = compiled(tmp_path, ATOMIC)
    assert summed(library, "forward", device=1)[0] == 101  # cudaErrorInvalidDevice
    assert summed(library, "forward", stream=0)[0] == 400  # cudaErrorInvalidResourceHandle
    assert summed(library, "forward", count=0) == (0, 0.0)


@needs_compiler
def test_what_the_fake_runtime_lacks_does_not_compile(tmp_path):
    with pytest.raises(BuildError, match=r"(?s)sum: the CUDA sources do not compile as C\+\+.*atomicExch"):
        compiled(tmp_path, "atomicExch(out, 1.0);")


@needs_compiler
def test_a_library_is_named_after_its_sources_and_its_mode(monkeypatch, tmp_path):
    monkeypatch.setenv("SOMNIA_KERNEL_CACHE", str(tmp_path))
    plain = builder.shared_object("extension")
    assert plain == builder.shared_object("extension") and plain.parent == tmp_path
    assert builder.target("extension", "plain").fingerprint() != builder.target("extension", "address").fingerprint()
    assert ctypes.CDLL(str(plain)).extension_increment_cuda
    assert set(builder.folders()) == {p.parents[1].name for p in toolchain.ROOT.glob("*/src/*_cuda.cu")}


def test_nothing_of_the_fake_device_is_installed_in_an_ordinary_session():
    assert torch.Generator.__module__ == "torch._C"
