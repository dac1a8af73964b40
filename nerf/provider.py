"""Sources of views: random cameras, photographs and image prompts for training; six views for people. B views.

The ranges are those of the camera flags, in degrees and scene units. Every view of a batch draws its own numbers, all
from its part's generator, on the CPU, so the same step sees the same cameras on every device.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guidance.base import CameraRequirements
from nerf.config.config import Config
from nerf.core.cameras import angles_of, look_at, orbit, orbit_up, view_rays, wrap_degrees
from nerf.core.errors import UserError
from nerf.core.streams import Random, Stream
from nerf.core.structs import Batch, Part, RenderOutput, ViewRequest, Views, move_record
from nerf.data.image_prompt import KnownViews
from nerf.data.posed_images import Photographs
from nerf.mesh.photo_colors import Photo
from nerf.render.background import background_kind
from nerf.training.ray_count import RayCount
from nerf.training.refinement import POSE_RATE, PoseRefinement
from nerf.training.schedule import guided_part, is_known_view_step, known_view_part, photo_part
from nerf.training.sources import RunInfo, Source

log = logging.getLogger("somnia.provider")

PROGRESSIVE_RATE = 2.0  # of the training progress: the ranges are whole by half-time, as in stable-dreamfusion
SIX_VIEWS = ((90.0, 0.0), (90.0, 90.0), (90.0, 180.0), (90.0, -90.0), (0.0, 0.0), (180.0, 0.0))  # polar, azimuth

TEXTURE_PIXELS = 1 << 26  # of the photographs that a texture is made from, which take 16 bytes each


def evenly(count: int, most: int) -> list[int]:
    """Indices of at most ``most`` of ``count`` things, evenly spaced from the first to the last; 0: all."""
    if most == 0 or count <= most:
        return list(range(count))
    return [round(i * (count - 1) / max(most - 1, 1)) for i in range(most)]


def view_ratio(fraction: float, config: Config) -> float:
    """How much of the camera ranges is in use at this training progress in [0, 1]; 1 without ``--progressive_view``."""
    camera = config.camera
    if not camera.progressive_view:
        return 1.0
    return min(1.0, camera.progressive_view_init_ratio + PROGRESSIVE_RATE * fraction)


def narrowed(low_high: tuple[float, float], middle: float, ratio: float) -> tuple[float, float]:
    """The range between ``middle`` (ratio 0) and itself (ratio 1)."""
    low, high = low_high
    return middle + (low - middle) * ratio, middle + (high - middle) * ratio


def random_lights(views: Views, generator: torch.Generator) -> Tensor:
    """A light near each camera: unit directions [B, 3] from the origin towards ``position + N(0, I)``.

    DreamFusion (Poole et al. 2022, sec. 3.2) centres the light on the camera in the same way.

    Args:
        views: B views.
        generator: on the CPU.
    """
    noise = torch.randn(len(views), 3, generator=generator).to(views.pose.dtype)
    return torch.nn.functional.normalize(views.pose[:, :3, 3] + noise, dim=-1)


def within(asked: tuple[float, float], required: Sequence[tuple[float, float] | None], flag: str) -> tuple[float, float]:
    """The part of a range (low, high) that lies in all the required ones; None requires nothing.

    Raises:
        UserError: nothing is left.
    """
    low, high = asked
    for one in (r for r in required if r is not None):
        low, high = max(low, one[0]), min(high, one[1])
    if low > high:
        wanted = " and ".join(f"{r[0]:g} to {r[1]:g}" for r in required if r is not None)
        raise UserError(
            f"--{flag} {asked[0]:g} {asked[1]:g} has nothing in common with {wanted}, which the guidance was made for; leave "
            "the flag out, or give a range inside"
        )
    if (low, high) != tuple(asked):
        log.warning(
            "--%s %g %g goes beyond what the guidance was made for; views are drawn from %g to %g", flag, *asked, low, high
        )
    return low, high


class RandomCameras(Source):
    """Random views of the object, the source of views of a guided run.

    Radius, polar angle (in angle, not in area), azimuth and field of view are uniform in their ranges. A share
    ``--uniform_sphere_rate`` of the views is drawn evenly over the whole sphere instead, below the horizon too,
    whatever the two angle ranges say. With ``--progressive_view`` ranges and share start small around the default view.

    Args:
        config: the frozen options; the camera group is read.
        device: where views, lights and rays go.
        stratified: cut the azimuth range into B equal parts, one for each view of a batch, so that four views see four
            sides. Each part's view is still uniform in it; False draws all of them independently.
        requirements: of the guidance that judges the views: ranges are cut down to them, with a warning, and linked views
            are drawn together.

    Raises:
        UserError: a range has nothing in common with what the guidance was made for, or no view in it teaches colours, or the
            batch size does not hold whole groups of linked views.
    """

    name = "guided"
    frames_object = True

    def __init__(
        self,
        config: Config,
        device: torch.device | str = "cpu",
        stratified: bool = True,
        requirements: Sequence[CameraRequirements] = (),
    ):
        self.config = config
        self.radius_range = within(config.camera.radius_range, [r.radius_range for r in requirements], "radius_range")
        self.theta_range = within(config.camera.theta_range, [r.polar_range for r in requirements], "theta_range")
        coloured_to = max((r.coloured_to for r in requirements), default=180.0)
        if self.theta_range[0] >= coloured_to and not config.camera.uniform_sphere_rate:
            low, high = config.camera.theta_range
            raise UserError(
                f"--theta_range {low:g} {high:g}: this guidance judges colours of views at less than {coloured_to:g} degrees; "
                f"begin the range at less, as with {coloured_to - 10:g} {high:g}"
            )
        self.fovy_range = within(config.camera.fovy_range, [r.fovy_range for r in requirements], "fovy_range")
        self.linked_views = math.lcm(*(r.linked_views for r in requirements))
        if config.camera.batch_size % self.linked_views:
            raise UserError(
                f"--batch_size must be a multiple of {self.linked_views}, because the guidance judges that many linked views "
                f"at once, got {config.camera.batch_size}"
            )
        if self.linked_views > 1 and config.camera.jitter_pose:
            raise UserError("--jitter_pose moves each camera by itself, and the guidance needs linked views; leave it out")
        self.device = torch.device(device)
        self.stratified = stratified

    def plan_part(self, step: int, run: RunInfo, random: Random) -> Part | None:
        """See :meth:`Source.plan_part`; steps that look at image prompts have no random views."""
        return None if is_known_view_step(step, run) else guided_part(self.name, step, run, random)

    def views(self, request: ViewRequest) -> Views:
        """``request.num_views`` random views of ``request.height`` x ``request.width`` pixels.

        Args:
            request: of a step; the same request gives the same views. Its ``fraction`` moves the progressive view.

        Returns:
            B views on the host. Their angles are those of the camera as it stands, after any jitter.
        """
        camera, linked = self.config.camera, self.linked_views
        count = request.num_views // linked  # what is drawn once for each group of linked views
        generator = request.random.generator(Stream.CAMERAS)
        ratio = view_ratio(request.fraction, self.config)

        def uniform(low_high: tuple[float, float], middle: float) -> Tensor:
            low, high = narrowed(low_high, middle, ratio)
            return low + (high - low) * torch.rand(count, generator=generator)

        radius = uniform(self.radius_range, camera.default_radius)
        polar = uniform(self.theta_range, camera.default_polar)
        fovy = uniform(self.fovy_range, camera.default_fovy)
        azimuth = self._azimuth(narrowed(camera.phi_range, camera.default_azimuth, ratio), count, generator)
        polar, azimuth = self._some_on_the_sphere(polar, azimuth, ratio, generator)
        if linked > 1:
            turn = torch.arange(linked).repeat(count) * (360.0 / linked)
            radius, polar, fovy, azimuth = (x.repeat_interleave(linked) for x in (radius, polar, fovy, azimuth))
            azimuth = wrap_degrees(azimuth + turn)
        views = orbit(polar, azimuth, radius, fovy, request.height, request.width)
        if camera.jitter_pose:
            views = self._jittered(views, generator)
        return views

    def batch(self, part: Part) -> Batch:
        """The rays of random views as whole images, with a light for each view and the background of the part."""
        views = self.views(part.request)
        light = random_lights(views, part.random.generator(Stream.LIGHTS))
        drawn: dict[str, Any] = {"views": views, "light": light, "background": part.settings.background}
        there = move_record(drawn, self.device)
        return Batch(view_rays(there["views"]), **there)

    def _azimuth(self, low_high: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
        low, high = low_high
        place = torch.rand(count, generator=generator)
        if self.stratified:
            place = (torch.arange(count) + place) / count
        return low + (high - low) * place

    def _some_on_the_sphere(
        self, polar: Tensor, azimuth: Tensor, ratio: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Replace a share of the angles [B] by those of directions that are uniform in area."""
        on_sphere = torch.rand(len(polar), generator=generator) < self.config.camera.uniform_sphere_rate * ratio
        height = 2 * torch.rand(len(polar), generator=generator) - 1  # uniform by Archimedes' hat-box theorem
        turn = 360 * torch.rand(len(polar), generator=generator) - 180
        return torch.where(on_sphere, torch.rad2deg(torch.acos(height)), polar), torch.where(on_sphere, turn, azimuth)

    def _jittered(self, views: Views, generator: torch.Generator) -> Views:
        """Move positions by U(-c/2, c/2)^3, targets by N(0, t^2)^3 and the up directions by N(0, u^2)^3."""
        camera, count = self.config.camera, len(views)
        position = views.pose[:, :3, 3] + camera.jitter_center * (torch.rand(count, 3, generator=generator) - 0.5)
        target = camera.jitter_target * torch.randn(count, 3, generator=generator)
        up = orbit_up(views.polar, views.azimuth) + camera.jitter_up * torch.randn(count, 3, generator=generator)
        pose = look_at(position, target, up)
        polar, azimuth, radius = angles_of(pose)
        return replace(views, pose=pose, polar=polar, azimuth=azimuth, radius=radius)


class PhotographSource(Source):
    """Photographs with poses as a source of views.

    Args:
        photographs: the training split.
        fill_behind: no background model stands behind the scene. Pixels of photographs without alpha are opaque then, and are
            rendered over a random colour per ray, or per whole photograph: only an opacity of one reproduces them.
        rays: how many random rays a step has.
        refine: correct the poses of the photographs, where they are shown as random rays or patches.
    """

    name = "photos"

    def __init__(self, photographs: Photographs, fill_behind: bool = False, rays: RayCount | None = None, refine: bool = False):
        self.photographs, self.fill_behind, self.rays = photographs, fill_behind, rays
        self.poses = PoseRefinement(len(photographs)).to(photographs.device) if refine else None

    def plan_part(self, step: int, run: RunInfo, random: Random) -> Part:
        """See :meth:`Source.plan_part`."""
        return photo_part(self.name, step, run, random, None if self.rays is None else self.rays.next())

    def observe(self, part: Part, out: RenderOutput) -> None:
        """Count the samples of the part; see :class:`RayCount`."""
        if self.rays is not None and out.trace is not None:
            self.rays.observe(len(out.opacity), out.trace.samples)

    def batch(self, part: Part) -> Batch:
        """See :meth:`Photographs.batch`; over a random background where nothing may shine through."""
        batch = self.photographs.batch(part.request, part.settings.background)
        if self.poses is not None and batch.views is None:
            batch = replace(batch, rays=self.poses(batch.rays, part.request.fraction))
        if not self.fill_behind or batch.background is not None:
            return batch
        device = batch.rays.origins.device
        count = len(batch.rays) if batch.views is None else len(batch.views)
        generator = part.random.generator(Stream.PHOTO_BACKGROUND, device)
        return replace(batch, background=torch.rand(count, 3, generator=generator, device=device))

    def photos(self) -> list[Callable[[], Photo]]:
        """All photographs, or as many as have ``TEXTURE_PIXELS``, evenly chosen; see :meth:`Source.photos`."""
        sizes = [height * width for height, width in self.photographs.sizes()]
        most = max(TEXTURE_PIXELS * len(sizes) // sum(sizes), 1)
        return [partial(self._photo, i) for i in evenly(len(sizes), most)]

    def _photo(self, i: int) -> Photo:
        views, rgba = self.photographs.flat(i)
        return Photo(views if self.poses is None else replace(views, pose=self.poses.corrected(views.pose, i)), rgba)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The twists of the poses; see :meth:`Source.param_groups`."""
        if self.poses is None:
            return []
        return [{"params": list(self.poses.parameters()), "lr": POSE_RATE * lr, "name": "poses"}]

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`Source.state_dict`."""
        return {f"{name}.{key}": value for name, part in self._learned().items() for key, value in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`Source.load_state_dict`."""
        for name, part in self._learned().items():
            part.load_state_dict(
                {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            )

    def _learned(self) -> dict[str, RayCount | PoseRefinement]:
        """What changes with training, by the name that checkpoints give it."""
        parts = {"rays": self.rays, "poses": self.poses}
        return {name: part for name, part in parts.items() if part is not None}

    def results(self) -> dict[str, Any]:
        """How far the poses were corrected, in the mean; see :meth:`Source.results`."""
        return {} if self.poses is None else {"pose_refinement": self.poses.size()}


class ImagePrompts(Source):
    """The views that image prompts show, in the steps in which random cameras pause.

    Args:
        config: the frozen options; the noise of the cameras is read.
        known: the views.
    """

    name = "image"
    frames_object = True

    def __init__(self, config: Config, known: KnownViews):
        self.noise, self.known = config.prompt.known_view_noise_scale, known

    def plan_part(self, step: int, run: RunInfo, random: Random) -> Part | None:
        """See :meth:`Source.plan_part`."""
        return known_view_part(self.name, step, run, random, len(self.known)) if is_known_view_step(step, run) else None

    def batch(self, part: Part) -> Batch:
        """As many of the views as the part asks for, none twice; see :meth:`KnownViews.batch`."""
        order = torch.randperm(len(self.known), generator=part.random.generator(Stream.KNOWN_CHOICE))
        chosen = order[: part.request.num_views].tolist()
        return self.known.batch(chosen, part.request.height, self.noise, part.random)


@dataclass(frozen=True)
class SourceInputs:
    """What sources of views are built from."""

    config: Config  # of the stage
    device: torch.device | str
    requirements: tuple[CameraRequirements, ...] = ()  # of each guidance; empty without guidance
    photographs: Photographs | None = None  # the training split
    known_views: KnownViews | None = None  # of image prompts


def _random_cameras(inputs: SourceInputs) -> Source | None:
    if not inputs.requirements:
        return None
    return RandomCameras(inputs.config, inputs.device, requirements=inputs.requirements)


def _photographs(inputs: SourceInputs) -> Source | None:
    if inputs.photographs is None:
        return None
    config = inputs.config
    if config.wild.adapts and len(inputs.photographs) == 1:
        raise UserError(
            "--wild, --appearance and --occluders learn what differs between photographs, and there is a single one to train "
            "on; add photographs of the same place, or leave them out"
        )
    scene = inputs.photographs.scene(config.field.bound)
    nothing_behind = background_kind(config.field, scene) == "constant" and config.data.data_background == "random"
    rays = RayCount(config.data.num_rays, config.data.ray_samples) if config.data.ray_samples else None
    return PhotographSource(inputs.photographs, nothing_behind, rays, config.data.refine_poses)


def _image_prompts(inputs: SourceInputs) -> Source | None:
    return None if inputs.known_views is None else ImagePrompts(inputs.config, inputs.known_views)


# Name -> builder, in the order of the parts of a step. A builder returns None where the run has no such source.
SOURCES: dict[str, Callable[[SourceInputs], Source | None]] = {
    "guided": _random_cameras,
    "photos": _photographs,
    "image": _image_prompts,
}


def build_sources(inputs: SourceInputs) -> dict[str, Source]:
    """The sources of views of a stage by name, in the order of the parts of a step.

    Raises:
        UserError: the options contradict what the guidance requires of its views.
    """
    built = {name: build(inputs) for name, build in SOURCES.items()}
    return {name: source for name, source in built.items() if source is not None}


def six_views(config: Config, height: int, width: int) -> Views:
    """Front, right side (+X), back, left side, above, below: at the default distance and field of view."""
    polar, azimuth = torch.tensor(SIX_VIEWS).unbind(-1)
    return orbit(polar, azimuth, config.camera.default_radius, config.camera.default_fovy, height, width)
