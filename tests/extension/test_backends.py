"""The registry of backends: which one is chosen and why, and that a further one is nothing but a registration."""

import importlib.util
import logging
import subprocess
import sys
import textwrap

import pytest
import torch

import extension
import freqencoder
import gridencoder
import mlp
import rasterizer
import raymarching
import shencoder
from extension import Backend, backends, build, toolchain

FOLDERS = {m.__name__ for m in (freqencoder, gridencoder, mlp, rasterizer, raymarching, shencoder)}


@pytest.fixture
def fresh(monkeypatch):
    """The registry as it is, with no choice made yet; every change to it is undone."""
    if importlib.util.find_spec("taichi"):
        importlib.import_module("taichi_modules")  # registers its kernels when it is imported, which must not be undone
    monkeypatch.setattr(backends, "_kernels", dict(backends._kernels))
    monkeypatch.setattr(backends, "_backends", list(backends._backends))
    monkeypatch.setattr(backends, "_operations", {op: dict(found) for op, found in backends._operations.items()})
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.setattr(backends, "_missing", set())
    with extension.scope("auto"):
        yield


@pytest.fixture
def messages(caplog):
    """The log lines of the test."""
    caplog.set_level(logging.INFO, "somnia.extension")
    return lambda: [record.getMessage() for record in caplog.records]


def dummy(name="dummy", device_types=("cpu",), reason=None, **options):
    """A backend that works unless there is a reason."""
    return Backend(name, device_types, "for a test", lambda device_type: reason, **options)


def backend_names():
    """The names of all backends, in order."""
    return [b.name for b in extension.registered_backends()]


# ---- the choice ----


def test_the_order_of_preference_is_native_before_taichi_before_torch():
    assert backend_names() == ["cuda", "cpu", "taichi", "torch"]


@pytest.fixture
def no_compiler(fresh, tmp_path, monkeypatch):
    """No C++ compiler is found and no kernel has been built."""
    monkeypatch.setenv("SOMNIA_KERNEL_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build, "_prebuilt_folder", lambda root, target: tmp_path / "nothing")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name, path=None: None)
    toolchain.compiler.cache_clear()


def test_without_a_compiler_the_backend_is_taichi_and_one_line_says_why(no_compiler, messages):
    pytest.importorskip("taichi_modules.runtime", reason="Taichi is not installed", exc_type=ImportError)
    assert [extension.backend("cpu") for _ in range(3)] == ["taichi"] * 3
    (line,) = messages()
    assert line.startswith("tensors on cpu: backend taichi, kernels compiled by Taichi, because backend cpu: no C++ compiler")


def test_without_a_compiler_and_taichi_the_backend_is_torch_and_one_line_says_why(no_compiler, monkeypatch, messages):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert [extension.backend("cpu") for _ in range(3)] == ["torch"] * 3
    (line,) = messages()
    assert line.startswith("tensors on cpu: backend torch, plain PyTorch")
    assert "no C++ compiler was found" in line and "backend taichi: Taichi is not installed; pip install 'taichi" in line


def test_a_taichi_that_does_not_start_leaves_the_work_to_torch_and_is_refused_by_name(no_compiler, monkeypatch, messages):
    runtime = pytest.importorskip("taichi_modules.runtime", reason="Taichi is not installed", exc_type=ImportError)

    def fail(*_, **__):
        raise RuntimeError("no such architecture\n\nat least not here")

    monkeypatch.setattr(runtime, "_running", None)
    monkeypatch.setattr(runtime.ti, "init", fail)
    assert extension.backend("cpu") == "torch"
    assert "backend taichi: Taichi does not start: at least not here" in messages()[0]
    with extension.scope("taichi"), pytest.raises(extension.BackendError, match="--backend taichi does not work here"):
        extension.backend("cpu")


def test_one_folder_can_have_a_request_of_its_own(fresh):
    with extension.scope("torch"), extension.scope("cpu", "shencoder"):
        assert (extension.backend("cpu", "shencoder"), extension.backend("cpu")) == ("cpu", "torch")
        assert extension.requested("shencoder") == "cpu" and extension.requested() == "torch"
    assert extension.requested("shencoder") == "auto"


def test_kernels_of_another_backend_stand_in_for_the_native_ones(fresh):
    seen = []
    extension.register_backend(dummy(), before="torch")
    extension.register_kernels("dummy", "raymarching", {"morton_encode": lambda like, values: seen.append(values["count"])})
    extension.register("raymarching.morton3D", dummy=backends._operations["raymarching.morton3D"]["cpu"])
    with extension.scope("dummy"):
        raymarching.morton3D(torch.zeros(7, 3, dtype=torch.int32))
    assert seen == [7]
    extension.unregister_backend("dummy")
    assert ("dummy", "raymarching") not in backends._kernels


def test_the_chosen_backend_is_logged_once(fresh, messages):
    extension.register_backend(dummy(), before="cpu")
    assert [extension.backend("cpu") for _ in range(3)] == ["dummy"] * 3
    assert messages() == ["tensors on cpu: backend dummy, for a test"]


def test_a_device_that_no_other_backend_serves_gets_torch(fresh, messages):
    assert extension.backend("meta") == "torch"
    assert "no other backend serves this device" in messages()[0]


def test_cuda_kernels_that_compile_but_do_not_run_leave_the_work_to_torch(fresh, monkeypatch, messages):
    extension.unregister_backend("taichi")

    def launch(*_):
        raise RuntimeError("extension_increment_cuda: failed with CUDA error 35: driver too old\nmore of it")

    monkeypatch.setattr(backends, "load_library", lambda folder, device_type: None)
    monkeypatch.setattr(backends.torch, "zeros", lambda *_, **__: torch.empty(1))
    monkeypatch.setattr(backends, "kernel", lambda *_: launch)
    assert [extension.backend("cuda") for _ in range(2)] == ["torch"] * 2
    (line,) = messages()
    assert "error 35: driver too old" in line and "more of it" not in line
    with extension.scope("cuda"), pytest.raises(extension.BackendError, match="do not run on this GPU"):
        extension.backend("cuda")


@pytest.mark.parametrize(("value", "chosen"), [(1.0, "cuda"), (0.0, "torch")])
def test_a_cuda_kernel_must_give_the_right_number_before_it_is_used(fresh, monkeypatch, value, chosen):
    extension.unregister_backend("taichi")
    monkeypatch.setattr(backends, "load_library", lambda folder, device_type: None)
    monkeypatch.setattr(backends.torch, "zeros", lambda *_, **__: torch.empty(1, dtype=torch.float64))
    monkeypatch.setattr(backends, "kernel", lambda *_: lambda source, target, count: target.fill_(value))
    assert extension.backend("cuda") == chosen


def test_a_scope_returns_to_the_request_before_it():
    before = extension.requested()
    with extension.scope("torch"):
        assert extension.backend("cpu") == "torch"
    assert extension.requested() == before


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(extension.BackendError, match="--backend must be auto, cuda, cpu, taichi or torch, got 'vulkan'"):
        extension.use("vulkan")


def test_backend_cuda_refuses_tensors_on_the_cpu():
    with extension.scope("cuda"), pytest.raises(extension.BackendError, match="these are on cpu; use --backend auto"):
        extension.backend("cpu")


# ---- operations ----


def test_a_third_and_a_fourth_backend_are_nothing_but_registrations(fresh):
    for name in ("third", "fourth"):
        extension.register_backend(dummy(name))
        extension.register("shencoder.encode", **{name: lambda x, degree, name=name: f"{name}: degree {degree}"})
    assert backend_names() == ["cuda", "cpu", "taichi", "third", "fourth", "torch"]
    x = torch.zeros(2, 3)
    for name in ("third", "fourth"):
        with extension.scope(name):
            assert extension.implementation("shencoder.encode", x)(x, 4) == f"{name}: degree 4"
    for name in ("third", "fourth"):
        extension.unregister_backend(name)
    assert backend_names() == ["cuda", "cpu", "taichi", "torch"]
    with pytest.raises(extension.BackendError, match="got 'third'"):
        extension.use("third")


def test_a_registered_backend_runs_a_public_operation(fresh):
    extension.register_backend(dummy())
    extension.register("shencoder.encode", dummy=lambda directions, degree: directions.new_full((1, degree**2), 7.0))
    with extension.scope("dummy"):
        assert torch.equal(shencoder.encode(torch.zeros(1, 3), 2), torch.full((1, 4), 7.0))


def test_an_operation_that_a_backend_lacks_runs_on_torch_and_one_line_says_so(fresh, messages):
    extension.register_backend(dummy())
    extension.register("test.double", native=lambda x: "native", torch=lambda x: 2 * x)
    x = torch.ones(1)
    with extension.scope("dummy"):
        for _ in range(3):
            assert extension.implementation("test.double", x)(x).item() == 2
    assert messages()[1:] == ["test.double: backend torch, because backend dummy does not have this operation"]


def test_an_operation_that_torch_lacks_as_well_is_an_error(fresh):
    extension.register_backend(dummy())
    extension.register("test.only_cuda", cuda=lambda x: x)
    with extension.scope("dummy"), pytest.raises(extension.BackendError, match="test.only_cuda has no implementation"):
        extension.implementation("test.only_cuda", torch.ones(1))
    with pytest.raises(LookupError, match="no operation 'test.unknown'"):
        extension.implementation("test.unknown", torch.ones(1))


def test_a_backend_that_does_not_work_here_is_passed_over_and_refused_when_requested(fresh, messages):
    extension.register_backend(dummy(reason="it is not installed"), before="cuda")
    extension.register_backend(dummy("second"), before="cuda")
    assert extension.backend("cpu") == "second"
    assert messages() == ["tensors on cpu: backend second, for a test, because backend dummy: it is not installed"]
    with extension.scope("dummy"), pytest.raises(extension.BackendError, match="dummy does not work here: it is not inst"):
        extension.backend("cpu")


def test_the_module_of_a_backend_is_imported_when_it_is_first_chosen(fresh, tmp_path, monkeypatch):
    (tmp_path / "dummy_operations.py").write_text("import extension\nextension.register('test.f', lazy=lambda x: 'lazy')\n")
    monkeypatch.syspath_prepend(tmp_path)
    extension.register_backend(dummy("lazy", module="dummy_operations"))
    assert "dummy_operations" not in sys.modules
    with extension.scope("lazy"):
        assert extension.implementation("test.f", torch.ones(1))(None) == "lazy"
    del sys.modules["dummy_operations"]


@pytest.mark.parametrize(
    "register",
    [
        lambda: extension.register_backend(dummy("cpu")),
        lambda: extension.register_backend(dummy("auto")),
        lambda: extension.register_backend(dummy(), before="nothing"),
        lambda: extension.register("test.f", nothing=print),
        lambda: extension.register("test.f", native=print, cpu=print, torch=print) or extension.register("test.f", cpu=print),
        lambda: extension.unregister_backend("torch"),
        lambda: extension.unregister_backend("nothing"),
    ],
)
def test_registrations_that_contradict_the_registry_are_refused(fresh, register):
    with pytest.raises(ValueError, match="register"):
        register()


def test_every_operation_runs_on_torch_and_on_every_native_backend():
    found = {op: set(table) for op, table in backends._operations.items() if op.split(".")[0] in FOLDERS}
    assert {op.split(".")[0] for op in found} == FOLDERS
    assert {op: table for op, table in found.items() if not {"cuda", "cpu", "torch"} <= table} == {}


def test_importing_the_packages_builds_and_loads_nothing():
    code = """
        import subprocess, ctypes
        def refuse(*arguments, **options):
            raise AssertionError(arguments)
        import torch
        subprocess.Popen.__init__ = ctypes.CDLL.__init__ = refuse
        import extension, freqencoder, gridencoder, mlp, rasterizer, raymarching, shencoder
        import sys
        assert "taichi" not in sys.modules and "taichi_modules" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=toolchain.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
