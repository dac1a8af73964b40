"""How long a cold build of the native code takes: python -m benchmarks.build

Compiles every kernel folder into an empty cache, one after the other as first use does, for the CPU and (where nvcc
is) for CUDA sm_80 and sm_90. The bars are 15 s and 60 s. CPU seconds stand beside the wall time, which a busy machine
stretches.
"""

import argparse
import os
import resource
import sys
import tempfile
import time

import extension
from benchmarks import timing
from extension import toolchain
from nerf.core.script import Parser, run


def build_all(device_type: str) -> tuple[float, float]:
    """Wall and CPU seconds of building every folder that has sources for a device, each printed."""
    total_wall = total_cpu = 0.0
    for folder in extension.KERNEL_FOLDERS:
        if not toolchain.sources(folder, device_type):
            continue
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        extension.shared_object(folder, device_type, extension.DEFAULT_CUDA_ARCHS)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall = time.monotonic() - start
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"  {folder:12} {device_type:4}  wall {wall:6.2f} s   CPU {cpu:6.2f} s", flush=True)
        total_wall, total_cpu = total_wall + wall, total_cpu + cpu
    return total_wall, total_cpu


def main() -> int:
    """Build for the chosen devices; raises BuildError if a compiler that is there fails."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", choices=["cpu", "cuda"], default=["cpu", "cuda"])
    chosen = parser.parse_args().devices
    print(timing.machine())
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SOMNIA_KERNEL_CACHE"] = cache
        for device_type in chosen:
            bar = {"cpu": 15, "cuda": 60}[device_type]
            try:
                toolchain.compiler(device_type)
            except extension.BuildError as error:
                print(f"{device_type}: {error}")
                continue
            wall, cpu = build_all(device_type)
            print(f"{device_type}: all kernels cold in {wall:.1f} s wall, {cpu:.1f} s CPU (bar {bar} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
