"""A tensor that says it is on cuda:0 and keeps its numbers in main memory.

Every operation is unwrapped, done on the CPU and wrapped again; on the way it is checked, counted and timed as CUDA would.
"""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.helpers.fake_cuda import waits

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

NO_LAUNCH = {
    "alias", "as_strided", "chunk", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "lift_fresh",
    "narrow", "new_empty", "new_empty_strided", "permute", "resize_", "select", "set_", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "view_as", "_local_scalar_dense", "_reshape_alias",
    "_unsafe_view", "is_same_size",
}  # fmt: skip
# Operations whose result, or its size, the host has to know.
WAITS = {
    "_local_scalar_dense": "item", "is_nonzero": "item", "nonzero": "nonzero", "argwhere": "nonzero", "equal": "equal",
    "masked_select": "masked_select", "_unique2": "unique", "unique_consecutive": "unique", "unique_dim": "unique",
    "unique_dim_consecutive": "unique", "bincount": "bincount", "_linalg_check_errors": "check of a decomposition",
}  # fmt: skip
UNWRITTEN = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
BETWEEN_DEVICES = {"copy_", "_to_copy", "set_", "set_data", "is_same_size", "_has_compatible_shallow_copy_type"}
ON_THE_HOST = {"_local_scalar_dense", "equal", "is_same_size", "is_nonzero"}  # what they return is no tensor of the device

_under_way: dict[int, tuple[Tensor, Tensor]] = {}  # number of a copy to pinned memory -> destination, values
_read: dict[int, tuple[Tensor, Tensor]] = {}  # number of a copy from pinned memory -> source, its values when it was sent
_numbers = itertools.count()
_MOST_READ = 256  # of the copies from pinned memory that nobody has waited for; older ones are taken for done


class DeviceError(RuntimeError):
    """What CUDA would have refused."""


def on_cuda(device) -> bool:
    """Whether something that names a device (or None) names a GPU."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return device.startswith("cuda") if isinstance(device, str) else type(device) is int


def fill_unwritten(tensor: Tensor) -> None:
    """Fill memory that nobody has written yet with what shows when it is read."""
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype == torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max // 3 * 2 + 1)


def in_backward() -> bool:
    """Whether autograd runs a node. Its C++ code makes zeros and ones where it believes the wrapper to be: on the CPU."""
    return torch._C._current_autograd_node() is not None


class CudaTensor(Tensor):
    """A tensor on the fake device; ``inner`` holds the numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor):
        """Wrap a plain tensor, whose storage is kept."""
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "layout": inner.layout}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=CPU, **layout)
        made.inner = inner.detach() if inner.requires_grad else inner
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        """Index of the device."""
        return 0

    def is_pinned(self, *_):
        """Memory of the device is not pinned."""
        return False

    def data_ptr(self):
        """Address of the numbers."""
        return self.inner.data_ptr()

    def tolist(self):
        """The numbers as Python's, for which the host waits."""
        waits.wait("tolist")
        return self.inner.tolist()

    def numpy(self, *_, **__):
        """Refused, as on CUDA."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first.")

    __array__ = numpy

    def __repr__(self, **_):
        return f"CudaTensor({self.inner!r})"

    def __deepcopy__(self, memo):
        with torch.no_grad():
            copy = CudaTensor(self.inner.clone()).requires_grad_(self.requires_grad)
        if hasattr(self, "_is_param"):
            copy._is_param = True
        return memo.setdefault(id(self), copy)

    def __reduce_ex__(self, protocol):
        raise TypeError("a CudaTensor is not pickled; copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


def _dispatch(func, args, kwargs):
    """Run an operation of which at least one argument is a CudaTensor."""
    name = func._schema.name.split("::")[1]
    flat, spec = tree_flatten((args, kwargs))
    wrappers = {id(x.inner): x for x in flat if isinstance(x, CudaTensor)}
    if name not in BETWEEN_DEVICES and not in_backward():
        _check_devices(func, name, flat, args)
    _count(func, name, args, kwargs)
    plain = [x.inner if isinstance(x, CudaTensor) else CPU if isinstance(x, torch.device) else x for x in flat]
    inner_args, inner_kwargs = tree_unflatten(plain, spec)
    if name == "copy_":
        _copy(args[0], args[1], kwargs.get("non_blocking", len(args) > 2 and args[2]))
        return args[0]
    result = func(*inner_args, **inner_kwargs)
    if name in ON_THE_HOST:
        return result
    if name in UNWRITTEN:
        fill_unwritten(result)
    return tree_map(lambda x: _wrapped(func, x, wrappers), result)


def _wrapped(func, result, wrappers):
    """A result on the device; the argument itself where the operation was in place."""
    if not isinstance(result, Tensor):
        return result
    known = wrappers.get(id(result))
    if known is None:
        return CudaTensor(result)
    if known.shape != result.shape or known.stride() != result.stride():
        raise NotImplementedError(f"{func} changed the shape of a CudaTensor in place, which the fake device cannot do")
    return known


def _check_devices(func, name: str, flat: list, args: tuple) -> None:
    """Refuse tensors of the CPU, except numbers (tensors without dimensions) and indices."""
    for x in flat:
        if not isinstance(x, Tensor) or isinstance(x, CudaTensor):
            continue
        if name in INDEXING and x is not args[0]:
            if x.dim() > 0:  # without dimensions it is a number, which C++ makes where it believes the wrapper to be
                waits.wait("copy to the device of an index or a value")
        elif x.dim() > 0:
            raise DeviceError(
                f"{func}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu "
                f"(a tensor {list(x.shape)})"
            )


def _count(func, name: str, args: tuple, kwargs: dict) -> None:
    """Count the launch and, where there is one, the wait."""
    if name not in NO_LAUNCH:
        waits.launched(name)
    if name in WAITS:
        waits.wait(WAITS[name])
    if name in INDEXING and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1] or ()):
        waits.wait("index by a mask")
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        waits.wait("repeat_interleave")


# ---- Copies between the devices ----


def _copy(target: Tensor, source: Tensor, non_blocking: bool) -> None:
    """target.copy_(source), at least one of them on the device."""
    to, values = (x.inner if isinstance(x, CudaTensor) else x for x in (target, source))
    if not isinstance(source, CudaTensor):
        if not in_backward():
            _upload(source, non_blocking)
    elif not isinstance(target, CudaTensor):
        if non_blocking and is_pinned(target):
            _under_way[next(_numbers)] = (to, values.clone())
            fill_unwritten(to)
            return
        waits.wait("copy to the host")
    torch.ops.aten.copy_.default(to, values)


def _upload(source: Tensor, non_blocking: bool) -> None:
    """A copy to the device: the host waits unless the memory is pinned and the copy non-blocking."""
    if not non_blocking:
        waits.wait("copy to the device")
    elif not is_pinned(source):
        waits.wait("copy to the device of memory that is not pinned", explicit=True)
    else:
        _read[next(_numbers)] = (source, source.detach().clone())
        if len(_read) > _MOST_READ:
            number = next(iter(_read))
            check_pinned_sources((number,))
            del _read[number]


def check_pinned_sources(copies: Iterable[int]) -> None:
    """Refuse that pinned memory was written to before a copy from it was waited for: the device might see either value.

    Memory that was given back is no danger, here as on CUDA: the copy keeps it.
    """
    for number in copies:
        source, values = _read.get(number, (None, None))
        if source is not None and not torch.equal(source.reshape(-1).view(torch.uint8), values.reshape(-1).view(torch.uint8)):
            del _read[number]
            raise DeviceError(f"pinned memory {list(source.shape)} was written to while a copy to the device was reading it")


def sent() -> tuple[int, ...]:
    """The copies from and to pinned memory that are under way: what an event that is recorded now will wait for."""
    return (*_under_way, *_read)


def arrive(copies: tuple[int, ...]) -> None:
    """Let copies reach pinned memory, and those from it end, where they have not yet."""
    check_pinned_sources(copies)
    for number in copies:
        _read.pop(number, None)
        if number in _under_way:
            target, values = _under_way.pop(number)
            target.copy_(values)


def pinned(tensor: Tensor) -> Tensor:
    """Mark a tensor of the CPU as pinned."""
    tensor._fake_cuda_pinned = True
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor of the CPU is pinned."""
    return getattr(tensor, "_fake_cuda_pinned", False)


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return CudaTensor(x.detach().clone())

    @staticmethod
    def backward(ctx, grad):
        waits.wait("copy to the host of a gradient")
        return grad.inner if isinstance(grad, CudaTensor) else grad


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.inner.detach().clone()

    @staticmethod
    def backward(ctx, grad):
        waits.wait("copy to the device of a gradient")
        return grad if isinstance(grad, CudaTensor) else CudaTensor(grad)


def to_cuda(x: Tensor, non_blocking: bool = False) -> Tensor:
    """x on the device; itself if it is there."""
    if isinstance(x, CudaTensor):
        return x
    _upload(x, non_blocking)
    waits.launched("copy to the device")
    if x.requires_grad and torch.is_grad_enabled():
        return _ToCuda.apply(x)
    with torch.no_grad():
        return CudaTensor(x.detach().clone())


def to_cpu(x: Tensor) -> Tensor:
    """x in memory of the host; itself if it is there. It is not pinned, so the host waits, non_blocking or not."""
    if not isinstance(x, CudaTensor):
        return x
    waits.wait("copy to the host")
    waits.launched("copy to the host")
    return _ToCpu.apply(x) if x.requires_grad and torch.is_grad_enabled() else x.inner.detach().clone()
