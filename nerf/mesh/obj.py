"""Reads OBJ files number by number: positions, uv, normals and polygons with their own indices, in the order of the file.

Materials are left to :func:`nerf.mesh.io.read_parts`. V positions, U uv, K normals, T triangles, F polygons.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.core.errors import UserError
from nerf.core.files import decode_text, read_bytes, reading

WAY_OUT = "export it again"
_MOST = 1 << 32  # bytes of a file
_TABLES = {"v": 3, "vt": 2, "vn": 3}  # keyword -> numbers that are read; more may follow: weights, colours


@dataclass(frozen=True)
class ObjFile:
    """What the file says. The triangles of a polygon are a fan around its first corner, one after the other."""

    vertices: np.ndarray  # [V, 3] float64
    uv: np.ndarray  # [U, 2] float64, origin at the lower left
    normals: np.ndarray  # [K, 3] float64
    corners: np.ndarray  # [T, 3, 3] int64: position, uv and normal of each corner; -1: none
    polygon: np.ndarray  # [T] int64, the polygon that each triangle belongs to, ascending


def read_obj(path: Path) -> ObjFile:
    """Read the surfaces of an OBJ; lines, points, curves, groups and materials are left out.

    Raises:
        UserError: it cannot be read, or an index refers to nothing.
    """
    what = f"mesh {path}"
    with reading(what, WAY_OUT):
        text = decode_text(read_bytes(path, WAY_OUT, _MOST), what, WAY_OUT)
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
    corners, polygon = _fans([one for one in polygons if len(one) > 2])
    return ObjFile(v, vt, vn, corners, polygon)


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
        at = index - 1 if index > 0 else count + index if index < 0 else -1
        if index and not 0 <= at < count:
            raise UserError(f"mesh {path} is damaged: line {line} refers to number {index} of {count}; {WAY_OUT}")
        found.append(at)
    if found[0] < 0:
        raise UserError(f"mesh {path} is damaged: line {line} has a corner without a position; {WAY_OUT}")
    return found[0], found[1], found[2]


def _fans(polygons: list[list[tuple[int, int, int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [T, 3, 3] of polygons, and the polygon [T] of each."""
    if not polygons:
        return np.zeros((0, 3, 3), dtype=np.int64), np.zeros(0, dtype=np.int64)
    flat = np.array([corner for one in polygons for corner in one], dtype=np.int64)
    sizes = np.array([len(one) for one in polygons])
    start, fans = np.cumsum(sizes) - sizes, sizes - 2
    polygon = np.repeat(np.arange(len(sizes)), fans)
    place = np.arange(len(polygon)) - np.repeat(np.cumsum(fans) - fans, fans)
    first = start[polygon]
    return flat[np.stack([first, first + place + 1, first + place + 2], axis=1)], polygon
