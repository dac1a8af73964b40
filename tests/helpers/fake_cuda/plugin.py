"""``pytest -p tests.helpers.fake_cuda.plugin``: a test session in which torch believes in a GPU.

FAKE_CUDA_MODE is how kernels are compiled (builder.MODES), FAKE_CUDA_ORDER in what order their threads run, and
FAKE_CUDA_REPORT a file for what the session launched and waited for.
"""

import json
import os
from pathlib import Path

from tests.helpers.fake_cuda import device, waits

device.install(os.environ.get("FAKE_CUDA_MODE", "plain"))


def pytest_sessionfinish():
    """Write the report, if one was asked for."""
    path = os.environ.get("FAKE_CUDA_REPORT")
    if path:
        total = waits.whole_process()
        report = {"launches": device.kernel_launches(), "kernels": total.kernels, "waits": total.lines()}
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
