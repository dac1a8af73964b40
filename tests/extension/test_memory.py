"""Settings of the C allocator, seen from the system's side."""

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from extension import toolchain


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(),
    reason="needs glibc and a Linux with transparent huge pages",
)
def test_large_tensors_lie_in_memory_marked_for_huge_pages():
    code = """
        import torch, extension
        assert extension.keep_freed_memory()
        address, inside = torch.ones(1 << 24).data_ptr() + (1 << 25), False  # its middle: the ends share pages
        for line in open("/proc/self/smaps"):
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                start, end = (int(x, 16) for x in head.split("-"))
                inside = start <= address < end
            elif inside and head == "VmFlags:":
                assert "hg" in line.split(), line
                break
        else:
            raise AssertionError("the tensor is in no mapping")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=toolchain.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator has these settings")
def test_freed_memory_is_used_again():
    code = """
        import resource, torch, extension
        assert extension.keep_freed_memory()
        faults = []
        for _ in range(40):  # 64 MiB each: 16384 pages, all of them new without this
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(1 << 24)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        assert sum(faults[20:]) < 10 * 16384, faults
    """
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=toolchain.ROOT, timeout=60, check=False).returncode
        == 0
    )
