"""Every CUDA source compiles where nvcc is, GPU or not, and exports what its CPU twin exports."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

import extension
from extension import toolchain

FOLDERS = [f for f in extension.KERNEL_FOLDERS if list((toolchain.ROOT / f / "src").glob("*_cuda.cu"))]
pytestmark = pytest.mark.timeout(600)  # the first test compiles everything

CPU_ONLY = {"extension_has_openmp", "edge_adjacency"}


def exported(path, device_type):
    """Names of the functions that a library exports for a device, without the ending."""
    listing = subprocess.run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True)
    return set(re.findall(rf" T (\w+)_{device_type}$", listing.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def compiled():
    """The CUDA library of each folder for sm_80 and sm_90, compiled once a session (and then cached)."""
    try:
        toolchain.compiler("cuda")
    except extension.BuildError as error:
        pytest.skip(str(error))
    with ThreadPoolExecutor(max_workers=2) as pool:
        paths = pool.map(lambda f: extension.shared_object(f, "cuda", extension.DEFAULT_CUDA_ARCHS), FOLDERS)
        return dict(zip(FOLDERS, paths, strict=True))


def test_cuda_sources_compile_for_both_default_architectures(compiled):
    assert "raymarching" in compiled
    assert all(path.stat().st_size > 0 for path in compiled.values())


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to list symbols with")
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_cuda_library_exports_what_the_cpu_library_exports(compiled, folder):
    names = exported(compiled[folder], "cuda")
    try:
        cpu = exported(extension.shared_object(folder, "cpu"), "cpu")
    except extension.BuildError as error:
        pytest.skip(str(error))
    assert names
    assert cpu - names <= CPU_ONLY


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_native_source_includes_a_torch_header(folder):
    for path in (toolchain.ROOT / folder / "src").iterdir():
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path
