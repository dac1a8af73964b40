"""Folders of photographs: which format one is in, and its cameras. No image is opened here.

Each format has a module of its own beside this file; :data:`FORMATS` is the list of them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerf.core.errors import UserError
from nerf.core.words import counted
from nerf.data.colmap import find_models, read_colmap
from nerf.data.frames import ParsedDataset, ReadOptions, list_pictures
from nerf.data.llff import find_poses_bounds, read_llff
from nerf.data.metashape import find_metashape, read_metashape
from nerf.data.neus import find_camera_file, read_neus
from nerf.data.phototourism import find_phototourism, read_phototourism
from nerf.data.polycam import find_polycam, read_polycam
from nerf.data.reality_capture import find_reality_capture, read_reality_capture
from nerf.data.record3d import find_record3d, read_record3d
from nerf.data.transforms import find_transforms, read_transforms

log = logging.getLogger("somnia.photographs")


@dataclass(frozen=True)
class Format:
    """A format of folders.

    Attributes:
        name: for the log.
        files: what a folder in this format holds, for the message that there is none.
        find: what identifies the format in a folder, passed on to ``read``; None or empty if it is in another format.
        read: parses the folder.
    """

    name: str
    files: str
    find: Callable[[Path], Any]
    read: Callable[[Path, Any, ReadOptions], ParsedDataset]


# In the order in which they are looked for: a folder with several is in the first of them.
FORMATS = (
    Format("transforms.json", "transforms.json or transforms_train.json", find_transforms, read_transforms),
    Format("phototourism", "dense/sparse with a *.tsv (phototourism)", find_phototourism, read_phototourism),
    Format("COLMAP", "sparse/0 with cameras and images, .bin or .txt (COLMAP)", find_models, read_colmap),
    Format("NeuS", "cameras_sphere.npz (NeuS)", find_camera_file, read_neus),
    Format("LLFF", "poses_bounds.npy (LLFF)", find_poses_bounds, read_llff),
    Format("Polycam", "keyframes/corrected_cameras (Polycam)", find_polycam, read_polycam),
    Format("Record3D", "metadata.json with rgb (Record3D)", find_record3d, read_record3d),
    Format("Metashape", "an XML file of cameras (Metashape)", find_metashape, read_metashape),
    Format("RealityCapture", "a CSV file of cameras (RealityCapture)", find_reality_capture, read_reality_capture),
)


def read_folder(folder: str | Path, holdout: int = 8, downscale: int = 1, depth_unit: float = 1e-3) -> ParsedDataset:
    """Parse a folder of posed photographs in any supported format.

    Photographs that are listed but do not exist are skipped and reported in ``missing``. If the dataset defines no split
    of its own (``transforms_test.json``, or ``test_filenames`` as nerfstudio writes), every ``holdout``-th photograph in
    the order of names is held out for testing. Without a validation split the test split is used for validation, and vice
    versa.

    Args:
        folder: holds the files of one of :data:`FORMATS`.
        holdout: every ``holdout``-th photograph is held out; 0: none.
        downscale: the factor by which the photographs will be reduced; where a folder of photographs reduced by it is there,
            it is read, and ``downscaled`` of the result says so.
        depth_unit: units of the dataset's world for each level of a depth map whose format has no unit of its own.

    Raises:
        UserError: a file is missing, broken or not supported; the message names the file and the position in it.
    """
    folder = Path(folder)
    try:
        check_folder(folder)
        found = recognise(folder)
        if found is None:
            raise UserError(_why_none(folder))
        form, what = found
        log.info("%s is in the format of %s", folder, form.name)
        return form.read(folder, what, ReadOptions(holdout, downscale, depth_unit))
    except PermissionError as error:
        raise UserError(
            f"--data {folder}: no permission to read {error.filename}; change its permissions, or make a copy"
        ) from error


def check_folder(folder: Path) -> None:
    """Refuse what is no folder.

    Raises:
        UserError: it does not exist, or is a file.
    """
    if not folder.is_dir():
        problem = "is a file; give the folder that contains it" if folder.exists() else "does not exist"
        raise UserError(
            "--data must name a folder of photographs, with cameras in one of the formats of docs/photographs.md or to be "
            f"found by --sfm; {folder} {problem}"
        )


def recognise(folder: Path) -> tuple[Format, Any] | None:
    """The format of a folder and what identifies it there; None if it is in none of :data:`FORMATS`."""
    return next(((form, what) for form in FORMATS if (what := form.find(folder))), None)


def plain_pictures(folder: Path) -> tuple[Path, list[Path]]:
    """The folder of the pictures of a dataset without cameras, ``images`` or itself, and the pictures in it."""
    inside = list_pictures(folder / "images")
    return (folder / "images", inside) if inside else (folder, list_pictures(folder))


def _why_none(folder: Path) -> str:
    """The message of a folder in no format."""
    _, pictures = plain_pictures(folder)
    if pictures:
        return (
            f"--data {folder}: it holds {counted(len(pictures), 'picture')} and no file of cameras; add "
            "--sfm to find the cameras by structure from motion, or see docs/photographs.md for the formats that are read"
        )
    *first, last = (form.files for form in FORMATS)
    return f"--data {folder}: there is neither {', '.join(first)} nor {last} in it; docs/photographs.md describes each format"
