"""The training set: shards of renders without colour on disk; colour, light and background are applied when they are read.

A render is stored as material ids (2x2 per pixel, for antialiased edges) and camera-space normals, so that one render
serves every colour, light and background. Shard n depends on n alone. B images, S renders of a shard.

``python -m guidance.prior.dataset --shards 0:60`` writes shards; several processes may share the work.
"""

import argparse
import hashlib
import json
import math
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from guidance.prior import GRID_SIZE, IMAGE_SIZE
from guidance.prior.camera import condition, look_at, random_cameras, ray_map
from guidance.prior.captions import KIND_NAMES, STACKED, Caption, random_caption
from guidance.prior.degrade import degrade
from guidance.prior.render import render
from guidance.prior.shapes import EMPTY, KINDS, palette, random_proportions
from nerf.core.console import protected
from nerf.core.errors import UserError
from nerf.core.files import check_writable, reading
from nerf.core.script import Parser, run

DATA = Path("local/prior/data")
SHARD = 512
STORED = {"material", "normal", "kind", "polar", "azimuth", "radius", "fovy"}  # tensors of every shard
GEOMETRY_WRITER = "geometry_dataset"  # module that writes the shards of the geometry network
SYMMETRIC_KINDS = ("mushroom", "tree", "snowman", "rocket", "lamp", "hamburger", "ball on cylinder", "cone on cylinder")
VIEW_KINDS = ("chair", "table", "mug", "car", "house", "airplane", "dog", "boat")


@dataclass(frozen=True)
class Shares:
    """Relative frequency of the kinds of each group."""

    view: float
    symmetric: float
    stacked: float
    other: float

    def of(self, kind: str) -> float:
        """The relative frequency of one kind."""
        if kind in VIEW_KINDS:
            return self.view
        if kind in SYMMETRIC_KINDS:
            return self.symmetric
        return self.stacked if kind in STACKED else self.other


RENDERED = Shares(3.0, 2.0, 0.5, 0.8)
SAMPLED = Shares(3.6, 1.5, 0.4, 0.6)  # kinds whose views differ need the most samples
HARD = {"house": 4.0, "airplane": 1.6, "mug": 1.4, "rocket": 1.5, "snowman": 1.5}  # factors for what was learnt last
# Weight of the squared error. It may depend on the kind: the optimal prediction, the posterior mean, does not change.
EMPHASIS = {"house": 3.0}
ENDS = {"house": 0.5}  # share of the samples taken from within 50 degrees of the front or the back


def usual_frequency() -> dict[str, float]:
    """The relative frequency in which each kind is sampled by default."""
    return {kind: SAMPLED.of(kind) * HARD.get(kind, 1.0) for kind in KIND_NAMES}


def frequency_by_error(errors: Mapping[str, float]) -> dict[str, float]:
    """Relative frequencies that follow the measured errors of the kinds, by name.

    Half of the samples are as frequent as by default, so that nothing is forgotten that was learnt by many samples and is
    kept by them, such as the door of the house; the other half is as frequent as the squares of the errors.

    Args:
        errors: of every kind; their unit cancels.
    """
    usual = usual_frequency()
    total, squares = sum(usual.values()), sum(errors[kind] ** 2 for kind in KIND_NAMES)
    return {kind: usual[kind] / total + errors[kind] ** 2 / squares for kind in KIND_NAMES}


def write_shard(number: int, folder: Path = DATA, size: int = SHARD) -> Path:
    """Render shard ``number`` of ``size`` renders and write ``shard_<number>.safetensors``, unless it exists."""
    return draw_shard(number, folder, size, number, 1, random_cameras)


def path_of(number: int, folder: Path) -> Path:
    """The file of a shard."""
    return folder / f"shard_{number:05d}.safetensors"


def write_shards(
    numbers: Iterable[int],
    folder: Path,
    processes: int,
    seconds: float,
    write: Callable[[int, Path], Path] = write_shard,
) -> int:
    """Write those of the shards that do not exist, by several processes of one thread each.

    Args:
        numbers: of the shards.
        folder: of the shards.
        processes: at once.
        seconds: after which no shard is begun any more, but for the first of each process.
        write: writes a shard.

    Returns:
        How many of these shards there are now.
    """
    numbers = list(numbers)
    todo = [number for number in numbers if not path_of(number, folder).exists()]
    if todo:
        pool = ProcessPoolExecutor(min(processes, len(todo)), initializer=torch.set_num_threads, initargs=(1,))
        with pool:
            pending = [pool.submit(write, number, folder) for number in todo]
            try:
                for done in as_completed(pending, seconds):
                    done.result()
            except TimeoutError:
                for each in pending[processes:]:
                    each.cancel()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return sum(path_of(number, folder).exists() for number in numbers)


def draw_shard(
    number: int,
    folder: Path,
    objects: int,
    seed: int,
    views: int,
    cameras: Callable[[int, torch.Generator], dict[str, Tensor]],
) -> Path:
    """Render shard ``number`` of objects of random kinds and write ``shard_<number>.safetensors``, unless it exists.

    Args:
        number: of the shard.
        folder: of the shards.
        objects: G, how many.
        seed: of kinds, cameras and proportions.
        views: V, renders of each object.
        cameras: (G, generator) -> those of the G V renders, as for :func:`render_shard`.
    """
    target = path_of(number, folder)
    if not target.exists():
        generator = torch.Generator().manual_seed(seed)
        kinds = random.Random(seed).choices(KIND_NAMES, [RENDERED.of(kind) for kind in KIND_NAMES], k=objects)
        render_shard(target, kinds, views, cameras(objects, generator), generator)
    return target


def render_shard(target: Path, kinds: list[str], views: int, cameras: dict[str, Tensor], generator: torch.Generator) -> None:
    """Render objects with random proportions and write them to ``target``.

    Args:
        target: the file, which is complete when it appears.
        kinds: kind of each of G objects.
        views: V, renders of each object; they follow each other.
        cameras: of the G V renders, see :func:`guidance.prior.camera.random_cameras`.
        generator: draws the proportions.
    """
    from safetensors.torch import save_file

    size = len(kinds) * views
    target.parent.mkdir(parents=True, exist_ok=True)
    material = torch.zeros(size, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE, dtype=torch.uint8)
    normal = torch.zeros(size, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.int8)
    relief = torch.zeros(size, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.float16)
    for kind in dict.fromkeys(kinds):
        objects = torch.tensor([i for i, name in enumerate(kinds) if name == kind])
        for part in objects.split(max(1, 16 // views)):
            proportions = random_proportions(kind, len(part), generator)
            rows = (part[:, None] * views + torch.arange(views)).flatten()
            repeated = {name: value.repeat_interleave(views) for name, value in proportions.items()}
            seen = render(kind, repeated, {k: v[rows] for k, v in cameras.items()}, IMAGE_SIZE)
            material[rows] = seen.material
            normal[rows] = (seen.normal * 127).round().to(torch.int8)
            relief[rows] = seen.relief.half()
    tensors = {
        "material": material,
        "normal": normal,
        "relief": relief,
        **cameras,
        "kind": torch.tensor([KIND_NAMES.index(kind) for kind in kinds], dtype=torch.uint8).repeat_interleave(views),
    }
    temporary = target.with_suffix(f".tmp{target.stem}")
    save_file(tensors, temporary)
    temporary.rename(target)


def check_shards(folder: Path, writer: str = "dataset") -> None:
    """Check that a folder has shards, and that each holds what is read of it; their headers alone are read.

    Args:
        folder: of the shards.
        writer: module of this package that writes them.

    Raises:
        UserError: there are none, or one is damaged or was written for another network.
    """
    from safetensors import safe_open

    command = f"python -m guidance.prior.{writer} --shards 0:60"
    paths = sorted(folder.glob("shard_*.safetensors"))
    if not paths:
        raise UserError(f"embedded prior: expected shards in {folder}, found none; write some with {command}")
    wanted = STORED | ({"relief"} if writer == GEOMETRY_WRITER else set())
    for path in paths:
        with reading(f"embedded prior: {path}", f"delete it, and write it again with {command}"), safe_open(path, "pt") as file:
            lacking = sorted(wanted - set(file.keys()))
        if lacking:
            raise UserError(
                f"embedded prior: {path} lacks {', '.join(lacking)}; give --data another folder, and fill it with {command}"
            )


def data_hash(folder: Path = DATA) -> str:
    """SHA-256 over the bytes of all shards in order (the first 16 hex digits)."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("shard_*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass
class Batch:
    """Inputs and targets of B samples."""

    image: Tensor  # [B, 3, 64, 64] in [-1, 1], the clean image, which is the target
    degraded: Tensor  # like the image: what noise is added to, the image itself unless the loader degrades
    camera: Tensor  # [B, 8]
    ray: Tensor  # [B, 13, 8, 8]
    captions: list[str]
    weight: Tensor  # [B] of the squared error
    geometry: Tensor | None = None  # [B, 5, 64, 64] relief (scene units), normal in camera axes, coverage, if asked for

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Each tensor changed; an image that is its own degraded one stays one tensor."""
        image = change(self.image)
        degraded = image if self.degraded is self.image else change(self.degraded)
        geometry = None if self.geometry is None else change(self.geometry)
        return Batch(image, degraded, change(self.camera), change(self.ray), self.captions, change(self.weight), geometry)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; copies from pinned memory are not waited for."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory; torch's DataLoader calls this."""
        return self._changed(lambda tensor: tensor.pin_memory())

    @staticmethod
    def joined(parts: Sequence["Batch"], size: int) -> "Batch":
        """The first ``size`` samples of some batches."""
        if len(parts) == 1 and len(parts[0].captions) == size:
            return parts[0]

        def join(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])[:size]

        image = join("image")
        degraded = image if all(part.degraded is part.image for part in parts) else join("degraded")
        captions = [caption for part in parts for caption in part.captions][:size]
        geometry = None if parts[0].geometry is None else join("geometry")
        return Batch(image, degraded, join("camera"), join("ray"), captions, join("weight"), geometry)


def shaded(material: Tensor, normal: Tensor, palettes: Tensor, light: Tensor, ambient: Tensor) -> Tensor:
    """Apply colours and light to stored renders.

    Args:
        material: [B, 2H, 2W] uint8.
        normal: [B, H, W, 3] in camera axes, unit or zero.
        palettes: [B, 16, 3] colour of each material.
        light: [B, 3] unit direction towards the light, in camera axes.
        ambient: [B] ratio of ambient light; 1 is flat albedo.

    Returns:
        [B, 4, 2H, 2W] in [0, 1]: colour times coverage, then coverage, which is 0 or 1.
    """
    count = len(material)
    table = torch.cat([palettes, torch.ones(count, palettes.shape[1], 1)], -1)
    table[:, EMPTY] = 0
    index = material.to(torch.int32) + torch.arange(count, dtype=torch.int32)[:, None, None] * palettes.shape[1]
    fine = table.reshape(-1, 4).index_select(0, index.reshape(-1)).reshape(*material.shape, 4).movedim(-1, 1)
    facing = torch.einsum("bhwc,bc->bhw", normal, light).clamp(min=0)
    shade = ambient[:, None, None] + (1 - ambient[:, None, None]) * facing
    shade = shade.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    return torch.cat([fine[:, :3] * shade, fine[:, 3:]], 1)


def over(layers: Tensor, background: Tensor) -> Tensor:
    """Layers [B, 4, 2H, 2W] of :func:`shaded` composited over a background [B, 3]: [B, 3, H, W], antialiased."""
    pixel = avg_pool2d(layers, 2)
    return pixel[:, :3] + (1 - pixel[:, 3:]) * background[:, :, None, None]


def _geometry(rows: Mapping[str, Tensor], layers: Tensor, mirrored: Tensor) -> Tensor:
    """Relief, normal and coverage [B, 5, H, W] of stored renders with these layers; some are mirrored, bool [B, 1, 1, 1]."""
    normal, coverage = rows["normal"].movedim(-1, 1).float() / 127, avg_pool2d(layers[:, 3:], 2)
    seen = torch.cat([rows["relief"].float()[:, None], normal, coverage], 1)
    flipped = seen.flip(-1) * torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])[:, None, None]
    return torch.where(mirrored, flipped, seen)


class Loader:
    """Random batches from all shards in a folder, including those written while it runs.

    Args:
        folder: where the shards are.
        seed: of the choice of renders, captions, colours, lights and backgrounds.
        rescan: batches between two searches for new shards.
        degraded: add noise to degraded images, see :mod:`guidance.prior.degrade`.
        frequency: relative, of each kind by name; None: :func:`usual_frequency`.
        geometry: give the geometry of what is seen, too.
    """

    def __init__(
        self,
        folder: Path = DATA,
        seed: int = 0,
        rescan: int = 200,
        degraded: bool = False,
        frequency: Mapping[str, float] | None = None,
        geometry: bool = False,
    ) -> None:
        self.folder, self.rescan, self.degraded, self.geometry = Path(folder), rescan, degraded, geometry
        self.frequency = usual_frequency() if frequency is None else frequency
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.shards: dict[Path, dict[str, Tensor]] = {}
        self.calls = 0
        self.scan()

    def scan(self) -> None:
        """Open new shards (memory-mapped: pages are read when they are used)."""
        from safetensors.torch import load_file

        for path in sorted(self.folder.glob("shard_*.safetensors")):
            if path not in self.shards:
                self.shards[path] = load_file(path)
        if not self.shards:
            check_shards(self.folder, GEOMETRY_WRITER if self.geometry else "dataset")
        self.rows: dict[str, list[tuple[Path, int]]] = {kind: [] for kind in KIND_NAMES}
        for path, shard in self.shards.items():
            for row, kind in enumerate(shard["kind"].tolist()):
                self.rows[KIND_NAMES[kind]].append((path, row))
        self.ends = {
            kind: [
                (path, row)
                for path, row in self.rows[kind]
                if abs(math.cos(math.radians(float(self.shards[path]["azimuth"][row])))) > math.cos(math.radians(50))
            ]
            for kind in ENDS
        }

    def _kinds(self, size: int) -> list[str]:
        """``size`` random kinds by their frequency."""
        weights = [self.frequency[kind] if self.rows[kind] else 0.0 for kind in KIND_NAMES]
        return self.rng.choices(KIND_NAMES, weights, k=size)

    def _rows(self, places: list[tuple[Path, int]]) -> dict[str, Tensor]:
        """The renders at these places, each tensor [B, ...]; their relief where it is asked for."""
        unread = ("kind",) if self.geometry else ("kind", "relief")
        names = [name for name in self.shards[places[0][0]] if name not in unread]
        return {name: torch.stack([self.shards[path][name][row] for path, row in places]) for name in names}

    def _pick(self, size: int) -> tuple[dict[str, Tensor], list[str]]:
        """``size`` random renders, each tensor [size, ...], and the names of their kinds."""
        kinds = self._kinds(size)
        return self._rows([self._place(kind) for kind in kinds]), kinds

    def _place(self, kind: str) -> tuple[Path, int]:
        """One random render of ``kind``, from front or back with the probability in :data:`ENDS`."""
        ends = self.ends.get(kind, [])
        return self.rng.choice(ends if ends and self.rng.random() < ENDS[kind] else self.rows[kind])

    def _uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.generator)

    def _next(self) -> None:
        """Count a batch, and look for new shards from time to time."""
        self.calls += 1
        if self.calls % self.rescan == 0:
            self.scan()

    def _colours(self, kinds: list[str]) -> tuple[list[Caption], Tensor]:
        """A random caption for each kind, and its slightly jittered colours [B, 16, 3]."""
        captions = [random_caption(kind, self.rng) for kind in kinds]
        palettes = torch.stack([palette(caption) for caption in captions])
        return captions, (palettes + 0.06 * (self._uniform(*palettes.shape) - 0.5)).clamp(0, 1)

    def _lit(self, rows: dict[str, Tensor], palettes: Tensor, linked: int = 1) -> Tensor:
        """Layers [B, 4, 2H, 2W] of stored renders in these colours under random light, see :func:`shaded`.

        So many consecutive ones, ``linked``, have one ratio of ambient light.
        """
        size, groups = len(palettes), len(palettes) // linked
        light = torch.nn.functional.normalize(torch.tensor([0.0, 0.25, 1.0]) + 0.8 * (self._uniform(size, 3) - 0.5), dim=-1)
        ambient = torch.where(self._uniform(groups) < 0.3, 1.0, 0.35 + 0.25 * self._uniform(groups))
        ambient = ambient.repeat_interleave(linked)
        return shaded(rows["material"], rows["normal"].float() / 127, palettes, light, ambient)

    def _backgrounds(self, size: int) -> Tensor:
        """Background colours [B, 3]: every second one white, the others random."""
        return torch.where(self._uniform(size, 1) < 0.5, 1.0, self._uniform(size, 3))

    def batch(self, size: int) -> Batch:
        """A random batch: captions, slightly jittered colours, light, background, mirroring."""
        self._next()
        rows, kinds = self._pick(size)
        captions, palettes = self._colours(kinds)
        layers, background = self._lit(rows, palettes), self._backgrounds(size)
        image = over(layers, background) * 2 - 1
        degraded = over(degrade(layers, self.generator), background) * 2 - 1 if self.degraded else image
        azimuths, mirrored = self._augment(rows["azimuth"][None], kinds)
        azimuth = azimuths[0]
        given, image = image, torch.where(mirrored, image.flip(-1), image)
        degraded = image if degraded is given else torch.where(mirrored, degraded.flip(-1), degraded)
        geometry = _geometry(rows, layers, mirrored) if self.geometry else None
        camera = condition(rows["polar"], azimuth, rows["radius"], rows["fovy"])
        ray = ray_map(look_at(rows["polar"], azimuth, rows["radius"]), rows["fovy"], GRID_SIZE)
        return Batch(image, degraded, camera, ray, [caption.text for caption in captions], self._emphasis(kinds), geometry)

    @staticmethod
    def _emphasis(kinds: list[str]) -> Tensor:
        """Weight [B] of the squared error of each kind."""
        return torch.tensor([EMPHASIS.get(kind, 1.0) for kind in kinds])

    def _augment(self, azimuths: Tensor, kinds: list[str]) -> tuple[Tensor, Tensor]:
        """Azimuths [V, B] of V views of each object after augmentation by the symmetry of its kind, and which objects are
        mirrored, bool [B, 1, 1, 1]."""
        azimuths, mirrored = azimuths.clone(), torch.zeros(len(kinds), dtype=torch.bool)
        for i, kind in enumerate(kinds):
            symmetry = KINDS[kind].symmetry
            if symmetry == "round":
                azimuths[:, i] = torch.tensor([360 * self.rng.random() for _ in azimuths])
            elif symmetry == "mirror" and self.rng.random() < 0.5:
                azimuths[:, i], mirrored[i] = -azimuths[:, i], True
        return azimuths, mirrored[:, None, None, None]


def _numbers(word: str) -> range:
    """The numbers that first:last[:step] stands for."""
    found = re.fullmatch(r"(\d{1,6}):(\d{1,6})(?::(\d{1,6}))?", word)
    if found is None or found[3] is not None and int(found[3]) == 0:
        raise argparse.ArgumentTypeError(f"must be first:last or first:last:step, as 0:60, got {word!r:.80}")
    numbers = range(int(found[1]), int(found[2]), int(found[3] or 1))
    if not numbers:
        raise argparse.ArgumentTypeError(f"must name a shard, with first below last, as 0:60, got {word!r:.80}")
    return numbers


def main(write: Callable[[int, Path], Path] = write_shard, data: Path = DATA) -> None:
    """Write a range of shards and print the time they took."""
    parser = Parser(description=main.__doc__)
    parser.add_argument("--shards", type=_numbers, default="0:60", help="first:last[:step] of the shards to write")
    parser.add_argument("--data", type=Path, default=data, help="folder of the shards")
    args = parser.parse_args()
    check_writable(args.data, "--data")
    torch.set_num_threads(1)
    start = time.process_time()
    for number in args.shards:
        write(number, args.data)
        print(json.dumps({"shard": number, "cpu_s": round(time.process_time() - start, 1)}), flush=True)


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
