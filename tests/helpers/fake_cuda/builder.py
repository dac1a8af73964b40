"""Compile the CUDA sources with a C++ compiler, against the runtime in include/, into the cache of kernels.

A library has the C interface of the CUDA library that it stands for. All that is rewritten is the one launch in
extension/include/launch.h; :func:`require_emulable` says what the emulation relies on.
"""

import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from extension import cache, toolchain
from extension.toolchain import BuildError, Target

INCLUDE = Path(__file__).resolve().parent / "include"
LAUNCH_HEADER = toolchain.include_dir / "launch.h"

_COMMON = ("-x", "c++", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall")
_COMMON += ("-Wno-unknown-pragmas", "-D__CUDACC__=1")
_SANITIZED = ("-O0", "-g1", "-fno-omit-frame-pointer", "-ffp-contract=off", "-D__CUDA_ARCH__=800", "-fno-sanitize-recover=all")
MODES = {  # two roundings and two architectures, as nvcc contracts where it likes; and the sanitizers
    "plain": ("-O2", "-ffp-contract=off", "-D__CUDA_ARCH__=800"),
    "contracted": ("-O2", "-mfma", "-ffp-contract=fast", "-D__CUDA_ARCH__=900"),
    "address": (*_SANITIZED, "-fsanitize=address,undefined,float-cast-overflow"),
    "thread": (*_SANITIZED, "-fsanitize=thread"),
}
SANITIZER_LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}  # LD_PRELOAD takes them before any allocation

_LAUNCH = re.compile(r"(\w+)<<<(.+?)>>>\((.*?)\);")
# A thread of a block that waits for another, or shares memory with it, cannot run to its end before the next begins.
_NOT_EMULATED = re.compile(
    r"__(shared__|sync\w*|shfl\w*|ballot\w*|any\w*|all\w*|activemask|reduce_\w+|match_\w+)|cooperative_groups"
)


def require_emulable(root: Path = toolchain.ROOT) -> None:
    """Check what makes running the threads one after the other the same as running them side by side.

    Args:
        root: of the project.

    Raises:
        ValueError: a source outside launch.h launches a kernel, launch.h has not exactly one launch, or a source has shared
            memory, a barrier or an instruction of a whole warp.
    """
    for path in sorted(root.glob("*/src/*")) + sorted(root.glob("extension/include/*")):
        text = path.read_text()
        name = path.relative_to(root)
        launches = text.count("<<<") + text.count("cudaLaunch")
        if launches != (1 if path.name == LAUNCH_HEADER.name else 0):
            raise ValueError(f"{name}: expected kernels to be launched once, in launch.h, and found {launches} launches here")
        found = _NOT_EMULATED.search(text)
        if found:
            raise ValueError(f"{name}: expected threads that do not depend on each other, and found {found.group()}")


def rewritten_launch_header() -> str:
    """launch.h with its launch turned into a call; all the rest of it stays and is tested with it."""
    text, count = _LAUNCH.subn(r"fake_cuda::launch(\2, [=] { \1(\3); });", LAUNCH_HEADER.read_text())
    if count != 1:
        raise ValueError(f"launch.h: expected one launch to rewrite, found {count}")
    return text


def target(folder: str, mode: str) -> Target:
    """What a folder's emulated library consists of."""
    real = toolchain.target(folder, "cuda", toolchain.DEFAULT_CUDA_ARCHS)
    return Target(folder, "cuda", real.sources, (*real.headers, *sorted(INCLUDE.glob("*.h"))), flags(mode))


def flags(mode: str) -> tuple[str, ...]:
    """The compiler's flags of a mode."""
    return (*_COMMON, *MODES[mode])


def shared_object(folder: str, mode: str = "plain") -> Path:
    """Path of a folder's emulated library in the cache of kernels; compiled now if it is not there.

    Args:
        folder: "raymarching", "gridencoder", ...
        mode: one of :data:`MODES`.

    Raises:
        BuildError: there is no CUDA source, no compiler, or the source does not compile.
    """
    wanted = target(folder, mode)
    version = toolchain.compiler("cpu")[1]
    output = (
        next(filter(cache.make_writable, cache.candidates()))
        / f"{folder}_fake_cuda_{mode}-{wanted.fingerprint(version, rewritten_launch_header())}.so"
    )
    if not output.exists():
        require_emulable()
        compile_to(output, wanted)
    return output


def compile_to(output: Path, wanted: Target) -> None:
    """Compile a target's sources to ``output``, which appears in one step.

    Raises:
        BuildError: there is no compiler, or the source does not compile.
    """
    with tempfile.TemporaryDirectory(prefix=f"{output.stem}.build-", dir=output.parent) as work:
        Path(work, "launch.h").write_text(rewritten_launch_header())
        included = ["-include", "cuda_runtime.h", *(f"-I{place}" for place in (work, INCLUDE, toolchain.include_dir))]
        compiler, sources = toolchain.compiler("cpu")[0], map(str, wanted.sources)
        command = [compiler, *wanted.flags, *included, *sources, "-o", f"{work}/out.so"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{wanted.folder}: the CUDA sources do not compile as C++: {done.stderr[:2000]}")
        os.replace(f"{work}/out.so", output)


def folders() -> list[str]:
    """The kernel folders that have CUDA sources."""
    return [folder for folder in toolchain.KERNEL_FOLDERS if toolchain.sources(folder, "cuda")]


def build_all(mode: str) -> None:
    """Compile every folder, as many at once as there are cores."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(lambda folder: shared_object(folder, mode), folders()))


def has_contraction() -> bool:
    """Whether this processor runs what mode "contracted" compiles to."""
    try:
        return "fma" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
