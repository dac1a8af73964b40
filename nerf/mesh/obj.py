"""Reads OBJ files number by number: positions, uv, normals and polygons with their own indices, in the order of the file.

Materials are left to :func:`nerf.mesh.io.read_parts`. V positions, U uv, K normals, T triangles, F polygons.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.core.errors import UserError
from nerf.core.files import UTF16_MARKS, decode_text, read_bytes, reading
from nerf.mesh.holes import ear_clip, flattened

WAY_OUT = "export it again"
_MOST = 1 << 32  # bytes of a file
_HEAD = 1 << 16  # of them, in which a text has no zero
_FOLDED = 1e-9  # of a polygon's squared area: a triangle of its fan that looks the other way by more shows that it is concave
_TABLES = {"v": 3, "vt": 2, "vn": 3}  # keyword -> numbers that are read; more may follow: weights, colours


@dataclass(frozen=True)
class ObjFile:
    """What the file says. The triangles of a polygon follow one another: a fan around its first corner where that covers it."""

    vertices: np.ndarray  # [V, 3] float64
    uv: np.ndarray  # [U, 2] float64, origin at the lower left
    normals: np.ndarray  # [K, 3] float64
    corners: np.ndarray  # [T, 3, 3] int64: position, uv and normal of each corner; -1: none
    polygon: np.ndarray  # [T] int64, the polygon that each triangle belongs to, ascending
    place: np.ndarray  # [T, 3] int64, which corner of its polygon each corner is; all of them occur


def read_obj(path: Path) -> ObjFile:
    """Read the surfaces of an OBJ; lines, points, curves, groups and materials are left out.

    Raises:
        UserError: it cannot be read, or an index refers to nothing.
    """
    what = f"mesh {path}"
    with reading(what, WAY_OUT):
        text = obj_text(read_bytes(path, WAY_OUT, _MOST), what)
        tables: dict[str, list[list[float]]] = {name: [] for name in _TABLES}
        polygons: list[list[tuple[int, int, int]]] = []
        for number, line in enumerate(text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines(), 1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            if words[0] in _TABLES:
                tables[words[0]].append(_numbers(words, path, number))
            elif words[0] == "f":
                counts = tuple(len(table) for table in tables.values())
                polygons.append([_corner(word, counts, path, number) for word in words[1:]])
    v, vt, vn = (np.array(tables[name], dtype=np.float64).reshape(-1, width) for name, width in _TABLES.items())
    return ObjFile(v, vt, vn, *_triangulated([one for one in polygons if len(one) > 2], v))


def obj_text(data: bytes, what: object) -> str:
    """The text of an OBJ. Its comments and names may be in any encoding that keeps ASCII, as nothing depends on them.

    Raises:
        UserError: it is UTF-16.
        ValueError: it is no text.
    """
    if b"\0" in data[:_HEAD] and not data.startswith(UTF16_MARKS):
        raise ValueError("it is no text, as every OBJ is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return decode_text(data, what, WAY_OUT) if data.startswith(UTF16_MARKS) else data.decode("latin-1")


def _numbers(words: list[str], path: Path, line: int) -> list[float]:
    """The numbers of a v, vt or vn; a uv without its second number has 0 there, as the format says."""
    wanted = _TABLES[words[0]]
    found = [float(word) for word in words[1 : wanted + 1]]
    if words[0] == "vt" and len(found) == 1:
        found.append(0.0)
    if len(found) != wanted:
        raise UserError(f"mesh {path} is damaged: line {line} has {len(found)} numbers in a {words[0]}; {WAY_OUT}")
    return found


def _corner(word: str, counts: tuple[int, ...], path: Path, line: int) -> tuple[int, int, int]:
    """Position, uv and normal of a corner such as 3, 3/4, 3//5 or -1/-1/-1, counted from 0; -1: none."""
    parts = word.split("/")
    found = []
    for part, count in zip([*parts, "", ""][:3], counts, strict=True):
        index = int(part) if part else 0
        if part and index == 0:
            problem = f"line {line} has a face with the index 0, and the indices of an OBJ count from 1"
            raise UserError(f"mesh {path} is damaged: {problem}; {WAY_OUT}")
        at = index - 1 if index > 0 else count + index if index < 0 else -1
        if index and not 0 <= at < count:
            raise UserError(f"mesh {path} is damaged: line {line} refers to number {index} of {count}; {WAY_OUT}")
        found.append(at)
    if found[0] < 0:
        raise UserError(f"mesh {path} is damaged: line {line} has a corner without a position; {WAY_OUT}")
    return found[0], found[1], found[2]


def _triangulated(
    polygons: list[list[tuple[int, int, int]]], vertices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles [T, 3, 3] of polygons, the polygon [T] of each, and the place [T, 3] of its corners there.

    Args:
        polygons: position, uv and normal of each corner.
        vertices: [V, 3].
    """
    if not polygons:
        return np.zeros((0, 3, 3), dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    flat = np.array([corner for one in polygons for corner in one], dtype=np.int64)
    sizes = np.array([len(one) for one in polygons])
    start, fans = np.cumsum(sizes) - sizes, sizes - 2
    polygon = np.repeat(np.arange(len(sizes)), fans)
    number = np.arange(len(polygon)) - np.repeat(np.cumsum(fans) - fans, fans)
    place = np.stack([np.zeros_like(number), number + 1, number + 2], axis=1)
    a, b, c = np.moveaxis(vertices[flat[start[polygon][:, None] + place, 0]], 1, 0)
    with np.errstate(all="ignore"):  # numbers that are not finite are refused later
        normal = np.cross(b - a, c - a)
        whole = np.stack([np.bincount(polygon, axis) for axis in normal.T], axis=1)  # twice the area of each polygon (Newell)
        folded = (normal * whole[polygon]).sum(1) < -_FOLDED * np.square(whole).sum(1)[polygon]
    for k in np.unique(polygon[folded]):  # a fan covers what a concave polygon does not
        corners = flat[start[k] : start[k] + sizes[k], 0]
        place[polygon == k] = ear_clip(flattened(vertices[corners], whole[k]), np.arange(sizes[k]))
    return flat[start[polygon][:, None] + place], polygon, place
