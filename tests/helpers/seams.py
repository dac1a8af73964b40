"""Points along the seams of an unwrapped mesh, on both sides of each."""

import numpy as np

ALONG = (0.1, 0.3, 0.5, 0.7, 0.9)  # fractions of the length of an edge


def along_seams(mesh, values):
    """Values at vertices [V, C], interpolated at points along all seam edges: [n, 2, C], both sides of each."""
    corner, following = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    start, end = mesh.weld[corner], mesh.weld[following]
    count = len(mesh.vertices)
    there, back = np.argsort(start * count + end), np.argsort(end * count + start)
    sides = [(corner[there], following[there]), (following[back], corner[back])]
    cut = (sides[0][0] != sides[1][0]) | (sides[0][1] != sides[1][1])
    points = [[(1 - t) * values[a[cut]] + t * values[b[cut]] for t in ALONG] for a, b in sides]
    return np.stack([np.concatenate(side) for side in points], axis=1)
