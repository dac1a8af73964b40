"""Posed photographs as a source of views: pictures in memory, random rays over all of them, whole ones for measuring.

I photographs, P pixels of all of them together, N rays. Pictures may differ in size and lens, and are kept as bytes.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nerf.cameras import angles_of, centred_views, distort, look_at, pixel_rays, undistort
from nerf.errors import UserError
from nerf.provider_formats import SPLITS, Frame, PhotoFiles, read_folder
from nerf.provider_framing import focus_point, frame
from nerf.structs import Batch, Part, Views

log = logging.getLogger("somnia.photographs")

STREAM_PIXELS, STREAM_BACKGROUND = 11, 12
DECODERS = 4  # threads that decode pictures
FOLD_TOLERANCE = 0.5  # pixels that a corner may be off after undistortion before a lens counts as folded over
WHOLE_TURN = 0.7  # share of the circle in reach of the cameras above which the path goes all the way around
REACH = 30.0  # degrees of azimuth that a camera covers to either side


def _open(path: Path, mode: str | None = None):
    """The picture, decoded, as RGB or RGBA (or in ``mode``).

    Raises:
        UserError: it is not a picture, or broken, or too large to decode safely.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if mode is None:
                mode = "RGBA" if has_alpha(picture) else "RGB"
            if picture.mode.startswith("I;16"):  # 16-bit grey, which PIL would clip instead of scaling
                picture = picture.convert("I").point(lambda value: value / 257).convert("L")
            return picture.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"photograph {path} cannot be read: {error}") from error


def has_alpha(picture) -> bool:
    """Whether a PIL picture has an alpha channel or a transparent colour."""
    return "A" in picture.getbands() or "transparency" in picture.info


def _size(path: Path) -> tuple[int, int, bool]:
    """Width, height and whether there is alpha, from the picture's header."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return *picture.size, has_alpha(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"photograph {path} cannot be read: {error}") from error


def _pixels(path: Path, factor: int, mode: str | None = None) -> Tensor:
    """The picture as uint8 [H, W, C], shrunk by a whole factor (means of premultiplied colours)."""
    import numpy as np

    picture = _open(path, mode)
    return torch.from_numpy(np.array(picture.reduce(factor) if factor > 1 else picture).copy())


def _clear(frames: list[Frame]) -> bool:
    """Whether the photographs show something on clear ground: the first has pixels that are not opaque."""
    if not _size(frames[0].image)[2]:
        return False
    return bool((_pixels(frames[0].image, 1, "RGBA")[..., 3] < 255).any())


class Photographs:
    """The photographs of one split, posed in our world and box; a source of views (``batch``) and of ground truth.

    Made by :meth:`from_folder`.

    Attributes:
        names: file names, as the data has them.
        pose: [I, 4, 4] camera-to-world, in our world.
        index: [I] number of each photograph among all of the data set; training ones come first, from 0.
        total: how many photographs the data set has, all splits together.
        num_training: how many of them train.
        transform: [4, 4] float64 from our world to the data's own (the reconstruction's, where nerfstudio recorded it).
        framing: "box" as the file prescribed, "object" on clear ground, or "scene" around the cameras.
        background: [3] what stands behind photographs with alpha when they are measured; None if none has alpha.
    """

    def __init__(self, files: PhotoFiles, split: str, config, device: torch.device | str, bound: float):
        frames = [files.frames[i] for i in files.splits[split]]
        training = [files.frames[i] for i in files.splits["train"]]
        self.device = torch.device(device)
        self.names = [f.name for f in frames]
        self.index = torch.tensor(files.splits[split], device=self.device)
        self.total, self.num_training = len(files.frames), len(training)
        self._data_background = config.data_background
        self._load(frames, config.downscale)
        self._place(files, frames, training, config.downscale, bound)

    @classmethod
    def from_folder(
        cls, folder: str | Path, split: str, config, device: torch.device | str = "cpu", bound: float = 1.0
    ) -> "Photographs":
        """Read a folder of posed photographs.

        The layouts are those of ``provider_formats``, the choice of the box that of ``provider_framing``.

        Args:
            folder: what ``--data`` names.
            split: "train", "val" or "test".
            config: the data group of the options (holdout, downscale, data_background).
            device: where pictures and rays live.
            bound: half the side of our box.

        Raises:
            UserError: anything missing, broken or not understood.
        """
        if split not in SPLITS:
            raise ValueError(f"Photographs: split must be one of {', '.join(SPLITS)}, got {split!r}")
        files = read_folder(folder, config.holdout)
        if not files.splits[split]:
            raise UserError(f"--data {folder}: no photograph is held out for {split}; give --holdout 8, say, or more "
                            f"photographs (it has {len(files.frames)})")
        photos = cls(files, split, config, device, bound)
        log.info(photos.summary(split, files))
        return photos

    @classmethod
    def splits_of(
        cls, folder: str | Path, config, device: torch.device | str = "cpu", bound: float = 1.0
    ) -> dict[str, "Photographs"]:
        """All splits of a folder that have photographs, in one world; "train" is always there.

        A "val" that would only repeat "test" is left out. Arguments and errors as for :meth:`from_folder`.
        """
        files = read_folder(folder, config.holdout)
        made = {}
        for split in SPLITS:
            repeats = split == "val" and files.splits["val"] == files.splits["test"]
            if files.splits[split] and not repeats:
                made[split] = cls(files, split, config, device, bound)
                log.info(made[split].summary(split, files))
        return made

    def summary(self, split: str, files: PhotoFiles) -> str:
        """One line on what was read, what was missing and how it was framed."""
        sizes = sorted({(int(w), int(h)) for w, h in zip(self._width, self._height, strict=True)})
        size = f"{sizes[0][0]}x{sizes[0][1]}" + (f" to {sizes[-1][0]}x{sizes[-1][1]}" if len(sizes) > 1 else "")
        line = (f"{files.folder}: {len(self)} of {self.total} photographs for {split}, {size} pixels, "
                f"{self._bytes.numel() / 2**20:.0f} MiB; framed as {self.framing}, a unit is {self.scale:.3g} of ours")
        if files.missing:
            line += f"; {len(files.missing)} more are named and do not exist (the first is {files.missing[0]})"
        return line

    def _load(self, frames: list[Frame], factor: int) -> None:
        """Decode all pictures into one block of bytes [P, C]; C is 4 if any has alpha."""
        headers = [_size(f.image) for f in frames]
        for f, (width, height, _) in zip(frames, headers, strict=True):
            if factor > min(width, height):
                raise UserError(f"--downscale {factor} leaves nothing of {f.image}, which is {width}x{height} pixels")
        self._full_size = [(w, h) for w, h, _ in headers]
        width = torch.tensor([-(-w // factor) for w, _, _ in headers])
        height = torch.tensor([-(-h // factor) for _, h, _ in headers])
        ends = torch.cumsum(width * height, 0)
        mode = "RGBA" if any(alpha for *_, alpha in headers) else "RGB"
        block = torch.empty(int(ends[-1]), len(mode), dtype=torch.uint8)
        masked = any(f.mask is not None for f in frames)
        usable = torch.ones(len(block), dtype=torch.bool) if masked else None

        def decode(i: int) -> None:
            inside = slice(int(ends[i] - width[i] * height[i]), int(ends[i]))
            block[inside] = _pixels(frames[i].image, factor, mode).reshape(-1, len(mode))
            if frames[i].mask is not None:
                usable[inside] = self._mask_pixels(frames[i], factor, (int(height[i]), int(width[i]))).reshape(-1)

        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(decode, range(len(frames))))
        if mode == "RGBA" and bool((block[:, 3] == 255).all()):
            block = block[:, :3].contiguous()
        self._bytes = block.to(self.device)
        self._width, self._height, self._ends = (t.to(self.device) for t in (width, height, ends))
        self._usable = None if usable is None else usable.to(self.device)
        self._choices = None if usable is None else usable.nonzero()[:, 0].to(self.device)
        if self._choices is not None and len(self._choices) == 0:
            raise UserError(f"{frames[0].mask}: the masks are black everywhere, so no pixel is left to learn from")

    @staticmethod
    def _mask_pixels(photo: Frame, factor: int, shape: tuple[int, int]) -> Tensor:
        """Which pixels [H, W] count: those whose mask is white throughout."""
        mask = _pixels(photo.mask, factor, "L")
        if tuple(mask.shape) != shape:
            raise UserError(f"mask {photo.mask} must have its photograph's size, {shape[1]}x{shape[0]} pixels after "
                            f"--downscale, got {mask.shape[1]}x{mask.shape[0]}")
        return mask >= 128

    def _place(self, files: PhotoFiles, frames: list[Frame], training: list[Frame], factor: int, bound: float) -> None:
        """Bring poses into our world and intrinsics to the pictures' size."""
        clear = _clear(training)
        angles = torch.stack([self._half_angle(f, *_size(f.image)[:2]) for f in training])
        framing = frame(torch.stack([f.pose for f in training]), angles, files.box, clear, bound)
        self.framing, self.scale = framing.kind, framing.scale
        self.transform = files.recorded @ framing.to_source
        self.background = None
        if self._bytes.shape[1] == 4:
            self.background = torch.full((3,), 0.0 if self._data_background == "black" else 1.0, device=self.device)
        self.pose = framing.poses(torch.stack([f.pose for f in frames])).float().to(self.device)
        lens = torch.tensor([self._intrinsics(f, *size) for f, size in zip(frames, self._full_size, strict=True)])
        self._fx, self._fy, self._cx, self._cy = (lens / factor).to(self.device).unbind(-1)
        distortion = torch.tensor([f.lens.distortion for f in frames], device=self.device)
        self._distortion = distortion if bool(distortion.any()) else None
        self._warn_of_folds()

    @staticmethod
    def _intrinsics(photo: Frame, width: int, height: int) -> tuple[float, float, float, float]:
        try:
            return photo.lens.pixels(width, height)
        except UserError as error:
            raise UserError(f"photograph {photo.image}: {error}") from error

    @classmethod
    def _half_angle(cls, photo: Frame, width: int, height: int) -> Tensor:
        fx, fy, _, _ = cls._intrinsics(photo, width, height)
        return torch.tensor(max(math.atan(width / 2 / fx), math.atan(height / 2 / fy)), dtype=torch.float64)

    def _warn_of_folds(self) -> None:
        """Say so if a lens model cannot be undone in the corners of its picture."""
        if self._distortion is None:
            return
        x = torch.stack([-self._cx, self._width - self._cx], -1)[:, [0, 1, 0, 1]] / self._fx[:, None]
        y = torch.stack([-self._cy, self._height - self._cy], -1)[:, [0, 0, 1, 1]] / self._fy[:, None]
        corner = torch.stack([x, y], -1)
        lens = self._distortion[:, None]
        off = (distort(undistort(corner, lens), lens) - corner).norm(dim=-1).amax(-1) * self._fx
        folded = int((off > FOLD_TOLERANCE).sum())
        if folded:
            log.warning("the lens of %d photographs folds over towards the corners; rays there are wrong", folded)

    def __len__(self) -> int:
        return len(self.names)

    def _views(self, index: slice, height: int, width: int) -> Views:
        """Views of some photographs under one image size."""
        pose = self.pose[index]
        polar, azimuth, radius = angles_of(pose)
        fovy = torch.rad2deg(2 * torch.atan(self._height[index] / (2 * self._fy[index])))
        distortion = None if self._distortion is None else self._distortion[index]
        return Views(pose, self._fx[index], self._fy[index], self._cx[index], self._cy[index], height, width,
                     polar, azimuth, radius, fovy, distortion)

    def view(self, i: int) -> Views:
        """The camera of photograph ``i`` as a batch of one, at the photograph's size."""
        return self._views(slice(i, i + 1), int(self._height[i]), int(self._width[i]))

    def _stored(self, i: int) -> Tensor:
        """Photograph ``i`` as [H, W, C] float in [0, 1]."""
        h, w = int(self._height[i]), int(self._width[i])
        end = int(self._ends[i])
        return (self._bytes[end - h * w:end].float() / 255).reshape(h, w, -1)

    def image(self, i: int) -> Tensor:
        """Photograph ``i`` [H, W, 3] in [0, 1], over ``background`` if it has alpha."""
        stored = self._stored(i)
        return stored if self.background is None else _over(stored, self.background)

    def mask(self, i: int) -> Tensor | None:
        """Opacity [H, W] in [0, 1] of photograph ``i``, or None if photographs have no alpha."""
        return None if self.background is None else self._stored(i)[..., 3]

    def usable(self, i: int) -> Tensor | None:
        """Which pixels [H, W] of photograph ``i`` are not masked out, or None if none of any photograph is."""
        if self._usable is None:
            return None
        h, w = int(self._height[i]), int(self._width[i])
        end = int(self._ends[i])
        return self._usable[end - h * w:end].reshape(h, w)

    def batch(self, part: Part) -> Batch:
        """Random pixels, evenly over all usable ones of all photographs, with replacement.

        Photographs with alpha are put over ``part.background`` if it is one colour, else over ``--data_background``: by
        default a random colour for each ray, which only the right opacity can explain.

        Args:
            part: ``num_rays`` says how many; the same part gives the same batch.

        Returns:
            N rays with ``image_index`` and ``uv``, their colours, and for photographs with alpha the opacity and the
            background they were put over.

        Raises:
            ValueError: the part does not say how many rays.
        """
        if part.num_rays is None:
            raise ValueError("Photographs.batch: expected a part with num_rays, got None; view(i) has a whole one")
        count = len(self._bytes) if self._choices is None else len(self._choices)
        pixel = torch.randint(count, (part.num_rays,), generator=part.generator(STREAM_PIXELS)).to(self.device)
        if self._choices is not None:
            pixel = self._choices[pixel]
        photo = torch.searchsorted(self._ends, pixel, right=True)
        width, height = self._width[photo], self._height[photo]
        place = pixel - self._ends[photo] + width * height
        xy = torch.stack([place % width, place // width], -1) + 0.5
        views = self._views(slice(None), int(self._height.max()), int(self._width.max()))
        rays = pixel_rays(views, photo, xy)
        rays = replace(rays, view_index=torch.zeros_like(photo), image_index=self.index[photo],
                       uv=xy / torch.stack([width, height], -1))
        colour = self._bytes[pixel].float() / 255
        if self.background is None:
            return Batch(rays, rgb=colour)
        background = self._training_background(part)
        return Batch(rays, rgb=_over(colour, background), mask=colour[:, 3], background=background)

    def _training_background(self, part: Part) -> Tensor:
        """[N, 3] what training puts behind photographs with alpha."""
        if part.background is not None and part.background.ndim == 1:
            return part.background.to(self.device).expand(part.num_rays, 3)
        if self._data_background == "random":
            return torch.rand(part.num_rays, 3, generator=part.generator(STREAM_BACKGROUND)).to(self.device)
        return self.background.expand(part.num_rays, 3)

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
        pose = self.pose.double().cpu()
        focus = focus_point(pose)
        offset = pose[:, :3, 3] - focus
        azimuth = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 2]))
        place = _sweep(azimuth, count)
        near = (place[:, None] - azimuth[None] + 180) % 360 - 180
        share = torch.softmax(-0.5 * (near / (REACH / 2)).square(), -1)  # [count, I]
        level, rise = share @ offset[:, [0, 2]].norm(dim=-1), share @ offset[:, 1]
        turn = torch.deg2rad(place)
        position = focus + torch.stack([level * turn.sin(), rise, level * turn.cos()], -1)
        distance = offset.norm(dim=-1, keepdim=True)
        target = share @ (pose[:, :3, 3] - distance * pose[:, :3, 2])
        half_y = (self._height / (2 * self._fy)).median().item()
        half_x = (self._width / (2 * self._fx)).median().item()
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
    apart = ((circle[:, None] - azimuth[None] + 180) % 360 - 180).abs().amin(-1)
    turn = torch.arange(count, dtype=azimuth.dtype) / count
    if (apart < REACH).double().mean() > WHOLE_TURN:
        return 360 * turn
    angle = torch.deg2rad(azimuth)
    middle = torch.rad2deg(torch.atan2(angle.sin().mean(), angle.cos().mean()))
    inside = (azimuth - middle + 180) % 360 - 180
    low, high = torch.quantile(inside, torch.tensor([0.05, 0.95], dtype=azimuth.dtype))
    return middle + (low + high) / 2 + (high - low) / 2 * torch.sin(2 * math.pi * turn)
