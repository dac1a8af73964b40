"""From any picture of an object to the files of an image prompt: cut out, centred, with depth and normals. H rows, W columns.

The files and their encodings are described in ``nerf/data/image_prompt.py``, which reads them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from nerf.config.limits import BORDER, SIDE
from nerf.config.references import DEPTH, NORMAL, RGBA
from nerf.core.devices import check_device
from nerf.core.errors import UserError
from nerf.core.files import write_atomically
from nerf.core.images import write_png
from nerf.core.pictures import as_mode, open_picture
from nerf.data import monocular
from nerf.data.grabcut import grabcut
from nerf.data.image_prompt import FULL, VISIBLE, encode_normal, unit_normals, unpremultiplied
from nerf.data.image_store import resample
from nerf.data.matting import LAYOUTS, Matting
from nerf.data.packaged import matting_file

WORK_SIDE = 2048  # pixels; larger pictures are scaled down first
EDGE = 0.05  # alpha that still counts when the object is centred, and what a removed background may leave
TRANSPARENT, TRANSPARENT_SHARE = 0.98, 1e-3  # a picture has alpha of its own if this share of its pixels is below
MOST_OF_PICTURE = 0.98  # share that the object cannot cover after its background was removed
SPECK = 0.01  # parts smaller than this share of the largest are dust
SECOND = 0.2  # parts at least this large are objects of their own
OUTLIERS = 0.01  # share of depths at each end that are clipped
GREY = 0.5  # behind a picture with alpha, for the models of depth and normals

Estimate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Options:
    """What is done with each picture."""

    size: int = 256  # pixels of the square result
    border_ratio: float = 0.2  # share of it that is left around the object
    recenter: bool = True
    largest: bool = False  # of several objects keep one
    output: Path | None = None  # folder; None: that of the picture

    def __post_init__(self) -> None:
        for flag, check, value in (("size", SIDE, self.size), ("border_ratio", BORDER, self.border_ratio)):
            if not check.holds(value):
                raise UserError(f"--{flag} must be {check.expected}, got {value:g}")


@dataclass(frozen=True)
class Tools:
    """The models that look at a picture, loaded once for all."""

    matting: Estimate | None = grabcut  # [H, W, 3] in [0, 1] -> opacity [H, W]; None: the whole picture is the object
    depth: Estimate | None = None  # -> [H, W], larger is farther
    normal: Estimate | None = None  # -> [H, W, 3], camera axes
    lines: tuple[str, ...] = ()  # what is missing, said once for all pictures


@dataclass
class Result:
    """The files of one picture."""

    files: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # what was noticed, for people


def load_tools(matting: str, layout: str, depth: str, normal: str, device: str = "cpu") -> Tools:
    """The models that the flags of the same names ask for.

    Raises:
        UserError: one of them cannot be loaded.
    """
    check_device(device)
    if layout != "auto" and layout not in LAYOUTS:
        raise UserError(f"--matting_layout must be one of auto, {', '.join(LAYOUTS)}, got {layout!r}")
    cut: dict[str, Estimate | None] = {"grabcut": grabcut, "none": None}
    remover = cut[matting] if matting in cut else Matting(matting_file(matting), layout)
    asked: dict[monocular.Kind, str] = {"depth": depth, "normal": normal}
    found = {kind: monocular.find(kind, name) for kind, name in asked.items()}
    lines = [
        f"no _{kind}.png will be written, so --lambda_{kind} will have no effect: there are no weights for it on this machine; "
        f"fetch some with: python scripts/fetch_weights.py {monocular.FETCHED[kind]}"
        for kind, name in asked.items()
        if name == "auto" and found[kind] is None
    ]
    loaded = {kind: None if weights is None else monocular.estimator(weights, device) for kind, weights in found.items()}
    return Tools(remover, loaded["depth"], loaded["normal"], tuple(lines))


def outputs(path: Path, options: Options) -> dict[str, Path]:
    """Suffix -> file that a picture becomes."""
    folder = path.parent if options.output is None else options.output
    name = path.stem.removesuffix(RGBA)
    return {suffix: folder / f"{name}{suffix}.png" for suffix in (RGBA, DEPTH, NORMAL)}


def check_outputs(paths: Sequence[Path], options: Options) -> None:
    """Check that no picture would be overwritten, before anything is written.

    Raises:
        UserError: a picture does not exist, two have one name, or one would replace itself.
    """
    taken: dict[Path, Path] = {}
    sources = {path.resolve() for path in paths}
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; give the path of a picture")
        for file in outputs(path, options).values():
            if file.resolve() in sources:
                raise UserError(f"{path}: its result {file} would replace a picture that is given; name a folder with --output")
        result = outputs(path, options)[RGBA].resolve()
        if result in taken:
            raise UserError(f"{taken[result]} and {path} would both become {result}; give them different names")
        taken[result] = path
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise UserError(f"--output {options.output} is not a folder; name another")


def preprocess(path: Path, options: Options, tools: Tools) -> Result:
    """Make the files of one picture; nothing is written if it cannot be used.

    Raises:
        UserError: the picture cannot be read, or no object is found in it.
        OSError: a file cannot be written.
    """
    result = Result()
    rgba = read(path)
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    seen = rgb
    if has_alpha(alpha):
        result.lines.append("its own alpha is used")
        seen = rgb * alpha[..., None] + GREY * (1 - alpha[..., None])
    elif tools.matting is not None:
        alpha = _cut_out(rgb, tools.matting, path)
        rgb = without_background(rgb, alpha)
        if tools.matting is grabcut:
            result.lines.append("cut out by GrabCut, which needs a plain background; if it is not, use --matting MODEL.onnx")
    alpha = _separate(alpha, options.largest, result)
    if not (alpha > VISIBLE).any():
        raise UserError(f"{path} shows nothing: all of it is transparent; give a picture of an object")
    place = _placement(alpha, options)
    if (scale := place.side / max(place.height, place.width)) > 2:
        result.lines.append(
            f"the object is {place.width}x{place.height} pixels, enlarged {scale:.1f} times; a larger picture helps"
        )
    planes = place([rgb, *([] if tools.depth is None else [tools.depth(seen)[..., None]])], alpha)
    colour, opacity = planes[:3], planes[-1]
    files = outputs(path, options)
    image = torch.cat([colour.clamp(0, 1), opacity[None]]).permute(1, 2, 0)
    normal = None if tools.normal is None else unit_normals(place([tools.normal(seen)], alpha)[:3]) * (opacity > VISIBLE)
    result.files.append(write_png(files[RGBA], image))
    if tools.depth is not None:
        result.files.append(_write_16_bits(files[DEPTH], normalised(planes[3], opacity > VISIBLE)))
    if normal is not None:
        result.files.append(write_png(files[NORMAL], encode_normal(normal).permute(1, 2, 0)))
    for suffix in (DEPTH, NORMAL):
        if files[suffix] not in result.files and files[suffix].is_file():
            files[suffix].unlink()
            result.lines.append(f"removed {files[suffix]}, which was of an earlier picture")
    return result


def read(path: Path) -> np.ndarray:
    """A picture [H, W, 4] float in [0, 1], upright, of at most :data:`WORK_SIDE` pixels a side.

    Grey, palettes, CMYK, 16 bits and turned photographs all come out as straight RGBA.

    Raises:
        UserError: it cannot be read.
    """
    with open_picture(path, f"picture {path}", "give a picture of an object") as opened:
        factor = -(-max(opened.size) // WORK_SIDE)
        image = as_mode(ImageOps.exif_transpose(opened), "RGBA")
        return np.asarray(image.reduce(factor) if factor > 1 else image, float) / 255.0


def has_alpha(alpha: np.ndarray) -> bool:
    """Whether an alpha channel [H, W] in [0, 1] says what the object is."""
    return bool((alpha < TRANSPARENT).mean() > TRANSPARENT_SHARE)


def _cut_out(rgb: np.ndarray, matting: Estimate, path: Path) -> np.ndarray:
    """Alpha [H, W] of the object in a picture without alpha."""
    alpha = ((matting(rgb) - EDGE) / (1 - 2 * EDGE)).clip(0, 1)
    share = float((alpha > VISIBLE).mean())
    if not 0 < share < MOST_OF_PICTURE:
        found = "nothing" if share == 0 else "everything"
        raise UserError(
            f"{path}: {found} in it differs from its border, so the object was not found; use --matting MODEL.onnx, or cut the "
            "object out and save it with alpha"
        )
    return alpha


def without_background(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours [H, W, 3] whose half transparent pixels have those of the nearest opaque ones, without the old background."""
    opaque = alpha > 1 - EDGE
    if not opaque.any():
        return rgb
    row, column = ndimage.distance_transform_edt(~opaque, return_distances=False, return_indices=True)
    return np.asarray(rgb[row, column])


def _separate(alpha: np.ndarray, largest: bool, result: Result) -> np.ndarray:
    """Alpha without dust, and on request without all but the largest object; says how many there are."""
    label, count = ndimage.label(alpha > VISIBLE, structure=np.ones((3, 3)))
    if count < 2:
        return alpha
    sizes = np.bincount(label.reshape(-1))[1:]
    objects = int((sizes >= SECOND * sizes.max()).sum())
    if objects > 1 and not largest:
        result.lines.append(f"it shows {objects} separate objects, which become one model; --largest keeps the largest alone")
    kept = sizes >= (sizes.max() if largest else SPECK * sizes.max())
    if kept.all():
        return alpha
    # A half transparent pixel belongs to the nearest part.
    nearest = ndimage.distance_transform_edt(label == 0, return_distances=False, return_indices=True)
    return np.where(np.concatenate([[False], kept])[label[tuple(nearest)]], alpha, 0.0)


@dataclass(frozen=True)
class _Placement:
    """Where a rectangle of the picture goes in the square result."""

    top: int
    left: int
    height: int
    width: int
    side: int  # pixels that its longer side becomes
    size: int  # of the result

    def __call__(self, planes: Sequence[np.ndarray], alpha: np.ndarray) -> Tensor:
        """Planes [H, W, C] and alpha [H, W] in the result: [C + 1, size, size], the last one alpha, 0 around."""
        inside = (slice(self.top, self.top + self.height), slice(self.left, self.left + self.width))
        stacked = np.concatenate([*planes, np.ones_like(alpha)[..., None]], -1)[inside] * alpha[inside][..., None]
        scale = self.side / max(self.height, self.width)
        height, width = (min(max(round(n * scale), 1), self.size) for n in (self.height, self.width))
        resized = resample(torch.from_numpy(stacked.astype(np.float32)).permute(2, 0, 1), height, width)
        result = resized.new_zeros(len(resized), self.size, self.size)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        result[:, top : top + height, left : left + width] = resized
        opacity = result[-1:].clamp(0, 1)
        return torch.cat([unpremultiplied(result[:-1], opacity), opacity])


def _placement(alpha: np.ndarray, options: Options) -> _Placement:
    """The object's bounding box at the middle, or the whole picture."""
    if not options.recenter:
        return _Placement(0, 0, alpha.shape[0], alpha.shape[1], options.size, options.size)
    rows, columns = (np.flatnonzero((alpha > EDGE).any(axis)) for axis in (1, 0))
    side = max(int(options.size * (1 - options.border_ratio)), 1)
    top, left = int(rows[0]), int(columns[0])
    return _Placement(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left, side, options.size)


def normalised(depth: Tensor, inside: Tensor) -> Tensor:
    """Depth [H, W] in [0, 1] over the pixels ``inside`` [H, W] bool, without outliers; 0 elsewhere."""
    values = depth[inside].double()
    if len(values) == 0:
        return torch.zeros_like(depth)
    low, high = torch.quantile(values[:: max(len(values) // 1_000_000, 1)], torch.tensor([OUTLIERS, 1 - OUTLIERS]).double())
    return torch.where(inside, ((depth - low) / (high - low).clamp(min=1e-12)).clamp(0, 1), 0.0)


def _write_16_bits(path: Path, grey: Tensor) -> Path:
    """Write [H, W] in [0, 1] as PNG of 16 bits."""
    levels = np.asarray(torch.round(grey.double() * FULL)).astype(np.uint16)
    return write_atomically(path, lambda temporary: Image.fromarray(levels).save(temporary, "PNG"))
