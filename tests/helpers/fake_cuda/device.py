"""``torch.cuda`` with one GPU in it, autocast and gradient scaling for it, and the project's kernels on it."""

import ctypes
from types import SimpleNamespace

import torch
from torch import Tensor

import extension
from extension import build, calls, toolchain
from tests.helpers.fake_cuda import builder, functions, waits
from tests.helpers.fake_cuda.tensor import CUDA, CudaTensor, DeviceError, arrive, in_backward, sent

STREAM = 0x57EE4  # kFakeStream in include/cuda_runtime.h
MEMORY = 80 << 30
_PROPERTIES = SimpleNamespace(name="fake GPU", major=9, minor=0, total_memory=MEMORY, multi_processor_count=132)
_on_device: dict[int, bool] = {}  # address -> whether the tensor it was taken of is on the device


class Stream:
    """The one stream."""

    cuda_stream, device = STREAM, CUDA

    def synchronize(self):
        """Wait for everything."""
        _synchronize("stream")


class Event:
    """Waits for the copies that were under way when it was recorded."""

    def __init__(self, *_, **__):
        self.copies = ()

    def record(self, stream=None):
        """Remember what is under way."""
        self.copies = sent()

    def synchronize(self):
        """Wait for that."""
        waits.wait("event", explicit=True)
        arrive(self.copies)

    def query(self):
        """Whether it has passed: never before it is waited for, so that nobody relies on luck."""
        return not set(self.copies) & set(sent())

    def elapsed_time(self, other):
        """Milliseconds, of which the fake device knows nothing."""
        return 1.0


def _synchronize(kind: str) -> None:
    waits.wait(kind, explicit=True)
    arrive(sent())


def install(mode: str = "plain") -> None:
    """Make torch believe in one GPU, in this process and for good.

    Args:
        mode: which of :data:`builder.MODES` its kernels are compiled in.
    """
    _install_cuda()
    _install_autocast()
    functions.install()
    _install_kernels(mode)


def _install_cuda() -> None:
    """What ``torch.cuda`` answers."""
    nothing = dict.fromkeys(
        "set_device empty_cache reset_peak_memory_stats manual_seed manual_seed_all init _lazy_init set_rng_state".split()
    )
    zero = dict.fromkeys("memory_allocated max_memory_allocated memory_reserved max_memory_reserved current_device".split(), 0)
    true = dict.fromkeys("is_available is_initialized is_bf16_supported".split(), True)
    constants = {"device_count": 1, "get_device_name": _PROPERTIES.name, "get_device_capability": (9, 0)}
    constants |= {"get_device_properties": _PROPERTIES, "mem_get_info": (MEMORY, MEMORY)}
    for name, value in (nothing | zero | true | constants).items():
        setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *_: Stream()
    torch.cuda.Event = Event
    torch.cuda.synchronize = lambda *_: _synchronize("torch.cuda.synchronize")
    torch.cuda.set_sync_debug_mode = lambda mode: setattr(waits, "forbidden", mode == "error")
    torch.cuda.get_sync_debug_mode = lambda: 2 if waits.forbidden else 0
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()


def _install_autocast() -> None:
    """Autocast and everything that asks C++ where a tensor is: there a wrapper is on the CPU."""
    init, enabled, group = torch.autocast.__init__, torch.is_autocast_enabled, torch._C._group_tensors_by_device_and_dtype

    def autocast(self, device_type, dtype=None, *args, **kwargs):
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        init(self, device_type, dtype, *args, **kwargs)

    def group_tensors(lists, *args):
        cuda = any(isinstance(x, CudaTensor) for x in lists[0])
        return {(CUDA if cuda else device, dtype): v for (device, dtype), v in group(lists, *args).items()}

    torch.autocast.__init__ = autocast
    torch.is_autocast_enabled = lambda kind="cuda": enabled("cpu" if kind == "cuda" else kind)
    torch._C._group_tensors_by_device_and_dtype = group_tensors
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.__future__.set_overwrite_module_params_on_conversion(True)


def _install_kernels(mode: str) -> None:
    """The loader takes the emulated libraries for CUDA's, and what is passed to a kernel is checked."""
    shared_object, pointer, call = build.shared_object, calls.pointer, calls.call

    def emulated(folder: str, device_type: str, archs=None):
        if device_type != "cuda" or archs is not None:  # with architectures: nvcc is asked for
            return shared_object(folder, device_type, archs)
        toolchain.target(folder, device_type)  # raises where there is no source
        return builder.shared_object(folder, mode)

    def checked_pointer(tensor: Tensor | None):
        address = pointer(tensor)
        if address:
            _on_device[address] = isinstance(tensor, CudaTensor) or in_backward()
        return address

    def checked_call(function, *arguments):
        name = getattr(function, "__name__", "")
        if name.endswith("_cuda"):
            waits.called(name.removesuffix("_cuda"))
        _check_arguments(name, arguments)
        return call(function, *arguments)

    build.shared_object = extension.shared_object = emulated
    calls.pointer = extension.pointer = checked_pointer
    calls.call = extension.call = checked_call


def _check_arguments(name: str, arguments: tuple) -> None:
    """Refuse host memory in a CUDA kernel and the device's in a CPU kernel, also inside a struct of parameters."""
    cuda = name.endswith("_cuda")
    for number, argument in enumerate(arguments):
        if isinstance(argument, Tensor) and isinstance(argument, CudaTensor) != cuda and not in_backward():
            raise DeviceError(f"{name}: argument {number} is on {argument.device}")
        parameters = getattr(argument, "_obj", None)  # of ctypes.byref
        for field, kind, *_ in getattr(parameters, "_fields_", ()):
            value = getattr(parameters, field)
            if cuda and kind is ctypes.c_void_p and value and not _on_device.get(value, True):
                raise DeviceError(f"{name}: {field} is in memory of the host")


def kernel_launches() -> int:
    """How many kernels the loaded libraries have launched."""
    found = 0
    for (_, device_type), library in build._loaded.items():
        if device_type == "cuda" and isinstance(library, ctypes.CDLL):
            library.fake_cuda_launches.restype = ctypes.c_int64
            found += library.fake_cuda_launches()
    return found
