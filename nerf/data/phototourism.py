"""Phototourism's folders: tourist photographs with a reconstruction in ``dense/`` and their split in a ``*.tsv``. P points.

The layout is that of the Image Matching Challenge's data, of which NeRF in the Wild and Ha-NeRF use some scenes:
``dense/images`` and ``dense/sparse`` as COLMAP's ``image_undistorter`` writes them, one camera for each photograph, and a table
with the columns ``filename``, ``id``, ``split`` and ``dataset``. Rows without an id have no camera. The ids themselves are not
those of the reconstruction, so that photographs are found by their file names.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import read_text
from nerf.core.progress import track
from nerf.core.words import counted
from nerf.data.colmap import ModelFiles, find_models, read_model
from nerf.data.frames import SPLITS, Frame, ParsedDataset, ReadOptions, make_dataset, same_path, split_by_holdout

log = logging.getLogger("somnia.photographs")

COLUMNS = ("filename", "id", "split")  # of the table that are read
NO_ID = ("", "nan", "NaN", "NA", "None")  # what stands in the column "id" of a photograph without a camera
NEAREST, FARTHEST = 0.001, 0.999  # quantiles of the depths of a camera's points that are its near and far plane
FEWEST = 20  # points in front of a camera, below which they say nothing
WAY_OUT = "correct the table, or remove it to let --holdout split the photographs"


@dataclass(frozen=True)
class Tour:
    """The files of a folder in this format."""

    root: Path  # holds ``images`` and the models
    models: Sequence[ModelFiles]
    tables: Sequence[Path]  # every *.tsv beside it


def find_phototourism(folder: Path) -> Tour | None:
    """The files of a folder in this format; None if it is in another one.

    A model in ``dense`` with or without a table; or a model in the folder itself with a table that has the columns.
    """
    tables = sorted(path for path in folder.glob("*.tsv") if path.is_file() and not path.name.startswith("."))
    inside = find_models(folder / "dense")
    if inside:
        return Tour(folder / "dense", inside, tables)
    tables = [path for path in tables if _has_columns(path)]
    models = find_models(folder) if tables else []
    return Tour(folder, models, tables) if models else None


def read_phototourism(folder: Path, tour: Tour, options: ReadOptions) -> ParsedDataset:
    """The photographs of the table in its splits; without a table, those of the reconstruction with a split by ``--holdout``.

    Photographs that the table does not list are left out, and so are those that do not exist, whose rows shift nothing.

    Raises:
        UserError: a file is broken, there are several tables, or the table names photographs without a pose.
    """
    if len(tour.tables) > 1:
        names = ", ".join(path.name for path in tour.tables)
        raise UserError(f"{folder} holds several tables of splits ({names}), and which of them is meant is not said; keep one")
    model = read_model(tour.root, tour.models, options)
    source = tour.tables[0] if tour.tables else model.folder
    if tour.tables:
        splits, missing = _split(source, read_table(source), model.frames, model.missing)
    else:
        splits, missing = split_by_holdout(model.frames, options.holdout), model.missing
    dataset = make_dataset(folder, source, splits, missing, points=model.points, downscaled=model.downscaled)
    if not dataset.splits["test"]:
        log.warning("%s: no photograph is held out for testing, so nothing will be measured", source)
    return dataset if model.points is None else with_ranges(dataset)


# ---- the table ----


def _has_columns(path: Path) -> bool:
    """Whether the first line of a table names its columns."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return set(COLUMNS) <= {word.strip() for word in file.readline(4096).split("\t")}
    except (OSError, UnicodeDecodeError):
        return False


def read_table(path: Path) -> dict[str, str]:
    """File name -> split, of the rows with an id, in their order.

    Raises:
        UserError: it is not such a table, or a row is damaged or contradicts another one.
    """
    rows = list(
        csv.reader(read_text(path, WAY_OUT).removeprefix("\ufeff").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    )
    header = [word.strip() for word in rows[0]] if rows else []
    if absent := [name for name in COLUMNS if name not in header]:
        raise UserError(
            f"{path}: the first line must name the columns {', '.join(COLUMNS)}, separated by tabs, and {absent[0]} is not "
            f"among {', '.join(header)[:80] or 'them'}; {WAY_OUT}"
        )
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(word.strip() for word in row):
            continue
        if len(row) < len(header):
            raise UserError(f"{path}, line {number}: expected {len(header)} columns, got {len(row)}; {WAY_OUT}")
        name, identity, split = (row[header.index(column)].strip() for column in COLUMNS)
        if identity in NO_ID:
            continue
        if split not in SPLITS:
            raise UserError(
                f"{path}, line {number}: the split must be one of {', '.join(SPLITS)}, got {split!r:.40}; {WAY_OUT}"
            )
        if found.setdefault(same_path(name), split) != split:
            raise UserError(f"{path}, line {number}: {name} is in two splits; {WAY_OUT}")
    return found


def _split(
    table: Path, split_of: dict[str, str], frames: Sequence[Frame], missing: Sequence[str]
) -> tuple[dict[str, list[Frame]], list[str]]:
    """The frames of each split in the order of the table, and which of its photographs do not exist."""
    by_name = {same_path(frame.name): frame for frame in frames}
    gone = {same_path(name) for name in missing}
    unknown = [name for name in split_of if name not in by_name and name not in gone]
    if unknown:
        raise UserError(
            f"{table}: it lists {counted(len(unknown), 'photograph')} that the reconstruction has no pose for, first "
            f"{unknown[0]:.80}; leave the id of such a row empty, or correct the file name"
        )
    splits: dict[str, list[Frame]] = {split: [] for split in SPLITS}
    for name, split in split_of.items():
        if name in by_name:
            splits[split].append(by_name[name])
    unlisted = len(by_name.keys() - split_of.keys())
    if unlisted:
        log.info("%s: %s not listed with an id and left out", table, counted(unlisted, "photograph is", "photographs are"))
    return splits, [name for name in split_of if name in gone]


# ---- near and far ----


def depth_ranges(poses: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Near and far plane of each camera, and which points lie between the two of at least one camera.

    Depths are along the view axis, as Ha-NeRF takes them: of all points in front of the camera, whether in its picture or not.

    Args:
        poses: [I, 4, 4] camera to world, OpenGL axes.
        points: [P, 3] in the same world.

    Returns:
        [I, 2] float64, 0 and infinity where fewer than :data:`FEWEST` points are in front; and [P] bool.
    """
    places, ranges, kept = points.numpy(), [], np.zeros(len(points), bool)
    for pose in track([pose.numpy() for pose in poses], "measuring how far points are from cameras"):
        depth = (pose[:3, 3] - places) @ pose[:3, 2]
        ahead = depth[depth > 0]
        near, far = np.quantile(ahead, (NEAREST, FARTHEST)) if len(ahead) >= FEWEST else (0.0, np.inf)
        kept |= (depth >= near) & (depth <= far) & (depth > 0)
        ranges.append((near, far))
    return torch.tensor(ranges, dtype=torch.float64), torch.from_numpy(kept)


def with_ranges(dataset: ParsedDataset) -> ParsedDataset:
    """The dataset with near and far planes of its cameras, and without the points that lie beyond those of every camera."""
    assert dataset.points is not None, "asked only where there are points"
    ranges, kept = depth_ranges(torch.stack([frame.pose for frame in dataset.frames]), dataset.points)
    return replace(dataset, ranges=ranges, points=dataset.points[kept], open_air=True)
