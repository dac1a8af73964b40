"""Devices that users name: whether torch has them."""

import torch

from nerf.core import torchrun
from nerf.core.errors import UserError
from nerf.core.words import counted


def chosen_device(name: str) -> str:
    """The device of a run: that of ``--device``, where auto is a GPU if there is one; of several processes each has its own.

    Raises:
        UserError: it is not there, or there are more processes than GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        check_device(name)
    processes = torchrun.local_world_size()
    if name == "cpu" or processes == 1:
        return name
    if (count := torch.cuda.device_count()) < processes:
        raise UserError(
            f"torchrun started {processes} processes on this machine, and torch sees {counted(count, 'CUDA device')} here; "
            "give --nproc_per_node as many, or --device cpu"
        )
    return f"cuda:{torchrun.local_rank()}"


def check_device(name: str) -> None:
    """Refuse a device that torch does not have here.

    Args:
        name: the value of ``--device``: cpu, cuda or cuda:N.

    Raises:
        UserError: it is another word, or there is no such GPU.
    """
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (index and not index.isdecimal()) or name.endswith(":")):
        raise UserError(f"--device must be cpu, cuda or cuda:N, got {name!r:.80}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no CUDA device here; leave the flag out to run on the CPU")
    if index and int(index) >= (count := torch.cuda.device_count()):
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise UserError(f"--device {name}: torch sees {counted(count, 'CUDA device')} here; give {there}")
