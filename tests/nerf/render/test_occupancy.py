"""The occupancy grid keeps every occupied cell, and its updates are repeatable."""

import math

import pytest
import torch

from nerf.core.errors import UserError
from nerf.render.occupancy import FULL_UPDATES, STRIDE, OccupancyGrid
from raymarching import morton3D
from tests.nerf.analytic import Ball

DT = 2 * 3**0.5 / 1024  # the shortest step of 1024 across the diagonal
ALL_EIGHT = 0b11111111  # a byte of the bitfield whose cells are all occupied


def updated(grid, field, times=1, seed=0):
    for i in range(times):
        grid.update(field, torch.Generator().manual_seed(seed + i))
    return grid


def occupied(grid, points):
    """Whether the bit of the cell of the innermost cascade around each point [M, 3] is set."""
    cell = ((points / min(1.0, grid.bound) + 1) * 0.5 * grid.grid_size).long().clamp(0, grid.grid_size - 1)
    index = morton3D(cell.int()).long()
    return (grid.bitfield[index // 8] >> (index % 8).to(torch.uint8)) & 1 == 1


def test_every_cell_counts_as_occupied_before_the_first_update():
    assert (OccupancyGrid(1.0, 16, 10.0, DT).bitfield == ALL_EIGHT).all()


def test_cells_inside_a_ball_are_occupied_and_cells_away_from_it_are_not():
    grid = updated(OccupancyGrid(1.0, 32, 10.0, DT), Ball(0.5, density=30.0, margin=0.0), 3)
    points = torch.rand(4000, 3) * 2 - 1
    radius, cell = points.norm(dim=-1), 3**0.5 * 2 / 32
    bits = occupied(grid, points)
    assert bits[radius < 0.5 - cell].all() and not bits[radius > 0.5 + cell].any()


@pytest.mark.parametrize("bound", [0.5, 1.0, 3.0])
def test_cascades_cover_the_box_and_no_more(bound):
    grid = OccupancyGrid(bound, 16, 10.0, DT)
    assert grid.cascades == {0.5: 1, 1.0: 1, 3.0: 3}[bound]
    for cascade in range(grid.cascades):
        cells = torch.arange(16**3) + cascade * 16**3
        reach = grid.positions(cells).abs().max() * 16 / 15
        assert reach.item() == pytest.approx(min(2.0**cascade, bound), rel=1e-5)


def test_points_lie_in_their_cells():
    grid = OccupancyGrid(1.0, 16, 10.0, DT)
    cells = torch.arange(16**3)
    points = grid.positions(cells, torch.Generator().manual_seed(0))
    corner = ((points + 1) * 8).floor().int().clamp(0, 15)
    assert torch.equal(morton3D(corner).long(), cells)


def test_later_updates_sample_a_part_of_the_cells_and_every_cell_in_turn():
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), Ball(0.2, density=30.0, margin=0.0), FULL_UPDATES)
    turns = [set(grid._cells(FULL_UPDATES + i).tolist()) for i in range(STRIDE)]
    assert all(len(turn) < 16**3 // 2 for turn in turns) and set.union(*turns) == set(range(16**3))


def test_occupied_cells_are_sampled_by_every_update():
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), Ball(0.4, density=30.0, margin=0.0), FULL_UPDATES)
    dense = set(torch.nonzero(grid.alpha.view(-1) > grid.threshold)[:, 0].tolist())
    assert dense and all(dense <= set(grid._cells(FULL_UPDATES + i).tolist()) for i in range(STRIDE))


def test_occupied_cells_are_counted_ahead_on_a_gpu(device):
    field, grid = Ball(0.4, density=30.0, margin=0.0).to(device), OccupancyGrid(1.0, 16, 10.0, DT).to(device)
    for seed in range(FULL_UPDATES + STRIDE):
        grid.update(field, torch.Generator(device).manual_seed(seed))
        ahead = grid._next_count
        if ahead is not None:
            assert torch.equal(grid._cells(seed + 1, int(ahead.result())), grid._cells(seed + 1))
    assert (ahead is None) == (device.type == "cpu")


def test_an_object_that_appears_late_is_found_within_one_turn():
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), Ball(0.2, density=30.0, margin=0.0), FULL_UPDATES)
    updated(grid, Ball(0.3, density=30.0, centre=(0.6, 0.6, 0.6), margin=0.0), STRIDE, seed=50)
    assert occupied(grid, torch.tensor([[0.6, 0.6, 0.6], [0.5, 0.6, 0.7]])).all()


def test_a_uniform_field_of_low_density_keeps_all_its_cells():
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), Ball(3.0, density=1e-3, margin=0.0), FULL_UPDATES + 2 * STRIDE)
    assert (grid.bitfield == ALL_EIGHT).all()


def test_cells_that_became_empty_are_dropped_in_time():
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), Ball(0.4, density=30.0, margin=0.0), 2)
    updated(grid, Ball(0.2, density=30.0, margin=0.0), 120, seed=9)
    assert not occupied(grid, torch.tensor([[0.33, 0.0, 0.0]])).any()
    assert occupied(grid, torch.zeros(1, 3)).all()


def test_the_threshold_is_that_of_the_mean_alpha_until_the_density_threshold():
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), Ball(3.0, density=2.0))
    assert grid.threshold == pytest.approx(0.99 * (1 - math.exp(-2 * DT)), rel=1e-4)
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), Ball(3.0, density=1e6))
    assert grid.mean == 1 and grid.threshold == pytest.approx(1 - math.exp(-10 * DT))


def test_an_opaque_part_that_has_gone_is_dropped_as_quickly_as_a_soft_one():
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), Ball(0.4, density=1e12, margin=0.0), 2)
    updated(grid, Ball(0.2, density=1e12, margin=0.0), 120, seed=9)
    assert not occupied(grid, torch.tensor([[0.33, 0.0, 0.0]])).any()


def test_the_state_dict_restores_the_grid_bit_for_bit():
    field = Ball(0.4, density=30.0, margin=0.0)
    grid = updated(OccupancyGrid(1.0, 16, 10.0, DT), field, 11)
    other = OccupancyGrid(1.0, 16, 10.0, DT)
    other.load_state_dict(grid.state_dict())
    updated(grid, field, seed=77), updated(other, field, seed=77)
    assert all(torch.equal(a, b) for a, b in zip(grid.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize("size", [0, 100, 1024])
def test_a_grid_size_that_is_no_power_of_two_is_refused(size):
    with pytest.raises(UserError, match="power of two"):
        OccupancyGrid(1.0, size, 10.0, DT)


@pytest.mark.parametrize(("bound", "radius"), [(4.0, 0.5), (4.0, 1.7), (2.0, 1.9)])
def test_the_extent_is_where_the_density_may_be(bound, radius):
    grid = updated(OccupancyGrid(bound, 32, 10.0, DT), Ball(radius, density=30.0, margin=0.0), 3)
    cell = 2 * max(1.0, 2 ** math.ceil(math.log2(radius))) / 32
    assert radius <= grid.extent(10.0) <= min(radius + 2.5 * cell, bound)
    assert grid.extent(1e6) == bound  # nowhere


class LeftHalf:
    """A coverage that sees nothing where x is below 0."""

    def empty(self, positions, reach):
        assert positions.shape == (*reach.shape, 3) and bool((reach > 0).all())
        return positions[:, 0] < 0


def test_culled_cells_are_never_occupied_and_count_in_no_mean():
    for bound in (1.0, 2.0):
        grid = OccupancyGrid(bound, 16, 10.0, 0.01)
        grid.cull(LeftHalf())
        position = grid.positions(torch.arange(grid.alpha.numel()))
        left = position[:, 0] < 0
        for _ in range(2):  # before the first update, and after it
            bits = (grid.bitfield[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
            assert torch.equal(bits.flatten().bool(), ~left)
            grid.update(Ball(5.0, density=50.0), torch.Generator().manual_seed(0))
        assert float(grid.mean) == pytest.approx(1 - math.exp(-0.5), rel=1e-5)
        again = OccupancyGrid(bound, 16, 10.0, 0.01)
        again.load_state_dict(grid.state_dict())
        again.update(Ball(5.0, density=50.0), torch.Generator().manual_seed(1))
        assert torch.equal(again.bitfield, grid.bitfield)
