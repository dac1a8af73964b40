"""Make .venv beside the project and install everything into it: torch first and alone, then the rest.

Runs on the plain python3 of a fresh machine (standard library only) and needs no root. What is installed is read from
pyproject.toml and constraints.txt; the Makefile calls this again when one of them changes.
"""

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
EXTRAS = ("mesh", "guidance", "matting", "video", "tensorboard", "gui", "web", "taichi", "sfm", "batch", "debug", "dev")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
GET_PIP = "https://bootstrap.pypa.io/get-pip.py"
OLDEST, NEWEST = (3, 11), (3, 13)


def main() -> int:
    """Make or complete the environment; returns the exit code."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        have = ".".join(map(str, sys.version_info[:3]))
        print(
            f"setup: needs Python 3.11 to 3.13 and got {have}; say which with: make PYTHON=python3.12 ...",
            file=sys.stderr,
        )
        return 2
    try:
        python = make_venv()
        install_torch(python)
        print("setup: installing the other packages ...", flush=True)
        pip(python, *requirements())
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"setup: {error}; mend that (network? disk?) and run the same make command again", file=sys.stderr)
        return 1
    (VENV / ".complete").touch()
    return 0


def make_venv() -> str:
    """Create .venv with a pip in it if it is not there; returns its interpreter."""
    python = str(VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    if Path(python).exists() and succeeds(python, "-m", "pip", "--version"):
        return python
    print("setup: making .venv ...", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    if succeeds(sys.executable, "-m", "venv", str(VENV)):
        return python
    # Debian's python3 comes without ensurepip: take the system's pip if there is one, or pip's own installer.
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], check=True)
    if not succeeds(sys.executable, "-m", "pip", "--python", python, "install", "-q", "pip"):
        with urllib.request.urlopen(GET_PIP, timeout=60) as page:
            subprocess.run([python, "-", "-q"], input=page.read(), check=True)
    return python


def install_torch(python: str) -> None:
    """Install the torch of constraints.txt; without an NVIDIA GPU the build for CPUs, several gigabytes smaller."""
    if succeeds(python, "-c", "import torch"):
        return
    print("setup: installing torch ...", flush=True)
    if shutil.which("nvidia-smi") is None:
        try:
            pip(python, "--extra-index-url", CPU_WHEELS, "--retries", "1", "--timeout", "20", "--no-deps", "torch")
            return
        except subprocess.CalledProcessError:
            print("setup: the index of CPU builds cannot be reached; taking torch from the usual one", flush=True)
    pip(python, "torch")


def succeeds(*command: str) -> bool:
    """Whether a command runs and exits with 0; it says nothing."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def pip(python: str, *arguments: str) -> None:
    """Install packages under the constraints of the project."""
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*command, *arguments], check=True)


def requirements() -> list[str]:
    """What pyproject.toml asks for: the core and every extra in EXTRAS."""
    import tomllib  # here, so that an older Python gets the sentence above and not an ImportError

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(line for name in EXTRAS for line in extras[name])]


if __name__ == "__main__":
    sys.exit(main())
