"""The protocol of DTU on spheres with known distances: thinning, observed region, table, far points, culling."""

import numpy as np
import pytest
from scipy.io import savemat
from scipy.spatial import cKDTree

from nerf.core.errors import UserError
from nerf.mesh import dtu
from nerf.mesh.mesh import Mesh, unit
from tests.helpers import solids

EVERYWHERE = dtu.Region(np.ones((60, 60, 60), dtype=bool), np.array([[-30.0] * 3, [30.0] * 3]), 1.0, np.array([0, 0, 1.0, 100]))


def sphere(radius: float, centre=(0.0, 0.0, 0.0), subdivisions: int = 4) -> Mesh:
    """A sphere in millimetres."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Mesh(np.asarray(ball.vertices) + np.array(centre), np.asarray(ball.faces))


def scan(radius: float, count: int = 60_000) -> np.ndarray:
    """Points of a sphere."""
    return radius * unit(np.random.default_rng(0).normal(size=(count, 3)))


def test_concentric_spheres_are_apart_by_their_radii():
    got = dtu.measure(sphere(5.5), scan(5.0), EVERYWHERE)
    assert got.accuracy == pytest.approx(0.5, rel=0.02)
    assert got.completeness == pytest.approx(0.5, rel=0.04)  # to points 0.2 mm apart
    assert got.overall == pytest.approx(0.5 * (got.accuracy + got.completeness))


def test_what_was_not_observed_does_not_count():
    other = sphere(2.0, (0, 0, 12.0))
    both = sphere(5.0)
    both = Mesh(np.concatenate([both.vertices, other.vertices]), np.concatenate([both.faces, other.faces + len(both.vertices)]))
    assert dtu.measure(both, scan(5.0), EVERYWHERE).accuracy > 0.3
    observed = EVERYWHERE.observed.copy()
    observed[:, :, 38:] = False  # above z = 7.5
    region = dtu.Region(observed, EVERYWHERE.box, 1.0, EVERYWHERE.plane)
    assert dtu.measure(both, scan(5.0), region).accuracy < 0.06


def test_what_is_below_the_table_does_not_count():
    mesh = sphere(5.0)
    upper = Mesh(mesh.vertices, mesh.faces[mesh.corners[:, :, 2].min(axis=1) > -0.5])
    assert dtu.measure(upper, scan(5.0), EVERYWHERE).completeness > 0.5
    table = dtu.Region(EVERYWHERE.observed, EVERYWHERE.box, 1.0, np.array([0, 0, 1.0, 0.0]))
    assert dtu.measure(upper, scan(5.0), table).completeness < 0.15


def test_distances_beyond_20_mm_are_left_out():
    cloud = np.concatenate([scan(5.0), [[0.0, 0.0, 29.0]] * 30_000])
    assert dtu.measure(sphere(5.0), cloud, EVERYWHERE).completeness < 0.15
    near = np.concatenate([scan(5.0), [[0.0, 0.0, 24.0]] * 60_000])
    assert dtu.measure(sphere(5.0), near, EVERYWHERE).completeness == pytest.approx(19 / 2, rel=0.02)


def test_thinned_points_are_apart_and_leave_no_gap():
    points = np.random.default_rng(2).random((4_000, 3))
    left = dtu.thinned(points, 0.1, seed=1)
    assert cKDTree(left).query(left, k=2)[0][:, 1].min() > 0.1
    assert cKDTree(left).query(points)[0].max() <= 0.1
    assert np.array_equal(left, dtu.thinned(points, 0.1, seed=1)) and len(left) < 1_000


def test_spread_points_leave_no_gap_and_stay_on_the_surface():
    mesh = Mesh(np.array([[0.0, 0, 0], [3, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]))
    points = dtu.spread(mesh, 0.2)
    u = np.random.default_rng(3).random((500, 2))
    u[u.sum(axis=1) > 1] = 1 - u[u.sum(axis=1) > 1]
    inside = u[:, :1] * mesh.vertices[1] + u[:, 1:] * mesh.vertices[2]
    assert cKDTree(points).query(inside)[0].max() <= 0.2
    assert points[:, 2].max() == 0 and (points @ np.array([1 / 3, 1, 0]) <= 1 + 1e-12).all()


def test_culling_keeps_what_every_mask_shows():
    look_down = np.array([[10.0, 0, 0, 32], [0, 10.0, 0, 32], [0, 0, 0, 1]])  # an affine camera, 10 pixels a unit
    mask = np.zeros((64, 64), dtype=bool)
    mask[:, :32] = True  # x < 0
    mesh = sphere(2.0)
    kept = dtu.culled(mesh, look_down[None], [mask], 0)
    assert kept.vertices[:, 0].max() < 0.0 and len(kept.faces) < 0.5 * len(mesh.faces)
    wider = dtu.culled(mesh, look_down[None], [mask], 10)
    assert 0.7 < wider.vertices[:, 0].max() <= 1.0
    outside = look_down.copy()
    outside[0, 3] = 1_000  # nothing projects into the picture
    assert len(dtu.culled(mesh, np.stack([outside]), [mask], 0).faces) == len(mesh.faces)
    with pytest.raises(UserError, match="no triangle"):
        dtu.culled(mesh, look_down[None], [np.zeros((64, 64), dtype=bool)], 3)


def write_region(folder, **changes):
    """The two files of a scan."""
    observed = {"ObsMask": np.ones((4, 4, 4), dtype=np.uint8), "BB": np.array([[-2.0] * 3, [2.0] * 3]), "Res": 1.0} | changes
    savemat(folder / "ObsMask1_10.mat", observed)
    savemat(folder / "Plane1.mat", {"P": np.array([[0.0], [0], [1], [3]])})
    return folder / "ObsMask1_10.mat", folder / "Plane1.mat"


def test_region_is_read(tmp_path):
    region = dtu.read_region(*write_region(tmp_path))
    assert region.observed.shape == (4, 4, 4) and region.observed.dtype == bool and region.resolution == 1.0
    assert region.plane.tolist() == [0, 0, 1, 3] and region.box.tolist() == [[-2] * 3, [2] * 3]


def test_damaged_region_and_another_frame_are_said(tmp_path):
    with pytest.raises(UserError, match="ObsMask of three axes"):
        dtu.read_region(*write_region(tmp_path, BB=np.zeros(3)))
    with pytest.raises(UserError, match="there is no file"):
        dtu.read_region(tmp_path / "none.mat", tmp_path / "Plane1.mat")
    with pytest.raises(UserError, match="--export_frame source"):
        dtu.measure(Mesh(solids.BOX_CORNERS + 500.0, solids.BOX_FACES), scan(5.0), EVERYWHERE)
