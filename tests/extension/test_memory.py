"""What the allocator is told, seen from the system's side."""

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
def test_large_tensors_lie_where_huge_pages_were_asked_for():
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
