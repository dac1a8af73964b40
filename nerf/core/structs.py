"""The records that the packages pass to each other: rays, views, samples, parts of a step, render outputs.

Letters: B views, N rays, M samples. Angles are degrees, lengths scene units, colours sRGB in [0, 1].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from nerf.core.streams import Random
from nerf.core.transfer import upload

if TYPE_CHECKING:
    from nerf.core.coverage import Coverage

Layout = Literal["image", "rays", "patches"]
Shading = Literal["albedo", "lambertian", "textureless", "normal"]
SHADINGS: tuple[str, ...] = ("albedo", "lambertian", "textureless", "normal")
Record = TypeVar("Record")


def tensors_of(record: Any) -> Iterator[Tensor]:
    """Every tensor of a record in field order, including those in nested records and dictionaries."""
    if isinstance(record, Tensor):
        yield record
    elif isinstance(record, dict):
        for value in record.values():
            yield from tensors_of(value)
    elif is_dataclass(record):
        for entry in fields(record):
            yield from tensors_of(getattr(record, entry.name))


def join_records(records: Sequence[Record], join: Callable[[list[Tensor]], Tensor]) -> Record:
    """One record from several of the same type.

    Args:
        records: at least one.
        join: combines the tensors that the records hold in the same place, e.g. ``torch.cat``.

    Returns:
        A record whose tensors are the joined ones, nested records and dictionaries included. An entry that is None in any
        of the records is None; all other values are those of the first record.
    """
    joined: Record = _joined(list(records), join)
    return joined


def move_record(record: Record, device: torch.device | str) -> Record:
    """A record, or a dictionary of records and tensors, on a device, in one copy; see :func:`nerf.core.transfer.upload`."""
    moved = iter(upload(list(tensors_of(record)), device))
    return join_records([record], lambda _: next(moved))


def _joined(values: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    first = values[0]
    if any(value is None for value in values):
        return None
    if isinstance(first, Tensor):
        return join(values)
    if isinstance(first, dict):
        return {key: _joined([value[key] for value in values], join) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{f.name: _joined([getattr(v, f.name) for v in values], join) for f in fields(first)})
    return first


@dataclass(frozen=True)
class Views:
    """B cameras that share one image size, pinholes unless they have distortion or a fisheye lens.

    Poses are camera-to-world with OpenGL axes (x right, y up, looking along -z) and determinant +1.
    The angles say where the camera stands relative to the origin, after any jitter: azimuth in (-180, 180], 0 = +Z (the
    front), 90 = +X; polar 0 = +Y (above), 90 = horizon. Photographs carry them too, computed from the pose.
    """

    pose: Tensor  # [B, 4, 4] camera to world
    fx: Tensor  # [B] focal length in pixels
    fy: Tensor  # [B]
    cx: Tensor  # [B] principal point in pixels, (width / 2, height / 2) for a centred camera
    cy: Tensor  # [B]
    height: int
    width: int
    polar: Tensor  # [B] degrees
    azimuth: Tensor  # [B] degrees
    radius: Tensor  # [B] distance of the camera from the origin
    fovy: Tensor  # [B] vertical field of view, degrees
    distortion: Tensor | None = None  # [B, 6] k1 k2 k3 k4 p1 p2 of OpenCV's model, or [B, 9] with a denominator d1 d2 d3
    fisheye: Tensor | None = None  # [B] bool: equidistant lenses; None: all are perspective
    near: Tensor | None = None  # [B] smallest distance of a sample from the camera; None: that of the render path

    def __len__(self) -> int:
        return self.pose.shape[0]

    @property
    def has_lens(self) -> bool:
        """Whether some view is no pinhole's: straight edges are curved in it. Read from the device."""
        fisheye = self.fisheye is not None and bool(self.fisheye.any())
        return fisheye or (self.distortion is not None and bool((self.distortion != 0).any()))

    def to(self, device: torch.device | str) -> "Views":
        """The same views with every tensor on ``device``."""
        return move_record(self, device)

    def __getitem__(self, index: Tensor | slice | int) -> "Views":
        """A subset of the views, still a batch (an int gives a batch of one)."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        picked: dict[str, Any] = {k: v[index] for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, **picked)


@dataclass(frozen=True)
class AppearanceCodes:
    """The appearances that N rays (or M points) are seen in: K vectors of A numbers, and which of them each ray has."""

    vectors: Tensor  # [K, A]
    index: Tensor | None = None  # [N] int64 in [0, K); None: all have the first

    def __getitem__(self, index: slice | Tensor) -> "AppearanceCodes":
        """Those of a subset of the rays."""
        return self if self.index is None else AppearanceCodes(self.vectors, self.index[index])

    def rows(self, made: Tensor, count: int) -> Tensor:
        """What was made of each vector, [K, F], as one row for each of ``count`` rays, [N, F]. Differentiable."""
        return made[:1].expand(count, -1) if self.index is None else made.index_select(0, self.index)


@dataclass(frozen=True)
class Rays:
    """N rays, flat; a batch of whole images also carries its shape."""

    origins: Tensor  # [N, 3]
    directions: Tensor  # [N, 3] unit length
    view_index: Tensor  # [N] int64: which of the batch's views a ray belongs to (lights and backgrounds are per view)
    shape: tuple[int, int, int] | None = None  # (B, H, W) with B * H * W == N, row-major: whole images or patches
    image_index: Tensor | None = None  # [N] int64: which photograph of the data set, for in-the-wild fields
    uv: Tensor | None = None  # [N, 2] pixel position in [0, 1]
    near: Tensor | None = None  # [N] smallest distance of a sample; None: that of the render path
    views: Views | None = None  # the B cameras whose whole images the rays are; what rasterises needs them
    patch_images: tuple[int, ...] | None = None  # of patches: the photograph of each, as ``image_index`` has it on the device
    appearance: AppearanceCodes | None = None  # [N] in which colours are seen; the renderer sets it

    def __len__(self) -> int:
        return self.origins.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Rays":
        """A subset of the rays; it is no longer an image."""
        return Rays(
            self.origins[index],
            self.directions[index],
            self.view_index[index],
            None,
            None if self.image_index is None else self.image_index[index],
            None if self.uv is None else self.uv[index],
            None if self.near is None else self.near[index],
            appearance=None if self.appearance is None else self.appearance[index],
        )


@dataclass(frozen=True)
class SmallPictures:
    """The training photographs, each as a whole and small: what an encoder of their appearance looks at."""

    names: tuple[str, ...]
    make: Callable[[int], list[Tensor]]  # longer side in pixels -> [3, h, w] each, in [0, 1]
    axes: Tensor | None = None  # [I, 3] unit, where each looks; None: not known


@dataclass(frozen=True)
class SceneInfo:
    """What is known about the scene before training; fields, backgrounds and schedules are built with it."""

    bound: float = 1.0  # half the side of the object's box, scene units
    num_images: int = 0  # photographs in all splits, the range of ``image_index``
    has_transparency: bool = False  # the photographs mark the background, by alpha or by masks
    points: Tensor | None = None  # [P, 3] points of the reconstruction in the box, scene units
    unbounded: bool = False  # the photographs show more than the box holds
    coverage: "Coverage | None" = None  # what the training photographs of a scene see; None for an object
    num_training: int = 0  # those of the training split, which come first in it
    pictures: SmallPictures | None = None  # the training photographs
    appearance: int = 0  # A, numbers of an appearance vector that colours depend on; 0: they depend on none
    local_light: bool = False  # what an appearance does to a colour depends on the place and the direction, too


@dataclass(frozen=True)
class ViewRequest:
    """Which views a source is asked for, and as what rays. Made by the source's ``plan_part``."""

    source: str  # name of the source: "guided", "photos", ...
    layout: Layout = "image"  # whole images, independent random rays, or small square patches
    num_views: int = 1  # B, of the image layout
    height: int = 64  # pixels, of the image layout
    width: int = 64
    num_rays: int = 0  # N, of the other two layouts
    patch_size: int = 0  # rays along a side, of the patches layout
    patch_scale: float | None = None  # share of a side that a patch spans at least, as a grid (0: neighbours); None: inside
    fraction: float = 1.0  # training progress in [0, 1]
    random: Random = Random()


@dataclass(frozen=True)
class RenderSettings:
    """How rays are rendered: in training, as a part of a step asks for it, and in evaluation."""

    source: str = "eval"  # source of the rays; the sizes of sample buffers are remembered by source
    training: bool = True  # perturbed sampling, gradients, and a trace of the samples for the regularisers
    fraction: float = 1.0  # training progress in [0, 1], for fields whose opacity or encoding is annealed
    shading: Shading = "albedo"
    ambient: float = 1.0  # ambient ratio of lambertian and textureless shading, in [0, 1]
    light: Tensor | None = None  # [B, 3] unit direction from the surface to the light, per view; None: at the camera
    background: Tensor | None = None  # [3] one colour, [B, 3] per view or [N, 3] per ray; None: the background model
    space: Literal["rgb", "latent"] = "rgb"  # what the channels of the image mean
    diffuse_share: float = 1.0 / 16.0  # of the rays of a view-dependent training part that show their diffuse colour alone
    view_dependent: bool = False  # use the view-dependent colour head (photographs); guided parts use the diffuse part
    need_normals: bool = False  # an objective needs normals; shading that needs them computes them anyway
    max_level: float = 1.0  # fraction of the encoder's levels that is active
    random: Random = Random()
    appearance: Tensor | None = None  # [A] or, per view, [B, A]: seen in it; None: that of the photographs, or the shown one
    crop: Tensor | None = None  # [6] low and high corner of the box outside of which the object is left out; None: all of it

    @property
    def computes_normals(self) -> bool:
        """Whether rendering evaluates surface normals."""
        return self.need_normals or self.shading != "albedo"


@dataclass(frozen=True)
class Shard:
    """The share of a part that one of several processes computes; see ``nerf/training/shards.py``."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Part:
    """One part of a training step: views of one source, and how they are rendered."""

    request: ViewRequest
    settings: RenderSettings
    guided: bool = False  # guidance judges the rendering
    has_targets: bool = False  # the source knows colours (masks, depths, normals) to compare with
    known_view: bool = False  # it is a view of the object alone that an image prompt shows
    shard: Shard = Shard()  # which of its views or rays this process renders

    def __post_init__(self) -> None:
        """The two halves belong together.

        Raises:
            ValueError: they name different sources, or draw from different seeds.
        """
        halves = (self.request, self.settings)
        if len({half.source for half in halves}) > 1 or len({half.random for half in halves}) > 1:
            raise ValueError(
                f"Part: expected one source and one Random in request and settings, got {[half.source for half in halves]} and "
                f"{[half.random for half in halves]}; pass both of them what plan_part was given"
            )

    @property
    def shows_object(self) -> bool:
        """Whether its views are of the object alone: what regularises normals applies, as it does not to photographs."""
        return self.guided or self.known_view

    @property
    def source(self) -> str:
        """Name of the source of the views."""
        return self.request.source

    @property
    def random(self) -> Random:
        """The random numbers of the part."""
        return self.request.random


@dataclass(frozen=True)
class Control:
    """What the schedule asks of one guidance at one step."""

    t_range: tuple[float, float] = (0.02, 0.98)  # shares of the diffusion times to draw from, 0 <= low <= high <= 1
    scale: float | None = None  # classifier-free guidance scale; None: the model's own
    options: Any = None  # the guidance's own record for this stage, see ``Guidance.stage_options``


@dataclass(frozen=True)
class StepPlan:
    """Everything that varies with the step, decided once: parts, loss weights, and a control for each guidance."""

    step: int
    fraction: float  # training progress in [0, 1], the time axis of every schedule
    parts: tuple[Part, ...]
    weights: dict[str, float]  # term name -> weight; a term whose weight is 0 or missing is not computed
    controls: dict[str, Control] = field(default_factory=dict)  # guidance name -> what is asked of it
    lr_scale: float = 1.0  # factor on every learning rate of this step
    random: Random = Random()  # of what belongs to no part

    def wants(self, term: str) -> bool:
        """Whether a loss term has a weight."""
        return self.weights.get(term, 0.0) != 0.0


@dataclass(frozen=True)
class Samples:
    """M samples of N rays, packed end to end: ray n owns samples [first[n], first[n] + count[n]).

    On CUDA they lie in a buffer that may be longer than what the rays own: rows that no ray owns are at the origin with ray
    index 0, weigh nothing in compositing, and are False in ``valid_mask``.
    """

    positions: Tensor  # [M, 3]
    t: Tensor  # [M] distance along the ray, at the middle of the step
    dt: Tensor  # [M] length of the step
    ray_index: Tensor  # [M] int64
    first: Tensor  # [N] int64
    count: Tensor  # [N] int64

    def __len__(self) -> int:
        return self.positions.shape[0]

    @property
    def valid_mask(self) -> Tensor:
        """Which samples [M] belong to a ray, bool on their device; a loss that does not use the weights needs it."""
        return torch.arange(len(self), device=self.t.device) < self.count.sum()


@dataclass(frozen=True)
class Points:
    """M points to query a field at, with the attributes of the rays they lie on, where they lie on rays."""

    positions: Tensor  # [M, 3]
    directions: Tensor | None = None  # [M, 3] unit ray directions
    image_index: Tensor | None = None  # [M] int64: which photograph of the data set
    uv: Tensor | None = None  # [M, 2] pixel position in [0, 1]
    appearance: AppearanceCodes | None = None  # [M] in which colours are seen; geometry never depends on it


@dataclass(frozen=True, kw_only=True)
class FieldOutput:
    """Output of a field at M points: a density or a signed distance, and whatever else the settings ask for.

    Raises:
        ValueError: neither density nor sdf is given, or an extra output is not [M, C].
    """

    density: Tensor | None = None  # [M] extinction per scene unit, >= 0
    sdf: Tensor | None = None  # [M] signed distance in scene units, negative inside
    gradient: Tensor | None = None  # [M, 3] gradient of the signed distance in space, not normalised
    laplacian: Tensor | None = None  # [M] of the signed distance, where finite differences of the gradient give it too
    albedo: Tensor | None = None  # [M, 3] diffuse colour in [0, 1]
    normal: Tensor | None = None  # [M, 3] unit outward normal; present if the settings compute normals
    rgb: Tensor | None = None  # [M, 3] view-dependent colour; present if the settings ask for it
    features: Tensor | None = None  # [M, C] that colours were made of, for :meth:`Field.recolored`; only with an appearance
    extras: dict[str, Tensor] = field(default_factory=dict)  # name -> [M, C]; composited along the rays like colours

    def __post_init__(self) -> None:
        if self.density is None and self.sdf is None:
            raise ValueError("FieldOutput: expected density [M] or sdf [M], got neither")
        for name, value in self.extras.items():
            if value.ndim != 2 or len(value) != len(self):
                raise ValueError(f"FieldOutput: expected extra output {name!r} [{len(self)}, C], got {list(value.shape)}")

    def __len__(self) -> int:
        return len(next(tensors_of(self)))

    def require(self, name: str) -> Tensor:
        """The array of that name.

        Raises:
            ValueError: the field did not compute it.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"FieldOutput: {name} is needed here, and the field did not compute it under these settings")
        return value


@dataclass(frozen=True)
class LevelSet:
    """A field's surface as the points at which a scalar value equals ``level``; the input of mesh extraction."""

    value: Callable[[Tensor], Tensor]  # positions [M, 3] -> [M], without gradients
    level: float | None  # None: chosen from the values, where they have two modes
    inside: Literal["above", "below"] = "above"  # a density is above its level inside, a signed distance below
    logarithmic: bool = True  # values span decades and are compared, smoothed and interpolated by their logarithm


@dataclass(frozen=True)
class SurfaceState:
    """The triangles of a rasterised render and the signed distances they come from. V vertices, T triangles.

    K points of the tetrahedral grid, E of its edges crossed by the surface.
    """

    vertices: Tensor  # [V, 3] scene units, differentiable
    faces: Tensor  # [T, 3] int64, counter-clockwise seen from outside
    distance: Tensor  # [K] signed distance at the grid's points, in grid cells, negative inside; differentiable
    crossing: Tensor  # [E, 2] int64 pairs of points between which the distance changes sign


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The samples behind N rendered rays, kept in training for the regularisers. M samples."""

    samples: Samples
    weights: Tensor  # [M] compositing weight of each sample
    field: FieldOutput  # the field's output at the samples


@dataclass(frozen=True, kw_only=True)
class RenderOutput:
    """N rendered rays. ``image`` includes the background; depth and normal are sums over samples, not divided by opacity."""

    image: Tensor  # [N, 3] colour over the background
    opacity: Tensor  # [N] sum of the weights
    depth: Tensor  # [N] sum of weight * t; 0 where there is nothing
    normal: Tensor | None = None  # [N, 3] sum of weight * unit normal, world axes; length <= opacity
    background: Tensor  # [N, 3] colour of the background
    extras: dict[str, Tensor] = field(default_factory=dict)  # name -> [N, C] sum of weight * extra output, or of the path
    appearance: AppearanceCodes | None = None  # [N] in which colours are seen
    behind_opacity: Tensor | None = None  # [N] of a background that is a scene too, where nothing stands before it
    behind_depth: Tensor | None = None  # [N] sum of weight * t of that background
    behind_trace: Trace | None = None  # training only: its samples
    trace: Trace | None = None  # training only, and only where rays are sampled
    surface: SurfaceState | None = None  # training only, and only where triangles are rasterised
    shape: tuple[int, int, int] | None = None  # (B, H, W) if the rays are whole images or patches

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Opacity [N] and depth [N] of the scene in the box and of the background behind it, where that has some."""
        if self.behind_opacity is None or self.behind_depth is None:
            return self.opacity, self.depth
        left = 1.0 - self.opacity
        return self.opacity + left * self.behind_opacity, self.depth + left * self.behind_depth

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(B, H, W) of whole images or patches.

        Raises:
            ValueError: the rays were neither.
        """
        if self.shape is None:
            raise ValueError("RenderOutput: these rays are not whole images; render Rays with a shape (B, H, W)")
        return self.shape

    def as_images(self, tensor: Tensor) -> Tensor:
        """A per-ray tensor [N, C] or [N] as images [B, C, H, W].

        Raises:
            ValueError: the rays were not whole images or patches.
        """
        b, h, w = self.image_shape
        return tensor.reshape(b, h, w, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Batch:
    """What a source hands to a training step for one part."""

    rays: Rays
    views: Views | None = None  # [B] None for rays drawn over many photographs
    rgb: Tensor | None = None  # [N, 3] target colour; composited over ``background`` if the photograph has alpha
    mask: Tensor | None = None  # [N] target opacity in [0, 1]
    depth: Tensor | None = None  # [N]
    normal: Tensor | None = None  # [N, 3]
    background: Tensor | None = None  # [N, 3] or [B, 3]: what the target was composited over; the part renders over the same
    light: Tensor | None = None  # [B, 3] unit direction from the surface to the light
    depth_map: Tensor | None = None  # [N] depth along the viewing direction of a photograph's depth map; 0: unknown
    depth_cosine: Tensor | None = None  # [N] of the angle between ray and viewing direction: the depth along the ray times it
    valid: Tensor | None = None  # [N] bool: pixels that are not masked out in their photograph; None: all
    depth_relative: bool = False  # the depth map has another scale and offset for each photograph; else it is in scene units

    def settings(self, settings: RenderSettings) -> RenderSettings:
        """The settings with the light and the background of this batch, where the batch has some."""
        light = settings.light if self.light is None else self.light
        background = settings.background if self.background is None else self.background
        return replace(settings, light=light, background=background)
