"""Self-intersections: triangles that cross are found, as by testing every pair."""

import numpy as np

from nerf.mesh import intersections
from nerf.mesh.intersections import self_crossings
from nerf.mesh.mesh import Mesh
from tests.helpers import solids


def test_boxes_that_pass_through_each_other_cross_and_nested_ones_do_not():
    through = solids.joined(solids.box_mesh((3, 1, 1)), solids.box_mesh((1, 3, 1), (1.1, -0.9, 0.13)))
    nested = solids.joined(solids.box_mesh((3, 3, 3)), solids.box_mesh((1, 1, 1), (1, 1, 1)))
    assert self_crossings(through)[0] >= 8 and self_crossings(nested)[0] == 0


def test_crossings_equal_those_of_every_pair_tested_by_brute_force():
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(120, 1, 3)) + rng.normal(size=(120, 3, 3)) * rng.choice([0.05, 0.8], (120, 1, 1))
    crosses = np.zeros(120, dtype=bool)
    for i in range(120):
        for j in range(120):
            for p, q in ((0, 1), (1, 2), (2, 0)):
                a, b = corners[i, p], corners[i, q]
                c = corners[j]
                matrix = np.stack([a - b, c[1] - c[0], c[2] - c[0]], axis=1)
                t, u, v = np.linalg.solve(matrix, a - c[0]) if i != j else (-1, -1, -1)
                if 0 < t < 1 and u > 0 and v > 0 and u + v < 1:
                    crosses[i] = crosses[j] = True
    found, tested = self_crossings(Mesh(corners.reshape(-1, 3), np.arange(360).reshape(-1, 3)), 1000)
    assert found == crosses.sum() and tested == 120 and 10 < found < 120


def test_a_fan_of_thin_triangles_takes_no_longer_than_the_budget_and_says_how_many_were_tested(monkeypatch):
    monkeypatch.setattr(intersections, "_PAIRS", 1 << 12)
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    faces = np.stack([np.zeros(1998, dtype=np.int64), np.arange(1, 1999), np.arange(2, 2000)], axis=1)
    assert self_crossings(Mesh(circle, faces)) == (0, 1998)
    monkeypatch.setattr(intersections, "_BUDGET", 20_000)
    found, tested = self_crossings(Mesh(circle, faces))
    assert found == 0 and 1 <= tested <= 100


def test_crossings_do_not_depend_on_how_many_pairs_are_held_at_once(monkeypatch):
    through = solids.joined(solids.box_mesh((3, 1, 1)), solids.box_mesh((1, 3, 1), (1.1, -0.9, 0.13)))
    whole = self_crossings(through)
    monkeypatch.setattr(intersections, "_PAIRS", 5)
    assert self_crossings(through) == whole
