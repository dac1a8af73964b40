"""Kernel folders are built on first use, once, safely, with any compiler there is."""

import ctypes
import errno
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch

import extension
import shencoder
from extension import backends, build, toolchain

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty kernel cache, with nothing remembered from other tests."""
    monkeypatch.setenv("SOMNIA_KERNEL_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build, "_not_loaded", set())
    monkeypatch.setattr(build.cache, "_refused", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "kernels"


def second_place(cache):
    """The folder that is tried after the cache."""
    return cache.parent / f"somnia-kernels-{os.getuid()}"


def compiler_that(cache, monkeypatch, script):
    """Make a shell script the compiler; it may call g++ "$@"."""
    path = cache.parent / "compiler"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ {script}\n}}\nexec g++ "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    toolchain.compiler.cache_clear()


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
def test_a_build_that_was_killed_leaves_no_lock_and_no_files(cache, tmp_path):
    hang = tmp_path / "hang"
    hang.touch()
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || [ ! -e {hang} ] || sleep 60\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    command = [sys.executable, "-c", "import extension; extension.shared_object('extension', 'cpu')"]
    setting = {"cwd": toolchain.ROOT, "env": {**os.environ, "CXX": str(compiler)}}
    killed = subprocess.Popen(command, start_new_session=True, **setting)
    deadline = time.monotonic() + 30
    while not list(cache.glob("*.build-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
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
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"not a library"),
        lambda path: os.truncate(path, 4096),  # loading it would end the process with SIGBUS
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
        lambda path: path.with_name(path.name + ".sha256").unlink(),
        lambda path: path.with_name(path.name + ".sha256").write_bytes(b"\xff"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["text", "truncated", "one byte", "no checksum", "damaged checksum", "a folder"],
)
def test_a_damaged_library_is_built_again(cache, damage):
    damage(extension.shared_object("extension", "cpu"))
    x = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(increment(x), x + 1)


@needs_compiler
def test_a_full_disk_sends_the_build_to_the_next_folder(cache, monkeypatch, caplog):
    full = 'case "$PWD" in */kernels/*) echo "cc1plus: error: x.s: No space left on device" >&2; exit 1;; esac'
    compiler_that(cache, monkeypatch, full)
    try:
        path = extension.shared_object("extension", "cpu")
        extension.load_library("freqencoder", "cpu")
    finally:
        toolchain.compiler.cache_clear()
    assert path.parent == second_place(cache)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == f"the folder of compiled kernels {cache} cannot be used (no space left); {path.parent} is used instead"


@needs_compiler
@pytest.mark.parametrize("call", ["tempfile.mkdtemp", "os.replace", "cache.write_checksum", "open"])
def test_every_write_to_a_full_disk_does(cache, monkeypatch, call):
    where, _, name = call.rpartition(".")
    module = getattr(build, where) if where else build
    real = getattr(module, name, open)

    def fail(*words, **options):
        if str(cache) in str((words, options)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*words, **options)

    monkeypatch.setattr(module, name, fail, raising=False)
    assert extension.shared_object("extension", "cpu").parent == second_place(cache)


@needs_compiler
def test_a_folder_that_cannot_be_made_or_holds_no_programs_is_passed_over(cache, monkeypatch, caplog):
    cache.parent.joinpath("file").touch()
    monkeypatch.setenv("SOMNIA_KERNEL_CACHE", str(cache.parent / "file" / "kernels"))
    assert extension.shared_object("extension", "cpu").parent == second_place(cache)
    monkeypatch.setenv("SOMNIA_KERNEL_CACHE", str(cache))
    real = ctypes.CDLL

    def load(path):
        if path.startswith(str(cache)):
            raise OSError(f"{path}: failed to map segment from shared object: Operation not permitted")
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert str(second_place(cache)) in extension.load_library("extension", "cpu")._name
    assert "failed to map segment" in caplog.text


@needs_compiler
def test_without_any_folder_the_torch_backend_runs_and_one_line_says_why(cache, monkeypatch, caplog):
    compiler_that(cache, monkeypatch, 'echo "ld: final link failed: No space left on device" >&2; exit 1')
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)  # nor is there Taichi
    try:
        with extension.scope("auto"):
            assert extension.backend("cpu") == "torch"
    finally:
        toolchain.compiler.cache_clear()
    last = caplog.records[-1].getMessage()
    assert "backend torch" in last and f"{cache} (no space left), {second_place(cache)} (no space left)" in last
    with extension.scope("cpu"), pytest.raises(extension.BackendError, match="kept nowhere"):
        extension.backend("cpu")


@needs_compiler
def test_a_disk_that_is_full_after_the_first_library_leaves_one_operation_to_torch(cache, monkeypatch, caplog):
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.setattr(backends, "_missing", set())
    with extension.scope("auto"):
        assert extension.backend("cpu") == "cpu"
        monkeypatch.setattr(build, "_build", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        for _ in range(2):
            encoded = shencoder.SHEncoder(input_dim=3, degree=2)(torch.tensor([[0.0, 0.0, 1.0]]))
    assert encoded.shape == (1, 4)
    assert caplog.text.count("shencoder.encode: backend torch, because backend cpu does not have its library") == 1


@needs_compiler
def test_a_whole_library_of_a_folder_that_cannot_be_written_is_used(cache, monkeypatch):
    path = extension.shared_object("extension", "cpu")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert extension.shared_object("extension", "cpu") == path


@needs_compiler
def test_a_compiler_without_openmp_still_builds(cache, tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nfor a in "$@"; do [ "$a" = -fopenmp ] && { echo "error: no OpenMP"; exit 1; }; done\nexec g++ "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    toolchain.compiler.cache_clear()
    try:
        x = torch.zeros(100, dtype=torch.float64)
        assert torch.equal(increment(x), x + 1)
        assert extension.load_library("extension", "cpu").extension_has_openmp_cpu() == 0
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
    monkeypatch.setattr(build, "_prebuilt_folder", lambda root, target: path.parent)
    monkeypatch.setattr(toolchain, "compiler", lambda device_type: pytest.fail("looked for a compiler"))
    assert extension.shared_object("extension", "cpu") == path


# ---- CUDA libraries for several architectures ----


@pytest.mark.parametrize(
    ("built", "present", "found"),
    [
        (("80", "90"), ("90",), True),  # one of them
        (("80", "90"), ("80", "90"), True),
        (("80", "90"), ("86",), True),  # an 86 runs the code of an 80
        (("80", "90"), ("100",), True),  # by the PTX of the newest
        (("80", "90"), ("75",), False),
        (("86", "90"), ("80",), False),
        (("90",), ("80", "90"), False),
        (("75", "120"), ("90",), False),  # PTX of a later one is of no use
    ],
)
def test_a_cuda_library_of_several_architectures_is_found_where_it_serves(tmp_path, monkeypatch, built, present, found):
    monkeypatch.setattr(build, "_prebuilt_folder", lambda root, target: tmp_path)
    monkeypatch.setattr(toolchain, "present_cuda_archs", lambda: present)

    def no_compiler(device_type):
        raise extension.BuildError("no compiler here")

    monkeypatch.setattr(toolchain, "compiler", no_compiler)
    path = tmp_path / toolchain.target("extension", "cuda", built).file_name()
    path.touch()
    if found:
        assert build.shared_object("extension", "cuda") == path
    else:
        with pytest.raises(extension.BuildError, match="no compiler here"):
            build.shared_object("extension", "cuda")


def test_a_cuda_library_of_other_sources_is_not_found(tmp_path):
    target = toolchain.target("extension", "cuda", ("90",))
    (tmp_path / target.file_name("another compiler")).touch()
    assert not any(path.exists() for path in target.files(tmp_path))
    assert [path.exists() for path in target.files(tmp_path, "another compiler")] == [True]


@pytest.mark.parametrize(
    ("text", "archs"), [("8.0 9.0+PTX", ("80", "90")), ("10.0;8.6,9.0", ("86", "90", "100")), ("  ", None)]
)
def test_architectures_are_taken_from_torch_s_variable(monkeypatch, text, archs):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert toolchain.cuda_archs_to_build() == archs


def test_architectures_that_are_no_numbers_are_refused(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 Hopper")
    with pytest.raises(extension.BuildError, match="numbers such as '8.0 9.0.PTX', got '8.0 Hopper'"):
        toolchain.cuda_archs_to_build()
