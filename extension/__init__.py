"""The one loader of native code and the registry of rungs (cuda, cpu, torch) on which every operation runs.

A kernel folder ``X`` holds ``X/src/X_math.h`` (functions for host and device), ``X/src/*_cpu.cpp`` and
``X/src/X_cuda.cu`` (loops over them), and exports ``extern "C" int name_cpu(..., int64_t threads, void*)`` and
``extern "C" int name_cuda(..., int64_t device, void* stream)``. In that C interface every integer is an ``int64_t``,
every real number a ``double``, everything else a pointer, and the result is 0 or an error code. No source includes a
torch header, so a build takes seconds and outlives torch releases.

    from extension import kernel, on_torch
    if on_torch(x):
        return reference.f(x)
    kernel("X", "name", x.device)(x, y, x.numel(), 0.5)  # calls name_cpu or name_cuda; the last two are appended

Nothing is compiled at import; the first call of a folder's kernel builds it, about a second, into a per-user cache.
"""

from extension.arguments import Arguments
from extension.build import BuildError, build_ahead, library, shared_object
from extension.calls import call, dtype_code, fill, kernel, num_threads, pointer, stream, struct
from extension.ladder import RUNGS, BackendError, backend, on_torch, requested, scope, use
from extension.memory import keep_freed_memory
from extension.toolchain import DEFAULT_CUDA_ARCHS, KERNEL_FOLDERS, include_dir

__all__ = [
    "DEFAULT_CUDA_ARCHS",
    "KERNEL_FOLDERS",
    "RUNGS",
    "Arguments",
    "BackendError",
    "BuildError",
    "backend",
    "build_ahead",
    "call",
    "dtype_code",
    "fill",
    "include_dir",
    "keep_freed_memory",
    "kernel",
    "library",
    "num_threads",
    "on_torch",
    "pointer",
    "requested",
    "scope",
    "shared_object",
    "stream",
    "struct",
    "use",
]
