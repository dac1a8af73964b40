"""Workspaces of finished runs, read for judging. Nothing in them is changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerf.config.config import Config
from nerf.core.errors import UserError
from nerf.core.files import read_json
from nerf.run.workspace import CONFIG_FILE, stored_config

MESH = Path("mesh", "mesh.glb")
WAY_OUT = "train it again, or leave this workspace out"
KEPT = ("test_psnr", "test_ssim", "image_psnr", "image_ssim", "train_seconds", "steps")  # figures that a run wrote itself


@dataclass(frozen=True)
class Finished:
    """The run of a workspace."""

    folder: Path
    config: Config
    result: dict[str, Any]  # of result.json; empty of a run that did not end

    @property
    def prompt(self) -> str | None:
        """Its text, if it has one."""
        return self.config.prompt.text

    @property
    def seed(self) -> int | None:
        """Its seed; None of options that were never resolved."""
        return self.config.runtime.seed

    @property
    def mesh(self) -> Path:
        """Its mesh, whether or not there is one."""
        return self.folder / MESH

    @property
    def failure(self) -> str:
        """Why it has no mesh; empty if it has one."""
        if self.mesh.is_file():
            return ""
        return str(self.result.get("error") or f"there is no {MESH}: it did not end, or ran without --save_mesh")

    @property
    def kept(self) -> dict[str, float]:
        """The figures that the run measured itself, by the names of ``result.json``."""
        return {name: float(self.result[name]) for name in KEPT if isinstance(self.result.get(name), int | float)}


def read_finished(folder: Path) -> Finished:
    """Read the options and the results of a run.

    Raises:
        UserError: it is no workspace, or its files are damaged.
    """
    if not folder.is_dir():
        raise UserError(f"there is no workspace {folder}; give the folder of a run, as --workspace named it")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is no workspace, as it has no {CONFIG_FILE}; give the folder of a run")
    path = folder / "result.json"
    result = read_json(path, WAY_OUT, dict[str, Any]) if path.is_file() else {}
    return Finished(folder, stored_config(folder, WAY_OUT), result)
