"""The CUDA kernels, and what runs on them, on a fake device: each session in a process of its own."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from extension import toolchain
from tests.helpers.fake_cuda import builder, session

ORDERS = ("forward", "reversed", "shuffled")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # the first session compiles everything
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, and the same tests run on it"),
]


def exported_kernels():
    """Names of the kernels of all CUDA sources, as the sources export them."""
    found = set()
    for folder in toolchain.KERNEL_FOLDERS:
        if toolchain.sources(folder, "cuda"):
            text = "\n".join(p.read_text() for p in (toolchain.ROOT / folder / "src").iterdir() if p.suffix in (".cu", ".h"))
            found |= set(re.findall(r"EXPORT int (\w+)_cuda\(", text))
            found |= set(re.findall(r"^EXPORT int SOMNIA_KERNEL\((\w+)\)", text, re.MULTILINE))
            found |= set(re.findall(r"^GRID_KERNEL\((\w+),", text, re.MULTILINE))
    return found


@pytest.fixture(scope="module")
def kernel_sessions():
    """The outcome of each order of the threads, as it comes: two sessions run at a time."""
    builder.build_all("plain")
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {order: pool.submit(session.run, session.KERNEL_TESTS, order=order) for order in ORDERS}


@pytest.mark.parametrize("order", ORDERS)
def test_the_kernels_pass_their_tests_in_any_order_of_their_threads(kernel_sessions, order):
    outcome = kernel_sessions[order].result()
    assert outcome.code == 0, outcome.output
    assert outcome.passed > 200 and outcome.launches > 5000
    assert exported_kernels() - set(outcome.kernels) == set()  # none is left out


def test_the_trainer_and_whole_runs_pass_their_tests_on_a_device_that_refuses_what_cuda_refuses():
    outcome = session.run(("tests/cuda/on_device", "tests/nerf", "tests/guidance", "tests/test_main.py"), order="shuffled")
    assert outcome.code == 0, outcome.output
    assert outcome.passed > 120
