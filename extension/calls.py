"""Calls into the C interface: integers as int64, reals as double, tensors as pointers, errors as exceptions."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extension.build import load_library
from extension.toolchain import BuildError

# What stands in for a native kernel on another backend: it is given a tensor on the device and of the dtype that it
# computes in, and the kernel's arguments by name.
KernelFunction = Callable[[Tensor, Mapping[str, Any]], None]

ALIGNMENT = 16  # bytes, of the widest vector that a kernel reads at once; torch's own allocations begin at more


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous tensor's first element; None (a null pointer) for None.

    Raises:
        ValueError: the tensor is not contiguous.
    """
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f"a kernel needs a contiguous tensor, got strides {tensor.stride()}; call .contiguous()")
    return tensor.data_ptr()


def aligned(tensor: Tensor) -> Tensor:
    """The contiguous tensor, or a copy of it if it does not begin at a multiple of :data:`ALIGNMENT` bytes.

    A view with an odd storage offset does not, and a GPU refuses to read a vector from such a place.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone(memory_format=torch.contiguous_format)


def struct(name: str, pointers: str, integers: str, reals: str = "") -> type[ctypes.Structure]:
    """A kernel's parameter struct from the names of its fields: pointers, then int64, then doubles, as its header has them."""
    kinds = ((ctypes.c_void_p, pointers), (ctypes.c_int64, integers), (ctypes.c_double, reals))
    fields = [(field, kind) for kind, names in kinds for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def fill(kind: type[ctypes.Structure], **values: object) -> ctypes.Structure:
    """A parameter struct; tensors become pointers, the rest goes in as it is. The caller keeps the tensors alive."""
    return kind(**{k: pointer(v) if isinstance(v, Tensor) else v for k, v in values.items()})


def dtype_code(tensor: Tensor) -> int:
    """The dtype argument of kernels that have both: 0 for float32, 1 for float64."""
    return 0 if tensor.dtype == torch.float32 else 1


def stream(device: torch.device) -> int | None:
    """Handle of torch's current CUDA stream on ``device``; None on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def num_threads() -> int:
    """How many threads a CPU kernel may use: torch's own number."""
    return torch.get_num_threads()


def call(function: Callable[..., int], *arguments: object) -> None:
    """Call an ``extern "C"`` function that returns 0 or an error code.

    Tensors become pointers, None a null pointer, int an int64, float a double; ctypes objects pass as they are.

    Raises:
        RuntimeError: the function returned an error; the message has its name and, for CUDA, the driver's text.
    """
    status = function(*map(_convert, arguments))
    if status:
        name = getattr(function, "__name__", "kernel")
        raise RuntimeError(f"{name}: failed with {_error_text(name, status)}")


def kernel(folder: str, name: str, device: torch.device) -> Callable[..., None]:
    """The kernel ``name`` of a folder for tensors on ``device``, ready to be called.

    The returned function passes its arguments on (see :func:`call`) and appends what every kernel takes last: the CUDA
    device's index and stream, or on the CPU the number of threads and a null pointer.

    Raises:
        BuildError: the library cannot be built.
    """
    function = getattr(load_library(folder, device.type), f"{name}_{device.type}")
    if device.type == "cpu":
        return lambda *arguments: call(function, *arguments, num_threads(), None)
    index = torch.cuda.current_device() if device.index is None else device.index
    return lambda *arguments: call(function, *arguments, index, ctypes.c_void_p(stream(device)))


@dataclass(frozen=True)
class Kernels:
    """The kernels of one folder on one backend."""

    folder: str
    functions: Mapping[str, KernelFunction] | None = None  # by name; None: the native ones

    def run(
        self, name: str, like: Tensor, kind: type[ctypes.Structure] | None = None, code: int | None = None, **values: object
    ) -> None:
        """Run a kernel.

        Args:
            name: without the device type.
            like: a tensor on the device and of the dtype that it computes in.
            kind: the parameter struct that its values fill; None: they are its arguments, in their order.
            code: the dtype as the native kernel takes it, after the other arguments.
            values: tensors, which are contiguous, and numbers.
        """
        if self.functions is not None:
            self.functions[name](like, values)
            return
        arguments = list(values.values()) if kind is None else [ctypes.byref(fill(kind, **values))]
        kernel(self.folder, name, like.device)(*arguments, *([] if code is None else [code]))


def _convert(value: object) -> object:
    """One Python argument as the C interface takes it."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(pointer(value))
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return value


def _error_text(name: str, status: int) -> str:
    """The meaning of an error code."""
    if name.endswith("_cuda"):
        try:
            describe = load_library("extension", "cuda").extension_error_text_cuda
        except BuildError:
            return f"CUDA error {status}"
        describe.restype = ctypes.c_char_p
        return f"CUDA error {status}: {describe(ctypes.c_int64(status)).decode()}"
    return f"error {status}"
