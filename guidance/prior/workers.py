"""Batches of the training set that other processes prepare while the device computes. B images.

Every process has a :class:`guidance.prior.dataset.Loader` of its own, with a seed of its own, and they take turns, so the
batches depend on the seed and on how many processes there are, not on which of them is faster. They pass on small pieces,
which are joined on the device: whole batches of all processes at once would need gigabytes of shared memory.
"""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from guidance.prior.dataset import Batch, Loader

PIECE = 128  # images that a process sends at once
AT_ONCE = 16  # images that it prepares at once: 0.5 ms each; of 128, which leave the cache, 0.75 ms
STRIDE = 104_729  # between the seeds of two processes


class Pieces(IterableDataset[Batch]):
    """Batches without end, in a process of a DataLoader or in this one.

    Args:
        open: seed -> loader; processes that are not forked get a pickled copy.
        size: images of a batch.
        seed: of the first process.
    """

    def __init__(self, open: Callable[[int], Loader], size: int, seed: int) -> None:
        self.open, self.size, self.seed = open, size, seed

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this process."""
        worker = get_worker_info()
        loader = self.open(self.seed + (0 if worker is None else STRIDE * worker.id))
        counts = [min(AT_ONCE, self.size - first) for first in range(0, self.size, AT_ONCE)]
        while True:
            yield Batch.joined([loader.batch(count) for count in counts], self.size)


def batches(open: Callable[[int], Loader], size: int, seed: int, workers: int, device: torch.device) -> Iterator[Batch]:
    """Batches of B = ``size`` images on a device, without end.

    Args:
        open: seed -> loader of the training set.
        size: B.
        seed: of the random numbers.
        workers: processes that prepare them; 0: this one, when they are asked for.
        device: where they are wanted.
    """
    count = -(-size // PIECE)
    pinned = workers > 0 and device.type == "cuda"
    source = DataLoader(Pieces(open, -(-size // count), seed), batch_size=None, num_workers=workers, pin_memory=pinned)
    pieces = iter(source)
    while True:
        yield Batch.joined([next(pieces).to(device) for _ in range(count)], size)
