"""Copies between the host and a GPU for which the host does not wait.

A copy from ordinary memory makes the host wait, also with ``non_blocking``; only one from or to pinned (page-locked) memory
does not. What is sent to the GPU together goes in one copy, because starting a copy costs more than the few bytes of a camera.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; every tensor of a packed copy begins at a multiple, as vectorised kernels want it
_numbers = itertools.count(1)
_arrived: dict[tuple[torch.device, int], int] = {}  # (device, stream) -> the last download that is known to have arrived


def upload(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Tensors on a device; those that have to go from the host to a GPU go in one copy, and the host does not wait for it.

    The pinned memory is torch's, which gives it to nobody else before the GPU has read it. What requires a gradient is copied
    by itself, so that the gradient comes back.

    Args:
        tensors: of any shapes and dtypes.
        device: where they go.

    Returns:
        The tensors in the same order, contiguous if they were packed; those that are on the device already, as they are.
    """
    device = torch.device(device)
    packed = [device.type == "cuda" and t.device.type == "cpu" and t.numel() > 0 and not t.requires_grad for t in tensors]
    sizes = [t.numel() * t.element_size() if pack else 0 for t, pack in zip(tensors, packed, strict=True)]
    ends = list(itertools.accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes))
    if not any(packed):
        return [t.to(device) for t in tensors]
    places = [slice(start, start + size) for start, size in zip([0, *ends], sizes, strict=False)]
    staged = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True)
    for t, pack, place in zip(tensors, packed, places, strict=True):
        if pack:
            staged[place].view(t.dtype).view(t.shape).copy_(t)
    there = staged.to(device, non_blocking=True)
    return [
        there[place].view(t.dtype).view(t.shape) if pack else t.to(device)
        for t, pack, place in zip(tensors, packed, places, strict=True)
    ]


def counts(*masks: Tensor) -> list[int | None]:
    """How many elements of each mask hold, in one read of the device; None each on a CPU, where nothing has to be known before.

    Args:
        masks: bool, of any shapes; or 0-d integers, which are the counts themselves. On one device.
    """
    if masks[0].device.type == "cpu":
        return [None] * len(masks)
    found: list[int | None] = torch.stack([mask.sum() for mask in masks]).tolist()
    return found


def indices_of(mask: Tensor, count: int | None) -> Tensor:
    """The indices [count] int64, ascending, of the elements of a mask [N] that hold.

    Args:
        mask: bool [N].
        count: how many those are, so that a GPU is not waited for; None: not known.
    """
    return (mask.nonzero() if count is None else torch.nonzero_static(mask, size=count))[:, 0]


def read_scalars(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Numbers and 0-d tensors of any devices as numbers; each GPU is waited for once."""
    found = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.device.type != "cpu"}
    read: dict[str, float] = {}
    for device in {value.device for value in found.values()}:
        there = {name: value.detach().double() for name, value in found.items() if value.device == device}
        read |= dict(zip(there, torch.stack([*there.values()]).tolist(), strict=True))
    return {name: read[name] if name in read else float(value) for name, value in values.items()}


class Download:
    """A tensor on its way to the host.

    Args:
        tensor: on any device, detached; on a CPU nothing is copied.
    """

    def __init__(self, tensor: Tensor):
        self._event: torch.cuda.Event | None = None
        self._value = tensor
        if tensor.device.type != "cuda":
            return
        self._value = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._value.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        stream = torch.cuda.current_stream(tensor.device)  # the tensor's device need not be the current one
        self._event.record(stream)
        self._number, self._where = next(_numbers), (tensor.device, int(stream.cuda_stream))

    @property
    def arrived(self) -> bool:
        """Whether it is known to be here: it was waited for, or a later one of the same stream was. The GPU is not asked."""
        return self._event is None or _arrived.get(self._where, 0) >= self._number

    def result(self) -> Tensor:
        """The values, on the host; waits for them if they are not known to be here."""
        if not self.arrived:
            assert self._event is not None
            self._event.synchronize()
            _arrived[self._where] = self._number
        return self._value
