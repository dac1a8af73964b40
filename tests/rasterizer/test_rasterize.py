"""Every pixel equals a brute force written independently, whatever the triangles do, and the derivatives are the true ones."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import rasterizer
from tests.helpers.rounding import ANY_ORDER


def brute_force(clip, faces, height, width):
    """Triangle, weights and z/w of each pixel of one view, by solving for the point that each pixel's ray meets.

    A pixel's ray holds the points whose (x, y, w) is a multiple of (X, Y, 1); a combination of the corners lies on it
    where the 3 x 3 matrix of their (x, y, w) maps the weights to that vector.
    """
    triangle = np.full((height, width), -1)
    weights, depth = np.zeros((height, width, 2)), np.full((height, width), np.inf)
    for row in range(height):
        for column in range(width):
            ray = np.array([(column + 0.5) / width * 2 - 1, 1 - (row + 0.5) / height * 2, 1.0])
            for t, face in enumerate(faces):
                corner = clip[face]
                matrix = corner[:, [0, 1, 3]].T
                if not np.isfinite(corner).all() or abs(np.linalg.det(matrix)) < 1e-14:
                    continue
                share = np.linalg.solve(matrix, ray)  # sums to 1 / w of the point
                if (share < 0).any():
                    continue
                share /= share.sum()
                z, w = share @ corner[:, 2], share @ corner[:, 3]
                if abs(z) <= w and z / w < depth[row, column]:
                    triangle[row, column], depth[row, column], weights[row, column] = t, z / w, share[:2]
    return triangle, weights, np.where(triangle < 0, 1.0, depth)


def assert_is_brute_force(clip, faces, height, width, tolerance):
    """Compare every pixel of every view."""
    raster = rasterizer.rasterize(clip, faces, height, width)
    for view in range(len(clip)):
        wanted = brute_force(clip[view].double().cpu().numpy(), faces.cpu().numpy(), height, width)
        np.testing.assert_array_equal(raster.triangle[view].cpu().numpy(), wanted[0])
        np.testing.assert_allclose(raster.bary[view].cpu().double().numpy(), wanted[1], atol=tolerance)
        np.testing.assert_allclose(raster.depth[view].cpu().double().numpy(), wanted[2], atol=tolerance)
    return raster


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(13, 19), (16, 8)])
def test_every_pixel_of_random_triangles_equals_a_brute_force(device, soup, dtype, size):
    clip, faces = soup(triangles=20, views=2, dtype=dtype, device=device, seed=size[0])
    raster = assert_is_brute_force(clip, faces, *size, 1e-9 if dtype == torch.float64 else 1e-6)
    assert (clip[..., 3] < 0).any()
    assert 0.2 < (raster.triangle >= 0).double().mean() < 1


def test_every_pixel_of_a_mesh_equals_a_brute_force(device, torus, camera):
    vertices, faces = torus(around=9, across=5, device=device, dtype=torch.float32)
    assert_is_brute_force(camera(vertices + 0.01), faces, 15, 15, 1e-6)  # moved: no pixel centre lies on an edge


def test_a_floor_that_passes_below_the_eye_is_drawn_up_to_the_near_plane(device, camera):
    corner = torch.tensor([[-5.0, -0.5, -9], [5, -0.5, -9], [5, -0.5, 9], [-5, -0.5, 9]], dtype=torch.float64)
    clip = camera(corner, tilt=0.0).to(device)
    raster = assert_is_brute_force(clip, torch.tensor([[0, 1, 2], [0, 2, 3]], device=device), 16, 16, 1e-9)
    assert (raster.triangle[0, 15] >= 0).all()  # row 15 looks down at a point between eye and vertices
    assert (raster.triangle[0, :8] < 0).all()
    assert (raster.depth.diff(dim=1)[0, 9:] < 0).all()


def test_what_lies_before_the_near_plane_or_beyond_the_far_one_is_not_drawn(device):
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64, device=device)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], device=device)
    for z, seen in ((-1.01, False), (-1.0, True), (0.3, True), (1.0, True), (1.01, False)):
        for w in (0.4, 1.0, 3.0):
            clip = torch.cat([square, torch.full_like(square, z)], 1)[None] * w
            clip[..., 3] = w
            raster = rasterizer.rasterize(clip, faces, 7, 9)
            assert bool((raster.triangle >= 0).all()) == seen and bool((raster.triangle >= 0).any()) == seen
            torch.testing.assert_close(raster.depth, torch.full_like(raster.depth, z if seen else 1.0))


def test_culling_draws_what_turns_counter_clockwise_as_seen_and_nothing_else(device, soup):
    clip, faces = soup(device=device)
    kept = []
    for t, face in enumerate(faces.cpu().tolist()):
        x, y, w = clip[0, face][:, [0, 1, 3]].double().cpu().numpy().T
        if np.linalg.det(np.stack([x, y, w], 1)) > 0:
            kept.append(t)
    assert 0 < len(kept) < len(faces)
    kept = torch.tensor(kept, device=device)
    culled = rasterizer.rasterize(clip[:1], faces, 24, 31, cull_back=True)
    alone = rasterizer.rasterize(clip[:1], faces[kept], 24, 31)
    drawn = alone.triangle >= 0
    assert torch.equal(culled.triangle[drawn], kept[alone.triangle[drawn].long()].int())
    assert (culled.triangle[~drawn] == -1).all()
    assert torch.equal(culled.depth, alone.depth) and torch.equal(culled.bary, alone.bary)


def test_all_behind_the_eye_is_empty(device, soup):
    clip, faces = soup(behind=1.0, device=device)
    raster = rasterizer.rasterize(clip, faces, 8, 8)
    assert (raster.triangle == -1).all() and (raster.bary == 0).all() and (raster.depth == 1).all()


@pytest.mark.parametrize("vertices, triangles", [(0, 0), (3, 0)])
def test_an_empty_mesh_gives_an_empty_raster_that_has_a_graph(device, vertices, triangles):
    clip = torch.zeros(2, vertices, 4, device=device, requires_grad=True)
    faces = torch.zeros(triangles, 3, dtype=torch.int64, device=device)
    raster = rasterizer.rasterize(clip, faces, 4, 6)
    assert raster.triangle.shape == (2, 4, 6) and (raster.triangle == -1).all() and (raster.depth == 1).all()
    image = rasterizer.interpolate(torch.ones(1, vertices, 3, device=device), raster, faces)
    image = rasterizer.antialias(image, raster, clip, faces)
    assert image.shape == (2, 4, 6, 3) and (image == 0).all()
    (image.sum() + raster.depth.sum()).backward()
    assert (clip.grad == 0).all()


def test_degenerate_triangles_and_corners_that_are_not_finite_draw_nothing(device):
    corner = torch.tensor([[-0.9, -0.9, 0, 1], [0.9, 0.8, 0, 1], [0, -0.05, 0, 1], [0.9, -0.9, 0, 1]], device=device)
    whole = corner.clone()
    faces = torch.tensor([[0, 0, 3], [1, 1, 1], [0, 3, 0]], device=device)
    assert (rasterizer.rasterize(corner[None], faces, 9, 9).triangle == -1).all()
    one = torch.tensor([[0, 3, 1]], device=device)
    assert (rasterizer.rasterize(whole[None], one, 9, 9).triangle == 0).any()
    for value in (float("nan"), float("inf"), -float("inf")):
        for coordinate in range(4):
            broken = whole.clone()
            broken[1, coordinate] = value
            assert (rasterizer.rasterize(broken[None], one, 9, 9).triangle == -1).all()


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (6, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triangles_that_tile_the_image_cover_each_pixel_exactly_once(device, size, dtype):
    """Vertices and edges through pixel centres are where a rule is needed: a grid of triangles over the centres."""
    height, width = size
    x = (2 * torch.arange(-1, width + 1, dtype=torch.float64) + 1 - width) / width
    y = (height - 1 - 2 * torch.arange(-1, height + 1, dtype=torch.float64)) / height
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    clip = torch.cat([grid, torch.zeros_like(grid[:, :1]), torch.ones_like(grid[:, :1])], 1).to(device, dtype)[None]
    i, j = torch.meshgrid(torch.arange(height + 1), torch.arange(width + 1), indexing="ij")
    a = (i * (width + 2) + j).flatten()
    quad = torch.stack([a, a + 1, a + width + 3, a + width + 2], 1).to(device)
    falling, rising = quad[:, [0, 1, 2, 0, 2, 3]].view(-1, 3), quad[:, [0, 1, 3, 1, 2, 3]].view(-1, 3)
    for faces in (falling, rising, falling[:, [1, 0, 2]]):
        count = torch.zeros(height, width, dtype=torch.int64, device=device)
        for face in faces:
            count += rasterizer.rasterize(clip, face[None], height, width).triangle[0] == 0
        assert (count == 1).all()


def test_a_fan_around_a_pixel_centre_covers_it_once(device):
    angle = torch.arange(7, dtype=torch.float64) * 2 * torch.pi / 7 + 0.1
    rim = torch.stack([angle.cos(), angle.sin(), 0 * angle, 1 + 0 * angle], 1)
    centre = torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
    clip = torch.cat([centre, rim])[None].to(device)
    faces = torch.tensor([[0, 1 + i, 1 + (i + 1) % 7] for i in range(7)], device=device)
    hits = sum(int(rasterizer.rasterize(clip, face[None], 5, 5).triangle[0, 2, 2] == 0) for face in faces)
    assert hits == 1


def test_at_equal_depth_the_lowest_index_is_visible_and_so_are_both_sides(device):
    corner = torch.tensor([[-3.0, -3, 0.2, 1], [3, -3, 0.2, 1], [0, 3, 0.2, 1]], device=device)[None]
    for faces in ([[0, 1, 2], [0, 1, 2]], [[0, 2, 1], [0, 1, 2]]):
        assert (rasterizer.rasterize(corner, torch.tensor(faces, device=device), 6, 6).triangle == 0).any()
        assert not (rasterizer.rasterize(corner, torch.tensor(faces, device=device), 6, 6).triangle == 1).any()


def test_one_pixel_sees_the_triangle_through_its_centre_and_row_0_is_the_top(device):
    clip = torch.tensor([[-1.0, 0.1, 0, 1], [1, 0.1, 0, 1], [0, 0.9, 0, 1]], device=device)[None]
    faces = torch.tensor([[0, 1, 2]], device=device)
    assert rasterizer.rasterize(clip, faces, 1, 1).triangle.tolist() == [[[-1]]]
    assert rasterizer.rasterize(clip, faces, 2, 1).triangle.tolist() == [[[0], [-1]]]
    clip[..., 1] -= 0.3
    assert rasterizer.rasterize(clip, faces, 1, 1).triangle.tolist() == [[[0]]]


def test_weights_are_correct_in_perspective(device, camera):
    corner = torch.tensor([[-2.0, -1, 1], [2, -1, -4], [0, 2, -1]], dtype=torch.float64)
    clip, faces = camera(corner, tilt=0.0).to(device), torch.tensor([[0, 1, 2]], device=device)
    raster = rasterizer.rasterize(clip, faces, 12, 12)
    seen = raster.triangle[0] == 0
    assert seen.sum() > 20
    point = rasterizer.interpolate(clip, raster, faces)[0][seen]
    row, column = seen.nonzero().unbind(1)
    torch.testing.assert_close(point[:, 0] / point[:, 3], (2 * column + 1 - 12).double() / 12)
    torch.testing.assert_close(point[:, 1] / point[:, 3], (11 - 2 * row).double() / 12)
    torch.testing.assert_close(point[:, 2] / point[:, 3], raster.depth[0][seen])


def test_gradients_of_weights_and_depth_are_true(native, soup):
    clip, faces = soup(triangles=10, views=2, device=native, seed=3, extent=1.2)
    clip.requires_grad_()
    assert (rasterizer.rasterize(clip, faces, 5, 6).triangle >= 0).sum() > 12

    def outputs(c):
        raster = rasterizer.rasterize(c, faces, 5, 6)
        return raster.bary, raster.depth

    assert gradcheck(outputs, (clip,), eps=1e-7, atol=1e-5, rtol=1e-4, nondet_tol=ANY_ORDER)
