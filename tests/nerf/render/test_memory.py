"""Freed memory is kept where the C library can."""

import platform
import subprocess
import sys

import pytest

from nerf.render.memory import keep_freed_memory

COUNT_FAULTS = """
import resource, torch
from nerf.render.memory import keep_freed_memory
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones((36 + 4 * i) * 2**18) for i in range(3)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min([faults() for _ in range(12)][6:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_large_blocks_are_not_faulted_in_again():
    answer = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    assert int(answer.stdout) < 3000  # of the 30720 pages of 120 MiB


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
