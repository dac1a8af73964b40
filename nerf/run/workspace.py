"""The folder of a run: what is read from it before the run is planned, and what is written to it afterwards."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from nerf.config.config import WAY_OUT, Config, from_json, to_json, with_values
from nerf.config.groups import CKPT_WORDS, STAGES
from nerf.config.inputs import PromptConfig
from nerf.config.kept import StoredRun, StoredStart, start_from_run
from nerf.config.resolve import RunPlan
from nerf.config.stages import FIRST, STAGE_KINDS
from nerf.core import files
from nerf.core.errors import UserError
from nerf.core.files import as_shape, read_json, remove_unfinished, unfinished_name, write_atomically, write_json
from nerf.run import checkpoint
from nerf.run.distributed import is_main

CONFIG_FILE = "config.json"
# What a run writes to in its workspace: nothing else may have these names.
FILES = (CONFIG_FILE, "log_df.txt", "metrics.jsonl", "result.json")
FOLDERS = (
    "checkpoints",
    "checkpoints/replaced",
    "checkpoints/.replacing",
    "validation",
    "results",
    "mesh",
    "run",
    "profile",
    "guidance",
)
STAGES_FILE = "stages.json"  # of a run that starts over: the stages that it begins anew


class Words(msgspec.Struct):
    """The words of a prompt."""

    text: str
    negative: str = ""


class PromptEdit(msgspec.Struct):
    """An event in ``config.json``: from a step on, a run went on with another prompt."""

    stage: str
    step: int
    time: float  # of ``time.time``
    before: Words
    after: Words
    event: Literal["prompt"] = "prompt"


class _Kept(msgspec.Struct):
    """What ``config.json`` holds beside the options."""

    images: str | None = None  # fingerprint of the image prompts
    events: list[PromptEdit] = []


def read(asked: Config) -> StoredRun:
    """What the workspace of a run holds. Changes nothing on disk.

    Raises:
        UserError: its ``config.json`` is broken, or missing though it has checkpoints, and the run does not start over.
    """
    folder = Path(asked.output.workspace)
    trained = frozenset(stage for stage in STAGES if _is_trained(folder, stage))
    has_config = (folder / CONFIG_FILE).is_file()
    if trained and not has_config and not asked.starts_over:
        raise UserError(
            f"workspace {folder} has checkpoints and no {CONFIG_FILE}, so what they were trained on is not known: put the file "
            "back, choose another --workspace (--ckpt takes a file of any), or start over with --ckpt scratch"
        )
    try:
        config, kept = _stored_run(folder) if trained and has_config else (None, _Kept())
    except UserError:
        if not asked.starts_over:
            raise
        config, kept = None, _Kept()
    ckpt = asked.runtime.ckpt
    earlier = tuple({"text": edit.before.text, "negative": edit.before.negative} for edit in kept.events)
    exists = ckpt not in CKPT_WORDS and Path(ckpt).is_file()
    return StoredRun(config, trained, exists, images=kept.images, earlier_prompts=earlier)


def checkpoint_start(asked: Config) -> StoredStart | None:
    """What a run takes over from a checkpoint of another workspace that ``--ckpt`` names; None if it names none.

    Raises:
        UserError: the ``config.json`` of that workspace is broken.
    """
    path = Path(asked.runtime.ckpt)
    folder = path.resolve().parent.parent
    own = Path(asked.output.workspace).resolve()
    if asked.runtime.ckpt in CKPT_WORDS or not path.is_file() or folder == own or not (folder / CONFIG_FILE).is_file():
        return None
    stage = checkpoint.stage_of(path) or FIRST.name
    stored = stored_config(folder)
    start = start_from_run(stored, stage, own=False)
    resumed = ["optim"]  # the state is resumed, with that of the occupancy grid where there is one
    if not STAGE_KINDS[stage].triangles:
        resumed += ["cuda_ray", "grid_size"] if stored.render.cuda_ray else ["cuda_ray"]
    return replace(start, required={**start.required, **{flag: stored.value(flag) for flag in resumed}}, flag="--ckpt")


def stored_config(folder: str | Path, way_out: str = WAY_OUT) -> Config:
    """The config of the run in a workspace, with the prompt that it has by now.

    Args:
        folder: the workspace.
        way_out: what the user can do if it is broken; the end of the message.

    Raises:
        UserError: ``config.json`` is missing or broken.
    """
    return _stored_run(folder, way_out)[0]


def _stored_run(folder: str | Path, way_out: str = WAY_OUT) -> tuple[Config, _Kept]:
    """See :func:`stored_config`."""
    path = Path(folder) / CONFIG_FILE
    stored = read_json(path, way_out)
    try:
        config = from_json(stored)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config, as_shape(stored, path, way_out, _Kept)


def record_prompt(folder: str | Path, stage: str, step: int, before: PromptConfig, after: PromptConfig) -> None:
    """Keep another prompt in ``config.json``: as the prompt of the run, and as an event with what it was before (on rank 0).

    Args:
        folder: an open workspace.
        stage: name of the stage that trains.
        step: the number of steps that were taken with the prompt before.
        before: the prompt until now.
        after: the prompt from now on.
    """
    if not is_main():
        return
    path = Path(folder) / CONFIG_FILE
    stored, (old, new) = read_json(path, WAY_OUT), (Words(prompt.text or "", prompt.negative) for prompt in (before, after))
    config, kept = _stored_run(folder)
    edited = with_values(config, {"text": after.text, "negative": after.negative}, "typed")
    events = [*kept.events, PromptEdit(stage, step, round(time.time(), 3), old, new)]
    write_json(path, stored | to_json(edited) | {"events": msgspec.to_builtins(events)})


def check_writable(folder: str | Path) -> None:
    """Check that a workspace can be made or written to, without making it.

    Raises:
        UserError: it cannot.
    """
    files.check_writable(folder, "--workspace")
    for name in (*FILES, *FOLDERS):
        _check_name(Path(folder).absolute() / name, f"--workspace {folder} cannot be written to: {name} in it", name in FOLDERS)


def _check_name(path: Path, what: str, folder: bool) -> None:
    """Refuse a name that is taken by something else, now and not at the end of the training.

    Args:
        path: of a file or folder that a run writes to; it may be missing.
        what: it, as the message begins.
        folder: it must be a folder, and else a file.
    """
    if not os.path.lexists(path):
        return
    right = path.is_dir() if folder else path.is_file()
    if not right:
        kind = "folder" if folder else "file"
        raise UserError(f"{what} is no {kind}; move it away, or choose another --workspace")
    if not os.access(path, os.W_OK | os.X_OK if folder else os.W_OK):
        raise UserError(f"{what} may not be written to; change its permissions, or choose another --workspace")


def open_workspace(plan: RunPlan[Any]) -> None:
    """Make the folder; if the run trains, set the checkpoints of stages that begin anew aside and write ``config.json``.

    From here on a run changes files; call it after everything that may refuse the run.

    Raises:
        UserError: the folder cannot be written to.
    """
    if not is_main():
        return
    config = plan.config
    folder = Path(config.output.workspace)
    _make(folder)
    if config.trains:
        # Stages after the first of this run begin anew, because what they started from changes.
        anew = plan.stages if config.starts_over else plan.stages[plan.first + 1 :]
        set_aside(folder, [stage.name for stage in anew])
        events = _events_of(folder, config)
        more = {"stages": [stage.name for stage in plan.stages], "images": plan.images, "events": msgspec.to_builtins(events)}
        write_json(folder / CONFIG_FILE, to_json(config) | more)


def _events_of(folder: Path, config: Config) -> list[PromptEdit]:
    """The events of the run that goes on in a workspace: those that led to its prompt."""
    try:
        events = _stored_run(folder)[1].events
    except UserError:  # there was none, or it starts over
        return []
    now = Words(config.prompt.text or "", config.prompt.negative)
    return events if events and events[-1].after == now else []


def set_aside(folder: str | Path, stages: Sequence[str]) -> None:
    """Move the checkpoints of stages to ``checkpoints/replaced``, with the options of their run (on rank 0).

    :func:`remove_replaced` removes them once a new checkpoint is whole. If the run ends before, :func:`recover` puts them back.

    Args:
        folder: a workspace.
        stages: names of the stages that are begun anew.
    """
    checkpoints = Path(folder) / "checkpoints"
    paths = [path for stage in stages for _, path in checkpoint.steps(checkpoints, stage)]
    if not paths or not is_main():
        return
    unfinished, replaced = _aside(folder)
    unfinished.mkdir(exist_ok=True)
    write_json(unfinished / STAGES_FILE, list(stages))
    if (Path(folder) / CONFIG_FILE).is_file():
        options = (Path(folder) / CONFIG_FILE).read_bytes()
        write_atomically(unfinished / CONFIG_FILE, lambda temporary: temporary.write_bytes(options))
    for path in paths:
        os.replace(path, unfinished / path.name)
    remove_replaced(folder)
    os.rename(unfinished, replaced)


def remove_replaced(folder: str | Path) -> None:
    """Remove what :func:`set_aside` set aside; call it when a new checkpoint is whole (on rank 0).

    As a whole, whenever the process is killed: a checkpoint of one stage must not be put back beside new ones of another.
    """
    replaced = _aside(folder)[1]
    if is_main() and replaced.is_dir():
        leaving = unfinished_name(replaced)  # which :func:`recover` removes
        os.rename(replaced, leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def recover(folder: str | Path) -> list[str]:
    """Repair what a killed process left in a workspace; call it while its lock is held (on rank 0).

    Returns:
        Lines for the log.
    """
    if not is_main() or not Path(folder).is_dir():
        return []
    found = remove_unfinished(folder)
    lines = [f"removed what an interrupted run left: {', '.join(path.name for path in found)}"] if found else []
    unfinished, replaced = _aside(folder)
    if unfinished.is_dir():
        return [*lines, _put_back(Path(folder), unfinished)]
    if replaced.is_dir():
        if any(_is_trained(Path(folder), stage) for stage in _begun_anew(replaced)):
            remove_replaced(folder)
        else:
            os.rename(replaced, unfinished)  # so that it goes on after a kill, though a stage has checkpoints again
            lines.append(_put_back(Path(folder), unfinished))
    return lines


def _aside(folder: str | Path) -> tuple[Path, Path]:
    """Where checkpoints are being moved to, and where they are afterwards."""
    checkpoints = Path(folder) / "checkpoints"
    return checkpoints / ".replacing", checkpoints / "replaced"


def _begun_anew(replaced: Path) -> set[str]:
    """Names of the stages whose run moved checkpoints to a folder."""
    try:
        found = read_json(replaced / STAGES_FILE, "")
    except UserError:
        found = None
    names = found if isinstance(found, list) else [checkpoint.stage_of(path) for path in replaced.iterdir()]
    return {stage for stage in STAGES if stage in names}


def _put_back(folder: Path, aside: Path) -> str:
    """Undo :func:`set_aside`."""
    names = sorted(path.name for path in aside.iterdir() if checkpoint.stage_of(path) is not None)
    for name in names:
        os.replace(aside / name, folder / "checkpoints" / name)
    if (aside / CONFIG_FILE).is_file():
        os.replace(aside / CONFIG_FILE, folder / CONFIG_FILE)
    shutil.rmtree(aside)
    return f"put back {', '.join(names) or 'the options'}: the run that started over ended before its first checkpoint"


def stage_progress(folder: str | Path) -> dict[str, dict[str, float]]:
    """Stage -> "steps" and "seconds" of training so far, from its newest readable checkpoint in a workspace."""
    found = {}
    for stage in STAGES:
        readable = [one.path for one in checkpoint.by_age(Path(folder) / "checkpoints", stage) if not one.unreadable]
        if readable:  # the stage that reads a damaged one will report it
            meta = checkpoint.read_meta(readable[-1])
            found[stage] = {"steps": meta.get("step", 0), "seconds": round(meta.get("seconds", 0.0), 2)}
    return found


def has_later_stage(folder: str | Path, stage: str) -> bool:
    """Whether a stage after this one has a checkpoint in a workspace."""
    return any(_is_trained(Path(folder), later) for later in STAGES[STAGES.index(stage) + 1 :])


def _is_trained(folder: Path, stage: str) -> bool:
    """Whether a stage has a checkpoint in a workspace."""
    return bool(checkpoint.steps(folder / "checkpoints", stage))


def _make(folder: Path) -> None:
    """Make the folder and create a file in it, so that a failure comes now and not at the first checkpoint."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workspace {folder} cannot be written to ({error.strerror}); choose a folder of your own") from None
