"""The crop box of an exported mesh: in the coordinates of the file, closed where a field is cut, refused beside the scene."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.config.config import parse
from nerf.core.errors import ExportError, UserError
from nerf.core.structs import LevelSet
from nerf.mesh.crop import CropBox, check_crop, crop_box
from nerf.mesh.export import export_surface
from nerf.mesh.mesh import Mesh
from tests.nerf.mesh.test_export import BALL, SMALL, painted, quick, similarity


@pytest.mark.parametrize("frame", ["object", "source"])
def test_nothing_is_outside_the_box_in_the_file_and_the_cut_is_closed(tmp_path, frame):
    whole = quick(BALL, tmp_path / "whole", replace(SMALL, export_frame=frame), transform=similarity())
    low, high = (np.array(corner) for corner in whole.bounds)
    corners = low + 0.25 * (high - low), high - 0.1 * (high - low)
    report = quick(
        BALL, tmp_path / "cut", replace(SMALL, export_frame=frame, crop=(*corners[0], *corners[1])), transform=similarity()
    )
    np.testing.assert_allclose(report.bounds, corners, atol=0.02 * (high - low).max())
    assert report.watertight and 0 < report.volume < whole.volume


def test_a_signed_distance_is_cut_at_the_walls_of_the_box(tmp_path):
    distance = LevelSet(lambda p: p.norm(dim=-1) - 0.7, 0.0, inside="below", logarithmic=False)
    box = CropBox((-2.0, -2.0, -2.0, 0.2, 2.0, 2.0), np.eye(4))
    cut = box.level_set(distance).value
    points = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.7, 0.0], [0.6, 0.0, 0.0]])
    assert cut(points).tolist() == pytest.approx([-0.2, 0.1, 0.0, 0.0, 0.4], abs=1e-6)


def test_the_distance_to_the_box_is_exact_inside_and_outside():
    box = CropBox((-1.0, -2.0, -3.0, 1.0, 2.0, 3.0), np.eye(4))
    points = torch.tensor([[0.0, 0.0, 0.0], [0.5, 1.9, 0.0], [2.0, 0.0, 0.0], [4.0, 6.0, 0.0]])
    assert box.distance(points).tolist() == pytest.approx([-1.0, -0.1, 1.0, 5.0], abs=1e-6)


def test_a_given_surface_is_cut_triangle_by_triangle(tmp_path):
    import trimesh

    ball = trimesh.creation.icosphere(3, 0.5)
    box = crop_box((0.0, 0.0, 29.4, 50.0, 50.0, 50.0), similarity(), "source")
    cut = box.mesh(Mesh(np.asarray(ball.vertices), np.asarray(ball.faces)))
    file = cut.vertices @ similarity()[:3, :3].T + similarity()[:3, 3]
    assert 0 < len(cut.faces) < len(ball.faces)
    assert file[:, 2].min() == pytest.approx(29.4, abs=1e-6) and np.linalg.norm(cut.vertices, axis=1) == pytest.approx(
        0.5, abs=0.02
    )
    report = export_surface(
        Mesh(np.asarray(ball.vertices), np.asarray(ball.faces)),
        painted,
        tmp_path,
        replace(SMALL, crop=(-1.0, 0.0, -1.0, 1.0, 1.0, 1.0)),
        bound=1.0,
    )
    assert report.bounds[0][1] == pytest.approx(0.0, abs=1e-6) and report.bounds[1][1] == pytest.approx(0.5, abs=0.01)


def test_a_box_without_a_triangle_is_refused(tmp_path):
    mesh = Mesh(np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]), np.array([[0, 1, 2]]))
    with pytest.raises(ExportError, match="no triangle of the surface is inside the box of --mesh_crop"):
        export_surface(mesh, painted, tmp_path, replace(SMALL, crop=(0.5, 0.5, 0.5, 0.9, 0.9, 0.9)), bound=1.0)


def test_a_box_beside_the_scene_is_refused_with_the_scene_s_box():
    check_crop((-5.0, -5.0, -5.0, 0.0, 0.0, 0.0), None, "object", 1.0)
    with pytest.raises(
        UserError, match="--mesh_crop 2 2 2 3 3 3 has nothing in common with the scene's box, -1 -1 -1 1 1 1 in"
    ):
        check_crop((2.0, 2.0, 2.0, 3.0, 3.0, 3.0), None, "object", 1.0)
    with pytest.raises(UserError, match="7 17 27 13 23 33"):
        check_crop((0.0, 0.0, 0.0, 1.0, 1.0, 1.0), similarity(), "source", 1.0)


@pytest.mark.parametrize("words", ["1 0 0 0 1 1", "0 0 0 1 1 0", "0 0 0 1 1 1e13"])
def test_six_numbers_in_the_wrong_order_are_refused(words):
    with pytest.raises(UserError, match="--mesh_crop must be six numbers x0 y0 z0 x1 y1 z1 with x0 < x1"):
        parse(["--text", "a", "--mesh_crop", *words.split()])
    assert parse(["--text", "a", "--mesh_crop", *"-1 -1 -1 1 1 1".split()]).mesh.mesh_crop == (-1, -1, -1, 1, 1, 1)
