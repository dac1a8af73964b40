"""Taichi starts quietly, as the tensors and torch's threads want it, and works from other threads and without a compiler."""

import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import extension
import raymarching
from extension import toolchain
from tests.helpers import kernel_backends

runtime = pytest.importorskip("taichi_modules.runtime", reason="Taichi is not installed", exc_type=ImportError)

# A compiler must not be found, and no library of kernels may be loaded: ctypes loads none of ours.
WITHOUT_NATIVE = """
    import ctypes, logging, subprocess, sys
    import torch
    from extension import build, toolchain
    toolchain.shutil.which = lambda name, path=None: None
    def refuse(*arguments):
        raise AssertionError(f"native kernels of {arguments} were asked for")
    build.shared_object = refuse if "requested" in sys.argv else build.shared_object
    build._prebuilt_folder = lambda root, target: root / "nothing"
    import extension, gridencoder, raymarching
    extension.use("taichi" if "requested" in sys.argv else "auto")
    encoder = gridencoder.GridEncoder(num_levels=2, desired_resolution=32, log2_hashmap_size=8)
    x = (torch.rand(50, 3) - 0.5).requires_grad_()
    encoder(x).square().sum().backward()
    near, far = raymarching.near_far_from_aabb(x + 3, -x - 1, torch.tensor([-1.0, -1, -1, 1, 1, 1]))
    assert x.grad.isfinite().all() and encoder.embeddings.grad.abs().sum() > 0
    assert extension.backend("cpu") == "taichi" and not any("somnia" in str(lib) for lib in build._loaded.values())
"""


@pytest.fixture
def on_taichi():
    """Backend taichi is requested."""
    with kernel_backends.on("cpu", "taichi"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("request_", ["requested", "auto"])
def test_without_a_compiler_it_encodes_and_marches_and_says_nothing_else(request_, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT_NATIVE), request_]
    done = subprocess.run(command, cwd=toolchain.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = "tensors on cpu: backend taichi, kernels compiled by Taichi, because backend cpu: no C++ compiler was found"
    assert done.stdout == "" and done.stderr.startswith(said if request_ == "auto" else "")
    assert done.stderr.count("\n") == (request_ == "auto")


def test_it_runs_on_the_cpu_for_tensors_there_with_the_threads_of_torch(on_taichi):
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            codes = raymarching.morton3D(torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.int32))
            assert codes.tolist() == [1, 2]
            assert runtime._running == ("cpu", threads)
            assert runtime.ti.cfg.cpu_max_num_threads == threads and runtime.ti.cfg.arch == runtime.ti.x64
    finally:
        torch.set_num_threads(before)


def test_several_threads_may_launch_at_once(on_taichi):
    coords = torch.randint(0, 1024, (5000, 3), dtype=torch.int32)
    expected, results = raymarching.reference.morton3D(coords), []

    def work():
        for _ in range(20):
            results.append(torch.equal(raymarching.morton3D(coords), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_a_tensor_that_requires_a_gradient_gets_none_from_a_launch(on_taichi):
    alpha = torch.rand(6, requires_grad=True)
    count = torch.tensor([6])
    raymarching.composite_rays_train(alpha, torch.rand(6, 3), torch.rand(6), count - 6, count)
    assert alpha.grad is None  # Taichi would make one for an array that requires a gradient


def test_a_backward_pass_uses_the_kernels_of_its_forward_pass(on_taichi, monkeypatch):
    used = []
    run = extension.Kernels.run
    monkeypatch.setattr(
        extension.Kernels, "run", lambda self, name, *a, **k: used.append(self.functions) or run(self, name, *a, **k)
    )
    alpha, count = torch.rand(6, requires_grad=True), torch.tensor([6])
    weights = raymarching.composite_rays_train(alpha, torch.rand(6, 3), torch.rand(6), count - 6, count)[0]
    with extension.scope("torch"):
        weights.sum().backward()
    assert len(used) == 2 and used[0] is used[1] is not None


@pytest.mark.parametrize("device_type", ["cpu", "cuda", "mps"])
def test_every_device_that_the_backend_serves_has_an_architecture(device_type):
    assert hasattr(runtime.ti, runtime._ARCHITECTURES[device_type])
    (record,) = (b for b in extension.registered_backends() if b.name == "taichi")
    assert record.serves(device_type)
