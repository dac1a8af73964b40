"""Triangle meshes: from a lattice of densities to a clean, decimated, unwrapped surface. Pure functions on arrays.

Letters: V vertices, T triangles. Triangles are counter-clockwise seen from outside, so their normals point outwards and
the signed volume is positive. uv has its origin at the lower left of the texture, as in OBJ.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from nerf.lattice import Density, ExportError, Lattice, query_density

_LEVEL_CLIP = 1e3  # densities further than this factor from the threshold look alike to marching cubes
_UNWRAP_BLOCK = 1000  # triangles that xatlas is given at once
_SOLID = 0.99  # a field of which more than this fraction is inside is fog, not an object
_WELD = 1e-6  # vertices closer than this share of the diagonal are one


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh; the optional parts appear as it is worked on.

    A vertex may occur several times with different uv; ``weld`` then says which vertex of the closed surface it is.
    """

    vertices: np.ndarray  # [V, 3] float64, scene units
    faces: np.ndarray  # [T, 3] int64
    normals: np.ndarray | None = None  # [V, 3] unit, outward
    uv: np.ndarray | None = None  # [V, 2] in [0, 1], origin at the lower left
    weld: np.ndarray | None = None  # [V] int64, index of the welded vertex; None: vertices are welded
    tangents: np.ndarray | None = None  # [V, 4] unit, along growing u; the last is the sign of the bitangent
    texture: np.ndarray | None = None  # [H, W, 3] uint8 sRGB, row 0 at v = 1
    normal_texture: np.ndarray | None = None  # [H, W, 3] uint8, tangent space as in glTF, row 0 at v = 1
    colors: np.ndarray | None = None  # [V, 3] uint8 sRGB

    @property
    def corners(self) -> np.ndarray:
        """The corners of every triangle, [T, 3, 3]."""
        return self.vertices[self.faces]

    @property
    def face_normals(self) -> np.ndarray:
        """The outward normal of every triangle, twice as long as its area, [T, 3]."""
        a, b, c = np.moveaxis(self.corners, 1, 0)
        return np.cross(b - a, c - a)

    @property
    def welded_faces(self) -> np.ndarray:
        """The triangles [T, 3] as indices of welded vertices."""
        return self.faces if self.weld is None else self.weld[self.faces]

    @property
    def bounds(self) -> np.ndarray:
        """Lowest and highest corner, [2, 3]."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])


def half_edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the half-edges of triangles [T, 3] start and end, [3 T] each; 3 t + k leads from corner k of t to the next."""
    return faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)


def components(pairs: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    """Which of ``count`` things hang together, if each of the pairs [n, 2] does: how many groups, and each one's [count]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs), dtype=np.int8), pairs.T), shape=(count, count))
    return connected_components(graph, directed=False)


def signed_volume(mesh: Mesh) -> float:
    """Volume enclosed by a closed mesh; negative if it is inside out (divergence theorem)."""
    return float(_pyramids(mesh).sum())


def _pyramids(mesh: Mesh) -> np.ndarray:
    """Signed volumes [T] between the triangles and the middle of the mesh's bounds."""
    a, b, c = np.moveaxis(mesh.corners - mesh.bounds.mean(axis=0), 1, 0)
    return (np.cross(a, b) * c).sum(axis=1) / 6.0


def is_watertight(mesh: Mesh) -> bool:
    """Whether every directed edge of the welded surface has its opposite exactly once: closed, and oriented alike."""
    faces = mesh.welded_faces
    if len(faces) == 0:
        return False
    count = int(faces.max()) + 1
    start, end = half_edges(faces)
    forward, backward = np.sort(start * count + end), np.sort(end * count + start)
    return bool((forward[1:] != forward[:-1]).all() and (forward == backward).all())


def marching_cubes(
    lattice: Lattice, density: Density | None = None, device: torch.device | str = "cpu", refine_steps: int = 5
) -> Mesh:
    """The surface where the density crosses the lattice's threshold, closed at the walls of the box.

    Lewiner's marching cubes (2003) on the logarithm of the density, with one layer outside the box that is empty. A
    field that rises steeply is anything but linear between two lattice points, so each vertex is then moved along its
    lattice edge to where the field itself crosses the threshold, by bisection.

    Args:
        lattice: densities and threshold.
        density: the field, for the bisection; None leaves the vertices where interpolation put them.
        device: where the field lives.
        refine_steps: bisections; each halves the error and asks about every vertex once.

    Returns:
        A watertight, welded mesh inside [-bound, bound]^3, normals outwards.

    Raises:
        ExportError: nothing is above the threshold, or everything is.
    """
    from skimage import measure

    _check_lattice(lattice)
    ratio = np.clip(lattice.density / lattice.threshold, 1.0 / _LEVEL_CLIP, _LEVEL_CLIP)
    level = np.log(ratio)
    level[np.abs(level) < 1e-5] = -1e-5  # a value on the threshold itself makes triangles without area
    level = np.pad(level, 1, constant_values=-1e4 * np.log(_LEVEL_CLIP))
    vertices, faces, _, _ = measure.marching_cubes(level, 0.0, gradient_direction="ascent")
    index = vertices.astype(np.float64)
    if density is not None and refine_steps > 0:
        index = _bisect(index, level, lattice, density, device, refine_steps)
    points = np.clip((index - 1.0) * lattice.spacing - lattice.bound, -lattice.bound, lattice.bound)
    return Mesh(points, faces.astype(np.int64))


def _check_lattice(lattice: Lattice) -> None:
    """Refuse a field without a surface, with the figures that say why."""
    highest = float(lattice.density.max())
    if highest <= lattice.threshold:
        raise ExportError(
            f"the field is empty: its highest density is {highest:.3g}, and the surface is where it is "
            f"{lattice.threshold:.3g}; train longer, or export with a threshold below {highest:.3g}"
        )
    inside = float((lattice.density > lattice.threshold).mean())
    if inside > _SOLID:
        raise ExportError(
            f"the field is solid: {100 * inside:.1f} % of the box is denser than {lattice.threshold:.3g} (the mean is "
            f"{float(lattice.density.mean()):.3g}); it is fog and not an object: raise --lambda_opacity, or train "
            "again"
        )


def _bisect(index: np.ndarray, level: np.ndarray, lattice: Lattice, density: Density, device, steps: int) -> np.ndarray:
    """Move vertices (in padded lattice coordinates) along their lattice edges to the field's own crossing."""
    low = np.floor(index + 1e-4)
    part = index - low
    axis = part.argmax(axis=1)
    rows = np.arange(len(index))
    inner = (low >= 1).all(axis=1) & (low[rows, axis] + 1 <= lattice.cells + 1) & (part[rows, axis] > 1e-4)
    rows, axis, low = rows[inner], axis[inner], np.round(low[inner]).astype(np.int64)
    high = low.copy()
    high[np.arange(len(low)), axis] += 1
    inside_low = level[tuple(low.T)] > 0
    a, b = low.astype(np.float64), high.astype(np.float64)
    for _ in range(steps):
        middle = 0.5 * (a + b)
        points = torch.from_numpy(((middle - 1.0) * lattice.spacing - lattice.bound).astype(np.float32))
        same = (query_density(density, points, device).numpy() > lattice.threshold) == inside_low
        a, b = np.where(same[:, None], middle, a), np.where(same[:, None], b, middle)
    moved = index.copy()
    moved[rows] = 0.5 * (a + b)
    return moved


def drop_unused(mesh: Mesh) -> Mesh:
    """The mesh without vertices that no triangle uses; only for meshes that are not unwrapped yet."""
    used, faces = np.unique(mesh.faces, return_inverse=True)
    picked = {k: None if (v := getattr(mesh, k)) is None else v[used] for k in ("normals", "colors")}
    return replace(mesh, vertices=mesh.vertices[used], faces=faces.reshape(-1, 3), **picked)


def weld(mesh: Mesh, tolerance: float | None = None) -> Mesh:
    """Join vertices that are closer than a tolerance, and drop the triangles that collapse.

    Args:
        mesh: vertices and faces; other parts are dropped.
        tolerance: in scene units; default a millionth of the diagonal.
    """
    from scipy.spatial import cKDTree

    if tolerance is None:
        tolerance = _WELD * float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    unique, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    count, label = components(cKDTree(unique).query_pairs(tolerance, output_type="ndarray"), len(unique))
    representative = np.empty(count, dtype=np.int64)
    representative[label[::-1]] = np.arange(len(unique))[::-1]
    faces = label[index.reshape(-1)[mesh.faces]].astype(np.int64)
    whole = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return drop_unused(Mesh(unique[representative], faces[whole]))


def largest_parts(mesh: Mesh, min_part: float = 0.01) -> tuple[Mesh, int]:
    """Keep the parts whose volume is at least ``min_part`` of the biggest part's; the rest are floaters.

    A part is a connected component of the surface. Cavities (components of negative volume) can never be seen, so they
    are dropped too, and the object is solid.

    Args:
        mesh: welded.
        min_part: fraction of the biggest volume; 0 keeps everything that is not a cavity.

    Returns:
        The mesh, and how many components were dropped.

    Raises:
        ExportError: no component has a positive volume: the mesh is inside out or flat.
    """
    label = components(mesh.faces[:, [0, 1, 1, 2]].reshape(-1, 2), len(mesh.vertices))[1][mesh.faces[:, 0]]
    volume = np.bincount(label, weights=_pyramids(mesh))
    present = np.bincount(label) > 0
    if volume.max(initial=0.0) <= 0:
        raise ExportError(
            f"the mesh is inside out or flat: the volume of its biggest part is "
            f"{volume.max(initial=0.0):.3g}; its triangles must be counter-clockwise seen from outside"
        )
    keep = present & (volume > 0) & (volume >= min_part * volume.max())
    return drop_unused(replace(mesh, faces=mesh.faces[keep[label]])), int(present.sum() - keep.sum())


def decimate(mesh: Mesh, target: int) -> Mesh:
    """Fewer triangles by quadric edge collapse (Garland and Heckbert, 1997).

    Collapses may pinch a closed surface (four triangles at one edge); ``unpinch`` takes it apart there.

    Args:
        mesh: welded.
        target: about how many triangles to keep; 0 or a number not below T keeps all.

    Returns:
        A welded mesh; a closed one stays closed.

    Raises:
        ExportError: nothing with a volume is left, so the target is too low.
    """
    import fast_simplification

    if target <= 0 or len(mesh.faces) <= target:
        return mesh
    points, faces = fast_simplification.simplify(
        mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), target_count=target, agg=5
    )[:2]
    smaller = unpinch(Mesh(np.asarray(points, dtype=np.float64), np.asarray(faces, dtype=np.int64)))
    if len(smaller.faces) < 4 or signed_volume(smaller) <= 0:
        raise ExportError(
            f"decimating {len(mesh.faces)} triangles to {target} left nothing with a volume; raise "
            "--decimate_target, or set it to 0 to keep all"
        )
    return smaller


def unpinch(mesh: Mesh) -> Mesh:
    """Take a surface apart where more than two triangles meet at an edge, or two sheets at a vertex.

    Pairs of triangles that lie on each other back to back are dropped. Then the half-edges of each edge are paired off,
    those that have the solid between them with each other, and triangle corners are one vertex only if paired edges join
    them, so each sheet gets a vertex of its own. Two sheets that are joined at both ends of an edge still share it after
    that; one of them is then cut in its middle.

    Args:
        mesh: welded, without uv or per-vertex attributes.

    Returns:
        A welded mesh without unused vertices; closed if no edge of the given mesh was open.
    """
    group, size = np.unique(np.sort(mesh.faces, axis=1), axis=0, return_inverse=True, return_counts=True)[1:]
    faces = mesh.faces[size[group.reshape(-1)] == 1]
    start, end = half_edges(faces)
    count = len(mesh.vertices)
    if not np.array_equal(np.sort(start * count + end), np.sort(end * count + start)):
        return drop_unused(replace(mesh, faces=faces))  # open: some half-edge has no partner
    first, second = half_edges(np.arange(faces.size).reshape(-1, 3))  # the triangle corners that a half-edge joins
    up, down = _paired(mesh.vertices, faces)
    # Partners run against each other: where one starts, the other ends.
    same = np.concatenate([np.stack([first[up], second[down]], axis=1), np.stack([second[up], first[down]], axis=1)])
    vertices, label = components(same, faces.size)
    source = np.empty(vertices, dtype=np.int64)  # the given vertex that each new one stands at
    source[label] = start
    return _cut_shared_edges(Mesh(mesh.vertices[source], label.reshape(-1, 3).astype(np.int64)))


def _paired(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The half-edges of a closed surface, each beside its partner, sorted by their edges; numbers as in ``half_edges``.

    The first [E] run up, from the vertex of lower number to the other, the second [E] down. An edge where several sheets
    meet stands in several rows.
    """
    start, end = half_edges(faces)
    edge = np.minimum(start, end) * len(vertices) + np.maximum(start, end)
    up, down = np.flatnonzero(start < end), np.flatnonzero(start > end)
    up, down = up[np.argsort(edge[up], kind="stable")], down[np.argsort(edge[down], kind="stable")]
    # A closed surface has as many of the one as of the other at every edge, so rows are of one edge already.
    row = np.flatnonzero(np.diff(edge[up], prepend=-1))
    count = np.diff(row, append=len(up))
    several = count > 1
    for begin, stop in zip(row[several], (row + count)[several], strict=True):
        up[begin:stop], down[begin:stop] = _partners(vertices, faces, up[begin:stop], down[begin:stop])
    return up, down


def _partners(vertices: np.ndarray, faces: np.ndarray, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorder the half-edges [n] and [n] of one edge so that each row has solid between its two triangles.

    Bodies that touch along an edge then come apart and do not pass through each other. The triangles are visited round
    the edge, counter-clockwise seen from where ``up`` leads. There the normal of an ``up`` triangle points ahead, so the
    solid lies before it and ends; at a ``down`` triangle it begins. Beginnings and ends match like brackets.
    """
    low, high = vertices[faces.reshape(-1)[[up[0], down[0]]]]
    axis, halves = high - low, np.concatenate([up, down])
    apex = vertices[faces[halves // 3, (halves + 2) % 3]] - low
    zero = apex[0] - (apex[0] @ axis) / max(axis @ axis, 1e-300) * axis  # square to the axis: angles count from here
    angle = np.arctan2(apex @ np.cross(axis, zero), (apex @ zero) * np.linalg.norm(axis))
    ends, begun, pairs, done = set(up.tolist()), [], [], set()
    for half in 2 * halves[np.argsort(angle, kind="stable")].tolist():  # twice round: solid may lie across angle zero
        if half in done or (half in ends and not begun):
            continue
        done.add(half)
        if half in ends:
            pairs.append((half, begun.pop()))
        else:
            begun.append(half)
    up, down = np.array(pairs).T
    return up, down


def _cut_shared_edges(mesh: Mesh) -> Mesh:
    """Where several pairs of half-edges have the same two ends, give all but one pair a vertex in its middle."""
    vertices, faces = list(mesh.vertices), mesh.faces.copy()
    while True:
        start, end = half_edges(faces)
        up, down = _paired(np.asarray(vertices), faces)
        again = np.flatnonzero((np.diff(start[up]) == 0) & (np.diff(end[up]) == 0)) + 1  # rows of the edge before them
        if len(again) == 0:
            return Mesh(np.asarray(vertices), faces)
        cut, added = set(), []
        for pair in zip(up[again], down[again], strict=True):
            if cut & {half // 3 for half in pair}:
                continue  # its half-edges have moved: one cut a triangle and round
            cut |= {half // 3 for half in pair}
            middle = len(vertices)
            vertices.append(0.5 * (vertices[start[pair[0]]] + vertices[end[pair[0]]]))
            for half in pair:  # a triangle a b c, cut between a and b, becomes a m c and m b c
                a, b, c = np.roll(faces[half // 3], -(half % 3))
                faces[half // 3] = a, middle, c
                added.append((middle, b, c))
        faces = np.concatenate([faces, np.array(added, dtype=np.int64)])


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """Smooth unit normals [V, 3] of a welded mesh: face normals weighted by area and by the angle at the vertex.

    The angle (Thuermer and Wuethrich, 1998) keeps a normal from depending on how a flat region is cut; the area takes
    the say from the slivers of marching cubes, whose own normals are noise: on a ball the worst vertex is off by 3
    degrees and not by 29. A vertex of nothing but triangles without area gets +Y.
    """
    corners, face_normal = mesh.corners, mesh.face_normals
    total = np.zeros_like(mesh.vertices)
    for k in range(3):
        to_next = corners[:, (k + 1) % 3] - corners[:, k]
        to_last = corners[:, (k + 2) % 3] - corners[:, k]
        angle = np.arctan2(np.linalg.norm(np.cross(to_next, to_last), axis=1), (to_next * to_last).sum(axis=1))
        for axis in range(3):
            total[:, axis] += np.bincount(mesh.faces[:, k], angle * face_normal[:, axis], minlength=len(total))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    up = np.array([0.0, 1.0, 0.0])
    return np.where(length > 1e-30, total / np.maximum(length, 1e-30), up)


def unwrap(mesh: Mesh, texture_size: int, progress: Callable[[int, int], None] | None = None) -> Mesh:
    """Cut the surface into charts and lay them into the unit square (xatlas).

    xatlas' time grows faster than the number of triangles, so it charts blocks of at most a thousand triangles that lie
    near each other, one after the other, and packs the charts of all of them in the end: 20,000 take 1.6 s and not
    3.6 s of one core, with hardly more charts, and there is progress to tell. Packing for a texture of 4096 takes 3 s more.
    Charts are a 256th of the texture apart, 3 texels at least, so that mipmaps down to half that many texels keep them apart.

    Args:
        mesh: welded.
        texture_size: edge of the texture in texels.
        progress: told after every block how many triangles are charted, of how many.

    Returns:
        The mesh with uv and weld, its vertices repeated along the seams; normals are carried over.

    Raises:
        ExportError: the atlas lost triangles or needs several textures.
    """
    import xatlas

    blocks = _blocks(mesh.corners.mean(axis=1), np.arange(len(mesh.faces)))
    atlas, vertices_of, done = xatlas.Atlas(), [], 0
    for block in blocks:
        source, local, uv = _chart(mesh, block)
        vertices_of.append(source)
        atlas.add_uv_mesh(uv, local)
        done += len(block)
        if progress is not None:
            progress(done, len(mesh.faces))
    pack = xatlas.PackOptions()
    pack.padding = max(3, texture_size // 256)
    pack.resolution = texture_size
    atlas.generate(xatlas.ChartOptions(), pack)
    if atlas.atlas_count != 1:
        raise ExportError(
            f"the charts fill {atlas.atlas_count} textures of {texture_size}, and one is written; raise "
            "--texture_size or lower --decimate_target"
        )
    faces, weld, uv, count = np.empty_like(mesh.faces), [], [], 0
    for k, block in enumerate(blocks):
        source, local, coordinates = atlas[k]
        if local.shape == (len(block), 3):
            faces[block] = local.astype(np.int64) + count
        weld.append(vertices_of[k][source])
        uv.append(coordinates.astype(np.float64))
        count += len(source)
    weld, uv = np.concatenate(weld), np.clip(np.concatenate(uv), 0.0, 1.0)
    if int(faces.max(initial=0)) >= count or not np.array_equal(weld[faces], mesh.faces):
        raise ExportError("unwrapping lost triangles or changed their order; export with another --decimate_target")
    carried = {k: None if (v := getattr(mesh, k)) is None else v[weld] for k in ("normals", "colors")}
    return replace(mesh, vertices=mesh.vertices[weld], faces=faces, uv=uv, weld=weld, **carried)


def _chart(mesh: Mesh, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Charts of some triangles: the vertex of each new vertex [n], triangles [t, 3], and uv [n, 2] in scene units."""
    import xatlas

    used, local = np.unique(mesh.faces[block], return_inverse=True)
    atlas, pack = xatlas.Atlas(), xatlas.PackOptions()
    atlas.add_mesh(mesh.vertices[used].astype(np.float32), local.reshape(-1, 3).astype(np.uint32))
    pack.padding = 2  # charts of a block never touch, or they would count as one
    options = xatlas.ChartOptions()
    options.max_cost = 1.0  # half of xatlas' own: compact charts, whose border does not come near itself
    atlas.generate(options, pack)
    source, local, uv = atlas[0]
    if local.shape != (len(block), 3):
        raise ExportError(f"unwrapping turned {len(block)} triangles into {len(local)}; export with another --decimate_target")
    source, uv = used[source], np.pad(uv.astype(np.float64), ((0, 0), (0, 1)))
    areas = [
        np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum()
        for c in (mesh.vertices[source][local], uv[local])
    ]
    scale = np.sqrt(areas[0] / areas[1]) if min(areas) > 0 else 1.0
    return source, local, np.ascontiguousarray(uv[:, :2] * scale, dtype=np.float32)


def _blocks(centre: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
    """Halve a set of triangles along its longest axis until no part has more than a thousand; centres [T, 3]."""
    if len(index) <= _UNWRAP_BLOCK:
        return [index]
    some = centre[index]
    order = np.argsort(some[:, np.ptp(some, axis=0).argmax()], kind="stable")
    half = len(order) // 2
    return _blocks(centre, index[order[:half]]) + _blocks(centre, index[order[half:]])


def transformed(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """The mesh moved by a similarity (rotation, one scale, translation).

    Args:
        mesh: any.
        matrix: [4, 4], column vectors; det > 0, so nothing is mirrored.

    Raises:
        ValueError: the matrix mirrors or shears.
    """
    linear = np.asarray(matrix, dtype=np.float64)[:3, :3]
    determinant = float(np.linalg.det(linear))
    scale = np.cbrt(abs(determinant))
    if determinant <= 0 or not np.allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-4 * scale**2):
        raise ValueError(
            f"transformed: expected a rotation, a positive scale and an offset, got a 3x3 part of "
            f"determinant {determinant:.4g}: {linear.round(4).tolist()}"
        )
    vertices = mesh.vertices @ linear.T + np.asarray(matrix, dtype=np.float64)[:3, 3]
    turn = linear / scale
    normals = None if mesh.normals is None else mesh.normals @ turn.T
    tangents = mesh.tangents
    if tangents is not None:
        tangents = np.concatenate([tangents[:, :3] @ turn.T, tangents[:, 3:]], axis=1)
    return replace(mesh, vertices=vertices, normals=normals, tangents=tangents)
