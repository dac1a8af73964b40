"""What a run takes over from disk: the options that its workspace keeps, and those of what its first stage starts from."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nerf.config.config import KEPT, OPTIONS, Config, as_typed, with_values
from nerf.config.parser import RUN, dashed
from nerf.config.presets import MESH_FILES, PRESETS
from nerf.config.stage_options import in_its_stage
from nerf.config.stages import STAGE_KINDS
from nerf.config.surface import SDF_BACKBONES
from nerf.core.errors import UserError

# Options of a NeRF that say where its surface is; the mesh stage takes them over unless the user gives others.
SURFACE_FLAGS = ("mesh_threshold", "mesh_smooth", "mcubes_resolution")
# Guidance model -> the flag that names its weights, for those whose "auto" depends on what is installed.
WEIGHT_FLAGS = {"SD": "sd_version", "zero123": "zero123"}


@dataclass(frozen=True)
class StoredStart:
    """What the first stage of a run is initialised with: a NeRF or a mesh on disk."""

    required: Mapping[str, Any] = field(default_factory=dict)  # flag -> value that its weights were made for
    preferred: Mapping[str, Any] = field(default_factory=dict)  # flag -> value that is used if the user gives no other
    own_stage: str | None = None  # the stage, if it is a checkpoint of the run's own workspace
    presets: tuple[str, ...] = ()  # of a mesh file that it began with, for a run that resumes from it
    flag: str = "--init_with"  # the flag that names it: "--init_with", or "--ckpt" for a checkpoint of another workspace


@dataclass(frozen=True)
class StoredRun:
    """What is on disk, as far as the options depend on it; ``nerf.run.workspace`` reads it."""

    config: Config | None = None  # options of the run in the workspace; None: there is none
    trained: frozenset[str] = frozenset()  # stages that have a checkpoint in the workspace and do not start over
    checkpoint_exists: bool = False  # --ckpt names a file that exists
    start: StoredStart | None = None  # read where :func:`needs_start` says so
    masks: bool = False  # the photographs of --data mark the object; read for fields that are a signed distance
    images: str | None = None  # fingerprint of the image prompts in the workspace, see ``references.digest_of``
    earlier_prompts: tuple[Mapping[str, str], ...] = ()  # "text" and "negative" before each edit in a viewer


def remaining_run(asked: Config, workspace: StoredRun) -> StoredRun:
    """What is left of a stored run under ``--ckpt scratch``; without it, all.

    The stages of this run start over. Options of the run are kept as long as another stage has a checkpoint.
    """
    if not asked.starts_over:
        return workspace
    remaining = workspace.trained - set(asked.stages)
    return replace(workspace, trained=remaining, config=workspace.config if remaining else None)


def needs_start(asked: Config, workspace: StoredRun) -> bool:
    """Whether the run begins with a stage that is initialised from something on disk (``StoredRun.start``)."""
    workspace = remaining_run(asked, workspace)
    name = _stages(asked, workspace)[0]
    return STAGE_KINDS[name].starts_from is not None and (name not in workspace.trained or asked.starts_over)


def needs_masks(asked: Config, workspace: StoredRun) -> bool:
    """Whether the recipe of the run depends on what its photographs hold (``StoredRun.masks``)."""
    return asked.data.data is not None and is_sdf(asked, remaining_run(asked, workspace))


def is_sdf(asked: Config, workspace: StoredRun) -> bool:
    """Whether the field of a run is a signed distance, by its flags or by those of the run in the workspace."""
    stored = workspace.config if not asked.asked("backbone") else None
    return (stored or asked).field.backbone in SDF_BACKBONES


def restore_options(asked: Config, workspace: StoredRun) -> dict[str, Any]:
    """Flag -> value of what the run takes over from disk, where the user does not give a value.

    Raises:
        UserError: the user asks for another value than the workspace or the start of the run has.
    """
    kept: dict[str, Any] = {}
    if workspace.config is not None:
        kept |= _chosen_over_presets(asked, workspace.config)
        kept |= merge_kept_options(asked, workspace.config, workspace.trained, workspace.earlier_prompts)
    if not asked.asked("stages"):
        kept["stages"] = _stages(asked, workspace)
    if workspace.start is not None:
        kept |= _options_of_start(with_values(asked, kept, "workspace"), workspace, workspace.start)
    return kept


def merge_kept_options(
    asked: Config, stored: Config, trained: frozenset[str], earlier: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """Flag -> value of the kept options of an earlier run that the user does not give.

    Options of one stage may be changed until that stage has a checkpoint. The command that began a run goes on with it although
    its prompt was edited in a viewer: ``earlier`` has the words before each edit, which stand for those after the last one.

    Raises:
        UserError: the user asks for another value than the earlier run's.
    """
    kept = {}
    for flag, owner in KEPT.items():
        mine, stored_value = asked.value(flag), in_its_stage(stored, flag)
        if not asked.asked(flag) or any(words.get(flag) == mine for words in earlier):
            kept[flag] = stored_value
        elif mine != stored_value and not _means_the_same(flag, mine, stored_value):
            if owner == RUN or owner in trained:
                raise UserError(
                    f"workspace {asked.output.workspace} holds a run with {_shown(flag, stored_value)}, this run asks for "
                    f"{_shown(flag, mine)}: {ways_out(asked, trained)}"
                )
            continue
        if asked.asked(flag) and mine != stored_value and flag in WEIGHT_FLAGS.values():
            kept[flag] = stored_value
    return kept


def _chosen_over_presets(asked: Config, stored: Config) -> dict[str, Any]:
    """Flag -> value that an earlier run had in place of that of its ``-O`` or ``-O2``, if the preset comes back by itself."""
    names = [name for name in ("O", "O2") if name in stored.presets and not asked.asked(name)]
    chosen = {
        flag: stored.value(flag) for name in names for flag, value in PRESETS[name].items() if stored.value(flag) != value
    }
    if "fp16" in chosen and stored.optim.bf16 and not asked.asked("fp16"):
        chosen["bf16"] = True
    return {flag: value for flag, value in chosen.items() if not asked.asked(flag)}


def start_from_run(stored: Config, stage: str, own: bool) -> StoredStart:
    """The start that a checkpoint of a stored run is.

    Args:
        stored: the options of that run.
        stage: whose checkpoint it is.
        own: it is in the workspace of the run that starts from it.
    """
    required = [flag for flag, owner in KEPT.items() if OPTIONS[flag][0] == "field" or owner == stage]
    return StoredStart(
        {flag: in_its_stage(stored, flag) for flag in required},
        {flag: stored.value(flag) for flag in SURFACE_FLAGS},
        stage if own else None,
        tuple(name for name in MESH_FILES if name in stored.presets and STAGE_KINDS[stage].triangles),
    )


def _options_of_start(config: Config, workspace: StoredRun, start: StoredStart) -> dict[str, Any]:
    """Flag -> value of what the run takes over from its start.

    Raises:
        UserError: the user, or a NeRF in the workspace, has another value; or starting over would remove the start.
    """
    of_ckpt = start.flag == "--ckpt"
    name = f"{start.flag} {config.runtime.ckpt if of_ckpt else config.dmtet.init_with}"
    if config.dmtet.init_with and start.own_stage in config.stages:
        raise UserError(
            f"{name}: --ckpt scratch would remove that checkpoint before it is read; choose another --workspace, or leave "
            "both flags out to resume from it"
        )
    source = STAGE_KINDS[config.stages[0]].starts_from
    other_source = bool(workspace.trained) if of_ckpt else source in workspace.trained and start.own_stage != source
    for flag, value in start.required.items():
        mine = config.value(flag)
        if mine == value:
            continue
        if config.asked(flag):
            raise UserError(
                f"{name}: its weights were made with {_shown(flag, value)}, this run asks for {_shown(flag, mine)}; leave the "
                "flag out"
            )
        if other_source and KEPT[flag] == RUN:
            raise UserError(
                f"{name}: its weights were made with {_shown(flag, value)}, and workspace {config.output.workspace} holds a "
                f"NeRF with {_shown(flag, mine)}; choose another --workspace"
            )
    return {flag: value for flag, value in {**start.preferred, **start.required}.items() if not config.asked(flag)}


def _means_the_same(flag: str, mine: Any, stored: Any) -> bool:
    """Whether two values of a kept option that differ ask for the same thing; pictures are compared when they are read."""
    if flag in ("image", "image_config"):
        return bool(mine) and bool(stored)
    return (flag == "data" and _same_folder(mine, stored)) or (flag in WEIGHT_FLAGS.values() and mine == "auto")


def _shown(flag: str, value: Any) -> str:
    """A flag with its value as it is typed."""
    return f"no {dashed(flag)}" if value in (None, ()) else as_typed(flag, value)


def ways_out(asked: Config, trained: frozenset[str], way_back: str = "leave the flag out") -> str:
    """The end of a message that refuses another value of a kept option; what loses nothing comes first."""
    if not asked.trains:
        return f"{way_back}, or choose another --workspace"
    first = f"{way_back} to go on with that run, choose another --workspace for a new one, or start over "
    if not asked.starts_over:
        return f"{first}in it with --ckpt scratch"
    stages = ",".join(name for name in STAGE_KINDS if name in trained or name in asked.stages)
    return f"{first}with all its stages: --stages {stages} --ckpt scratch"


def _same_folder(one: str | None, other: str | None) -> bool:
    """Whether two paths, such as a relative and an absolute one, mean the same folder."""
    return one is not None and other is not None and os.path.realpath(one) == os.path.realpath(other)


def _stages(asked: Config, workspace: StoredRun) -> tuple[str, ...]:
    """Names of the stages of a run: those the user asks for, else those of the run in the workspace, else the default."""
    stored = workspace.config
    # A stage that found nothing to start from leaves no checkpoint, and its run is not resumed.
    if asked.asked("stages") or stored is None or not workspace.trained & set(stored.stages):
        return asked.stages
    return stored.stages
