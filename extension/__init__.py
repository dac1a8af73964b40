"""The one loader of native code, and the registry of backends (cuda, cpu, taichi, torch) that operations run on.

A kernel folder ``X`` holds ``X/src/X_math.h`` (functions for host and device), ``X/src/*_cpu.cpp`` and
``X/src/X_cuda.cu`` (loops over them), and exports ``extern "C" int name_cpu(..., int64_t threads, void*)`` and
``extern "C" int name_cuda(..., int64_t device, void* stream)``. In that C interface every integer is an ``int64_t``,
every real number a ``double``, everything else a pointer, and the result is 0 or an error code. No source includes a
torch header, so a build takes seconds and does not depend on the torch release.

    from extension import implementation, kernel, register

    def _f(x):                                               # the native implementation
        kernel("X", "name", x.device)(x, y, x.numel(), 0.5)  # name_cpu or name_cuda; the last two arguments are appended
        return y

    register("X.f", native=_f, torch=reference.f)
    implementation("X.f", x)(x)                              # the backend that x's device and --backend choose

Nothing is compiled at import; the first call of a folder's kernel builds it, about a second, into a per-user cache.
"""

from extension.arguments import Arguments
from extension.autograd import Function
from extension.backends import (
    Backend,
    BackendError,
    backend,
    implementation,
    kernels,
    register,
    register_backend,
    register_kernels,
    registered_backends,
    requested,
    scope,
    unavailable,
    unregister_backend,
    use,
)
from extension.build import build_ahead, load_library, shared_object
from extension.calls import (
    KernelFunction,
    Kernels,
    aligned,
    call,
    dtype_code,
    fill,
    kernel,
    num_threads,
    pointer,
    stream,
    struct,
)
from extension.memory import keep_freed_memory
from extension.toolchain import DEFAULT_CUDA_ARCHS, KERNEL_FOLDERS, BuildError, include_dir

__all__ = [
    "DEFAULT_CUDA_ARCHS",
    "KERNEL_FOLDERS",
    "Arguments",
    "Backend",
    "BackendError",
    "BuildError",
    "Function",
    "KernelFunction",
    "Kernels",
    "aligned",
    "backend",
    "build_ahead",
    "call",
    "dtype_code",
    "fill",
    "implementation",
    "include_dir",
    "keep_freed_memory",
    "kernel",
    "kernels",
    "load_library",
    "num_threads",
    "pointer",
    "register",
    "register_backend",
    "register_kernels",
    "registered_backends",
    "requested",
    "scope",
    "shared_object",
    "stream",
    "struct",
    "unavailable",
    "unregister_backend",
    "use",
]
