"""The options of a run: ``resolve`` makes one frozen plan of the flags, what is on disk and the kind of guidance.

Order of precedence, weakest first: defaults, presets, what the workspace keeps, ``--file``, typed flags (docs/flags.md).
"""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nerf.config.checks import check_background, check_counts, check_numbers, check_stages, warnings
from nerf.config.config import KEPT, OPTIONS, Config, describe, describe_stages, with_values
from nerf.config.groups import CKPT_WORDS
from nerf.config.kept import WEIGHT_FLAGS, StoredRun, remaining_run, restore_options, ways_out
from nerf.config.limits import MESH_SUFFIXES
from nerf.config.presets import GUIDANCE_OF, IN_PLACE, MESH_FILE, MESH_FILES, PAINTED, PRESETS
from nerf.config.references import Reference, digest_of, references
from nerf.config.stage_options import in_its_stage, make_stage, with_presets
from nerf.config.stages import STAGE_KINDS, Stage, StageKind, parse_run_name
from nerf.config.surface import SDF_BACKBONES, SURFACE_PRESETS
from nerf.core.errors import UserError
from nerf.core.ranges import SEEDS
from nerf.core.words import did_you_mean


class Weights(Protocol):
    """Which weights a guidance model will use."""

    @property
    def kind(self) -> str:
        """Of weights: "sd", "embedded" ...; a preset of that name applies."""

    @property
    def version(self) -> str:
        """The value of the flag in :data:`WEIGHT_FLAGS` that finds them again; "auto" if none does."""


W = TypeVar("W", bound=Weights)


@dataclass(frozen=True)
class RunPlan(Generic[W]):
    """Everything that is decided before a run changes anything on disk."""

    config: Config  # run-wide options, as config.json stores them
    stages: tuple[Stage, ...]  # all stages of the run in their order, each with its own options
    first: int  # index of the first stage that remains; --ckpt applies to it alone
    weights: Mapping[str, W]  # guidance model -> its weights, for those that have some
    lines: tuple[str, ...]  # for the log
    references: tuple[Reference, ...] = ()  # the image prompts
    images: str | None = None  # their fingerprint, where the run trains

    @property
    def pending(self) -> tuple[Stage, ...]:
        """The stages that this run goes through: the remaining ones, or the one that it shows if it does not train."""
        return self.stages[self.first :] if self.config.trains else self.stages[self.first : self.first + 1]


def _with_whole_paths(asked: Config) -> Config:
    """The paths that a workspace keeps in full, so that they mean the same folder when the run is resumed from elsewhere."""
    for flag in [flag for flag in KEPT if asked.asked(flag) and OPTIONS[flag][1].metadata["path"]]:
        value = asked.value(flag)
        whole = tuple(map(_whole_path, value)) if isinstance(value, tuple) else _whole_path(value)
        asked = with_values(asked, {flag: whole}, asked.source(flag))
    return asked


def _whole_path(path: str | None) -> str | None:
    """The absolute form of a path that exists; a model of the hub is none."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


def draw_seed() -> int:
    """A seed for a run that is given none."""
    return secrets.randbelow(SEEDS)


def resolve(
    asked: Config,
    workspace: StoredRun,
    weights: Callable[[Config], Mapping[str, W]] | None = None,
    new_seed: Callable[[], int] = draw_seed,
) -> RunPlan[W]:
    """Decide the options of every stage of a run. Writes nothing, and reads only where flags with paths lead.

    Args:
        asked: what the user asked for, as ``config.parse`` returns it.
        workspace: what is on disk.
        weights: which weights the guidance models of a run with these options will use, by name; asked once, if a prompt
            trains.
        new_seed: called if neither the user nor the workspace gives a seed.

    Raises:
        UserError: options that contradict each other, the workspace or what the run starts from; nothing to do.
    """
    asked = _with_whole_paths(asked)
    workspace = remaining_run(asked, workspace)
    kept = restore_options(asked, workspace)
    restored = with_values(asked, kept, "workspace")
    check_task(restored, workspace)
    presets = _presets(restored, workspace)
    prompted = with_presets(restored, presets)  # pictures change which models guide
    check_counts(prompted)
    found: Mapping[str, W] = {}
    if prompted.trains and prompted.prompt.kinds:
        found = weights(prompted) if weights else {}
        presets = list(dict.fromkeys(presets + _presets_of_models(prompted, found)))
    plain = with_presets(asked, presets)
    # A kept value that is there anyway is not reported as coming from the workspace.
    changed = {flag: value for flag, value in kept.items() if in_its_stage(plain, flag) != value}
    config = with_presets(with_values(asked, changed, "workspace"), presets)
    for model, flag in WEIGHT_FLAGS.items():  # the same weights again, whatever is installed later
        if model in found and config.value(flag) == "auto":
            config = with_values(config, {flag: found[model].version}, "preset")
    if config.runtime.seed is None:
        config = with_values(config, {"seed": new_seed()}, "default")
    pictures = references(config) if config.trains else ()
    images = digest_of(pictures)
    _check_images(config, workspace, images)
    stages = [make_stage(config, STAGE_KINDS[name]) for name in config.stages]
    check_numbers(config, stages)
    first = _first_pending(config, workspace)
    for i in range(first + 1, len(stages)):  # later ones start from its result, not from a checkpoint
        stages[i] = Stage(stages[i].kind, with_values(stages[i].config, {"ckpt": "scratch"}, "preset"))
    lines = [*describe(config), *describe_stages(config, stages), *warnings(config, stages)]
    lines += _recipe(config, workspace)
    lines += _ignored_start(config, stages[first].kind, workspace)
    return RunPlan(config, tuple(stages), first, found, tuple(lines), pictures, images)


# ---- presets and stages ---------------------------------------------------------------------------------------------------


def _presets(config: Config, workspace: StoredRun) -> list[str]:
    """Names of the presets of a run in their order: those of its flags and prompts, and of the run in the workspace."""
    wanted = {
        "O": config.runtime.O,
        "O2": config.runtime.O2,
        "photographs": config.data.data is not None,
        "wild": config.data.data is not None and config.wild.wild,
        "wild robust": config.data.data is not None and config.wild.occluders == "robust",
        "refined poses": config.data.data is not None and config.data.refine_poses,
        "image": config.prompt.has_images,
        "image text": config.prompt.has_images and config.prompt.text is not None,
    }
    names = [name for name, on in wanted.items() if on]
    names += [config.guidance.distillation] if config.guidance.distillation in PRESETS else []
    names += _surface_presets(config, workspace)
    stored = () if workspace.config is None else workspace.config.presets
    old = [name for name in stored if name not in MESH_FILES]
    names += [name for name in old if not (name in OPTIONS and config.asked(name))]  # --no_O takes it back
    names += _mesh_file_presets(config, workspace)
    if {"O", "O2"} <= set(names):
        raise UserError(
            f"workspace {config.output.workspace} holds a run with {'-O' if config.runtime.O2 else '-O2'}, a preset for "
            f"another network than {'-O2' if config.runtime.O2 else '-O'}; leave the flag out, or choose another --workspace"
        )
    return list(dict.fromkeys(names))


def _surface_presets(config: Config, workspace: StoredRun) -> list[str]:
    """Names of the presets of a field that is a signed distance: with photographs, a recipe for what they hold."""
    if config.field.backbone not in SDF_BACKBONES:
        return []
    if config.data.data is None:
        return ["sdf"]
    wild = ["sdf wild"] if config.wild.wild else []
    if config.field.preset == "auto":
        return ["sdf", "neus" if workspace.masks else "neus-unmasked", *wild]
    unmasked = config.field.preset == "neuralangelo" and not workspace.masks
    return ["sdf", config.field.preset, *(["unmasked"] if unmasked else []), *wild]


def _recipe(config: Config, workspace: StoredRun) -> list[str]:
    """A line for the log that says why the recipe of a surface was chosen, or that one was typed for other photographs."""
    chosen = [name for name in config.presets if name in SURFACE_PRESETS]
    if not (config.trains and chosen) or workspace.config is not None:
        return []
    if config.source("preset") == "preset":
        found = "with masks (or alpha)" if workspace.masks else "without masks, so the background is a model of its own"
        return [f"--preset {name}: photographs {found}" for name in chosen]
    if config.field.preset == "neus" and not workspace.masks:
        return [
            "warning: --preset neus is for photographs with masks, and these have none, so the surface has to explain "
            "everything that they show; --preset neus-unmasked has a background"
        ]
    if config.field.preset == "neus-unmasked" and workspace.masks:
        return [
            "warning: --preset neus-unmasked is for photographs without masks, and these have masks (or alpha), which leave "
            "nothing of what is behind the object; --preset neus learns from them"
        ]
    return []


def _mesh_file_presets(config: Config, workspace: StoredRun) -> list[str]:
    """Names of the presets of a mesh stage that starts from a mesh file, or that did when its checkpoint was made.

    Raises:
        UserError: the geometry of a painted mesh is to be trained now.
    """
    kind = STAGE_KINDS[config.stages[-1]]
    if not kind.triangles:
        return []
    start, stored = workspace.start, () if workspace.config is None else workspace.config.presets
    if kind.name in workspace.trained:
        names = [name for name in MESH_FILES if name in stored]
    elif start is not None and start.flag == "--ckpt":
        names = list(start.presets)
    elif os.path.splitext(config.dmtet.init_with)[1].lower() not in MESH_SUFFIXES:
        names = []
    elif config.dmtet.lock_geo:
        names = [PAINTED]
    else:
        names = [MESH_FILE] if config.prompt.kinds else []
    if PAINTED in names and config.asked("lock_geo") and not config.dmtet.lock_geo:
        raise UserError(
            f"workspace {config.output.workspace} paints a mesh file, whose geometry cannot be trained; refine its "
            "mesh/mesh.glb with --init_with in another --workspace"
        )
    return names


def _presets_of_models(config: Config, weights: Mapping[str, Weights]) -> list[str]:
    """Names of the presets of the guidance models of a run and of the kinds of their weights, in the order of the models.

    Those that such a kind has for the method of distillation come last.
    """
    models, method = config.guidance.guidance, config.guidance.distillation
    names = [name for model in models for name in (model, weights[model].kind if model in weights else model)]
    names += [f"{model} alone" for model in models[:1] if len(models) == 1]
    names += [f"{name} image" for name in names if config.prompt.has_images]
    names += [f"{name} untold" for name in names if config.guidance.prior_views != "camera"]
    names += [f"{method} {name}" for name in names]
    names += [f"sdf {name}" for name in names if config.field.backbone in SDF_BACKBONES]
    return [name for name in names if GUIDANCE_OF.get(name) in models and IN_PLACE.get(name) not in names]


def _first_pending(config: Config, workspace: StoredRun) -> int:
    """Index of the stage to begin with: that of the checkpoint --ckpt names, else the last one that has a checkpoint."""
    named = parse_run_name(config.runtime.ckpt)
    if named is not None and named[0].name in config.stages:
        return config.stages.index(named[0].name)
    return max((i for i, name in enumerate(config.stages) if name in workspace.trained), default=0)


def _ignored_start(config: Config, kind: StageKind, workspace: StoredRun) -> list[str]:
    """A line for the log if ``--init_with`` or axes of its file are given to a stage that resumes from a checkpoint."""
    resumes = not config.starts_over and (kind.name in workspace.trained or workspace.checkpoint_exists)
    given = [f"--{name} {config.value(name)}" for name in ("init_with", "init_up", "init_front") if config.asked(name)]
    line = f"{', '.join(given)} {'was' if len(given) == 1 else 'were'} for the first step; {kind.restart} starts over from it"
    return [line] if given and resumes and config.trains else []


# ---- checks ---------------------------------------------------------------------------------------------------------------


def _check_images(config: Config, workspace: StoredRun, images: str | None) -> None:
    """Refuse image prompts that hold something else than those which the workspace was trained on."""
    if config.trains and workspace.config is not None and workspace.images not in (None, images):
        raise UserError(
            f"workspace {config.output.workspace} holds a run from other pictures or cameras than those of --image and "
            f"--image_config now: {ways_out(config, workspace.trained, 'put the old ones back')}"
        )


def check_task(config: Config, workspace: StoredRun) -> None:
    """Refuse a run with nothing to do, or whose stages contradict other options; presets change none of these."""
    data, ckpt = config.data.data, config.runtime.ckpt
    if config.trains and not config.prompt.kinds and data is None:
        raise UserError(
            'nothing to do: give --text "a hamburger", --image burger_rgba.png, --data FOLDER, or --test for a finished '
            "workspace"
        )
    if config.prompt.has_images and data is not None:
        raise UserError(
            "--image and --data are two ways to show the object, and where the picture was taken among the photographs is not "
            "known; give one of them"
        )
    for flag in ("ref_radii", "ref_polars", "ref_azimuths", "zero123_ws"):
        if config.value(flag) and not config.prompt.image:
            raise UserError(f"--{flag} belongs to --image, which is missing; in --image_config it is a column")
    if not config.trains and ckpt == "scratch":
        raise UserError("--ckpt scratch starts over, and --test and --six_views only show a run; leave one of the flags out")
    if ckpt not in CKPT_WORDS and not workspace.checkpoint_exists:
        hint = did_you_mean(ckpt, CKPT_WORDS)
        raise UserError(f"--ckpt {ckpt}: no such file; give {', '.join(CKPT_WORDS)} or the path of a checkpoint{hint}")
    if not config.trains and not workspace.trained and not workspace.checkpoint_exists:
        raise UserError(
            f"workspace {config.output.workspace} has no checkpoint to show; train first: the same command without --test or "
            "--six_views"
        )
    if config.output.export_frame == "source" and config.trains and data is None:
        raise UserError("--export_frame source needs the axes of --data; a run from text or a picture has only its own")
    if config.mesh.ground and config.output.export_frame == "source":
        raise UserError("--ground moves the mesh, and --export_frame source keeps it where the data is; leave one of them out")
    if config.mesh.ground and data is None and config.dmtet.init_up != "y":
        raise UserError(f"--ground is along y, and --init_up says that up is {config.dmtet.init_up}; leave one of them out")
    check_background(config)
    check_stages(config)
