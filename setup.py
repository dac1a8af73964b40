"""Packaging: the metadata is in pyproject.toml; here the native kernels are built ahead of time where that is possible.

Without a compiler, or without torch in the build environment, nothing is built and the installation still succeeds: the
kernels are then compiled on first use, or plain torch does their work.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

DATA = (
    "*.h",
    "*.cpp",
    "*.cu",
    "*.json",
    "*.txt",
    "*.safetensors",
    "*.html",
    "*.css",
    "*.js",
)  # kernels, the weights of the embedded prior, the page of a batch


class BuildWithKernels(build_py):
    """build_py, and then every kernel that this machine can compile for its CPU, or for the GPUs that are asked for."""

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
        # CUDA kernels need nvcc and know for which GPUs; the variable that torch's own extensions read says so.
        devices = ("cpu", "cuda") if os.environ.get("TORCH_CUDA_ARCH_LIST") else ("cpu",)
        built = build_ahead(self.build_lib, devices)
        self.announce(f"kernels built ahead of time: {len(built)}", level=3)


class PlatformDistribution(Distribution):
    """Holds native libraries, though no extension modules of Python's."""

    def has_ext_modules(self) -> bool:
        """Files for one kind of machine are among it."""
        return True


class PlatformWheel(bdist_wheel):
    """A wheel for one kind of machine and any Python: the libraries are called through ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, its binary interface, and the machine that the file name promises."""
        return "py3", "none", super().get_tag()[2]


setup(
    packages=find_packages(),
    py_modules=["main", "optimizer", "preprocess_image", "somnia"],
    package_data={"": [f"**/{pattern}" for pattern in DATA]},
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
)
