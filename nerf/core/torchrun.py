"""What torchrun says to the processes that it starts; it imports no torch. Without torchrun there is one process, rank 0."""

import os

from nerf.core.errors import UserError


def _number(name: str, default: int) -> int:
    word = os.environ.get(name, "")
    if not word:
        return default
    if not word.isdecimal():
        raise UserError(f"the variable {name} must be a number of torchrun, got {word!r:.80}; start with torchrun, or unset it")
    return int(word)


def rank() -> int:
    """Number of this process among all."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes there are, on all machines."""
    return max(_number("WORLD_SIZE", 1), 1)


def local_rank() -> int:
    """Number of this process among those of its machine, and of its GPU."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many processes this machine has."""
    return max(_number("LOCAL_WORLD_SIZE", 1), 1) if world_size() > 1 else 1


def restarts() -> int:
    """How often torchrun has started the processes again, after one of them had died."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) if world_size() > 1 else 0


def program(name: str) -> str:
    """The program in messages: with the number of the process, unless it is the first one."""
    try:
        return f"{name} (process {rank()} of {world_size()})" if rank() else name
    except UserError:
        return name
