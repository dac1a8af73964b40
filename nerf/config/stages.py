"""The kinds of stage that a run can consist of, in their order; what depends on the kind is a field of its record.

Nobody else compares names or flags to find out which stage it is in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from nerf.config.config import Config, for_stage


class Trouble(StrEnum):
    """How a run goes wrong; a stage knows what may help against each."""

    NOT_FINITE = "not finite"
    EMPTY = "empty"
    FULL = "full"
    FOG = "fog"


@dataclass(frozen=True)
class StageKind:
    """What is known of a stage before any option is read."""

    name: str  # in flags, logs and the names of files
    noun: str  # what it trains, for sentences
    render_path: Literal["volume", "dmtet"]  # how its rays are rendered, see ``nerf.renderer.PATHS``
    photo_layout: Literal["rays", "image"]  # photographs as random rays, or whole and undistorted
    triangles: bool  # it has a surface of its own: mesh losses apply, normals of photographs too, no samples along rays
    starts_from: str | None  # the stage whose result it begins with, where there is one
    restart: str  # flags that start it over
    fog: str  # what its half transparent pixels mean
    memory: str  # flags that lower the memory of a step
    remedies: Mapping[Trouble, str]  # what to try, with the parameters and rates that the stage has


NERF = StageKind(
    name="nerf",
    noun="scene",
    render_path="volume",
    photo_layout="rays",
    triangles=False,
    starts_from=None,
    restart="--ckpt scratch",
    fog="turned into fog",
    memory="--batch_size, --w and --h, --num_rays or --max_steps, or add --vram_O",
    remedies={
        Trouble.NOT_FINITE: "a smaller --lr, --grad_clip 1, or --no_fp16",
        Trouble.EMPTY: "another --seed, a larger --blob_density, a smaller --lambda_opacity or a smaller --lr",
        Trouble.FULL: "a larger --lambda_opacity, a smaller --blob_radius, or a larger --radius_range",
        Trouble.FOG: "a smaller --guidance_scale, a larger --lambda_entropy or another --seed",
    },
)

DMTET = StageKind(
    name="dmtet",
    noun="mesh",
    render_path="dmtet",
    photo_layout="image",
    triangles=True,
    starts_from="nerf",
    restart="--dmtet --ckpt scratch",
    fog="broke into splinters",  # only its edges are half transparent
    memory="--batch_size, --w and --h or --dmtet_reso_scale, or add --vram_O",
    remedies={
        Trouble.NOT_FINITE: "smaller --lr_distance, --lr_offset and --lr_lattices, a smaller --lr, --grad_clip 1, or --no_fp16",
        Trouble.EMPTY: "smaller --lr_distance and --lr_lattices, a smaller --radius_range, or a larger start (--init_with)",
        Trouble.FULL: "smaller --lr_distance and --lr_lattices, a larger --radius_range, or a smaller start (--init_with)",
        Trouble.FOG: "smaller --lr_distance and --lr_offset, or a larger --lambda_mesh_normal",
    },
)

STAGE_KINDS: dict[str, StageKind] = {kind.name: kind for kind in (NERF, DMTET)}


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its kind, and the options as it sees them."""

    kind: StageKind
    config: Config

    @property
    def name(self) -> str:
        """Name in flags, logs and files."""
        return self.kind.name


def make_stage(config: Config, name: str) -> Stage:
    """The stage of a run with these options."""
    return Stage(STAGE_KINDS[name], for_stage(config, name))
