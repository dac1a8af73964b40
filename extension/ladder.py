"""The ladder of rungs: which implementation serves tensors on a device, and the request (--backend) that decides it."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from extension.build import BuildError, library
from extension.calls import kernel

log = logging.getLogger("somnia.extension")

RUNGS = ("cuda", "cpu", "torch")

_request = "auto"  # one for the process: backward passes run in threads of their own
_answers: dict[tuple[str, str], str] = {}  # (request, device type) -> rung


class BackendError(ValueError):
    """A rung was asked for that does not exist or cannot serve these tensors; the message is one sentence."""


def use(name: str) -> None:
    """Ask for a rung from now on, as ``--backend`` does.

    Args:
        name: "auto" (the best that works for the tensors' device), "cuda", "cpu" or "torch".

    Raises:
        BackendError: there is no such rung, or it is not built yet.
    """
    global _request
    if name == "taichi":
        raise BackendError("--backend taichi is not built yet; use auto, cuda, cpu or torch")
    if name not in ("auto", *RUNGS):
        raise BackendError(f"--backend must be auto, cuda, cpu or torch, got '{name}'")
    _request = name


def requested() -> str:
    """The present request: "auto" or the name of a rung."""
    return _request


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Run a block with another request and return to the present one after it."""
    before = _request
    use(name)
    try:
        yield
    finally:
        use(before)


def backend(device: torch.device | str) -> str:
    """The rung for tensors on ``device``: "cuda", "cpu" or "torch". Says once, in one line, which and why.

    Raises:
        BackendError: the requested rung cannot serve that device.
        BuildError: the requested rung (not "auto") cannot be built.
    """
    key = (_request, torch.device(device).type)
    if key not in _answers:
        _answers[key] = _decide(*key)
    return _answers[key]


def on_torch(tensor: Tensor) -> bool:
    """Whether the plain-torch rung serves a tensor under the present request. Raises as :func:`backend` does."""
    return backend(tensor.device) == "torch"


def _decide(request: str, device_type: str) -> str:
    """The rung for a request, announced."""
    if request == "torch":
        log.info("tensors on %s: rung torch, as asked", device_type)
        return "torch"
    if request != "auto" and request != device_type:
        raise BackendError(
            f"--backend {request} serves tensors on {request}, and these are on {device_type}; "
            f"use --backend auto or --backend torch, or --device {request}"
        )
    if device_type not in ("cpu", "cuda"):
        log.warning("tensors on %s: rung torch, because there are no kernels for this device", device_type)
        return "torch"
    try:
        library("extension", device_type)
        if device_type == "cuda":
            _launch_once()
    except BuildError as error:
        if request != "auto":
            raise
        log.warning("tensors on %s: rung torch, several times slower, because %s", device_type, error)
        return "torch"
    log.info("tensors on %s: rung %s, native kernels", device_type, device_type)
    return device_type


def _launch_once() -> None:
    """Run the smallest CUDA kernel: one that compiles may be too new for the driver, or made for another GPU.

    Raises:
        BuildError: it does not run, or computes something else.
    """
    try:
        value = torch.zeros(1, dtype=torch.float64, device="cuda")
        kernel("extension", "extension_increment", value.device)(value, value, 1)
        result = value.item()
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BuildError(f"the CUDA kernels do not run on this GPU with this driver: {reason}") from error
    if result != 1.0:
        raise BuildError(f"the CUDA kernels compute nonsense on this GPU: 0 + 1 = {result}")
