"""Train the embedded prior on a GPU, with the interpreter's own torch: ``make gpu-prior MINUTES=8``.

It installs nothing: packages that are missing are named before anything takes time, and a folder that has them can be given in
PYTHONPATH. The work is done by guidance/prior/train_gpu.py.
"""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core.script import refuse, run  # noqa: E402

PACKAGES = ("torch", "numpy", "msgspec", "safetensors", "transformers", "diffusers")


def main() -> int:
    """Check the packages, and train; returns the exit code."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return refuse(
            f"{sys.executable} lacks {', '.join(absent)}; choose another with make PYTHON=... gpu-prior, or "
            "pip install --target FOLDER puts them where PYTHONPATH=FOLDER finds them"
        )
    from guidance.prior import train_gpu

    return train_gpu.main()


if __name__ == "__main__":
    from nerf.core.console import protected

    with protected():
        sys.exit(run(main))
