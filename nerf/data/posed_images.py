"""Posed photographs as a source of views: random rays, random patches, whole images, and a camera path for videos.

I photographs, B of them in a batch, N rays, P patches. Photographs may differ in size and intrinsics.
"""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.config.inputs import DataConfig
from nerf.core.cameras import angles_of, pixel_rays, view_rays
from nerf.core.coverage import Coverage, near_planes
from nerf.core.errors import UserError
from nerf.core.lens import direction_through, plane_of
from nerf.core.streams import Stream
from nerf.core.structs import Batch, Rays, SceneInfo, SmallPictures, ViewRequest, Views
from nerf.core.transfer import upload
from nerf.core.words import counted
from nerf.data.camera_path import SceneCameras
from nerf.data.folder import read_folder
from nerf.data.frames import SPLITS, Frame, ParsedDataset
from nerf.data.image_store import ImageStore, resample
from nerf.data.normalize import BOX_SOURCE, SceneNormalization, focus_point
from nerf.data.patches import grid_patches, small_picture
from nerf.data.placement import choose_normalization, orientation_of, scaled_intrinsics
from nerf.data.sfm import find_cameras, warn_of_changes

log = logging.getLogger("somnia.photographs")

WIDEST_VIDEO = math.radians(50.0)  # half of that of a video; lenses that see more are fisheye lenses

MAX_INVERSION_ERROR = 0.5  # pixels at an image corner after undistort and distort; above it the lens is not invertible there


def _relative_depth(dataset: ParsedDataset, config: DataConfig) -> bool:
    """Whether the depth maps of a dataset are known only up to a scale and an offset for each photograph."""
    if config.depth_maps != "auto":
        return config.depth_maps == "relative"
    return any(frame.depth is not None and frame.depth_unit == 0 for frame in dataset.frames)


class Photographs:
    """The photographs of one split in the normalised world: a source of training batches and of evaluation targets.

    Usually created by :meth:`splits_of`.

    Args:
        dataset: all splits of the folder.
        normalization: of the whole dataset, see :func:`choose_normalization`.
        split: "train", "val" or "test".
        config: the data group of the options (downscale, data_background).
        device: where images and rays live.

    Attributes:
        names: file names as written in the dataset.
        store: the pixels.
        scene_cameras: the cameras of the photographs of all splits, for videos.
        cameras: I views; their common size is that of the largest photograph, :meth:`view` gives one at its own size.
        image_index: [I] int64 index of each photograph in the whole dataset; training photographs come first.
        num_images: number of photographs in all splits.
        points: [P, 3] of the reconstruction in the normalised world, or None.
        transform: [4, 4] float64 from the normalised world to the dataset's own (the reconstruction's, where nerfstudio
            recorded how it was transformed).
        scene_kind: how the scene box was chosen: see :class:`SceneNormalization`.
        background: [3] colour behind photographs with alpha in evaluation; None if no photograph has alpha.
    """

    def __init__(
        self,
        dataset: ParsedDataset,
        normalization: SceneNormalization,
        split: str,
        config: DataConfig,
        device: torch.device | str,
    ):
        frames = [dataset.frames[i] for i in dataset.splits[split]]
        self.device = torch.device(device)
        self.names = [frame.name for frame in frames]
        self._of_dataset = tuple(dataset.splits[split])
        self.image_index = torch.tensor(self._of_dataset, device=self.device)
        self.num_images, self.num_training = len(dataset.frames), len(dataset.splits["train"])
        self.scene_kind, self.transform = normalization.kind, normalization.to_source
        self.points = None if dataset.points is None else normalization.points(dataset.points).float()
        self.unbounded = normalization.unbounded
        if dataset.to_reconstruction is not None:
            self.transform = dataset.to_reconstruction @ normalization.to_source
        self._rotation_to_source = (normalization.to_source[:3, :3] * normalization.scale).float().to(self.device)
        factor = max(1, round(config.downscale / dataset.downscaled))  # what is left to reduce
        self.depth_relative = _relative_depth(dataset, config)
        self._depths = self._depth_maps(frames, normalization, config)
        self.store = ImageStore(
            [frame.image for frame in frames],
            [frame.mask for frame in frames],
            [frame.normal for frame in frames],
            [frame.alpha for frame in frames],
            factor,
            self.device,
            self._depths,
            [orientation_of(frame) for frame in frames],
            config.photo_cache,
        )
        self._has_distortion = [any(frame.intrinsics.distortion) or frame.intrinsics.fisheye for frame in frames]
        self.cameras = self._make_cameras(frames, normalization, factor)
        if normalization.kind != "object":  # the box of an object is far from every camera
            points = None if dataset.points is None else normalization.points(dataset.points).float().to(self.device)
            sizes = self.store.width, self.store.height
            near = near_planes(self.cameras, *sizes, focus_point(self.cameras.pose.double().cpu()), points)
            if dataset.ranges is not None:  # depths along the view axis, which are no larger than the distances along rays
                known = dataset.ranges[list(dataset.splits[split]), 0].to(near) * normalization.scale
                near = torch.where(known > 0, known, near)
            self.cameras = replace(self.cameras, near=near)
        self.scene_cameras = self._scene_cameras(dataset, frames, normalization)
        self._random_background = config.data_background == "random"
        self._eval_background = torch.full((3,), 0.0 if config.data_background == "black" else 1.0, device=self.device)
        self.background = self._eval_background if self.store.has_alpha else None
        self._warn_of_noninvertible_distortion()
        log.info(self._summary(split, dataset, normalization))

    @classmethod
    def splits_of(
        cls, folder: str | Path, config: DataConfig, device: torch.device | str = "cpu", bound: float = 1.0, wild: bool = False
    ) -> dict[str, "Photographs"]:
        """Load all non-empty splits of a folder in one normalised world; "train" always exists.

        For the formats see :func:`nerf.data.folder.read_folder`, for the scene box
        :func:`nerf.data.normalize.normalize_scene`. "val" is left out if it equals "test".

        Args:
            folder: value of ``--data``.
            config: the data group of the options (holdout, downscale, data_background).
            device: where images and rays live.
            bound: half the side of the scene box.
            wild: the photographs show a sky, of which a reconstruction has no points.

        Raises:
            UserError: a file is missing, broken or not supported.
        """
        if config.sfm:
            find_cameras(Path(folder), config)
        warn_of_changes(Path(folder))
        dataset = read_folder(folder, config.holdout, config.downscale, config.depth_unit)
        normalization = choose_normalization(dataset, bound, config, wild)
        indices = dataset.splits
        splits = [s for s in SPLITS if indices[s] and (s != "val" or indices["val"] != indices["test"])]
        return {split: cls(dataset, normalization, split, config, device) for split in splits}

    def _make_cameras(self, frames: list[Frame], normalization: SceneNormalization, factor: int) -> Views:
        """Poses in the normalised world, intrinsics in pixels of the downscaled images."""
        pose = normalization.apply(torch.stack([frame.pose for frame in frames])).float().to(self.device)
        sizes = zip(frames, self.store.original_sizes, strict=True)
        intrinsics = torch.tensor([scaled_intrinsics(frame, *size) for frame, size in sizes])
        fx, fy, cx, cy = (intrinsics / factor).to(self.device).unbind(-1)
        lenses = [frame.intrinsics for frame in frames]
        terms = max(len(lens.distortion) for lens in lenses)
        distortion = torch.tensor([lens.distortion + (0.0,) * (terms - len(lens.distortion)) for lens in lenses])
        fisheye = torch.tensor([lens.fisheye for lens in lenses])
        height, width = self.store.height, self.store.width
        fovy = torch.rad2deg(2 * torch.atan(height / (2 * fy)))
        return Views(
            pose,
            fx,
            fy,
            cx,
            cy,
            int(height.max()),
            int(width.max()),
            *angles_of(pose),
            fovy,
            distortion.to(self.device) if bool(distortion.any()) else None,
            fisheye.to(self.device) if bool(fisheye.any()) else None,
        )

    def _depth_maps(
        self, frames: list[Frame], normalization: SceneNormalization, config: DataConfig
    ) -> list[tuple[Path | None, float]]:
        """The depth map of each frame, and scene units for each of its levels; 1 where they are relative."""
        if config.depth_maps == "off" or config.lambda_depth_map == 0:
            return []
        if self.depth_relative:
            return [(frame.depth, 1.0) for frame in frames]
        return [(frame.depth, normalization.scale * (frame.depth_unit or config.depth_unit)) for frame in frames]

    def _scene_cameras(self, dataset: ParsedDataset, frames: list[Frame], normalization: SceneNormalization) -> SceneCameras:
        """The cameras of all splits, with the median field of view of these frames."""
        ordered = sorted(dataset.frames, key=lambda frame: frame.name)
        c, store = self.cameras, self.store
        half = [
            [math.tan(min(frame.intrinsics.half_angle(focal, side), WIDEST_VIDEO)) for focal, side in ((fx, w), (fy, h))]
            for frame, fx, fy, w, h in zip(
                frames, c.fx.tolist(), c.fy.tolist(), store.width.tolist(), store.height.tolist(), strict=True
            )
        ]
        half_x, half_y = torch.tensor(half).median(0).values.tolist()
        pose = normalization.apply(torch.stack([frame.pose for frame in ordered]))
        near = None if c.near is None else c.near.min().item()
        return SceneCameras(pose, half_x, half_y, self.transform, near)

    def _warn_of_noninvertible_distortion(self) -> None:
        """Log a warning if a distortion model is not invertible at the corners of its image."""
        c = self.cameras
        if c.distortion is None and c.fisheye is None:
            return
        x = torch.stack([-c.cx, self.store.width - c.cx], -1)[:, [0, 1, 0, 1]] / c.fx[:, None]
        y = torch.stack([-c.cy, self.store.height - c.cy], -1)[:, [0, 0, 1, 1]] / c.fy[:, None]
        lens = tuple(None if value is None else value[:, None] for value in (c.distortion, c.fisheye))
        corner = torch.stack([x, y], -1)
        error = (plane_of(direction_through(corner, *lens), *lens) - corner).norm(dim=-1).amax(-1) * c.fx
        count = int((error > MAX_INVERSION_ERROR).sum())
        if count:
            log.warning(
                "the lens distortion of %s is not invertible towards the corners, so rays there are wrong; "
                "undistort the photographs first (colmap image_undistorter)",
                counted(count, "photograph"),
            )

    def _summary(self, split: str, dataset: ParsedDataset, normalization: SceneNormalization) -> str:
        """One line on what was loaded, what was missing and how the scene was normalised."""
        sizes = sorted(zip(self.store.width.tolist(), self.store.height.tolist(), strict=True))
        size = f"{sizes[0][0]}x{sizes[0][1]}" + (f" to {sizes[-1][0]}x{sizes[-1][1]}" if sizes[0] != sizes[-1] else "")
        line = (
            f"{dataset.folder}: {len(self)} of {self.num_images} photographs for {split}, {size} pixels, "
            f"{self.store.pixels.numel() / 2**20:.0f} MiB; scene box from {BOX_SOURCE[normalization.kind]}, "
            f"scaled by {normalization.scale:.3g}"
        )
        if normalization.unbounded and not (self.store.has_alpha or self.store.has_masks):
            line += "; more is seen than it holds (--background auto is contracted)"
        depths = sum(path is not None for path, _ in self._depths)
        if depths:
            line += f"; {depths} with {'relative' if self.depth_relative else 'metric'} depth maps"
        if dataset.missing:
            gone = counted(len(dataset.missing), "listed photograph does", "listed photographs do")
            line += f"; {gone} not exist (the first is {dataset.missing[0]})"
        return line

    def __len__(self) -> int:
        return len(self.names)

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each photograph, after ``--downscale``."""
        return [self.store.size(i) for i in range(len(self))]

    def scene(self, bound: float) -> SceneInfo:
        """The :class:`SceneInfo` of this dataset in a box [-bound, bound]^3."""
        marked = self.store.has_alpha or self.store.has_masks
        shown = None if self.cameras.near is None else Coverage(self.cameras, self.store.width, self.store.height)
        unbounded = self.unbounded and not marked
        small = functools.cache(lambda side: [small_picture(self.image(i), side) for i in range(len(self))])
        return SceneInfo(
            bound,
            self.num_images,
            marked,
            self._points_in(bound),
            unbounded,
            coverage=shown,
            num_training=self.num_training,
            pictures=SmallPictures(tuple(self.names), small, -self.cameras.pose[:, :3, 2]),
        )

    def _points_in(self, bound: float) -> Tensor | None:
        """The points of the reconstruction [P, 3] that lie in a box, in the normalised world."""
        return None if self.points is None else self.points[self.points.abs().amax(-1) < bound]

    # ---- single photographs ----

    def view(self, i: int) -> Views:
        """The camera of photograph ``i`` as a batch of one, at the photograph's own size."""
        height, width = self.store.size(i)
        return replace(self.cameras[i], height=height, width=width)

    def image(self, i: int) -> Tensor:
        """Photograph ``i`` as [H, W, 3] in [0, 1], composited over ``background`` if it has alpha."""
        stored = self.store.image(i)
        return stored if self.background is None else _composite_over(stored, self.background)

    def alpha(self, i: int) -> Tensor | None:
        """Alpha channel [H, W] in [0, 1] of photograph ``i``, or None if no photograph has alpha."""
        return self.store.image(i)[..., 3] if self.store.has_alpha else None

    def valid_mask(self, i: int) -> Tensor | None:
        """Pixels [H, W] bool of photograph ``i`` that are not masked out, or None if no photograph has a mask."""
        return self.store.valid_mask(i)

    def eval_batch(self, i: int, undistorted: bool = False) -> tuple[Batch, Tensor | None]:
        """The target that a rendering of photograph ``i`` is compared with, at the photograph's size.

        Args:
            i: index of the photograph.
            undistorted: as training sees whole photographs: lens distortion removed, masked-out pixels transparent.
                Otherwise the photograph as it was taken.

        Returns:
            A batch of one view, over the evaluation background (render ``views`` with the ``settings`` of the batch and
            compare with ``rgb`` [N, 3]), and the pixels [N] bool that are compared; None: all.
        """
        height, width = self.store.size(i)
        if undistorted:
            return self._image_batch([i], ViewRequest("photos", height=height, width=width), self._eval_background), None
        view, valid, alpha = self.view(i), self.valid_mask(i), self.alpha(i)
        rays = view_rays(view)
        rays = replace(rays, image_index=self.image_index[i].expand(len(rays)))
        background = None if self.background is None else self.background[None]
        alpha, valid = (None if plane is None else plane.reshape(-1) for plane in (alpha, valid))
        return Batch(rays, view, self.image(i).reshape(-1, 3), alpha, background=background), valid

    def flat(self, i: int) -> tuple[Views, Tensor]:
        """Photograph ``i`` without lens distortion: its pinhole, and premultiplied [H, W, 4], transparent if masked out."""
        view = self._undistorted_views(torch.tensor([i], device=self.device), *self.store.size(i))
        return view, self._undistorted_planes(i, view.height, view.width)[:4].permute(1, 2, 0)

    # ---- training batches ----

    def batch(self, request: ViewRequest, background: Tensor | None = None) -> Batch:
        """Training rays and their targets in one of three layouts. The same request gives the same batch.

        * "rays": ``num_rays`` random pixels, uniform over all valid pixels of all photographs, with replacement.
        * "patches": ``num_rays // patch_size^2`` square patches of neighbouring pixels, each inside one photograph, uniform
          over all positions. With masks, the centre pixel (``patch_size // 2``) of a patch is valid and other pixels may be
          masked out, which the batch says. With a ``patch_scale``, see :func:`nerf.data.patches.grid_patches`.
        * "image": ``num_views`` whole photographs, none repeated before all were used, resampled with antialiasing to
          ``height`` x ``width`` and without lens distortion, so that they can be rasterised. Masked-out pixels are
          transparent, as a rasteriser renders all pixels.

        Photographs with alpha are composited over ``background`` if given, else over ``--data_background``: by default a
        random colour for each ray or each whole photograph, which only the correct opacity can reproduce.

        Args:
            request: layout and size.
            background: [3], [N, 3] for rays and patches, or [B, 3] for whole photographs.

        Returns:
            N rays with ``image_index`` and ``uv``, their colours, and for photographs with alpha the opacity and the
            background. Rays of patches have the ``shape`` (P, patch_size, patch_size) and ``view_index`` 0. Whole
            photographs have ``views`` and ``shape`` (B, height, width), and normals [N, 3] in the normalised world if the
            dataset has normal maps, 0 where unknown.

        Raises:
            UserError: a photograph is smaller than a patch, or the masks leave no position for one.
            ValueError: ``num_rays`` is too small for a single patch.
        """
        if request.layout == "image":
            chosen = self._choose_images(request.num_views, request.random.generator(Stream.PHOTO_CHOICE))
            return self._image_batch(chosen, request, background)
        generator = request.random.generator(Stream.PHOTO_PIXELS, self.device)
        if request.layout == "patches":
            return self._patch_batch(request, background, generator)
        pixel = self.store.sample_pixels(request.num_rays, generator)
        image, column, row = self.store.locate(pixel)
        batch = self._pixel_batch(self._pixel_rays(image, column, row), self.store.pixels[pixel], request, background)
        return self._with_depth(batch, pixel)

    def _patch_batch(self, request: ViewRequest, background: Tensor | None, generator: torch.Generator) -> Batch:
        """The layout "patches" of :meth:`batch`."""
        size, count = request.patch_size, 0 if request.patch_size < 1 else request.num_rays // request.patch_size**2
        if count < 1:
            raise ValueError(
                "Photographs.batch: expected num_rays of at least patch_size^2 and patch_size >= 1, got "
                f"num_rays {request.num_rays} and patch_size {size}"
            )
        if request.patch_scale is not None:
            return self._grid_batch(count, request, background, generator)
        small = self.store.first_smaller_than(size)
        if small is not None:
            height, width = self.store.size(small)
            raise UserError(
                f"photograph {self.names[small]} is {width}x{height} pixels after --downscale, smaller than a patch of "
                f"{size}x{size}; give smaller patches or a smaller --downscale, or remove the photograph"
            )
        image, left, top = self.store.sample_patches(count, size, generator)
        step = torch.arange(size, device=self.device)
        column = (left[:, None, None] + step).expand(-1, size, -1).reshape(-1)
        row = (top[:, None, None] + step[:, None]).expand(-1, -1, size).reshape(-1)
        image = image[:, None].expand(-1, size * size).reshape(-1)
        return self._patches_at((image, column, row), (count, size, size), request, background)

    def _grid_batch(self, count: int, request: ViewRequest, background: Tensor | None, generator: torch.Generator) -> Batch:
        """Patches over parts of photographs that are drawn with equal chances, on the host, where encoders look for them."""
        size, scale = request.patch_size, request.patch_scale
        assert scale is not None, "of this kind of patches"
        image = torch.randint(len(self), (count,), generator=request.random.generator(Stream.PHOTO_CHOICE))
        place = grid_patches(self.store, upload([image], self.device)[0], size, scale, generator).flat()
        batch = self._patches_at(place, (count, size, size), request, background)
        of_dataset = tuple(self._of_dataset[i] for i in image.tolist())
        return replace(batch, rays=replace(batch.rays, patch_images=of_dataset))

    def _patches_at(
        self, place: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int, int], request: ViewRequest, background: Tensor | None
    ) -> Batch:
        """The batch of patches whose pixels are at image, column and row [N]."""
        rays = replace(self._pixel_rays(*place), shape=shape)
        pixel = self.store.pixel_index(*place)
        batch = self._with_depth(self._pixel_batch(rays, self.store.pixels[pixel], request, background), pixel)
        return replace(batch, valid=self.store.valid(pixel))

    def _pixel_rays(self, image: Tensor, column: Tensor, row: Tensor) -> Rays:
        """Rays through the centres of pixels [N] of photographs ``image`` [N]."""
        xy = torch.stack([column, row], -1) + 0.5
        uv = xy / torch.stack([self.store.width[image], self.store.height[image]], -1)
        rays = pixel_rays(self.cameras, image, xy)
        return replace(rays, view_index=torch.zeros_like(image), image_index=self.image_index[image], uv=uv)

    def _pixel_batch(self, rays: Rays, stored: Tensor, request: ViewRequest, background: Tensor | None) -> Batch:
        """A batch of rays and their stored pixels [N, C] uint8, composited over the training background."""
        colour = stored.float() / 255
        if self.background is None:
            return Batch(rays, rgb=colour)
        behind = self._training_background(request, background, len(rays))
        return Batch(rays, rgb=_composite_over(colour, behind), mask=colour[:, 3], background=behind)

    def _with_depth(self, batch: Batch, pixel: Tensor) -> Batch:
        """A batch of training rays with what the depth maps say at its pixels [N], where there are some."""
        depth = self.store.depth(pixel)
        if depth is None:
            return batch
        assert batch.rays.image_index is not None, "rays of photographs have it"
        viewing = -self.cameras.pose[torch.searchsorted(self.image_index, batch.rays.image_index), :3, 2]
        cosine = (batch.rays.directions * viewing).sum(-1)
        return replace(batch, depth_map=depth, depth_cosine=cosine, depth_relative=self.depth_relative)

    def _choose_images(self, count: int, generator: torch.Generator) -> list[int]:
        """Indices of ``count`` photographs in random order; numbers of repetitions differ by at most one."""
        rounds = [torch.randperm(len(self), generator=generator) for _ in range(-(-count // len(self)))]
        return torch.cat(rounds)[:count].tolist()

    def _image_batch(self, chosen: list[int], request: ViewRequest, background: Tensor | None) -> Batch:
        """The layout "image" of :meth:`batch` for the B photographs ``chosen``."""
        (index,) = upload([torch.tensor(chosen)], self.device)
        views = self._undistorted_views(index, request.height, request.width)
        rays = view_rays(views)
        rays = replace(rays, image_index=self.image_index[index][rays.view_index])
        planes = torch.stack([self._undistorted_planes(i, request.height, request.width) for i in chosen])
        planes = planes.permute(0, 2, 3, 1).reshape(len(rays), -1)  # [N, 4] or [N, 7]
        normal = None
        if planes.shape[1] > 4:
            normal = torch.nn.functional.normalize(planes[:, 4:] @ self._rotation_to_source, dim=-1)
        if self.background is None and not self.store.has_masks:
            return Batch(rays, views, planes[:, :3], normal=normal)
        alpha, behind = planes[:, 3], self._training_background(request, background, len(chosen))
        rgb = planes[:, :3] + (1 - alpha)[:, None] * behind[rays.view_index]
        return Batch(rays, views, rgb, alpha, normal=normal, background=behind)

    def _undistorted_views(self, chosen: Tensor, height: int, width: int) -> Views:
        """The cameras of photographs ``chosen`` [B] int64 at a common size, without lens distortion."""
        c = self.cameras[chosen]
        x, y = width / self.store.width[chosen], height / self.store.height[chosen]
        pinhole: dict[str, Any] = {"height": height, "width": width, "distortion": None, "fisheye": None}
        return replace(c, fx=c.fx * x, cx=c.cx * x, fy=c.fy * y, cy=c.cy * y, **pinhole)

    def _undistorted_planes(self, i: int, height: int, width: int) -> Tensor:
        """Photograph ``i`` resampled for its undistorted view: [4, height, width] premultiplied colour and alpha.

        [7, height, width] with normal maps: also the normal times alpha, in the axes of the dataset.
        """
        stored = self.store.image(i)
        alpha = stored[..., 3:] if self.store.has_alpha else torch.ones_like(stored[..., :1])
        if (valid := self.store.valid_mask(i)) is not None:
            alpha = alpha * valid[..., None]
        planes = [stored[..., :3] * alpha, alpha]
        if (normal := self.store.normal(i)) is not None:
            planes.append(normal * alpha)
        return resample(torch.cat(planes, -1).permute(2, 0, 1), height, width, self._distortion_map(i))

    def _distortion_map(self, i: int) -> Callable[[Tensor], Tensor] | None:
        """The map from points of the undistorted photograph ``i`` to points of the stored one, uv [..., 2]; None: identity."""
        camera = self.cameras[i]
        if not self._has_distortion[i]:
            return None
        size = torch.stack([self.store.width[i], self.store.height[i]])
        focal, principal = torch.cat([camera.fx, camera.fy]) / size, torch.cat([camera.cx, camera.cy]) / size

        def warp(uv: Tensor) -> Tensor:
            plane = (uv - principal) / focal
            seen = torch.stack([plane[..., 0], -plane[..., 1], -torch.ones_like(plane[..., 0])], -1)
            return plane_of(seen, camera.distortion, camera.fisheye) * focal + principal

        return warp

    def _training_background(self, request: ViewRequest, given: Tensor | None, count: int) -> Tensor:
        """[count, 3] colours behind photographs with alpha in training: one per ray, or one per whole photograph."""
        if given is not None and (given.ndim == 1 or len(given) == count):
            return given.to(self.device).expand(count, 3)
        if self._random_background:
            return torch.rand(
                count, 3, generator=request.random.generator(Stream.PHOTO_BACKGROUND, self.device), device=self.device
            )
        return self._eval_background.expand(count, 3)


def _composite_over(rgba: Tensor, background: Tensor) -> Tensor:
    """Colours [..., 3] of ``rgba`` [..., 4] with straight alpha over ``background``, broadcast."""
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + background * (1 - alpha)
