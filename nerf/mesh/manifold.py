"""Manifold repair of closed surfaces that touch themselves: two triangles per edge, one fan of triangles per vertex.

Letters: V vertices, T triangles, E edges, n half-edges of one direction at one edge. Lengths are scene units.
"""

from dataclasses import replace

import numpy as np

from nerf.mesh.intersections import crossing_faces
from nerf.mesh.mesh import Mesh, components, drop_unused, half_edges

APART = 1e-5  # of the box's edge: how far sheets that touch at a vertex are moved apart


def unpinch(mesh: Mesh) -> Mesh:
    """Separate the sheets of a surface where more than two triangles meet at an edge, or two fans at a vertex.

    Pairs of coincident triangles with opposite orientation are dropped. Then the half-edges of each edge are paired: two
    that bound the same solid become partners. Triangle corners share a vertex only if paired half-edges connect them, so
    each sheet gets a vertex of its own. Two sheets that are connected at both ends of an edge still share it after that;
    one of them then gets a new vertex in the middle of the edge.

    Args:
        mesh: welded, vertices [V, 3] and faces [T, 3], without uv or per-vertex attributes.

    Returns:
        A welded mesh without unused vertices; closed if no edge of the given mesh was open.
    """
    group, size = np.unique(np.sort(mesh.faces, axis=1), axis=0, return_inverse=True, return_counts=True)[1:]
    faces = mesh.faces[size[group.reshape(-1)] == 1]
    start, end = half_edges(faces)
    count = len(mesh.vertices)
    if not np.array_equal(np.sort(start * count + end), np.sort(end * count + start)):
        return drop_unused(replace(mesh, faces=faces))  # open: some half-edge has no partner
    first, second = half_edges(np.arange(faces.size).reshape(-1, 3))  # the triangle corners that a half-edge connects
    up, down = _paired(mesh.vertices, faces)
    # Partners have opposite directions: where one starts, the other ends.
    same = np.concatenate([np.stack([first[up], second[down]], axis=1), np.stack([second[up], first[down]], axis=1)])
    vertices, label = components(same, faces.size)
    source = np.empty(vertices, dtype=np.int64)  # the given vertex at the position of each new one
    source[label] = start
    return _cut_shared_edges(Mesh(mesh.vertices[source], label.reshape(-1, 3).astype(np.int64)))


def _paired(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The half-edges of a closed surface and their partners, both [E], sorted by edge; numbered as in ``half_edges``.

    The first run up, from the vertex of lower index to the other, the second down. An edge where several sheets meet has
    several rows.
    """
    start, end = half_edges(faces)
    edge = np.minimum(start, end) * len(vertices) + np.maximum(start, end)
    up, down = np.flatnonzero(start < end), np.flatnonzero(start > end)
    up, down = up[np.argsort(edge[up], kind="stable")], down[np.argsort(edge[down], kind="stable")]
    # A closed surface has as many up as down at every edge, so both columns of a row belong to the same edge.
    row = np.flatnonzero(np.diff(edge[up], prepend=-1))
    count = np.diff(row, append=len(up))
    several = count > 1
    for begin, stop in zip(row[several], (row + count)[several], strict=True):
        up[begin:stop], down[begin:stop] = _partners(vertices, faces, up[begin:stop], down[begin:stop])
    return up, down


def _partners(vertices: np.ndarray, faces: np.ndarray, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorder the half-edges [n] and [n] of one edge so that each row bounds one wedge of the solid.

    Bodies that touch along an edge are then separated without passing through each other. The triangles are visited in
    the order of their angle around the edge, counter-clockwise seen from its upper end. The normal of an ``up`` triangle
    points in this direction, so a wedge of the solid ends there; one begins at a ``down`` triangle. Beginnings and ends
    match like brackets.
    """
    low, high = vertices[faces.reshape(-1)[[up[0], down[0]]]]
    axis, halves = high - low, np.concatenate([up, down])
    apex = vertices[faces[halves // 3, (halves + 2) % 3]] - low
    # The direction of angle zero, perpendicular to the axis.
    zero = apex[0] - (apex[0] @ axis) / max(axis @ axis, 1e-300) * axis
    angle = np.arctan2(apex @ np.cross(axis, zero), (apex @ zero) * np.linalg.norm(axis))
    ends, pairs, done = set(up.tolist()), [], set()
    begun: list[int] = []
    for half in 2 * halves[np.argsort(angle, kind="stable")].tolist():  # two turns: a wedge may lie across angle zero
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
    """Where several pairs of half-edges have the same two ends, insert a vertex in the middle of all but one pair."""
    vertices, faces = list(mesh.vertices), mesh.faces.copy()
    while True:
        start, end = half_edges(faces)
        up, down = _paired(np.asarray(vertices), faces)
        # Rows with the same ends as the row before.
        again = np.flatnonzero((np.diff(start[up]) == 0) & (np.diff(end[up]) == 0)) + 1
        if len(again) == 0:
            return Mesh(np.asarray(vertices), faces)
        cut: set[int] = set()
        added = []
        for pair in zip(up[again], down[again], strict=True):
            if cut & {half // 3 for half in pair}:
                continue  # its triangle was split in this pass already; the next pass renumbers
            cut |= {half // 3 for half in pair}
            middle = len(vertices)
            vertices.append(0.5 * (vertices[start[pair[0]]] + vertices[end[pair[0]]]))
            for half in pair:  # a triangle a b c, split between a and b, becomes a m c and m b c
                a, b, c = np.roll(faces[half // 3], -(half % 3))
                faces[half // 3] = a, middle, c
                added.append((middle, b, c))
        faces = np.concatenate([faces, np.array(added, dtype=np.int64)])


def separate(mesh: Mesh, distance: float) -> Mesh:
    """Move vertices with equal positions into their own solids, so that a reader who welds by position finds no pinch.

    Where all of them together would make triangles cross, only one is moved. No triangle comes to cross others: vertices
    that cannot be moved without that stay. Triangles that cross others already are no hindrance.

    Args:
        mesh: welded, with normals; sheets that touch have vertices of their own there, as after :func:`unpinch`.
        distance: scene units; the first vertex at a position is moved this far against its normal, the second twice as
            far, and so on. It must exceed the resolution of the files.
    """
    most = int(_coincident(mesh.vertices)[1].max(initial=0)) + 1
    for only in (None, *range(most)):
        shared, rank = _coincident(mesh.vertices)
        if len(shared) == 0:
            break
        moving = shared if only is None else shared[rank == only]
        rank = rank if only is None else np.zeros(len(moving), dtype=np.int64)
        shift = np.zeros_like(mesh.vertices)
        shift[moving] = distance * (1 + rank)[:, None] * mesh.require("normals")[moving]
        mesh = _moved_back(mesh, shift)
    return mesh


def _coincident(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices [n] that share their position (as float32) with others, and the rank [n] of each there, from 0 on."""
    group, count = np.unique(vertices.astype(np.float32), axis=0, return_inverse=True, return_counts=True)[1:]
    group = group.reshape(-1)
    shared = np.flatnonzero(count[group] > 1)
    shared = shared[np.argsort(group[shared], kind="stable")]
    first = np.flatnonzero(np.diff(group[shared], prepend=-1))
    return shared, np.arange(len(shared)) - np.repeat(first, count[group[shared[first]]])


def _moved_back(mesh: Mesh, shift: np.ndarray) -> Mesh:
    """The mesh with a shift [V, 3] subtracted, but for the vertices of triangles that would come to cross others."""
    touched = np.flatnonzero((np.abs(shift).max(axis=1) > 0)[mesh.faces].any(axis=1))
    crossed = crossing_faces(mesh, touched)
    before, looked_at = touched[crossed], touched[~crossed]
    while shift.any():
        moved = replace(mesh, vertices=mesh.vertices - shift)
        bad = looked_at[crossing_faces(moved, looked_at)]
        if len(bad) == 0:
            return moved
        if not shift[mesh.faces[bad]].any():
            bad = before  # one of those has come to cross a triangle that does not move
        shift[mesh.faces[bad]] = 0.0
    return mesh
