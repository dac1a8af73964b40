"""The loader builds what it should, once, safely; the ladder says which rung and why."""

import ctypes
import logging
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

import extension
from extension import build, ladder, toolchain

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty kernel cache, with nothing remembered from other tests."""
    monkeypatch.setenv("SOMNIA_KERNEL_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(ladder, "_answers", {})
    return tmp_path / "kernels"


def increment(x):
    """x + 1 by the smallest kernel."""
    out = torch.full_like(x, float("nan"))
    extension.kernel("extension", "extension_increment", x.device)(x, out, x.numel())
    return out


@needs_compiler
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_kernel_is_built_on_first_use_and_computes(cache, device):
    x = torch.arange(1000, dtype=torch.float64, device=device)
    assert torch.equal(increment(x), x + 1)
    assert [p.suffix for p in cache.iterdir() if p.is_file()].count(".so") == 1


@needs_compiler
def test_a_second_process_with_the_cache_compiles_nothing(cache, monkeypatch):
    first = extension.shared_object("extension", "cpu")
    monkeypatch.setattr(build, "_build", lambda *a, **k: pytest.fail("compiled again"))
    assert extension.shared_object("extension", "cpu") == first


def _open_library(path, queue):
    os.environ["SOMNIA_KERNEL_CACHE"] = path
    queue.put(float(increment(torch.zeros(1, dtype=torch.float64))))


@needs_compiler
def test_two_processes_at_once_both_get_a_working_library(cache):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_open_library, args=(str(cache), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [1.0, 1.0]
    for worker in workers:
        worker.join()
    assert not list(cache.glob("*.build-*"))


@needs_compiler
def test_a_build_that_was_killed_leaves_no_lock_and_no_rubbish(cache, tmp_path):
    hang = tmp_path / "hang"
    hang.touch()
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || [ ! -e {hang} ] || sleep 60\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    command = [sys.executable, "-c", "import extension; extension.shared_object('extension', 'cpu')"]
    setting = {"cwd": toolchain.ROOT, "env": {**os.environ, "CXX": str(compiler)}}
    victim = subprocess.Popen(command, start_new_session=True, **setting)
    deadline = time.monotonic() + 30
    while not list(cache.glob("*.build-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert list(cache.glob("*.build-*"))
    hang.unlink()
    assert subprocess.run(command, timeout=60, check=False, **setting).returncode == 0
    assert not list(cache.glob("*.build-*"))
    assert len(list(cache.glob("*.so"))) == 1


@needs_compiler
def test_the_fingerprint_changes_with_sources_flags_and_compiler(tmp_path):
    target = toolchain.target("extension", "cpu")
    copy = tmp_path / target.sources[0].name
    copy.write_text(target.sources[0].read_text() + "\n")
    others = [
        toolchain.Target("extension", "cpu", (copy,), target.headers, target.flags).fingerprint(),
        toolchain.Target("extension", "cpu", target.sources, target.headers, (*target.flags, "-g")).fingerprint(),
        target.fingerprint("another compiler"),
    ]
    assert len({target.fingerprint(), *others}) == 4


@needs_compiler
def test_a_damaged_library_is_an_error_with_a_reason_and_is_removed(cache):
    path = extension.shared_object("extension", "cpu")
    path.write_bytes(b"not a library")
    with pytest.raises(extension.BuildError, match="does not load"):
        extension.library("extension", "cpu")
    assert not path.exists()


@needs_compiler
def test_a_compiler_without_openmp_still_builds(cache, tmp_path, monkeypatch):
    poor = tmp_path / "poor-compiler"
    poor.write_text(
        '#!/bin/sh\nfor a in "$@"; do [ "$a" = -fopenmp ] && { echo "error: no OpenMP"; exit 1; }; done\nexec g++ "$@"\n'
    )
    poor.chmod(0o755)
    monkeypatch.setenv("CXX", str(poor))
    toolchain.compiler.cache_clear()
    try:
        x = torch.zeros(100, dtype=torch.float64)
        assert torch.equal(increment(x), x + 1)
        assert extension.library("extension", "cpu").extension_has_openmp_cpu() == 0
    finally:
        toolchain.compiler.cache_clear()


@needs_compiler
@pytest.mark.parametrize("ninja", [True, False])
def test_several_sources_and_a_path_with_a_space_become_one_library(tmp_path, monkeypatch, ninja):
    if not ninja:
        monkeypatch.setattr(toolchain, "ninja", lambda: None)
    folder = tmp_path / "a folder"
    folder.mkdir()
    sources = tuple(folder / f"{name}_cpu.cpp" for name in "ab")
    for number, source in enumerate(sources):
        source.write_text(f'extern "C" int {source.stem}() {{ return {number + 1}; }}\n')
    target = toolchain.Target("a", "cpu", sources, (), toolchain.CPU_FLAGS)
    build._build(target, toolchain.compiler("cpu")[0], folder / "a.so", remove_leftovers=True)
    library = ctypes.CDLL(str(folder / "a.so"))
    assert (library.a_cpu(), library.b_cpu()) == (1, 2)


@needs_compiler
def test_build_ahead_writes_libraries_that_are_found_without_a_compiler(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "KERNEL_FOLDERS", ("extension",))
    (path,) = extension.build_ahead(tmp_path / "lib")
    assert path.parent == tmp_path / "lib" / "extension" / "prebuilt"
    monkeypatch.setattr(build, "_prebuilt_path", lambda root, target: path)
    monkeypatch.setattr(toolchain, "compiler", lambda device_type: pytest.fail("looked for a compiler"))
    assert extension.shared_object("extension", "cpu") == path


def test_without_a_compiler_the_rung_is_torch_and_one_line_says_so(cache, monkeypatch, caplog):
    monkeypatch.setattr(build, "_prebuilt_path", lambda root, target: cache / "nothing.so")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name, path=None: None)
    toolchain.compiler.cache_clear()
    with caplog.at_level(logging.INFO, "somnia.extension"), extension.scope("auto"):
        assert [extension.backend("cpu") for _ in range(3)] == ["torch"] * 3
    assert len(caplog.records) == 1
    assert "no C++ compiler was found" in caplog.text


def test_a_kernel_that_compiles_but_does_not_run_leaves_the_work_to_torch(monkeypatch, caplog):
    def launch(*_):
        raise RuntimeError("extension_increment_cuda: failed with CUDA error 35: driver too old\nmore of it")

    monkeypatch.setattr(ladder, "_answers", {})
    monkeypatch.setattr(ladder, "library", lambda folder, device_type: None)
    monkeypatch.setattr(ladder.torch, "zeros", lambda *_, **__: torch.empty(1))
    monkeypatch.setattr(ladder, "kernel", lambda *_: launch)
    with caplog.at_level(logging.INFO, "somnia.extension"), extension.scope("auto"):
        assert [extension.backend("cuda") for _ in range(2)] == ["torch"] * 2
    assert len(caplog.records) == 1 and "error 35: driver too old" in caplog.text and "more of it" not in caplog.text
    with extension.scope("cuda"), pytest.raises(extension.BuildError, match="do not run on this GPU"):
        extension.backend("cuda")


@pytest.mark.parametrize(("value", "rung"), [(1.0, "cuda"), (0.0, "torch")])
def test_a_kernel_must_give_the_right_number_before_it_is_used(monkeypatch, value, rung):
    monkeypatch.setattr(ladder, "_answers", {})
    monkeypatch.setattr(ladder, "library", lambda folder, device_type: None)
    monkeypatch.setattr(ladder.torch, "zeros", lambda *_, **__: torch.empty(1, dtype=torch.float64))
    monkeypatch.setattr(ladder, "kernel", lambda *_: lambda source, target, count: target.fill_(value))
    with extension.scope("auto"):
        assert extension.backend("cuda") == rung


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told to")
def test_memory_that_was_freed_is_used_again():
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


def test_a_scope_returns_to_the_request_before_it():
    before = extension.requested()
    with extension.scope("torch"):
        assert extension.backend("cpu") == "torch"
    assert extension.requested() == before


@pytest.mark.parametrize(("name", "sentence"), [("taichi", "not built yet"), ("vulkan", "must be auto")])
def test_a_rung_that_does_not_exist_is_refused(name, sentence):
    with pytest.raises(extension.BackendError, match=sentence):
        extension.use(name)


def test_the_cuda_rung_refuses_tensors_on_the_cpu():
    with extension.scope("cuda"), pytest.raises(extension.BackendError, match="these are on cpu"):
        extension.backend("cpu")


def test_a_tensor_with_gaps_is_not_handed_to_a_kernel():
    with pytest.raises(ValueError, match="contiguous"):
        extension.pointer(torch.zeros(4, 4)[:, 1])


def test_a_failing_kernel_is_named_in_the_error():
    def broken_cpu(*arguments):
        return 7

    with pytest.raises(RuntimeError, match="broken_cpu: failed with error 7"):
        extension.call(broken_cpu, 1, 2.0, None)
