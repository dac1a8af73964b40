"""The folder of a run: made, guarded against another run's options, and described in ``config.json``."""

import os
import secrets
from pathlib import Path

from nerf.config.config import OPTIONS, SOURCES, Config, for_stage, from_json, to_json, with_preset, with_values
from nerf.config.groups import STAGES
from nerf.config.parser import dashed
from nerf.core.errors import UserError
from nerf.core.files import read_json, write_json
from nerf.run import checkpoint

CONFIG_FILE = "config.json"
# The options that a run keeps for life: other values would need other tensors, or make another object.
KEPT = tuple(flag for flag, (_, field) in OPTIONS.items() if field.metadata["fixed"])
MESH_KEPT = tuple(flag for flag in KEPT if OPTIONS[flag][0] == "dmtet")  # they bind once the mesh stage has a checkpoint


def adopt(config: Config) -> Config:
    """The config with the seed, the presets and the kept options of the run that is already in its workspace.

    A workspace without a run, and ``--ckpt scratch``, change nothing but a missing seed, which is drawn.

    Raises:
        UserError: its ``config.json`` is broken, or what the user typed is not what the workspace holds.
    """
    folder = Path(config.output.workspace)
    if _has_run(folder) and not (config.runtime.ckpt == "scratch" and config.trains):
        stored = stored_config(folder)
        for name in stored.presets:
            config = config if name in config.presets else with_preset(config, name)
        config = take_over(config, stored)
        # Stages of which none has begun, as after a mesh stage that found nothing to start from, bind nobody.
        if config.source("stages") == "default" and not config.dmtet.dmtet and _has_begun(folder, stored.stages):
            config = with_values(config, {"stages": stored.stages}, "workspace")
        if config.runtime.seed is None:
            config = with_values(config, {"seed": stored.runtime.seed}, "workspace")
    if config.runtime.seed is None:
        config = with_values(config, {"seed": secrets.randbelow(2**31)}, "default")
    return config


def open_workspace(config: Config) -> Config:
    """Make the folder, take over what an earlier run in it was made with, and write ``config.json`` if this run trains.

    ``--ckpt scratch`` forgets the earlier run: the checkpoints of this run's stages are removed when it begins.

    Returns:
        The config with the kept options of the earlier run where the user said nothing else (source "workspace").

    Raises:
        UserError: there is nothing to show, the folder cannot be written to, its ``config.json`` is broken, or what the
            user typed is not what the workspace holds.
    """
    folder = Path(config.output.workspace)
    if not config.trains and not _has_begun(folder, STAGES) and checkpoint.resolve(folder, config.runtime.ckpt) is None:
        raise UserError(f"workspace {folder} has no checkpoint to show; train first: the same command without --test or "
                        "--six_views")  # fmt: skip
    _require_writable(folder)
    if config.runtime.ckpt == "scratch" and config.trains:
        for stage in config.stages:
            checkpoint.prune(folder / "checkpoints", 0, stage)
    elif _has_run(folder):
        config = take_over(config, stored_config(folder))
    if config.trains:
        write_json(folder / CONFIG_FILE, to_json(config) | {"stages": list(config.stages)})
    return config


def _has_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and _has_begun(folder, STAGES)


def _has_begun(folder: Path, stages: tuple[str, ...]) -> bool:
    """Whether one of the stages has a checkpoint."""
    return any(checkpoint.latest(folder / "checkpoints", stage) for stage in stages)


def pending_stages(config: Config) -> tuple[str, ...]:
    """The stages that this run still has to go through: from the last one that has a checkpoint on.

    A run that only shows has one: the last that has a checkpoint, or the one whose checkpoint ``--ckpt`` names.
    """
    folder, stages = Path(config.output.workspace) / "checkpoints", config.stages
    begun = [i for i, stage in enumerate(stages) if checkpoint.latest(folder, stage) is not None]
    named = checkpoint.stage_of(config.runtime.ckpt)
    first = stages.index(named) if named in stages else (begun[-1] if begun else 0)
    return stages[first:] if config.trains else stages[first : first + 1]


def stages_had(folder: str | Path) -> dict[str, dict[str, float]]:
    """Stage -> "steps" and "seconds" of training that it has had in a workspace, as its newest checkpoint says."""
    found = {}
    for stage in STAGES:
        path = checkpoint.latest(Path(folder) / "checkpoints", stage)
        if path is None:
            continue
        try:
            meta = checkpoint.read_meta(path)
        except UserError:  # the stage that needs it will say so
            continue
        found[stage] = {"steps": meta.get("step", 0), "seconds": round(meta.get("seconds", 0.0), 2)}
    return found


def has_later_stage(folder: str | Path, stage: str) -> bool:
    """Whether a stage after this one has a checkpoint in a workspace."""
    return _has_begun(Path(folder), STAGES[STAGES.index(stage) + 1 :])


def stored_config(folder: str | Path) -> Config:
    """The config of the run in a workspace.

    Raises:
        UserError: ``config.json`` is missing or broken.
    """
    path = Path(folder) / CONFIG_FILE
    return from_json(read_json(path, "start over with --ckpt scratch, or choose another --workspace"))


def take_over(config: Config, stored: Config) -> Config:
    """Fill kept options from an earlier run where the user neither typed one nor gave one in a file.

    Those of the mesh stage are compared as that stage sees them, and may be chosen anew until it has a checkpoint.

    Raises:
        UserError: the user asked for another value than the earlier run's.
    """
    adopted = {}
    free = () if _has_begun(Path(config.output.workspace), ("dmtet",)) else MESH_KEPT
    for flag in KEPT:
        mine, theirs = ((for_stage(c, "dmtet") if flag in MESH_KEPT else c).value(flag) for c in (config, stored))
        if mine == theirs or (flag == "data" and _same_folder(mine, theirs)):
            continue
        if SOURCES.index(config.source(flag)) > SOURCES.index("workspace"):
            if flag in free:
                continue
            raise UserError(
                f"workspace {config.output.workspace} holds a run with {dashed(flag)} {theirs!r}, this run asks for "
                f"{mine!r}: choose another --workspace, or start over in it with --ckpt scratch"
            )
        adopted[flag] = theirs
    return with_values(config, adopted, "workspace")


def _same_folder(one: str | None, other: str | None) -> bool:
    """Whether two paths, such as a relative and an absolute one, mean the same folder."""
    return None not in (one, other) and os.path.realpath(one) == os.path.realpath(other)


def _require_writable(folder: Path) -> None:
    """Make the folder, and find out now rather than at the first checkpoint whether it takes files."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workspace {folder} cannot be written to ({error.strerror}); choose a folder of your own") from None
