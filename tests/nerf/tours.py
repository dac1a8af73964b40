"""Folders in phototourism's layout: binary models with one camera for each photograph, and a table of splits."""

import struct

import numpy as np
from PIL import Image

SIZES = ((40, 30), (30, 40), (36, 36), (44, 24), (24, 44), (40, 30))  # width, height
ROWS = ("train", "train", "test", "train", "train", "test")
HEADER = "filename\tid\tsplit\tdataset"


def focal(i):
    """The focal length of photograph ``i``, pixels."""
    return 50.0 + 3 * i


def rows_of(splits, names=None, ids=None):
    """The lines of a table."""
    names = names or [f"{i:02d}.jpg" for i in range(len(splits))]
    ids = ids if ids is not None else [str(900 + i) for i in range(len(splits))]  # not those of the reconstruction
    return [HEADER, *(f"{name}\t{i}\t{split}\tplace" for name, i, split in zip(names, ids, splits, strict=True))]


def write_tour(folder, rows=None, sizes=SIZES, inside="dense", points=None, names=None):
    """Write ``inside``/images, ``inside``/sparse and place.tsv; cameras stand in a row and look along z, 4 units from points.

    Cameras are numbered backwards, so that their ids are not those of their photographs.
    """
    names = names or [f"{i:02d}.jpg" for i in range(len(sizes))]
    root = folder / inside
    (root / "images").mkdir(parents=True)
    (root / "sparse").mkdir()
    cameras = images = b""
    for i, ((width, height), name) in enumerate(zip(sizes, names, strict=True)):
        camera = 5 + len(sizes) - i
        cameras += struct.pack("<iiQQ4d", camera, 1, width, height, focal(i), focal(i), width / 2, height / 2)
        images += struct.pack("<i7di", i + 1, 1, 0, 0, 0, -0.5 * i, 0, 4, camera) + name.encode() + b"\0" + struct.pack("<Q", 0)
        picture = np.full((height, width, 3), 10 * i, np.uint8)
        Image.fromarray(picture).save(root / "images" / name, quality=100)
    (root / "sparse" / "cameras.bin").write_bytes(struct.pack("<Q", len(sizes)) + cameras)
    (root / "sparse" / "images.bin").write_bytes(struct.pack("<Q", len(sizes)) + images)
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3)) if points is None else points
    data = b"".join(struct.pack("<Q3d3BdQ", k, *point, 9, 9, 9, 0.5, 0) for k, point in enumerate(points))
    (root / "sparse" / "points3D.bin").write_bytes(struct.pack("<Q", len(points)) + data)
    if rows is not None:
        (folder / "place.tsv").write_text("\n".join(rows) + "\n")
    return folder
