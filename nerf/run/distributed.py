"""The processes of a run: their group, what they agree upon, and that only the first one (rank 0) writes files and prints.

``torchrun`` starts them; a run that it did not start has one process, and everything here does nothing. Small numbers on which
the host decides go through gloo, on the CPU; tensors go through the backend of their device (nccl on GPUs).
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed

from nerf.core import torchrun
from nerf.core.errors import PeerError, UserError
from nerf.core.structs import Shard

P = ParamSpec("P")
T = TypeVar("T")
# The others wait while the first process renders, exports and writes. A process that dies is noticed at once all the same.
WAIT = timedelta(hours=6)


def _initialised() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Number of this process among those of the run; 0 where torch.distributed is not initialised."""
    return distributed.get_rank() if _initialised() else 0


def world_size() -> int:
    """Number of processes of the run; 1 where torch.distributed is not initialised."""
    return distributed.get_world_size() if _initialised() else 1


def is_main() -> bool:
    """Whether this process writes what the run writes."""
    return rank() == 0


def main_only(elsewhere: Callable[[], Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that only writes: on other ranks it does nothing and returns ``elsewhere()``."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if is_main():
                return function(*args, **kwargs)
            nothing: T = elsewhere()
            return nothing

        return run

    return decorate


# ---- the group --------------------------------------------------------------------------------------------------------------


@contextmanager
def group(cuda: bool) -> Iterator[None]:
    """The processes that torchrun started, as a group that ends with the block; nothing where there is one.

    Args:
        cuda: tensors on GPUs are exchanged, too.

    Raises:
        UserError: torch has no backend for it here, or the processes do not find each other.
    """
    if torchrun.world_size() == 1 or _initialised():
        yield
        return
    if not distributed.is_available() or not distributed.is_gloo_available():
        raise UserError("several processes need torch.distributed with gloo, which this torch lacks; start without torchrun")
    if cuda and not distributed.is_nccl_available():
        raise UserError("several GPUs need nccl, which this torch lacks; start without torchrun, or add --device cpu")
    try:
        store, own, count = next(distributed.rendezvous("env://"))
        if torchrun.local_world_size() == count:
            # The store outlives a restart, with the addresses of processes that are gone. One torchrun counts its restarts for
            # all that it started; on several machines the counts may differ.
            store = distributed.PrefixStore(f"attempt{torchrun.restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        distributed.init_process_group(backend, store=store, rank=own, world_size=count, timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of torchrun do not find each other ({_first_line(error)}); start all of them") from None
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def exchanging() -> Iterator[None]:
    """What goes wrong in an exchange means that another process is gone.

    Raises:
        PeerError: it is.
    """
    try:
        yield
    except RuntimeError as error:  # of gloo and of nccl; torch has no type of its own for all of them
        raise PeerError(f"another process of this run ended, or cannot be reached ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    """The first sentence of a message, without the place in the source of torch."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^\]]*\]\s*", "", line).split(". ")[0][:200]


def shards() -> tuple[Shard, ...]:
    """What this process computes of every part of a step."""
    return (Shard(rank(), world_size()),)


# ---- what the processes agree upon ------------------------------------------------------------------------------------------


def barrier() -> None:
    """Wait for all processes.

    Raises:
        PeerError: one is gone.
    """
    largest(0.0)


def largest(value: float) -> float:
    """The largest of the numbers that the processes have, to all of them.

    Raises:
        PeerError: one is gone.
    """
    return float(_exchanged(value, torch.float64, lambda number: distributed.all_reduce(number, distributed.ReduceOp.MAX)))


def from_first(value: int) -> int:
    """The number that the first process has, to all of them.

    Raises:
        PeerError: one is gone.
    """
    return int(_exchanged(value, torch.int64, lambda number: distributed.broadcast(number, 0)))


def _exchanged(value: float, dtype: torch.dtype, exchange: Callable[[Tensor], Any]) -> float:
    """A number after an exchange in place; as it is in a single process."""
    if world_size() == 1:
        return value
    number = torch.tensor([value], dtype=dtype)
    with exchanging():
        exchange(number)
    return number.item()


def require_same(value: int, what: str, why: str) -> None:
    """Check that all processes have the same number.

    Args:
        value: the number.
        what: it is, in the plural.
        why: it may differ, and what to do.

    Raises:
        UserError: they have not.
        PeerError: one is gone.
    """
    low, high = -largest(-float(value)), largest(float(value))
    if low != high:
        raise UserError(f"the processes of this run have different {what} ({low:g} to {high:g}): {why}")


def begin_together(step: int, tensors: Iterable[Tensor]) -> None:
    """Check that all processes begin at one step, and give them the tensors of the first.

    Raises:
        UserError: they begin at different steps.
        PeerError: one is gone.
    """
    why = "they read different checkpoints; --workspace must be a folder that all machines share"
    require_same(step, "numbers of steps", why)
    copy_first(tensors)


@torch.no_grad()
def copy_first(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values that the first one has.

    Raises:
        PeerError: one is gone.
    """
    if world_size() == 1:
        return
    with exchanging():
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            distributed.broadcast(whole, 0)
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)
