"""torch's functions that take a device, for the fake one: they replace torch's own in this process."""

import functools

import torch
from torch import Tensor
from torch.utils import _device

from tests.helpers.fake_cuda import waits
from tests.helpers.fake_cuda.tensor import (
    CPU,
    CUDA,
    CudaTensor,
    DeviceError,
    fill_unwritten,
    is_pinned,
    on_cuda,
    pinned,
    to_cpu,
    to_cuda,
)

MAKERS = (
    "arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint", "randn",
    "randperm", "scalar_tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip
UPLOADS = ("as_tensor", "asarray", "tensor")
LIKE = ("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like")
NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
DRAWS = ("bernoulli", "multinomial")
DRAWS_IN_PLACE = ("bernoulli_", "exponential_", "normal_", "random_", "uniform_")
_convert = torch._C.TensorBase.to


def install() -> None:
    """Replace the functions, once and for good."""
    _device._device_constructors()  # so that ``with torch.device("meta")`` goes on knowing torch's own
    for name in MAKERS:
        setattr(torch, name, _maker(name, getattr(torch, name)))
    for name in UPLOADS:
        setattr(torch, name, _uploader(name, getattr(torch, name)))
    for owner, names in ((torch, LIKE), (Tensor, NEW)):
        for name in names:
            setattr(owner, name, _like(name, getattr(owner, name)))
    for owner, names in ((torch, DRAWS), (Tensor, DRAWS_IN_PLACE)):
        for name in names:
            setattr(owner, name, _draw(getattr(owner, name)))
    Tensor.to = _to
    Tensor.cuda = lambda x, device=None, non_blocking=False, **_: to_cuda(x, non_blocking)
    Tensor.cpu = lambda x, **_: to_cpu(x)
    Tensor.pin_memory = lambda x, *_: pinned(x.clone())
    Tensor.is_pinned = lambda x, *_: is_pinned(x)
    torch.Generator = Generator


class Generator(torch.Generator):
    """A generator of either device; both draw the CPU's numbers."""

    def __new__(cls, device="cpu"):
        """A generator of the CPU that says what it is for."""
        made = super().__new__(cls, "cpu")
        made.__dict__["on"] = CUDA if on_cuda(device) else torch.device(device)
        return made

    def __init__(self, device="cpu"):
        """Nothing more; the base class would take the device for a CPU's."""

    @property
    def device(self):
        """The device that it draws for."""
        return self.__dict__.get("on", CPU)

    def manual_seed(self, seed):
        """As torch's; returns this object, which knows its device."""
        super().manual_seed(seed)
        return self


def _check_generator(args: tuple, kwargs: dict) -> None:
    """Refuse a generator of another device than that of what is drawn."""
    generator = kwargs.get("generator")
    if generator is None:
        return
    target = kwargs.get("device")
    cuda = on_cuda(target) if target is not None else bool(args) and isinstance(args[0], CudaTensor)
    wanted, found = "cuda" if cuda else "cpu", generator.device.type
    if found != wanted:
        raise DeviceError(f"Expected a '{wanted}' device type for generator but found '{found}'")


def _maker(name: str, real):
    """torch.zeros and its kind."""

    @functools.wraps(real)
    def make(*args, **kwargs):
        _check_generator(args, kwargs)
        if kwargs.pop("pin_memory", False):
            return pinned(real(*args, **kwargs))
        if not on_cuda(kwargs.get("device")):
            return real(*args, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        with torch.no_grad():
            made = real(*args, **{**kwargs, "device": "cpu"})
            if name.startswith("empty"):
                fill_unwritten(made)
            else:
                waits.launched(name)
            return CudaTensor(made).requires_grad_(requires_grad)

    return make


def _uploader(name: str, real):
    """torch.tensor and its kind: data of the host."""

    @functools.wraps(real)
    def make(data, *args, **kwargs):
        target, dtype = kwargs.get("device"), kwargs.get("dtype")
        if isinstance(data, Tensor):
            moved = data if target is None else _to(data, target)
            moved = moved if dtype in (None, moved.dtype) else _convert(moved, dtype)
            return moved.detach().clone() if name == "tensor" else moved
        if not on_cuda(target):
            return real(data, *args, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        waits.wait("copy to the device")
        waits.launched("copy to the device")
        with torch.no_grad():
            made = CudaTensor(real(data, *args, **{**kwargs, "device": "cpu"}))
        return made.requires_grad_(requires_grad)

    return make


def _like(name: str, real):
    """torch.zeros_like, Tensor.new_zeros and their kind: on the device of a tensor unless another is given."""

    @functools.wraps(real)
    def make(x, *args, **kwargs):
        _check_generator((x,), kwargs)
        target, ours = kwargs.pop("device", None), isinstance(x, CudaTensor)
        if target is None or (ours and on_cuda(target)):
            return real(x, *args, **kwargs)
        if ours and torch.device(target).type == "cpu":
            return real(x, *args, **kwargs).inner
        if not on_cuda(target):
            return real(x, *args, device=target, **kwargs)
        made = real(x, *args, device="cpu", **kwargs)
        if "empty" in name:
            fill_unwritten(made)
        return CudaTensor(made)

    return make


def _draw(real):
    """A function that takes a generator and no device."""

    @functools.wraps(real)
    def draw(*args, **kwargs):
        _check_generator(args, kwargs)
        return real(*args, **kwargs)

    return draw


def _to(x: Tensor, *args, **kwargs) -> Tensor:
    """Tensor.to: to a device, a dtype, or those of another tensor."""
    device, dtype, non_blocking, copy = _targets(*args, **kwargs)
    before = x
    if device is not None and on_cuda(device) != isinstance(x, CudaTensor) and x.device.type != "meta":
        if not on_cuda(device) and torch.device(device).type != "cpu":
            return _convert(x.inner, device=device, dtype=dtype or x.dtype)
        x = x if dtype is None else _convert(x, dtype)
        x = to_cuda(x, non_blocking) if on_cuda(device) else to_cpu(x)
    elif device is not None and not on_cuda(device):
        x = _convert(x, device=device)
    memory_format = kwargs.get("memory_format")
    more = {} if memory_format is None else {"memory_format": memory_format}
    if more or dtype not in (None, x.dtype):
        x = _convert(x, dtype or x.dtype, **more)
    return x.clone() if copy and x is before else x


def _targets(*args, device=None, dtype=None, non_blocking=False, copy=False, other=None, memory_format=None):
    """Device, dtype, non_blocking and copy of a call of Tensor.to, however it is written."""
    rest = list(args)
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
    elif rest and not isinstance(rest[0], torch.dtype):
        device = rest.pop(0)
    if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
        dtype = rest.pop(0)
    if other is not None:
        device, dtype = other.device, other.dtype
    non_blocking, copy = (*rest, *(non_blocking, copy)[len(rest) :])
    return device, dtype, non_blocking, copy
