"""``pytest -p tests.helpers.fake_cuda.plugin``: a test session in which torch believes in a GPU, of the tests that use it.

FAKE_CUDA_MODE is how kernels are compiled (builder.MODES), FAKE_CUDA_ORDER in what order their threads run, and
FAKE_CUDA_REPORT a file for what the session launched and waited for.
"""

import functools
import inspect
import json
import os
import re
from pathlib import Path

import pytest
import torch

from tests.helpers.fake_cuda import device, waits

device.install(os.environ.get("FAKE_CUDA_MODE", "plain"))


def pytest_ignore_collect(collection_path):
    """Files that name neither a device nor CUDA have no test of it, and are not even imported."""
    ours = collection_path.name.startswith("test_") and "on_device" not in collection_path.parts
    return True if ours and collection_path.is_file() and not re.search("device|cuda", collection_path.read_text()) else None


def pytest_collection_modifyitems(config, items):
    """Leave out the tests that run on the CPU, or by plain torch; an ordinary session has them."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        (kept if _uses_cuda(item) else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def _uses_cuda(item) -> bool:
    """Whether a test's fixtures give it the device or, where they give none, it takes it by itself."""
    if "on_device" in item.path.parts:
        return True
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    places = [place for place in map(_place, parameters) if place]
    if places:
        return places[0] == {"cuda"}
    return _names_cuda(item.function)


@functools.cache
def _names_cuda(function: object) -> bool:
    """Whether the code of a test takes the device by itself."""
    source = inspect.getsource(function)
    return '"cuda"' in source or ".cuda()" in source


def _place(parameter: object) -> set[str]:
    """The device, or the device and the backend, that a fixture's parameter consists of; empty for any other parameter."""
    parts = parameter if isinstance(parameter, tuple) else (parameter,)
    names = {str(part) if isinstance(part, str | torch.device) else "" for part in parts}
    return names if names <= {"cpu", "cuda", "torch", "taichi"} else set()


def pytest_sessionfinish():
    """Write the report, if one was asked for."""
    path = os.environ.get("FAKE_CUDA_REPORT")
    if path:
        total = waits.whole_process()
        report = {"launches": device.kernel_launches(), "kernels": total.kernels, "waits": total.lines()}
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
