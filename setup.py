"""Packaging: the metadata is in pyproject.toml; here the native kernels are built ahead of time where that is possible.

Without a compiler, or without torch in the build environment, nothing is built and the installation still succeeds: the
kernels are then compiled on first use, or plain torch does their work.
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

KERNELS = ("raymarching*", "gridencoder*", "freqencoder*", "shencoder*", "mlp*", "rasterizer*")
PACKAGES = ("nerf*", "guidance*", "extension*", *KERNELS)
DATA = ("*.h", "*.cpp", "*.cu", "*.json", "*.txt", "*.safetensors", "*.md", "*.so")


class BuildWithKernels(build_py):
    """build_py, and then every kernel that this machine can compile for its CPU."""

    def run(self) -> None:
        """Copy the packages, then compile beside them."""
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        try:
            from extension import build_ahead
        except ImportError as error:
            self.announce(f"kernels are not built ahead of time ({error}); they are compiled on first use", level=3)
            return
        built = build_ahead(self.build_lib)
        self.announce(f"kernels built ahead of time: {len(built)}", level=3)


setup(
    packages=find_packages(include=PACKAGES),
    py_modules=["main", "optimizer"],
    package_data={"": [f"**/{pattern}" for pattern in DATA]},
    cmdclass={"build_py": BuildWithKernels},
)
