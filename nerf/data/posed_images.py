"""Posed photographs as a source of views: random rays over all of them, whole ones, a path for a video.

I photographs, B of them at once, N rays. Pictures may differ in size and lens.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nerf.config.groups import DataConfig
from nerf.core.cameras import angles_of, centred_views, distort, look_at, pixel_rays, undistort, view_rays, wrap_degrees
from nerf.core.errors import UserError
from nerf.core.streams import Stream
from nerf.core.structs import Batch, SceneInfo, ViewRequest, Views
from nerf.data.frames import SPLITS, Frame, PhotoFiles
from nerf.data.image_store import Pictures, header, resample, shows_clear_ground
from nerf.data.normalize import Framing, focus_point, frame
from nerf.data.transforms import read_folder

log = logging.getLogger("somnia.photographs")

FOLD_TOLERANCE = 0.5  # pixels that a corner may be off after undistortion before a lens counts as folded over
WHOLE_TURN = 0.7  # share of the circle in reach of the cameras above which the path goes all the way around
REACH = 30.0  # degrees of azimuth that a camera covers to either side


def _intrinsics(photo: Frame, width: int, height: int) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels of the whole picture."""
    try:
        return photo.lens.pixels(width, height)
    except UserError as error:
        raise UserError(f"photograph {photo.image}: {error}") from error


def choose_framing(files: PhotoFiles, bound: float) -> Framing:
    """The box of a folder's scene, from its training photographs alone; see ``provider_framing.frame``."""
    training = [files.frames[i] for i in files.splits["train"]]
    half_angles = []
    for photo in training:
        width, height, _ = header(photo.image)
        fx, fy, _, _ = _intrinsics(photo, width, height)
        half_angles.append(math.atan(max(width / 2 / fx, height / 2 / fy)))
    poses = torch.stack([photo.pose for photo in training])
    clear = training[0].alpha is not None or shows_clear_ground(training[0].image)
    return frame(poses, torch.tensor(half_angles, dtype=torch.float64), files.box, clear, bound, files.points)


class Photographs:
    """The photographs of one split, posed in our world and box; a source of views (``batch``) and of ground truth.

    Made by :meth:`splits_of`.

    Attributes:
        names: file names, as the data has them.
        pictures: their pixels.
        cameras: I views in our world; their common size is that of the largest picture, ``view`` gives one at its own.
        index: [I] number of each photograph among all of the data set; training ones come first, from 0.
        total: how many photographs the data set has, all splits together.
        num_training: how many of them train.
        transform: [4, 4] float64 from our world to the data's own (the reconstruction's, where nerfstudio recorded it).
        framing: "box" as the data prescribed, "object" on clear ground, or "points" or "scene"; see ``provider_framing``.
        background: [3] what stands behind photographs with alpha when they are measured; None if none has alpha.
    """

    def __init__(self, files: PhotoFiles, framing: Framing, split: str, config: DataConfig, device: torch.device | str):
        frames = [files.frames[i] for i in files.splits[split]]
        self.device = torch.device(device)
        self.names = [photo.name for photo in frames]
        self.index = torch.tensor(files.splits[split], device=self.device)
        self.total, self.num_training = len(files.frames), len(files.splits["train"])
        self.framing, self.transform = framing.kind, framing.to_source
        if files.recorded is not None:
            self.transform = files.recorded @ framing.to_source
        self._turn = (framing.to_source[:3, :3] * framing.scale).float().to(self.device)  # from our axes to the data's
        columns = ([getattr(photo, which) for photo in frames] for which in ("image", "mask", "normal", "alpha"))
        self.pictures = Pictures(*columns, factor=config.downscale, device=self.device)
        self.cameras = self._make_cameras(frames, framing, config.downscale)
        self._random_background = config.data_background == "random"
        self._plain = torch.full((3,), 0.0 if config.data_background == "black" else 1.0, device=self.device)
        self.background = self._plain if self.pictures.has_alpha else None
        self._warn_of_folds()
        log.info(self._summary(split, files, framing))

    @classmethod
    def splits_of(
        cls, folder: str | Path, config: DataConfig, device: torch.device | str = "cpu", bound: float = 1.0
    ) -> dict[str, "Photographs"]:
        """All splits of a folder that have photographs, in one world; "train" is always there.

        The layouts are those of ``provider_formats``, the choice of the box that of ``provider_framing``. A "val" that
        would only repeat "test" is left out.

        Args:
            folder: what ``--data`` names.
            config: the data group of the options (holdout, downscale, data_background).
            device: where pictures and rays live.
            bound: half the side of our box.

        Raises:
            UserError: anything missing, broken or not understood.
        """
        files = read_folder(folder, config.holdout)
        framing = choose_framing(files, bound)
        splits = [s for s in SPLITS if files.splits[s] and (s != "val" or files.splits["val"] != files.splits["test"])]
        return {split: cls(files, framing, split, config, device) for split in splits}

    def _make_cameras(self, frames: list[Frame], framing: Framing, factor: int) -> Views:
        """Poses in our world, intrinsics in pixels of the shrunk pictures."""
        pose = framing.poses(torch.stack([photo.pose for photo in frames])).float().to(self.device)
        full = zip(frames, self.pictures.full_size, strict=True)
        lens = torch.tensor([_intrinsics(photo, *size) for photo, size in full])
        fx, fy, cx, cy = (lens / factor).to(self.device).unbind(-1)
        distortion = torch.tensor([photo.lens.distortion for photo in frames], device=self.device)
        self._bent = [any(photo.lens.distortion) for photo in frames]
        height, width = self.pictures.height, self.pictures.width
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
            distortion if any(self._bent) else None,
        )

    def _warn_of_folds(self) -> None:
        """Say so if a lens model cannot be undone in the corners of its picture."""
        c = self.cameras
        if c.distortion is None:
            return
        x = torch.stack([-c.cx, self.pictures.width - c.cx], -1)[:, [0, 1, 0, 1]] / c.fx[:, None]
        y = torch.stack([-c.cy, self.pictures.height - c.cy], -1)[:, [0, 0, 1, 1]] / c.fy[:, None]
        corner, lens = torch.stack([x, y], -1), c.distortion[:, None]
        off = (distort(undistort(corner, lens), lens) - corner).norm(dim=-1).amax(-1) * c.fx
        folded = int((off > FOLD_TOLERANCE).sum())
        if folded:
            log.warning("the lens of %d photographs folds over towards the corners; rays there are wrong", folded)

    def _summary(self, split: str, files: PhotoFiles, framing: Framing) -> str:
        """One line on what was read, what was missing and how it was framed."""
        sizes = sorted(zip(self.pictures.width.tolist(), self.pictures.height.tolist(), strict=True))
        size = f"{sizes[0][0]}x{sizes[0][1]}" + (f" to {sizes[-1][0]}x{sizes[-1][1]}" if sizes[0] != sizes[-1] else "")
        line = (
            f"{files.folder}: {len(self)} of {self.total} photographs for {split}, {size} pixels, "
            f"{self.pictures.bytes.numel() / 2**20:.0f} MiB; framed as {framing.kind}, "
            f"a unit is {framing.scale:.3g} of ours"
        )
        if files.missing:
            line += f"; {len(files.missing)} more are named and do not exist (the first is {files.missing[0]})"
        return line

    def __len__(self) -> int:
        return len(self.names)

    def scene(self, bound: float) -> SceneInfo:
        """What fields and backgrounds may know of the scene in a box [-bound, bound]^3."""
        return SceneInfo(bound, self.total, self.pictures.has_alpha or self.pictures.has_masks)

    def view(self, i: int) -> Views:
        """The camera of photograph ``i`` as a batch of one, at the photograph's size."""
        height, width = self.pictures.size(i)
        return replace(self.cameras[i], height=height, width=width)

    def image(self, i: int) -> Tensor:
        """Photograph ``i`` [H, W, 3] in [0, 1], over ``background`` if it has alpha."""
        stored = self.pictures.image(i)
        return stored if self.background is None else _over(stored, self.background)

    def mask(self, i: int) -> Tensor | None:
        """Opacity [H, W] in [0, 1] of photograph ``i``, or None if photographs have no alpha."""
        return self.pictures.image(i)[..., 3] if self.pictures.has_alpha else None

    def usable(self, i: int) -> Tensor | None:
        """Which pixels [H, W] of photograph ``i`` are not masked out, or None if none of any photograph is."""
        return self.pictures.usable(i)

    def batch(self, request: ViewRequest, background: Tensor | None = None) -> Batch:
        """Whole photographs, or random pixels, evenly over all usable ones of all photographs, with replacement.

        Photographs with alpha are put over ``background`` if there is one, else over ``--data_background``: by
        default a random colour for each ray, or for each whole photograph, which only the right opacity can explain.

        Whole photographs are different ones as long as there are enough, brought to ``request.height`` x ``request.width``
        pixels without aliasing and without their lens's distortion, so that a rasteriser can follow. What a mask leaves
        out of them is clear ground, as they cannot leave out pixels.

        Args:
            request: ``num_rays`` random rays in the layout "rays", ``num_views`` whole photographs in the layout "image".
                The same request gives the same batch.
            background: [3], [N, 3] for rays or [B, 3] for whole photographs.

        Returns:
            N rays with ``image_index`` and ``uv``, their colours, and for photographs with alpha the opacity and the
            background they were put over. Whole photographs also have their ``views``, the rays their ``shape``, and
            there are normals in our axes [N, 3] where the data has some, 0 where it does not say.
        """
        if request.layout == "image":
            chosen = self._choose(request.num_views, request.random.generator(Stream.PHOTO_CHOICE))
            return self._whole(chosen, request, background)
        pixel = self.pictures.draw(request.num_rays, request.random.generator(Stream.PHOTO_PIXELS, self.device))
        photo, column, row = self.pictures.locate(pixel)
        xy = torch.stack([column, row], -1) + 0.5
        uv = xy / torch.stack([self.pictures.width[photo], self.pictures.height[photo]], -1)
        rays = replace(
            pixel_rays(self.cameras, photo, xy), view_index=torch.zeros_like(photo), image_index=self.index[photo], uv=uv
        )
        colour = self.pictures.bytes[pixel].float() / 255
        if self.background is None:
            return Batch(rays, rgb=colour)
        behind = self._training_background(request, background, request.num_rays)
        return Batch(rays, rgb=_over(colour, behind), mask=colour[:, 3], background=behind)

    def measured(self, i: int, ideal: bool = False) -> tuple[Batch, Tensor | None]:
        """What a rendering is measured against: photograph ``i`` at its own size, over the plain background.

        Args:
            i: number of the photograph.
            ideal: as training has whole photographs: without the lens's distortion, and with clear ground where a mask
                leaves something out. Otherwise as it was taken.

        Returns:
            A batch of one view (render with ``settings`` of it, render ``views``, compare with ``rgb`` [N, 3]), and which of
            its pixels [N] count; None: all.
        """
        height, width = self.pictures.size(i)
        if ideal:
            return self._whole([i], ViewRequest("photos", height=height, width=width), self._plain), None
        view, usable, mask = self.view(i), self.usable(i), self.mask(i)
        rays = view_rays(view)
        rays = replace(rays, image_index=self.index[i].expand(len(rays)))
        background = None if self.background is None else self.background[None]
        mask, usable = (None if plane is None else plane.reshape(-1) for plane in (mask, usable))
        return Batch(rays, view, self.image(i).reshape(-1, 3), mask, background=background), usable

    def _choose(self, count: int, generator: torch.Generator) -> list[int]:
        """Numbers of ``count`` photographs in a random order, each as often as any other, give or take one."""
        rounds = [torch.randperm(len(self), generator=generator) for _ in range(-(-count // len(self)))]
        return torch.cat(rounds)[:count].tolist()

    def _whole(self, chosen: list[int], request: ViewRequest, background: Tensor | None) -> Batch:
        """Photographs ``chosen`` (B numbers) as :meth:`batch` describes them."""
        index = torch.tensor(chosen)
        if self.device.type == "cuda":
            index = index.pin_memory().to(self.device, non_blocking=True)
        views = self._ideal_views(index, request.height, request.width)
        rays = view_rays(views)
        rays = replace(rays, image_index=self.index[index][rays.view_index])
        planes = torch.stack([self._resampled(i, request.height, request.width) for i in chosen])
        planes = planes.permute(0, 2, 3, 1).reshape(len(rays), -1)  # [N, 4] or [N, 7]
        normal = None
        if planes.shape[1] > 4:
            normal = torch.nn.functional.normalize(planes[:, 4:] @ self._turn, dim=-1)
        if self.background is None and not self.pictures.has_masks:
            return Batch(rays, views, planes[:, :3], normal=normal)
        mask, behind = planes[:, 3], self._training_background(request, background, len(chosen))
        rgb = planes[:, :3] + (1 - mask)[:, None] * behind[rays.view_index]
        return Batch(rays, views, rgb, mask, normal=normal, background=behind)

    def _ideal_views(self, chosen: Tensor, height: int, width: int) -> Views:
        """The cameras of photographs ``chosen`` [B] int64 for pictures of one size, without their lens's distortion."""
        c = self.cameras[chosen]
        x, y = width / self.pictures.width[chosen], height / self.pictures.height[chosen]
        return replace(c, fx=c.fx * x, cx=c.cx * x, fy=c.fy * y, cy=c.cy * y, height=height, width=width, distortion=None)

    def _resampled(self, i: int, height: int, width: int) -> Tensor:
        """Photograph ``i`` [4, height, width] as its ideal view sees it, colours times opacity; and normals if any."""
        stored = self.pictures.image(i)
        opacity = stored[..., 3:] if self.pictures.has_alpha else torch.ones_like(stored[..., :1])
        if self.pictures.has_masks:
            opacity = opacity * self.pictures.usable(i)[..., None]
        planes = [stored[..., :3] * opacity, opacity]
        if (normal := self.pictures.normal(i)) is not None:
            planes.append(normal * opacity)
        return resample(torch.cat(planes, -1).permute(2, 0, 1), height, width, self._bend(i))

    def _bend(self, i: int) -> Callable[[Tensor], Tensor] | None:
        """Where the points of an ideal photograph ``i`` really are, as shares of its size; None if they stay."""
        if not self._bent[i]:
            return None
        c = self.cameras[i]
        size = torch.stack([self.pictures.width[i], self.pictures.height[i]])
        focal, middle = torch.cat([c.fx, c.fy]) / size, torch.cat([c.cx, c.cy]) / size
        return lambda share: distort((share - middle) / focal, c.distortion) * focal + middle

    def _training_background(self, request: ViewRequest, given: Tensor | None, count: int) -> Tensor:
        """[count, 3] what training puts behind photographs with alpha: behind each ray, or each whole photograph."""
        if given is not None and (given.ndim == 1 or len(given) == count):
            return given.to(self.device).expand(count, 3)
        if self._random_background:
            return torch.rand(
                count, 3, generator=request.random.generator(Stream.PHOTO_BACKGROUND, self.device), device=self.device
            )
        return self._plain.expand(count, 3)

    def show_path(self, count: int, height: int, width: int) -> Views:
        """A smooth path past these photographs' cameras, for a video: it returns to where it began.

        Around the whole scene where cameras are all around it, to and fro where they stand on one side. Position and
        line of sight are means of the cameras near in azimuth, so the path stays where something was seen; the field of
        view is not larger than the photographs' own, in width and in height.

        Args:
            count: number of views.
            height: pixels.
            width: pixels.
        """
        c, pictures = self.cameras, self.pictures
        pose = c.pose.double().cpu()
        focus = focus_point(pose)
        offset = pose[:, :3, 3] - focus
        azimuth = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 2]))
        place = _sweep(azimuth, count)
        near = wrap_degrees(place[:, None] - azimuth[None])
        share = torch.softmax(-0.5 * (near / (REACH / 2)).square(), -1)  # [count, I]
        level, rise = share @ offset[:, [0, 2]].norm(dim=-1), share @ offset[:, 1]
        turn = torch.deg2rad(place)
        position = focus + torch.stack([level * turn.sin(), rise, level * turn.cos()], -1)
        distance = offset.norm(dim=-1, keepdim=True)
        target = share @ (pose[:, :3, 3] - distance * pose[:, :3, 2])
        half_y = (pictures.height / (2 * c.fy)).median().item()
        half_x = (pictures.width / (2 * c.fx)).median().item()
        fovy = 2 * math.degrees(math.atan(min(half_y, half_x * height / width)))
        views = centred_views(look_at(position, target).float(), torch.full((count,), fovy), height, width)
        return views.to(self.device)


def _over(rgba: Tensor, background: Tensor) -> Tensor:
    """Colours [..., 3] of straight-alpha ``rgba`` [..., 4] over ``background``, broadcast."""
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + background * (1 - alpha)


def _sweep(azimuth: Tensor, count: int) -> Tensor:
    """Azimuths [count] in degrees that visit the cameras' [I]: once around, or to and fro over where they are."""
    circle = torch.arange(360.0, dtype=azimuth.dtype)
    apart = wrap_degrees(circle[:, None] - azimuth[None]).abs().amin(-1)
    turn = torch.arange(count, dtype=azimuth.dtype) / count
    if (apart < REACH).double().mean() > WHOLE_TURN:
        return 360 * turn
    angle = torch.deg2rad(azimuth)
    middle = torch.rad2deg(torch.atan2(angle.sin().mean(), angle.cos().mean()))
    inside = wrap_degrees(azimuth - middle)
    low, high = torch.quantile(inside, torch.tensor([0.05, 0.95], dtype=azimuth.dtype))
    return middle + (low + high) / 2 + (high - low) / 2 * torch.sin(2 * math.pi * turn)
