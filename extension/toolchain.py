"""Compilers, their flags, and the fingerprint of a build; nothing here writes a file."""

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
include_dir = ROOT / "extension" / "include"
KERNEL_FOLDERS = ("extension", "raymarching", "gridencoder", "freqencoder", "shencoder", "mlp", "rasterizer")
DEFAULT_CUDA_ARCHS = ("80", "90")  # A100 and H100, with PTX for later ones

# No -march=native: a cached or shipped library then runs on any processor of its kind (and gathers gain nothing from it).
# No contraction: the counting and the writing pass of a two-pass kernel must round alike.
CPU_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fopenmp")
CUDA_FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr", "-lineinfo")


_VERSION_SECONDS = 60  # that a compiler may take to print its version, from a cold disk


class BuildError(RuntimeError):
    """A native library could not be built or loaded; the message is one sentence with what to do next."""


@dataclass(frozen=True)
class Target:
    """One shared library: which sources, compiled how."""

    folder: str
    device_type: str  # "cpu" | "cuda"
    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    flags: tuple[str, ...]  # without those of the architectures
    archs: tuple[str, ...] = ()  # CUDA's, ascending; a library of more of them serves as well

    @property
    def all_flags(self) -> tuple[str, ...]:
        """The compiler's flags."""
        return (*self.flags, *(cuda_arch_flags(self.archs) if self.archs else ()))

    def file_name(self, *extra: str) -> str:
        """Of the shared library: folder, device type, architectures, and :meth:`fingerprint`."""
        archs = "".join(f"sm{arch}-" for arch in self.archs)
        return f"{self.folder}_{self.device_type}-{archs}{self.fingerprint(*extra)}.so"

    def files(self, folder: Path, *extra: str) -> Iterator[Path]:
        """Where libraries that serve may lie in ``folder``: this one, then those that were built for more architectures."""
        exact = folder / self.file_name(*extra)
        yield exact
        start, end = f"{self.folder}_{self.device_type}-", f"-{self.fingerprint(*extra)}.so"
        for path in sorted(folder.glob(f"{start}*{end}")) if self.archs else ():
            built = path.name.removeprefix(start).removesuffix(end).split("-")
            if path != exact and serves(tuple(name.removeprefix("sm") for name in built), self.archs):
                yield path

    def fingerprint(self, *extra: str) -> str:
        """16 hex digits that change with any source, header or flag, and with ``extra`` (the compiler's version).

        Architectures do not count: they are in the file's name.
        """
        digest = hashlib.sha256("\0".join((platform.machine(), *self.flags, *extra)).encode())
        for path in (*self.sources, *self.headers):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def target(folder: str, device_type: str, archs: tuple[str, ...] | None = None) -> Target:
    """What ``folder``'s library for ``device_type`` consists of.

    Args:
        folder: kernel folder beside the package ``extension``, such as "raymarching".
        device_type: "cpu" or "cuda".
        archs: CUDA architectures such as ("80", "90"); None: those of the present GPUs, or 80 and 90 if there is none.

    Raises:
        BuildError: the folder has no source for that device.
    """
    found = sources(folder, device_type)
    if not found:
        raise BuildError(f"{folder}: there is no native source for device '{device_type}' in {folder}/src")
    headers = tuple(sorted((ROOT / folder / "src").glob("*.h"))) + tuple(sorted(include_dir.glob("*.h")))
    if device_type == "cpu":
        return Target(folder, device_type, found, headers, CPU_FLAGS)
    return Target(folder, device_type, found, headers, CUDA_FLAGS, archs or present_cuda_archs())


def sources(folder: str, device_type: str) -> tuple[Path, ...]:
    """A kernel folder's sources for a device type; empty where it has no native kernels for that device."""
    pattern = {"cpu": "*_cpu.cpp", "cuda": "*_cuda.cu"}.get(device_type, "")
    return tuple(sorted((ROOT / folder / "src").glob(pattern))) if pattern else ()


def cuda_arch_flags(archs: tuple[str, ...]) -> tuple[str, ...]:
    """nvcc's flags for native code of each architecture, and PTX of the newest for later GPUs."""
    native = tuple(f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs)
    return (*native, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")


def serves(built: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether a library for the architectures ``built`` runs on GPUs of each architecture that is wanted.

    Native code runs on its own generation from its own revision on (80 on 86), the PTX of the newest on all later ones.
    """

    def runs(arch: int) -> bool:
        return int(built[-1]) <= arch or any(int(b) // 10 == arch // 10 and int(b) <= arch for b in built)

    return all(runs(int(arch)) for arch in wanted)


def cuda_archs_to_build() -> tuple[str, ...] | None:
    """The architectures that TORCH_CUDA_ARCH_LIST asks for, ascending; None if it is not set.

    Raises:
        BuildError: it is not a list of numbers such as "8.0 9.0+PTX".
    """
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    words = re.split(r"[\s;,]+", text.strip())
    if not text.strip():
        return None
    found = [re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", word) for word in words if word]
    if not all(found):
        raise BuildError(f"TORCH_CUDA_ARCH_LIST must be numbers such as '8.0 9.0+PTX', got '{text}'")
    return tuple(sorted({f"{match[1]}{match[2]}" for match in found if match}, key=int))


@functools.cache
def present_cuda_archs() -> tuple[str, ...]:
    """The architectures of this machine's GPUs in ascending order, or the default ones where there is no GPU."""
    if not torch.cuda.is_available():
        return DEFAULT_CUDA_ARCHS
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return tuple(f"{major}{minor}" for major, minor in sorted(found))


@functools.cache
def compiler(device_type: str) -> tuple[str, str]:
    """Path and version text of the compiler for a device type.

    Raises:
        BuildError: none was found; the message lists those that were tried.
    """
    if device_type == "cuda":
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        names = ["nvcc", str(Path(home, "bin", "nvcc"))]
        hint = "install the CUDA toolkit or set CUDA_HOME"
    else:
        names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
        hint = "install g++ or clang++, or set CXX"
    for name in filter(None, names):
        path = shutil.which(name)
        if path and (version := _version(path)):
            return path, version
    kind = {"cpu": "C++", "cuda": "CUDA"}[device_type]
    raise BuildError(f"no {kind} compiler was found (looked for {', '.join(filter(None, names))}); {hint}")


def _version(path: str) -> str | None:
    """What ``path --version`` prints, or None if it does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@functools.cache
def ninja() -> str | None:
    """Path of ninja: on PATH, or beside the interpreter as pip installs it; None if there is none."""
    return shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
