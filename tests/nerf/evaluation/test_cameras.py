"""The circle and the icosphere: counts, spread, neighbours, and that every camera looks at the origin."""

import pytest
import torch

from nerf.core.cameras import project
from nerf.evaluation.cameras import circle, icosphere, icosphere_views


def test_the_circle_begins_in_front_and_goes_to_the_left_of_a_viewer():
    views = circle(8, 16)
    assert views.azimuth.tolist() == [0, 45, 90, 135, 180, -135, -90, -45] and (views.height, views.width) == (16, 16)
    assert torch.det(views.pose[:, :3, :3]).allclose(torch.ones(8))


@pytest.mark.parametrize("level, count", [(0, 12), (1, 42), (2, 162)])
def test_the_icosphere_has_six_neighbours_everywhere_but_at_twelve_corners(level, count):
    directions, neighbours = icosphere(level)
    assert directions.shape == (count, 3) and directions.norm(dim=1).allclose(torch.ones(count))
    counts = [len(beside) for beside in neighbours]
    assert counts.count(5) == 12 and counts.count(6) == count - 12
    assert all(i in neighbours[j] and i != j for i, beside in enumerate(neighbours) for j in beside)


def test_neighbours_are_the_nearest_directions_and_the_whole_is_even():
    directions, neighbours = icosphere(2)
    cosine = directions @ directions.T
    for i, beside in enumerate(neighbours):
        assert set(cosine[i].topk(len(beside) + 1).indices.tolist()) == {i, *beside}
    assert directions.mean(0).abs().max() < 1e-6 and (directions.T @ directions / 162).allclose(torch.eye(3) / 3, atol=1e-5)


def test_cameras_of_the_icosphere_see_the_origin_in_the_middle():
    directions, _ = icosphere(0)
    views = icosphere_views(directions, 45.0, 32)
    assert project(views, torch.zeros(12, 3))[0].reshape(12, -1, 2)[:, 0].allclose(torch.full((12, 2), 16.0), atol=1e-3)
    assert views.pose[:, :3, 3].norm(dim=1).allclose(torch.full((12,), 2.2)) and torch.det(views.pose[:, :3, :3]).min() > 0.99
