"""Agisoft Metashape's cameras, File > Export > Export Cameras as XML, beside the photographs or the folder that holds them.

The camera model is that of the manual, appendix "Camera models".
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import is_file, read_bytes, reading
from nerf.core.words import counted
from nerf.data.frames import Frame, Intrinsics, ParsedDataset, ReadOptions, make_dataset, raise_no_images, split_by_holdout
from nerf.data.photo_index import PhotoIndex, beginning
from nerf.data.values import rigid, word_number

log = logging.getLogger("somnia.photographs")

LENSES = ("frame", "fisheye")  # types of a sensor; a spherical one sees all around and has no image plane
EARTH_RADIUS = (6.2e6, 6.5e6)  # metres; cameras at that distance from the origin are in geocentric coordinates
_WAY_OUT = "export the cameras again"


def find_metashape(folder: Path) -> Path | None:
    """The XML file of cameras of a folder in this format, or None."""
    return next((path for path in sorted(folder.glob("*.xml")) if is_file(path) and b"<chunk" in beginning(path)), None)


def _root(path: Path) -> Element:
    """The document of an XML file of cameras.

    Raises:
        UserError: it is damaged, or declares entities, which could expand without end.
    """
    data = read_bytes(path, _WAY_OUT)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise UserError(f"{path} declares a document type, which Metashape does not write, so it is not read; {_WAY_OUT}")
    with reading(path, _WAY_OUT):
        return ElementTree.fromstring(data)


def read_metashape(folder: Path, path: Path, options: ReadOptions) -> ParsedDataset:
    """Read the cameras of all chunks; those without a transform, which were not aligned, are left out and counted.

    A camera's transform maps from the camera, with OpenCV axes, to its chunk, and that of the component (older versions: of
    the chunk) to the world. Photographs are found in the folder and those in it by the camera's label.

    Args:
        folder: of the dataset.
        path: of the XML file.
        options: how many photographs are held out.

    Raises:
        UserError: the file is broken, or no photograph exists.
    """
    root = _root(path)
    index, frames, missing, unaligned = PhotoIndex(folder), [], [], 0
    for chunk in [root] if root.tag == "chunk" else root.iter("chunk"):
        sensors = {sensor.get("id"): sensor for sensor in chunk.iterfind("sensors/sensor")}
        worlds = {component.get("id"): component.find("transform") for component in chunk.iterfind("components/component")}
        for camera in chunk.iterfind("cameras//camera"):
            label = camera.get("label", "")
            where, transform = f"{path}, camera {label}", camera.find("transform")
            if camera.get("enabled") in ("false", "0"):
                continue
            if transform is None:
                unaligned += 1
                continue
            image = index.find(label, where)
            if image is None:
                missing.append(label)
                continue
            world = worlds.get(camera.get("component_id"))
            pose = _pose(_numbers(transform, 16, where), chunk.find("transform") if world is None else world, where)
            sensor = sensors.get(camera.get("sensor_id"))
            frames.append(Frame(label, image, pose, _intrinsics(sensor, f"{path}, the sensor of camera {label}")))
    if unaligned:
        log.warning("%s: %s not aligned, and left out", path, counted(unaligned, "photograph was", "photographs were"))
    if not frames:
        raise_no_images(path, folder / missing[0] if missing else None, missing)
    up = _geocentric_up(torch.stack([frame.pose[:3, 3] for frame in frames]))
    return make_dataset(folder, path, split_by_holdout(frames, options.holdout), missing, up=up)


def _numbers(element: Element, count: int, where: str) -> Tensor:
    """The text of an element as ``count`` finite numbers [count] float64."""
    words = (element.text or "").split()
    if len(words) != count:
        raise UserError(f"{where}: {element.tag} must be {count} numbers, got {len(words)}; {_WAY_OUT}")
    return torch.tensor([word_number(word, where, element.tag) for word in words], dtype=torch.float64)


def _pose(local: Tensor, world: Element | None, where: str) -> Tensor:
    """Camera-to-world pose [4, 4] with OpenGL axes of a camera's 16 numbers and the transform of what it belongs to."""
    pose = rigid(local.reshape(4, 4), where, "transform")
    pose[:3, 1:3] *= -1
    if world is None:
        return pose
    place = f"{where}, the transform of its component"
    parts = {child.tag: child for child in world}
    rotation, offset, scale = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0
    if "rotation" in parts:
        turn = torch.eye(4, dtype=torch.float64)
        turn[:3, :3] = _numbers(parts["rotation"], 9, place).reshape(3, 3)
        rotation = rigid(turn, place, "rotation")[:3, :3]
    if "translation" in parts:
        offset = _numbers(parts["translation"], 3, place)
    if "scale" in parts:
        scale = float(_numbers(parts["scale"], 1, place))
    if not scale > 0:
        raise UserError(f"{place}: scale must be positive, got {scale:g}; {_WAY_OUT}")
    moved = pose.clone()
    moved[:3, :3] = rotation @ pose[:3, :3]
    moved[:3, 3] = scale * (rotation @ pose[:3, 3]) + offset
    return moved


def _intrinsics(sensor: Element | None, where: str) -> Intrinsics:
    """The calibration of a sensor: the adjusted one, or the initial one.

    ``u = w / 2 + cx + x' (f + b1) + y' b2`` and ``v = h / 2 + cy + y' f`` with ``x' = x s + p1 (r2 + 2 x x) + 2 p2 x y``:
    Metashape's p1 and p2 are OpenCV's p2 and p1. For fisheye lenses x and y are scaled so that r is the angle to the axis.
    """
    if sensor is None:
        raise UserError(f"{where} is not described there; {_WAY_OUT}")
    kind = sensor.get("type", LENSES[0])
    if kind not in LENSES:
        raise UserError(f"{where} is of the type {kind}, and {' and '.join(LENSES)} are read; give photographs of such a lens")
    calibrations = {found.get("class", "adjusted"): found for found in sensor.iterfind("calibration")}
    calibration = calibrations.get("adjusted", calibrations.get("initial"))
    if calibration is None:
        raise UserError(f"{where} has no calibration; {_WAY_OUT}")
    resolution = next((r for r in (calibration.find("resolution"), sensor.find("resolution")) if r is not None), None)
    if resolution is None:
        raise UserError(f"{where} has no resolution; {_WAY_OUT}")
    width, height = (word_number(resolution.get(key), where, key) for key in ("width", "height"))
    value = {child.tag: word_number(child.text, where, child.tag) for child in _leaves(calibration)}
    focal = value.get("f", value.get("fy", 0.0))
    focal_x = value.get("fx", focal + value.get("b1", 0.0))
    if not min(focal, focal_x, width, height) > 0:
        raise UserError(
            f"{where}: width, height and focal length must be positive, got {width:g}, {height:g}, {focal:g}; {_WAY_OUT}"
        )
    ignored = [key for key in ("b2", "p3", "p4") if value.get(key)]
    if ignored:
        log.warning("%s: %s of its calibration %s ignored", where, " and ".join(ignored), "are" if len(ignored) > 1 else "is")
    k1, k2, k3, k4, p1, p2 = (value.get(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    cx, cy = width / 2 + value.get("cx", 0.0), height / 2 + value.get("cy", 0.0)
    distortion = (k1, k2, k3, k4, p2, p1)
    return Intrinsics(focal_x, focal, cx, cy, None, None, width, height, distortion, kind == "fisheye")


def _leaves(element: Element) -> Iterator[Element]:
    """The children of an element that hold a number."""
    return (child for child in element if not len(child) and (child.text or "").strip())


def _geocentric_up(positions: Tensor) -> Tensor | None:
    """The up direction [3] of cameras [I, 3] in geocentric coordinates, where the Earth's centre is the origin; else None."""
    mean = positions.mean(0)
    return mean / mean.norm() if EARTH_RADIUS[0] < mean.norm() < EARTH_RADIUS[1] else None
