"""The kinds of stage that a run can consist of, in their order: what depends on the kind is a field of its record,
so that other code need not compare names or flags to find out which stage it is in.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nerf.config.limits import MAX_SIDE
from nerf.core.errors import UserError
from nerf.core.words import expected_words

if TYPE_CHECKING:
    from nerf.config.config import Config


class Failure(StrEnum):
    """How a run goes wrong; a stage knows what may help against each."""

    NOT_FINITE = "not finite"
    EMPTY = "empty"
    FULL = "full"
    FOG = "fog"


@dataclass(frozen=True)
class StageKind:
    """What is known of a stage before any option is read."""

    name: str  # in flags, logs and checkpoints
    noun: str  # what it trains, for sentences
    file_prefix: str  # of the names of its checkpoints, pictures and videos, and of its TensorBoard run
    render_path: str  # how its rays are rendered, see ``nerf.renderer.PATHS``
    photo_layout: Literal["rays", "image"]  # photographs as random rays, or whole and undistorted
    triangles: bool  # it has a surface of its own: mesh losses apply, normals of photographs too, no samples along rays
    starts_from: str | None  # the stage whose result it begins with, where there is one
    presets: tuple[tuple[str, str | None], ...]  # (preset, preset of the run that it needs; None: always), general ones first
    derived: Callable[["Config"], dict[str, Any]]  # flag -> value that the stage computes from other options
    restart: str  # flags that start it over
    fog: str  # what its half transparent pixels mean
    memory: tuple[str, ...]  # flags that lower the memory of a step, where they have an effect
    model_memory: str  # flags that lower the memory of its model
    render_memory: str  # flags that lower the memory of a view outside training
    remedies: Mapping[Failure, tuple[str, ...]]  # what to try, with the parameters and rates that the stage has

    def advice(self, failure: Failure, config: "Config | None" = None, mixed_precision: bool = False) -> str:
        """What to try against a failure, as "a, b or c".

        Args:
            failure: what went wrong.
            config: the options of the stage; what cannot be followed, as its value is 0 already, is left out.
            mixed_precision: the run computes in float16, and may do without.
        """
        tried = [text for text in self.remedies[failure] if config is None or _can_be_tried(text, config)]
        return expected_words([*tried, *(["--no_fp16"] if mixed_precision and failure is Failure.NOT_FINITE else [])])

    def run_name(self, step: int) -> str:
        """``df_step_00001000`` for step 1000, ``df_dmtet_step_00001000`` in the mesh stage."""
        return f"{self.file_prefix}_step_{step:08d}"


def _can_be_tried(remedy: str, config: "Config") -> bool:
    """Whether a remedy is not that of a smaller value than 0."""
    flags = re.findall(r"--(\w+)", remedy)
    return not (remedy.startswith(("a smaller", "smaller")) and all(config.value(flag) == 0 for flag in flags))


def _nothing(config: "Config") -> dict[str, Any]:
    """Options that a stage takes as they are."""
    return {}


def _mesh_options(config: "Config") -> dict[str, Any]:
    """The mesh stage renders larger and has its own number of steps; a fixed shape always shows its texture."""
    mesh, camera = config.dmtet, config.camera
    size = {flag: max(int(side * mesh.dmtet_reso_scale), 1) for flag, side in (("w", camera.w), ("h", camera.h))}
    if max(size.values()) > MAX_SIDE:
        raise UserError(
            f"--dmtet_reso_scale {mesh.dmtet_reso_scale:g} makes {size['w']}x{size['h']} pixels of --w {camera.w} and --h "
            f"{camera.h}, and a side has {MAX_SIDE} at most; lower one of them"
        )
    textureless = {"textureless_ratio": 0.0} if mesh.lock_geo or config.painted else {}
    return size | textureless | {"iters": mesh.dmtet_iters or config.optim.iters}


NERF = StageKind(
    name="nerf",
    noun="scene",
    file_prefix="df",
    render_path="volume",
    photo_layout="rays",
    triangles=False,
    starts_from=None,
    presets=(),
    derived=_nothing,
    restart="--ckpt scratch",
    fog="turned into fog",
    memory=("batch_size", "w", "h", "num_rays", "max_steps", "num_steps"),
    model_memory="--grid_log2, --grid_levels, --hidden or --grid_size",
    render_memory="--max_ray_batch, or --W and --H",
    remedies={
        Failure.NOT_FINITE: ("a smaller --lr", "--grad_clip 1"),
        Failure.EMPTY: ("another --seed", "a larger --blob_density", "a smaller --lambda_opacity", "a smaller --lr"),
        Failure.FULL: ("a larger --lambda_opacity", "a smaller --blob_radius", "a larger --radius_range"),
        Failure.FOG: ("a smaller --guidance_scale", "a larger --lambda_entropy", "another --seed"),
    },
)

DMTET = StageKind(
    name="dmtet",
    noun="mesh",
    file_prefix="df_dmtet",
    render_path="dmtet",
    photo_layout="image",
    triangles=True,
    starts_from="nerf",
    presets=(
        ("dmtet", None),
        ("dmtet photographs", "photographs"),
        ("dmtet image", "image"),
        ("dmtet image text", "image text"),
        ("dmtet embedded", "embedded"),
        ("dmtet embedded view", "embedded view"),
        ("dmtet mesh file", "mesh file"),
        ("dmtet painted", "painted"),
        ("dmtet embedded multiview", "embedded multiview"),
    ),
    derived=_mesh_options,
    restart="--dmtet --ckpt scratch",
    fog="broke into splinters",  # only its edges are half transparent
    memory=("batch_size", "w", "h", "dmtet_reso_scale"),
    model_memory="--tet_grid_size, --grid_log2, --grid_levels or --hidden",
    render_memory="--W and --H",
    remedies={
        Failure.NOT_FINITE: ("smaller --lr_distance, --lr_offset and --lr_coarse_sdf", "a smaller --lr", "--grad_clip 1"),
        Failure.EMPTY: (
            "smaller --lr_distance and --lr_coarse_sdf",
            "a smaller --radius_range",
            "a larger shape to start from (--init_with)",
        ),
        Failure.FULL: (
            "smaller --lr_distance and --lr_coarse_sdf",
            "a larger --radius_range",
            "another shape to start from (--init_with)",
        ),
        Failure.FOG: ("smaller --lr_distance and --lr_offset", "a larger --lambda_mesh_normal"),
    },
)

STAGE_KINDS: dict[str, StageKind] = {kind.name: kind for kind in (NERF, DMTET)}
FIRST = NERF  # the stage of a run that does not name any

_RUN_NAME = re.compile(r"(df(?:_[a-z]+)?)_step_(\d{8,})")
_BY_PREFIX = {kind.file_prefix: kind for kind in STAGE_KINDS.values()}


def parse_run_name(path: str | Path) -> tuple[StageKind, int] | None:
    """The stage and the step in a file's name (:meth:`StageKind.run_name` and a suffix), None if it has none."""
    match = _RUN_NAME.fullmatch(Path(path).stem)
    return (_BY_PREFIX[match[1]], int(match[2])) if match and match[1] in _BY_PREFIX else None


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its kind, and the options as it sees them."""

    kind: StageKind
    config: "Config"

    @property
    def name(self) -> str:
        """Name in flags, logs and files."""
        return self.kind.name

    @property
    def steps_flag(self) -> str:
        """The flag that gives the number of its training steps."""
        return "--dmtet_iters" if self.kind.triangles and self.config.dmtet.dmtet_iters else "--iters"
