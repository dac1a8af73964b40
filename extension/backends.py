"""The registry of backends, and the one place that decides which of them runs an operation.

A :class:`Backend` is a record; an operation is a name such as "shencoder.encode" with one callable per backend:

    extension.register("shencoder.encode", native=_Encode.apply, torch=reference.encode)   # once, at import
    values = extension.implementation("shencoder.encode", x)(x, degree)                    # at every call

The tensors' device and the request (``--backend``, :func:`use`, :func:`scope`), which may be another one for the
operations of one kernel folder, choose the backend: the requested one, or
under "auto" the first of :func:`registered_backends` that serves the device and works on this machine. An operation that
the chosen backend lacks runs on torch instead and one warning says so, also where the backend was requested by name: a
backend is useful without having every operation, and a run should not fail for lack of one. :class:`BackendError` is for
a backend that cannot be used at all.

A further backend is a registration and nothing else (:func:`register_backend`, then :func:`register` for each of its
operations). Registering builds and imports nothing. A backend that has kernels of its own for a folder gives those instead
(:func:`register_kernels`) and shares allocations, checks and derivatives with the native ones.
"""

import contextlib
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extension.build import load_library
from extension.calls import KernelFunction, Kernels, kernel
from extension.toolchain import KERNEL_FOLDERS, BuildError

log = logging.getLogger("somnia.extension")

NATIVE = ("cuda", "cpu")  # the backends made of the kernels in */src, one source of formulas for both
KERNELS = (*NATIVE, "taichi")  # those that run an operation's kernels, whoever compiles them


class BackendError(ValueError):
    """A backend was requested that does not exist or cannot be used here; the message is one sentence."""


@dataclass(frozen=True)
class Backend:
    """One way to run the operations."""

    name: str  # as --backend takes it
    device_types: tuple[str, ...]  # of the tensors that it serves, such as ("cuda",); empty: of any device
    description: str  # for the log line that says what was chosen
    unavailable: Callable[[str], str | None]  # device type -> why it does not work on this machine, or None if it does
    module: str = ""  # imported when the backend is first chosen, if its operations are registered there

    def serves(self, device_type: str) -> bool:
        """Whether it is made for tensors on a device of this type."""
        return not self.device_types or device_type in self.device_types


def _native_unavailable(device_type: str) -> str | None:
    """Why the native kernels do not work here: no compiler, or a library or GPU driver that fails."""
    try:
        load_library("extension", device_type)
        if device_type == "cuda":
            _check_cuda_launch()
    except BuildError as error:
        return str(error)
    return None


def _check_cuda_launch() -> None:
    """Run the smallest CUDA kernel: one that compiles may be too new for the driver, or made for another GPU.

    Raises:
        BuildError: it does not run, or its result is wrong.
    """
    try:
        value = torch.zeros(1, dtype=torch.float64, device="cuda")
        kernel("extension", "extension_increment", value.device)(value, value, 1)
        result = value.item()
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BuildError(f"the CUDA kernels do not run on this GPU with this driver: {reason}") from error
    if result != 1.0:
        raise BuildError(f"the CUDA kernels give wrong results on this GPU: 0 + 1 = {result}")


def _taichi_unavailable(device_type: str) -> str | None:
    """Why Taichi does not work here: it is not installed, or it does not start."""
    if importlib.util.find_spec("taichi") is None:
        return "Taichi is not installed; pip install 'taichi>=1.7.4,<1.8' (Python up to 3.13)"
    reason: str | None = importlib.import_module("taichi_modules.runtime").unavailable(device_type)
    return reason


_backends: list[Backend] = [  # in order of preference
    Backend("cuda", ("cuda",), "native kernels", _native_unavailable),
    Backend("cpu", ("cpu",), "native kernels", _native_unavailable),
    Backend("taichi", ("cpu", "cuda", "mps"), "kernels compiled by Taichi", _taichi_unavailable, "taichi_modules"),
    Backend("torch", (), "plain PyTorch", lambda device_type: None),
]
_operations: dict[str, dict[str, Callable[..., Any]]] = {}  # operation -> backend -> its implementation
_kernels: dict[tuple[str, str], Mapping[str, KernelFunction]] = {}  # (backend, folder) -> its kernels, unless native
# Kernel folder -> request, "" for all others. One for the process: backward passes run in threads of their own.
_requests: dict[str, str] = {"": "auto"}
_chosen: dict[tuple[str, str], str] = {}  # (request, device type) -> backend
_missing: set[tuple[str, str]] = set()  # (operation, backend) that were reported to run on torch


def registered_backends() -> tuple[Backend, ...]:
    """All registered backends, in order of preference."""
    return tuple(_backends)


def register_backend(backend: Backend, before: str = "torch") -> None:
    """Add a backend to the registry.

    Args:
        backend: its record.
        before: name of the backend that it is preferred to.

    Raises:
        ValueError: there is one of that name already, or none called ``before``.
    """
    names = [b.name for b in _backends]
    if backend.name in (*names, "auto") or before not in names:
        raise ValueError(
            f"register_backend: expected a new name and a known one to stand before, got '{backend.name}' and '{before}' "
            f"beside auto, {', '.join(names)}"
        )
    _backends.insert(names.index(before), backend)
    _chosen.clear()


def unregister_backend(name: str) -> None:
    """Remove a backend and all that was registered for it.

    Raises:
        ValueError: there is none of that name, it is the present request, or it is torch, on which all others fall back.
    """
    if name not in {b.name for b in _backends} - {"torch", *_requests.values()}:
        raise ValueError(f"unregister_backend: '{name}' is no backend, or it is in use")
    _backends[:] = [b for b in _backends if b.name != name]
    for implementations in _operations.values():
        implementations.pop(name, None)
    for key in [key for key in _kernels if key[0] == name]:
        del _kernels[key]
    _chosen.clear()


def register(op: str, **implementations: Callable[..., Any]) -> None:
    """Add implementations of an operation, all with the same arguments and results.

    Args:
        op: name of the operation, such as "shencoder.encode".
        implementations: backend=callable; ``native=callable`` stands for cuda and cpu at once, ``kernels=callable`` also
            for taichi: it uses :func:`kernels`.

    Raises:
        ValueError: a backend does not exist, or has an implementation of the operation already.
    """
    found = _operations.setdefault(op, {})
    for group, members in (("native", NATIVE), ("kernels", KERNELS)):
        function = implementations.pop(group, None)
        if function is not None:
            implementations = {name: function for name in members} | implementations
    names = {b.name for b in _backends}
    for name, function in implementations.items():
        if name not in names or name in found:
            raise ValueError(f"register: {op} on backend '{name}': no such backend, or it is registered already")
        found[name] = function


def register_kernels(backend: str, folder: str, functions: Mapping[str, KernelFunction]) -> None:
    """Add a backend's own kernels for a folder.

    Args:
        backend: its name.
        folder: kernel folder, such as "raymarching".
        functions: name of each native kernel -> what stands in for it.
    """
    _kernels[backend, folder] = functions


def kernels(folder: str, device: torch.device) -> Kernels:
    """The kernels of a folder for tensors on a device, under the present request; keep them for the backward pass.

    Raises:
        BackendError: as :func:`backend`.
    """
    return Kernels(folder, _kernels.get((backend(device, folder), folder)))


def implementation(op: str, tensor: Tensor) -> Callable[..., Any]:
    """The callable that runs an operation on tensors like ``tensor`` under the present request.

    Args:
        op: a name given to :func:`register`.
        tensor: any tensor of the call; only its device matters.

    Raises:
        BackendError: as :func:`backend`; or neither the backend nor torch has the operation.
        LookupError: no operation of that name is registered.
    """
    name = backend(tensor.device, op.partition(".")[0])
    found = _operations.get(op)
    if found is None:
        raise LookupError(f"no operation '{op}' is registered; is its package imported?")
    missing: str | None = "this operation"
    if name in found:
        missing = None if found[name] is found.get("torch") else _missing_library(op, name, tensor)
    if missing is None:
        return found[name]
    if "torch" not in found:
        raise BackendError(f"{op} has no implementation for backend {name}; use --backend {' or '.join(sorted(found))}")
    if (op, name) not in _missing:
        _missing.add((op, name))
        log.warning("%s: backend torch, because backend %s does not have %s", op, name, missing)
    return found["torch"]


def _missing_library(op: str, name: str, tensor: Tensor) -> str | None:
    """Why the library of an operation on a native backend is not there: the disk became full since the first one was built."""
    folder = op.partition(".")[0]
    if name not in NATIVE or folder not in KERNEL_FOLDERS:
        return None
    try:
        load_library(folder, tensor.device.type)
    except BuildError as error:
        return f"its library: {error}"
    return None


def use(name: str, folder: str = "") -> None:
    """Request a backend from now on, as ``--backend`` does.

    Args:
        name: "auto" (the first that works for the tensors' device) or the name of a backend.
        folder: for the operations of one kernel folder alone, such as "raymarching"; "" for all that have no request
            of their own.

    Raises:
        BackendError: there is no such backend.
    """
    names = ["auto", *(b.name for b in _backends)]
    if name not in names:
        raise BackendError(f"--backend must be {', '.join(names[:-1])} or {names[-1]}, got '{name}'")
    _requests[folder] = name


def requested(folder: str = "") -> str:
    """The present request, that of a kernel folder if it has one: "auto" or the name of a backend."""
    return _requests.get(folder, _requests[""])


@contextlib.contextmanager
def scope(name: str | None, folder: str = "") -> Iterator[None]:
    """Run a block with another request (None: the present one) and return to the present one after it; see :func:`use`."""
    before = dict(_requests)
    if name is not None:
        use(name, folder)
    try:
        yield
    finally:
        _requests.clear()
        _requests.update(before)


def backend(device: torch.device | str, folder: str = "") -> str:
    """The backend for tensors on ``device`` under the present request; logs once, in one line, which and why.

    Args:
        device: of the tensors.
        folder: of the operation; see :func:`use`.

    Raises:
        BackendError: the requested backend does not serve that device, or does not work on this machine.
    """
    key = (requested(folder), torch.device(device).type)
    if key not in _chosen:
        choice = _choose_any(key[1]) if key[0] == "auto" else _choose_requested(*key)
        if choice.module:
            importlib.import_module(choice.module)
        _chosen[key] = choice.name
    return _chosen[key]


def unavailable(name: str, device: torch.device | str) -> str | None:
    """Why a backend cannot be used for tensors on ``device`` on this machine, in half a sentence; None if it can."""
    choice, device_type = next(b for b in _backends if b.name == name), torch.device(device).type
    if not choice.serves(device_type):
        return f"it serves tensors on {' and '.join(choice.device_types)}, and these are on {device_type}"
    return choice.unavailable(device_type)


def _choose_requested(request: str, device_type: str) -> Backend:
    """The requested backend, if it can be used."""
    choice = next(b for b in _backends if b.name == request)
    if not choice.serves(device_type):
        served = " and ".join(choice.device_types)
        there = [kind for kind in choice.device_types if kind != "cuda" or torch.cuda.is_available()]
        other = f", or --device {there[0]}" if there else ""
        raise BackendError(
            f"--backend {request} serves tensors on {served}, and these are on {device_type}; "
            f"use --backend auto or --backend torch{other}"
        )
    reason = choice.unavailable(device_type)
    if reason is not None:
        raise BackendError(f"--backend {request} does not work here: {reason}")
    log.info("tensors on %s: backend %s, %s, as requested", device_type, request, choice.description)
    return choice


def _choose_any(device_type: str) -> Backend:
    """The first backend that serves the device and works here; torch always does."""
    reasons = []
    for choice in _backends:
        if not choice.serves(device_type):
            continue
        reason = choice.unavailable(device_type)
        if reason is None:
            break
        reasons.append(f"backend {choice.name}: {reason}")
    if choice.name == "torch":
        why = "; ".join(reasons) or "no other backend serves this device"
        log.warning("tensors on %s: backend torch, plain PyTorch, several times slower, because %s", device_type, why)
    else:
        because = f", because {'; '.join(reasons)}" if reasons else ""
        level = logging.WARNING if reasons else logging.INFO
        log.log(level, "tensors on %s: backend %s, %s%s", device_type, choice.name, choice.description, because)
    return choice
