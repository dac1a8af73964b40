"""Cameras of plain pictures by structure from motion (Schoenberger and Frahm 2016), with COLMAP as the package pycolmap.

Features of each picture, matches of pairs, then incremental mapping; the largest model is kept in ``sparse/0`` beside the
pictures, from where :mod:`nerf.data.colmap` reads it, whole or not at all.
"""

import hashlib
import importlib.util
import logging
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nerf.config.captures import SfmConfig
from nerf.core.errors import UserError
from nerf.core.files import read_json, reading, replace_folder, write_json
from nerf.core.pictures import open_picture
from nerf.core.progress import task
from nerf.core.words import counted
from nerf.data.folder import check_folder, plain_pictures, recognise

log = logging.getLogger("somnia.photographs")

FEWEST = 3  # pictures from which a scene is found
MANY = 200  # pictures from which only neighbours in the order of names are compared
OVERLAP = 10  # neighbours that a picture is compared with then; also those 2, 4, 8 ... places away
SEED = 0  # of every random choice: the same pictures give the same cameras
POLL_SECONDS = 0.2  # between two looks at how far COLMAP is
RECORD = "somnia.json"  # beside the model: what it was made from
MODEL_FILES = tuple(
    f"{stem}.{suffix}" for stem in ("cameras", "images", "points3D", "rigs", "frames") for suffix in ("bin", "txt")
)
HASHED_BYTES = 1 << 16  # of the beginning of a picture, which with its size tells whether it is the same
SHOWN_NAMES = 5  # of pictures without a camera
QUIET = 3  # level of COLMAP's log from which it would be shown: fatal errors
EXIF_FOCAL, EXIF_MODEL, EXIF_DETAILS = 0x920A, 0x0110, 0x8769  # tags: focal length, camera model, and where the first one is


@dataclass(frozen=True)
class Found:
    """What structure from motion found."""

    registered: int
    pictures: int
    points: int
    error: float  # mean reprojection error, pixels
    seconds: float

    def __str__(self) -> str:
        share = 100 * self.registered / self.pictures
        return (
            f"structure from motion found the cameras of {self.registered} of {self.pictures} pictures ({share:.0f} %), "
            f"{self.points:,} points, mean reprojection error {self.error:.2f} pixels, in {self.seconds:.0f} s"
        )


def find_cameras(folder: Path, options: SfmConfig) -> Found | None:
    """Find the cameras of a folder of plain pictures and keep them in its ``sparse/0``; None if it has cameras already.

    Args:
        folder: holds at least three pictures, in itself or in ``images``.
        options: the flags ``--sfm_matching``, ``--sfm_cameras`` and ``--sfm_size``.

    Raises:
        UserError: pycolmap is not installed, there are too few pictures, they do not connect, or the folder cannot be written.
    """
    check_folder(folder)
    known = recognise(folder)
    if known is not None:
        log.info("--sfm: %s has cameras already, in the format of %s, and they are used", folder, known[0].name)
        return None
    images, pictures = plain_pictures(folder)
    if len(pictures) < FEWEST:
        raise UserError(
            f"--sfm needs at least {FEWEST} pictures of one scene from different positions, and there "
            f"{'is' if len(pictures) == 1 else 'are'} {len(pictures)} in {images}; add more"
        )
    if importlib.util.find_spec("pycolmap") is None:
        raise UserError("--sfm needs the package pycolmap; run: pip install 'somnia[sfm]', or pip install 'pycolmap>=4.2,<5'")
    names, began = [path.name for path in pictures], time.monotonic()
    single = _one_camera(pictures, options.sfm_cameras)
    log.info(
        "--sfm: looking for the cameras of %d pictures in %s, %s",
        len(names),
        images,
        "one lens" if single else "a lens for each",
    )
    with tempfile.TemporaryDirectory(prefix="somnia_sfm_") as scratch:
        model = _reconstruct(images, names, Path(scratch), options, single)
        found = Found(
            model.num_reg_images(),
            len(names),
            len(model.points3D),
            model.compute_mean_reprojection_error(),
            time.monotonic() - began,
        )
        _keep(folder, images, model, names, found)
    log.info("--sfm: %s; kept in %s", found, folder / "sparse" / "0")
    placed = {image.name for image in model.images.values() if image.has_pose}
    if lost := [name for name in names if name not in placed]:
        log.warning(
            "--sfm: %s no camera and %s left out: %s%s; pictures that overlap them would connect them",
            counted(len(lost), "picture has", "pictures have"),
            "is" if len(lost) == 1 else "are",
            ", ".join(lost[:SHOWN_NAMES]),
            " and others" if len(lost) > SHOWN_NAMES else "",
        )
    return found


def warn_of_changes(folder: Path) -> None:
    """Log a warning if pictures were added, removed or changed since their cameras were found by :func:`find_cameras`."""
    record = folder / "sparse" / "0" / RECORD
    if not record.is_file():
        return
    stored = read_json(record, f"remove {folder / 'sparse'} to find the cameras again with --sfm", dict[str, Any]).get(
        "pictures"
    )
    if not isinstance(stored, dict):
        return
    now = {path.name: _fingerprint(path) for path in plain_pictures(folder)[1]}
    changes = (
        (len(now.keys() - stored.keys()), "added"),
        (len(stored.keys() - now.keys()), "removed"),
        (sum(now[name] != stored[name] for name in now.keys() & stored.keys()), "changed"),
    )
    words = [f"{counted(count, 'picture')} {done}" for count, done in changes if count]
    if words:
        log.warning(
            "%s: %s since the cameras in sparse/0 were found, which are used as they are; remove %s and give --sfm to find "
            "them again, in a new --workspace",
            folder,
            ", ".join(words),
            folder / "sparse",
        )


def _fingerprint(path: Path) -> str:
    """The size of a file and a hash of its beginning."""
    with path.open("rb") as file:
        return f"{path.stat().st_size} {hashlib.sha256(file.read(HASHED_BYTES)).hexdigest()}"


def _keep(folder: Path, images: Path, model: Any, names: list[str], found: Found) -> None:
    """Write a model and the record of what it was made from to ``sparse/0``."""
    try:
        with replace_folder(folder / "sparse" / "0", (*MODEL_FILES, RECORD)) as fresh:
            model.write(fresh)
            record = {name: _fingerprint(images / name) for name in names}
            write_json(fresh / RECORD, {"pictures": record, "registered": found.registered, "reprojection_error": found.error})
    except OSError as error:
        raise UserError(
            f"--sfm: the cameras cannot be kept in {folder / 'sparse'}: {error.strerror or error}; give a copy of the folder "
            "that can be written to"
        ) from error


def _one_camera(pictures: list[Path], asked: str) -> bool:
    """Whether all pictures have the same lens and zoom: as asked, or judged by their size and EXIF; each one is opened."""
    seen = set()
    for path in pictures:
        with open_picture(path, f"picture {path}", "replace the file, or remove it from the folder") as image:
            exif = image.getexif()
            details = exif.get_ifd(EXIF_DETAILS)
            seen.add((image.size, str(exif.get(EXIF_MODEL)), str(details.get(EXIF_FOCAL))))
    return asked == "single" or (asked == "auto" and len(seen) == 1)


def _reconstruct(images: Path, names: list[str], scratch: Path, options: SfmConfig, single: bool) -> Any:
    """The largest model, a ``pycolmap.Reconstruction``."""
    import pycolmap

    pycolmap.logging.minloglevel = QUIET
    database, threads, cpu = scratch / "database.db", torch.get_num_threads(), pycolmap.Device.cpu
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.max_image_size = threads, options.sfm_size
    matching, verification = pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions()
    matching.num_threads, verification.ransac.random_seed = threads, SEED
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.random_seed, mapping.num_threads, mapping.min_model_size = SEED, 1, FEWEST  # one thread: the same bits every time
    common: dict[str, Any] = {"device": cpu, "cancellation_token": (token := pycolmap.CancellationToken())}
    mode = pycolmap.CameraMode.SINGLE if single else pycolmap.CameraMode.PER_IMAGE
    pycolmap.set_random_seed(SEED)
    _watched(
        "looking for features",
        len(names),
        lambda: pycolmap.extract_features(
            database, images, image_names=names, camera_mode=mode, extraction_options=extraction, **common
        ),
        lambda: _rows(database, "keypoints"),
        token,
    )
    matched: dict[str, Any] = {"matching_options": matching, "verification_options": verification, **common}
    if options.sfm_matching == "sequential" or (options.sfm_matching == "auto" and len(names) >= MANY):
        pairing = pycolmap.SequentialPairingOptions()
        pairing.overlap = OVERLAP
        pairs, match = len(names) * OVERLAP, lambda: pycolmap.match_sequential(database, pairing_options=pairing, **matched)
    else:
        pairs, match = len(names) * (len(names) - 1) // 2, lambda: pycolmap.match_exhaustive(database, **matched)
    _watched("matching pictures", pairs, match, lambda: _rows(database, "two_view_geometries"), token)
    placed = [0]

    def count() -> None:
        placed[0] += 1

    models = _watched(
        "placing cameras",
        len(names),
        lambda: pycolmap.incremental_mapping(
            database, images, scratch, options=mapping, next_image_callback=count, cancellation_token=token
        ),
        lambda: min(placed[0], len(names)),
        token,
    )
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    if best is None or best.num_reg_images() == 0:
        raise UserError(
            f"--sfm could not find the camera of any of the {len(names)} pictures in {images}: too few details are seen in two "
            "of them; give sharp pictures that overlap, taken from different positions"
        )
    return best


def _rows(database: Path, table: str) -> int:
    """How many rows a table of COLMAP's database has by now."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0.05)) as opened:
        return int(opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    return 0


def _watched(doing: str, total: int, work: Callable[[], Any], done: Callable[[], int], token: Any) -> Any:
    """Run a step of COLMAP in a thread of its own, while this one shows how far it is and hears an interruption."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with task(doing, max(total, 1)) as advance:
        thread.start()
        try:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                advance(min(done(), max(total, 1)))
        except BaseException:
            token.cancel()
            thread.join()
            raise
    if failure:
        with reading("--sfm: COLMAP", "replace pictures that may be damaged, or remove them", problem="failed"):
            raise failure[0]
    return result[0]
