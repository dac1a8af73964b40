"""Grids of values: coarse to fine finds what evaluating every point finds, with a fraction of the evaluations."""

import numpy as np
import pytest
import torch

from nerf.core.errors import ExportError
from nerf.core.structs import LevelSet
from nerf.mesh.level_set_grid import LevelSetGrid, auto_threshold, query_values, sample_level_set, smoothed
from tests.helpers import solids


def dense(function, cells):
    """A field at every grid point of [-1, 1]^3."""
    index = np.indices((cells + 1,) * 3).reshape(3, -1).T
    points = torch.from_numpy((index * (2.0 / cells) - 1.0).astype(np.float32))
    return function(points).numpy().reshape((cells + 1,) * 3)


def wire(p):
    """Signed distance to a ball with a bent wire thinner than a coarse cell."""
    parts = [((0.6, 0.0, 0.0), (0.3, 0.02, 0.02)), ((0.88, 0.3, 0.0), (0.02, 0.3, 0.02))]
    return torch.stack([solids.ball(p, radius=0.35), *(solids.box(p, *part) for part in parts)]).min(0).values


SHAPES = pytest.mark.parametrize("distance", [solids.torus, wire], ids=["torus", "wire"])


@SHAPES
def test_coarse_to_fine_finds_the_same_inside_of_a_density_as_a_dense_grid(distance):
    density = solids.Solid(distance).as_density()
    grid = sample_level_set(density, 1.0, 64, probe_cells=32)
    full = dense(density.value, 64)
    np.testing.assert_array_equal(grid.values > 10, full > 10)
    near = np.abs(np.log(full / 10)) < 0.1
    np.testing.assert_allclose(grid.values[near], full[near], rtol=1e-4)
    assert grid.queries < 0.6 * full.size


@SHAPES
def test_coarse_to_fine_finds_the_same_inside_of_a_signed_distance_as_a_dense_grid(distance):
    grid = sample_level_set(solids.Solid(distance).as_distance(), 1.0, 64, probe_cells=32)
    full = dense(distance, 64)
    np.testing.assert_array_equal(grid.is_inside(grid.values), full < 0)
    near = np.abs(full) < 0.03
    np.testing.assert_allclose(grid.values[near], full[near], atol=1e-6)
    assert grid.queries < 0.6 * full.size


def test_speck_that_no_coarse_point_lies_in_is_found_by_its_signed_distance():
    def distance(p):
        return torch.minimum(solids.ball(p, radius=0.3), solids.box(p, (0.78, 0.785, 0.79), (0.02,) * 3))

    solid, speck = solids.Solid(distance, steepness=400.0), (slice(50, None),) * 3
    density = sample_level_set(solid.as_density(), 1.0, 64, probe_cells=32)
    signed = sample_level_set(solid.as_distance(), 1.0, 64, probe_cells=32)
    assert not (density.values[speck] > 10).any() and (signed.values[speck] < 0).any()


def test_small_grids_are_evaluated_everywhere():
    density = solids.Solid(solids.torus).as_density()
    grid = sample_level_set(density, 1.0, 40)
    assert grid.queries == 41**3 and grid.spacing == pytest.approx(0.05)
    np.testing.assert_allclose(grid.values, dense(density.value, 40), rtol=1e-4)


def test_bound_scales_the_box():
    grid = sample_level_set(solids.Solid(lambda p: solids.ball(p, radius=1.5)).as_density(), 2.0, 32)
    assert grid.spacing == pytest.approx(0.125)
    assert grid.values[16, 16, 4] == pytest.approx(10.0, rel=1e-3)  # the point (0, 0, -1.5)


@pytest.mark.parametrize("name", ["density", "signed distance"])
def test_nan_is_refused_with_a_count_and_a_place(name):
    def value(p):
        return torch.where(p[:, 0] > 0.5, torch.nan, 1.0)

    level_set = LevelSet(value, 10.0) if name == "density" else LevelSet(value, 0.0, "below", logarithmic=False)
    with pytest.raises(ExportError, match=rf"the {name} is NaN or infinite at \d+ of \d+ points, first at \["):
        sample_level_set(level_set, 1.0, 16)


def test_values_in_chunks_equal_values_at_once():
    density = solids.Solid(solids.torus).density
    points = torch.rand(100, 3) * 2 - 1
    torch.testing.assert_close(query_values(density, points, chunk=7), density(points))


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected density \[5\] from points \[5, 3\], got \[5, 1\]"):
        query_values(lambda p: p[:, :1], torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("bound", "resolution", "level", "inside", "logarithmic"),
    [
        (0.0, 64, 10.0, "above", True),
        (1.0, 4, 10.0, "above", True),
        (1.0, 64, -1.0, "above", True),
        (1.0, 64, 10.0, "below", True),
        (1.0, 64, None, "below", False),
        (1.0, 64, float("nan"), "below", False),
    ],
)
def test_arguments_out_of_range_are_refused(bound, resolution, level, inside, logarithmic):
    with pytest.raises(ValueError, match="sample_level_set: expected"):
        sample_level_set(LevelSet(lambda p: p[:, 0], level, inside, logarithmic), bound, resolution)


def test_auto_threshold_is_ten_for_every_opaque_field_and_half_the_top_of_a_young_one():
    assert auto_threshold(np.linspace(0, 100, 1000)) == 10.0
    assert auto_threshold(np.concatenate([np.zeros(500), np.full(500, 8.0)])) == pytest.approx(4.0)
    assert auto_threshold(np.zeros(10)) == 10.0


def test_smoothing_a_density_leaves_a_flat_surface_where_it_is_however_steep_the_field():
    axis = np.linspace(-1, 1, 33, dtype=np.float32)
    for steepness in (3.0, 30.0, 80.0):
        density = np.broadcast_to(10.0 * np.exp(steepness * axis)[:, None, None], (33, 33, 33)).astype(np.float32)
        smooth = smoothed(LevelSetGrid(density, 1.0, 10.0), 2.0).values[:, 16, 16]
        assert abs(np.interp(0.0, np.log(smooth / 10.0), axis)) < 1e-3


def test_smoothing_a_signed_distance_leaves_a_plane_where_it_is():
    axis = np.linspace(-1, 1, 33, dtype=np.float32)
    distance = np.broadcast_to(axis[:, None, None] - 0.1, (33, 33, 33)).astype(np.float32)
    grid = LevelSetGrid(distance, 1.0, 0.0, inside="below", logarithmic=False)
    assert np.interp(0.0, smoothed(grid, 2.0).values[:, 16, 16], axis) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("kind", ["density", "distance"])
def test_smoothing_removes_noise_and_keeps_the_volume(kind):
    axis = np.linspace(-1, 1, 49, dtype=np.float32)
    radius = np.sqrt((np.stack(np.meshgrid(axis, axis, axis)) ** 2).sum(0))
    depth = 0.6 - radius + 0.15 * np.random.default_rng(0).normal(size=radius.shape)
    rough = LevelSetGrid((10 * np.exp(20 * depth)).astype(np.float32), 1.0, 10.0)
    if kind == "distance":
        rough = LevelSetGrid(-depth.astype(np.float32), 1.0, 0.0, inside="below", logarithmic=False)
    inside = radius < 0.6
    before, after = (grid.is_inside(grid.values) for grid in (rough, smoothed(rough, 1.5)))
    assert (after != inside).sum() < 0.25 * (before != inside).sum()
    assert abs(after.sum() / inside.sum() - 1) < 0.05


def test_no_smoothing_is_the_grid_itself_and_a_negative_one_is_refused():
    grid = LevelSetGrid(np.ones((9, 9, 9), np.float32), 1.0, 10.0)
    assert smoothed(grid, 0.0) is grid
    with pytest.raises(ValueError, match="sigma >= 0"):
        smoothed(grid, -1.0)
