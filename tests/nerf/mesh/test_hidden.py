"""Hollows that no camera sees are filled, and those that cameras see are not."""

import numpy as np
import pytest
import torch

from guidance.prior.shapes import canonical, signed_distance
from nerf.config.groups import CameraConfig, OutputConfig
from nerf.config.mesh import MeshConfig
from nerf.core.structs import LevelSet
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.hidden import Cameras, fill_hidden, hidden_depth
from nerf.mesh.isosurface import extract_surface
from nerf.mesh.level_set_grid import LevelSetGrid, sample_level_set
from nerf.mesh.mesh import largest_parts, signed_volume
from nerf.mesh.soundness import genus_of
from nerf.mesh.voxels import caves
from tests.helpers import solids

PRIOR = Cameras((30.0, 105.0))  # of the embedded prior
BOUND, CELLS = 0.6, 48
both_kinds = pytest.mark.parametrize("kind", ["density", "distance"])


def block(points, half=(0.35, 0.3, 0.35)):
    """Signed distance of a block, to its faces."""
    return (points.abs() - torch.tensor(half)).amax(-1)


def shell(points):
    """A block with walls of 0.05, a third of whose floor is missing, and with a slit through its right wall."""
    hollow = block(points, (0.3, 0.25, 0.3))
    floor = block(points - torch.tensor([0.05, -0.3, 0.0]), (0.12, 0.2, 0.12))
    slit = block(points - torch.tensor([0.35, 0.1, 0.0]), (0.2, 0.02, 0.1))
    return torch.maximum(block(points), -torch.minimum(hollow, torch.minimum(floor, slit)))


def mug(points):
    """The captioned mug, which is hollow."""
    return signed_distance(canonical("a red mug"), points)


def level_set(distance, kind):
    """The surface of a signed distance, as that of a density or as it is."""
    solid = solids.Solid(distance, steepness=150.0)
    return solid.as_density() if kind == "density" else solid.as_distance()


def surface(distance, kind, cameras, cells=CELLS):
    """The largest part of what is extracted."""
    mesh, _ = extract_surface(level_set(distance, kind), BOUND, cells, 0.7, cameras=cameras)
    return largest_parts(mesh, 0.01)[0]


@both_kinds
def test_block_with_a_cave_and_a_crack_comes_out_solid(kind):
    before, after = (surface(shell, kind, cameras, 40) for cameras in (None, PRIOR))
    assert genus_of(before.faces) > 0 and signed_volume(before) < 0.6 * 0.7 * 0.6 * 0.7
    assert genus_of(after.faces) == 0 and caves(after, 32) < 0.015
    assert signed_volume(after) == pytest.approx(0.7 * 0.6 * 0.7, rel=0.03)
    assert np.abs(after.vertices).max() < 0.36  # what is filled does not bulge


@both_kinds
def test_mug_stays_hollow(kind):
    before, after = (surface(mug, kind, cameras) for cameras in (None, PRIOR))
    shape = canonical("a red mug").proportions
    hollow = np.pi * (shape["radius"] - 0.045) ** 2 * (2 * shape["half"] - 0.07)
    assert signed_volume(after) - signed_volume(before) < 0.08 * hollow


def iou_after_filling(distance, cells=CELLS):
    """How much of a solid and what is filled of it have in common."""
    grid = sample_level_set(LevelSet(distance, 0.0, "below", False), BOUND, cells)
    before, after = (grid.is_inside(values) for values in (grid.values, fill_hidden(grid, PRIOR).values))
    return (before & after).sum() / (before | after).sum()


@pytest.mark.parametrize("prompt", ["a red chair", "a red donut", "a red table", "a red cube"])
def test_shapes_without_hidden_hollows_do_not_change(prompt):
    shape = canonical(prompt)
    assert iou_after_filling(lambda x: signed_distance(shape, x)) > 0.997


def test_a_dent_of_the_underside_is_filled_though_grazing_cameras_see_it_and_the_base_stays_flat():
    def dented(points):
        return torch.maximum(block(points), -block(points - torch.tensor([0.0, -0.3, 0.0]), (0.25, 0.1, 0.25)))

    grid = sample_level_set(LevelSet(dented, 0.0, "below", False), BOUND, 60)
    whole = sample_level_set(LevelSet(block, 0.0, "below", False), BOUND, 60).values < 0
    filled = fill_hidden(grid, PRIOR).values < 0
    assert (grid.values < 0).sum() < 0.93 * whole.sum()
    assert filled.sum() == pytest.approx(whole.sum(), rel=0.005) and not (filled & ~whole).any()


def test_the_underside_of_a_canopy_that_cameras_see_stays_open():
    umbrella = canonical("a red umbrella with a blue handle")
    assert iou_after_filling(lambda x: signed_distance(umbrella, x)) > 0.6


def test_what_cameras_from_below_see_is_left_alone():
    def bowl(points):
        return torch.maximum(block(points), -block(points - torch.tensor([0.0, -0.3, 0.0]), (0.23, 0.17, 0.23)))

    grid = sample_level_set(level_set(bowl, "distance"), BOUND, 24)
    seen, unseen = (fill_hidden(grid, Cameras((60.0, high))).values for high in (150.0, 90.0))
    share = [float((values < 0).mean() / (grid.values < 0).mean()) for values in (seen, unseen)]
    assert share[0] < 1.02 and share[1] > 1.05


def test_only_cameras_of_the_azimuth_range_count():
    solid = np.zeros((24, 24, 24), dtype=bool)
    solid[4:20, 4:20, 12] = True  # a wall across z
    depth = hidden_depth(solid, Cameras((60.0, 90.0), (-30.0, 30.0)))
    assert depth[12, 12, 18] < 0 < depth[12, 12, 9]


def test_empty_and_full_grids_are_returned_as_they_are():
    for value in (0.0, 9.0):
        grid = LevelSetGrid(np.full((9, 9, 9), value, dtype=np.float32), 1.0, 7.0)
        assert fill_hidden(grid, PRIOR) is grid


def test_cameras_are_those_of_the_flags():
    camera = CameraConfig(theta_range=(20.0, 95.0), phi_range=(-90.0, 90.0))
    assert ExportOptions.from_config(OutputConfig(), MeshConfig(), camera).fill_hidden is None
    found = ExportOptions.from_config(OutputConfig(), MeshConfig(fill_hidden=True), camera).fill_hidden
    assert found == Cameras((20.0, 95.0), (-90.0, 90.0))
