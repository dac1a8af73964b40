"""The folder of a run: what is read from it before the run is planned, and what is written to it afterwards."""

import os
from pathlib import Path
from typing import Any

from nerf.config.config import Config, from_json, to_json
from nerf.config.groups import CKPT_WORDS, STAGES
from nerf.config.resolve import RunPlan, StoredRun
from nerf.core.errors import UserError
from nerf.core.files import read_json, write_json
from nerf.run import checkpoint
from nerf.run.distributed import is_main

CONFIG_FILE = "config.json"


def read(asked: Config) -> StoredRun:
    """What the workspace of a run holds. Changes nothing on disk.

    Raises:
        UserError: its ``config.json`` is broken, and the run does not start over.
    """
    folder = Path(asked.output.workspace)
    trained = frozenset(stage for stage in STAGES if _is_trained(folder, stage))
    has_run = bool(trained) and (folder / CONFIG_FILE).is_file()
    try:
        config = stored_config(folder) if has_run else None
    except UserError:
        if not asked.starts_over:
            raise
        config = None
    ckpt = asked.runtime.ckpt
    return StoredRun(config, trained, checkpoint_exists=ckpt not in CKPT_WORDS and Path(ckpt).is_file())


def stored_config(folder: str | Path) -> Config:
    """The config of the run in a workspace.

    Raises:
        UserError: ``config.json`` is missing or broken.
    """
    path = Path(folder) / CONFIG_FILE
    return from_json(read_json(path, "start over with --ckpt scratch, or choose another --workspace"))


def check_writable(folder: str | Path) -> None:
    """Check that a workspace can be made or written to, without making it.

    Raises:
        UserError: it cannot.
    """
    path = Path(folder).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir():
        raise UserError(f"--workspace {folder} cannot be written to ({existing} is not a folder); choose a folder of your own")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"--workspace {folder} cannot be written to (no permission for {existing}); choose a folder of your own"
        )


def open_workspace(plan: RunPlan[Any]) -> None:
    """Make the folder; if the run trains, write ``config.json``, and under ``--ckpt scratch`` remove its stages' checkpoints.

    From here on a run changes files; call it after everything that may refuse the run.

    Raises:
        UserError: the folder cannot be written to.
    """
    if not is_main():
        return
    config = plan.config
    folder = Path(config.output.workspace)
    _make(folder)
    if config.starts_over:
        for stage in plan.stages:
            checkpoint.prune(folder / "checkpoints", 0, stage.name)
    if config.trains:
        write_json(folder / CONFIG_FILE, to_json(config) | {"stages": [stage.name for stage in plan.stages]})


def stage_progress(folder: str | Path) -> dict[str, dict[str, float]]:
    """Stage -> "steps" and "seconds" of training so far, from its newest checkpoint in a workspace."""
    found = {}
    for stage in STAGES:
        path = checkpoint.latest(Path(folder) / "checkpoints", stage)
        if path is None:
            continue
        try:
            meta = checkpoint.read_meta(path)
        except UserError:  # the stage that reads it will report it
            continue
        found[stage] = {"steps": meta.get("step", 0), "seconds": round(meta.get("seconds", 0.0), 2)}
    return found


def has_later_stage(folder: str | Path, stage: str) -> bool:
    """Whether a stage after this one has a checkpoint in a workspace."""
    return any(_is_trained(Path(folder), later) for later in STAGES[STAGES.index(stage) + 1 :])


def _is_trained(folder: Path, stage: str) -> bool:
    """Whether a stage has a checkpoint in a workspace."""
    return checkpoint.latest(folder / "checkpoints", stage) is not None


def _make(folder: Path) -> None:
    """Make the folder and create a file in it, so that a failure comes now and not at the first checkpoint."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workspace {folder} cannot be written to ({error.strerror}); choose a folder of your own") from None
