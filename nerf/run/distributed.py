"""Which of the processes of a run this is: only the first one (rank 0) writes files and prints."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import distributed

P = ParamSpec("P")
T = TypeVar("T")


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
