"""The only module that imports Taichi: which processor it runs on, how many threads, and one launch at a time.

Everything else says ``from taichi_modules.runtime import ti``. To put a fork of Taichi in its place (its interface is the
same), change the import below. Nothing imports this module before a kernel of the backend is needed.
"""

import contextlib
import io
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

os.environ.setdefault("ENABLE_TAICHI_HEADER_PRINT", "0")  # no banner on the standard output
os.environ.setdefault("TI_ENABLE_PYBUF", "0")  # nor a line where that is not the console; our kernels print nothing
os.environ.setdefault("TI_SKIP_VERSION_CHECK", "ON")  # which would ask a server on the network

import taichi as ti  # noqa: E402 - after the settings that it reads when it is imported

# Types of kernel arguments. Arrays are flat and of any dtype; a Static argument is a constant of the compiled code.
if TYPE_CHECKING:
    Array: TypeAlias = Any
    Static: TypeAlias = Any
    Int: TypeAlias = int
    Real: TypeAlias = float
else:
    Array, Static = ti.types.ndarray(ndim=1), ti.template()
    Int, Real = ti.i32, ti.f64

# Type of a torch device -> Taichi's architecture for tensors on it. Tensors of a CPU stay on the CPU, also beside a GPU
# that Vulkan could use: every launch would copy them there and back.
_ARCHITECTURES = {"cpu": "cpu", "cuda": "cuda", "mps": "metal", "vulkan": "vulkan"}
_TYPES = {
    torch.float32: ti.f32,
    torch.float64: ti.f64,
}

_lock = threading.RLock()  # Taichi compiles and launches from one thread at a time
_running: tuple[str, int] | None = None  # architecture and number of threads that Taichi was started with


def start(device_type: str) -> None:
    """Start Taichi for tensors on a type of device, with torch's number of threads, unless it runs like that already.

    A second start with other settings forgets the compiled kernels; they come back from the cache on disk.

    Raises:
        RuntimeError: it does not start; the message has the reason.
    """
    global _running
    wanted = (_ARCHITECTURES[device_type], torch.get_num_threads())
    if wanted == _running:
        return
    _running = None
    with contextlib.redirect_stdout(io.StringIO()):
        ti.init(
            arch=getattr(ti, wanted[0]),
            enable_fallback=False,
            cpu_max_num_threads=wanted[1],
            fast_math=False,  # numbers that are not finite must show, and sums must not depend on the processor
            offline_cache=True,
            log_level=ti.ERROR,
            default_fp=ti.f32,
            default_ip=ti.i32,
        )
    _running = wanted


@ti.kernel
def _increment(values: Array):
    """One is added to each value."""
    for i in range(values.shape[0]):
        values[i] = values[i] + 1


def unavailable(device_type: str) -> str | None:
    """Why Taichi does not run kernels for tensors on a type of device, in one line; None if it does."""
    try:
        value = torch.zeros(1, device=device_type)
        launch(_increment, value, value)
        result = value.item()
    except Exception as error:  # Taichi raises what its many parts do
        return f"Taichi does not start: {str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}"
    return None if result == 1.0 else f"Taichi gives wrong results here: 0 + 1 = {result}"


def launch(kernel: Callable[..., None], like: torch.Tensor, *arguments: Any) -> None:
    """Run a kernel for tensors on the device of ``like``, on that device.

    Args:
        kernel: a function made by ``ti.kernel``.
        like: any of its tensors.
        arguments: tensors are passed flat and without their gradients; None as an empty tensor of the dtype of ``like``;
            torch dtypes as Taichi's.
    """
    with _lock:
        start(like.device.type)
        kernel(*[_argument(value, like) for value in arguments])


def _argument(value: Any, like: torch.Tensor) -> Any:
    """One argument as Taichi takes it."""
    if isinstance(value, torch.Tensor):
        return value.detach().view(-1) if value.numel() else value.new_empty(1)
    if value is None:
        return like.new_empty(1)
    return _TYPES[value] if isinstance(value, torch.dtype) else value
