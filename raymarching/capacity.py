"""Sample buffers of a fixed capacity: packing samples into them without waiting for a GPU, and what did not fit.

Letters: N rays, M samples.
"""

import torch
from torch import Tensor

_overflow: dict[torch.device, Tensor] = {}


def overflow(device: torch.device | str) -> Tensor:
    """What marches with a ``capacity`` left out since :func:`clear_overflow`, int64 [2] on ``device``.

    Element 0 is the largest number of samples that was needed where the capacity did not suffice (0: it always did);
    element 1 counts rays that were not finite. Reading it waits for a GPU, so read it a step later.
    """
    device = torch.empty(0, device=device).device
    if device not in _overflow:
        with torch.inference_mode(False):  # the counters outlive the caller's mode
            _overflow[device] = torch.zeros(2, dtype=torch.int64, device=device)
    return _overflow[device]


def clear_overflow(device: torch.device | str) -> None:
    """Set the counters of :func:`overflow` to zero."""
    overflow(device).zero_()


def fit(count: Tensor, capacity: int | None) -> tuple[Tensor, Tensor, int]:
    """Pack rays of ``count`` [N] samples each end to end, within a capacity if there is one.

    Args:
        count: [N] int64, samples of each ray; -1 for a ray that is not finite.
        capacity: M, or None: as many as are needed.

    Returns:
        first [N] int64, count [N] int64, and M. Where the capacity does not suffice the last rays get fewer samples.
    """
    if capacity is None:
        count = count.clamp(min=0)
        return count.cumsum(0) - count, count, int(count.sum())
    counters = overflow(count.device)
    counters[1] += (count < 0).sum()
    count = count.clamp(min=0)
    end = count.cumsum(0)
    total = count.sum()
    counters[0] = torch.where(total > capacity, torch.maximum(counters[0], total), counters[0])
    first = (end - count).clamp(max=capacity)
    return first, end.clamp(max=capacity) - first, capacity
