"""nerf/mesh/density_grid.py: coarse to fine finds what a dense lattice finds, with a fraction of the queries."""

import numpy as np
import pytest
import torch

from nerf.core.errors import ExportError
from nerf.mesh.density_grid import Lattice, auto_threshold, query_density, sample_lattice, smoothed
from tests.helpers import solids


def dense(density, cells):
    """The field at every lattice point of [-1, 1]^3."""
    index = np.indices((cells + 1,) * 3).reshape(3, -1).T
    points = torch.from_numpy((index * (2.0 / cells) - 1.0).astype(np.float32))
    return density(points).numpy().reshape((cells + 1,) * 3)


def thin():
    """A ball with a bent wire thinner than a coarse cell."""

    def distance(p):
        wire = (
            torch.stack([solids.box(p, (0.6, 0.0, 0.0), (0.3, 0.02, 0.02)), solids.box(p, (0.88, 0.3, 0.0), (0.02, 0.3, 0.02))])
            .min(0)
            .values
        )
        return torch.minimum(solids.ball(p, radius=0.35), wire)

    return solids.Solid(distance, None).density


@pytest.mark.parametrize("density", [solids.Solid(solids.torus, None).density, thin()], ids=["torus", "wire"])
def test_coarse_to_fine_sees_the_same_inside_as_a_dense_lattice(density):
    lattice = sample_lattice(density, 1.0, 64, probe_cells=32)
    full = dense(density, 64)
    np.testing.assert_array_equal(lattice.density > 10, full > 10)
    near = np.abs(np.log(full / 10)) < 0.1
    np.testing.assert_allclose(lattice.density[near], full[near], rtol=1e-4)
    assert lattice.queries < 0.6 * full.size


def test_small_lattices_are_sampled_densely():
    density = solids.Solid(solids.torus, None).density
    lattice = sample_lattice(density, 1.0, 40)
    assert lattice.queries == 41**3 and lattice.spacing == pytest.approx(0.05)
    np.testing.assert_allclose(lattice.density, dense(density, 40), rtol=1e-4)


def test_occupied_saves_queries_and_changes_nothing_at_the_surface():
    density = solids.Solid(solids.ball, None).density
    plain = sample_lattice(density, 1.0, 64, probe_cells=32)
    told = sample_lattice(density, 1.0, 64, occupied=lambda p: solids.ball(p) < 0.05, probe_cells=32)
    assert told.queries < 0.8 * plain.queries
    np.testing.assert_array_equal(told.density > 10, plain.density > 10)


def test_part_that_only_the_occupancy_grid_knows_is_found():
    def distance(p):
        return torch.minimum(solids.ball(p, radius=0.3), solids.box(p, (0.78, 0.785, 0.79), (0.02,) * 3))

    density = solids.Solid(distance, None, steepness=400.0).density
    speck = (slice(50, None),) * 3
    alone = sample_lattice(density, 1.0, 64, probe_cells=32)
    told = sample_lattice(density, 1.0, 64, occupied=lambda p: distance(p) < 0.06, probe_cells=32)
    assert not (alone.density[speck] > 10).any() and (told.density[speck] > 10).any()


def test_bound_scales_the_box():
    lattice = sample_lattice(solids.Solid(lambda p: solids.ball(p, radius=1.5), None).density, 2.0, 32)
    assert lattice.spacing == pytest.approx(0.125)
    assert lattice.density[16, 16, 4] == pytest.approx(10.0, rel=1e-3)  # the point (0, 0, -1.5)


def test_nan_in_the_density_is_refused_with_a_count_and_a_place():
    def density(p):
        return torch.where(p[:, 0] > 0.5, torch.nan, 1.0)

    with pytest.raises(ExportError, match=r"NaN or infinite at \d+ of \d+ points, first at \["):
        sample_lattice(density, 1.0, 16)


def test_query_in_chunks_equals_query_at_once():
    density = solids.Solid(solids.torus, None).density
    points = torch.rand(100, 3) * 2 - 1
    torch.testing.assert_close(query_density(density, points, chunk=7), density(points))


def test_density_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected density \[5\] from points \[5, 3\], got \[5, 1\]"):
        query_density(lambda p: p[:, :1], torch.zeros(5, 3))


@pytest.mark.parametrize("arguments", [(0.0, 64, 10.0), (1.0, 4, 10.0), (1.0, 64, -1.0)])
def test_arguments_out_of_range_are_refused(arguments):
    bound, resolution, threshold = arguments
    with pytest.raises(ValueError, match="sample_lattice: expected"):
        sample_lattice(lambda p: p[:, 0], bound, resolution, threshold)


def test_auto_threshold_is_ten_for_every_opaque_field_and_half_the_top_of_a_young_one():
    assert auto_threshold(torch.linspace(0, 100, 1000)) == 10.0
    assert auto_threshold(torch.cat([torch.zeros(500), torch.full((500,), 8.0)])) == pytest.approx(4.0)
    assert auto_threshold(torch.zeros(10)) == 10.0


def test_smoothing_leaves_a_flat_surface_where_it_is_however_steep_the_field():
    axis = np.linspace(-1, 1, 33, dtype=np.float32)
    for steepness in (3.0, 30.0, 80.0):
        density = np.broadcast_to(10.0 * np.exp(steepness * axis)[:, None, None], (33, 33, 33)).astype(np.float32)
        smooth = smoothed(Lattice(density, 1.0, 10.0, 0), 2.0).density[:, 16, 16]
        assert abs(np.interp(0.0, np.log(smooth / 10.0), axis)) < 1e-3


def test_smoothing_takes_noise_off_and_keeps_the_volume():
    axis = np.linspace(-1, 1, 49, dtype=np.float32)
    radius = np.sqrt((np.stack(np.meshgrid(axis, axis, axis)) ** 2).sum(0))
    noise = np.random.default_rng(0).normal(size=radius.shape)
    rough = Lattice((10 * np.exp(20 * (0.6 - radius) + 3 * noise)).astype(np.float32), 1.0, 10.0, 0)
    inside = radius < 0.6
    before, after = rough.density > 10, smoothed(rough, 1.5).density > 10
    assert (after != inside).sum() < 0.25 * (before != inside).sum()
    assert abs(after.sum() / inside.sum() - 1) < 0.05


def test_no_smoothing_is_the_lattice_itself_and_a_negative_one_is_refused():
    lattice = Lattice(np.ones((9, 9, 9), np.float32), 1.0, 10.0, 0)
    assert smoothed(lattice, 0.0) is lattice
    with pytest.raises(ValueError, match="sigma >= 0"):
        smoothed(lattice, -1.0)
