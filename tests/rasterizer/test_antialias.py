"""Coverage at silhouettes is continuous and has the gradient of a supersampled image; nothing else is touched."""

import math

import pytest
import torch
from torch.autograd import gradcheck

import extension
import rasterizer
from tests.helpers.rounding import ANY_ORDER


def flat(points, depth=0.0):
    """Clip positions [1, V, 4] of points [V, 2] in NDC."""
    return torch.cat([points, torch.full_like(points[:, :1], depth), torch.ones_like(points[:, :1])], 1)[None]


def disc(centre, radius, device, corners=60):
    """A disc of triangles about a centre [2]: clip positions, differentiable in it, and faces."""
    angle = torch.arange(corners, dtype=torch.float64, device=device) * 2 * math.pi / corners
    rim = centre + radius * torch.stack([angle.cos(), angle.sin()], 1)
    faces = torch.tensor([[corners, i, (i + 1) % corners] for i in range(corners)], device=device)
    return flat(torch.cat([rim, centre[None]])), faces


def silhouette(clip, faces, size):
    """Antialiased coverage [H, W]."""
    raster = rasterizer.rasterize(clip, faces, *size)
    image = (raster.triangle >= 0).to(clip)[..., None]
    return rasterizer.antialias(image, raster, clip, faces)[0, ..., 0]


def supersampled(clip, faces, size, factor=16):
    """Coverage [H, W] as the mean of factor^2 samples a pixel."""
    with extension.scope("auto"):
        seen = rasterizer.rasterize(clip, faces, factor * size[0], factor * size[1]).triangle[0] >= 0
    return seen.double().view(size[0], factor, size[1], factor).mean((1, 3))


def test_coverage_of_a_disc_is_near_that_of_a_supersampled_image(device):
    clip, faces = disc(torch.tensor([0.03, -0.02], dtype=torch.float64, device=device), 0.6, device)
    size = (24, 30)
    ours, true = silhouette(clip, faces, size), supersampled(clip, faces, size)
    plain = (rasterizer.rasterize(clip, faces, *size).triangle[0] >= 0).double()
    assert (ours - true).abs().max() < 0.2  # where the outline turns past 45 degrees; elsewhere far less
    assert (ours - true).abs().sum() < 0.15 * (plain - true).abs().sum()
    assert abs(float(ours.sum() / true.sum()) - 1) < 2e-3


@pytest.mark.parametrize("edge", [0.03, 0.2, 0.29, -0.17])
def test_a_straight_vertical_edge_gives_exact_coverage(device, edge):
    """Pixels of 0.25 in NDC; the square begins at the edge and goes on beyond the image."""
    points = torch.tensor([[edge, -3], [3, -3], [3, 3], [edge, 3]], dtype=torch.float64, device=device)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], device=device)
    ours = silhouette(flat(points), faces, (8, 8))
    left = torch.arange(8, dtype=torch.float64, device=device) * 0.25 - 1
    torch.testing.assert_close(ours, ((left + 0.25 - edge) / 0.25).clamp(0, 1).expand(8, 8))


def test_the_gradient_of_a_moving_disc_is_that_of_a_supersampled_image(device):
    size, step = (40, 40), 0.02
    x = torch.linspace(-1, 1, 40, dtype=torch.float64, device=device)
    weight = (1.5 * x[None] + 0.4 * x[:, None]).sin() + x[None] * x[:, None]  # smooth, and not symmetric
    place = torch.tensor([0.06, 0.003], dtype=torch.float64, device=device, requires_grad=True)
    clip, faces = disc(place, 0.55, device)
    (silhouette(clip, faces, size) * weight).sum().backward()
    wanted = []
    for axis in (0, 1):
        ends = []
        for sign in (-1, 1):
            moved = place.detach().clone()
            moved[axis] += sign * step
            ends.append(float((supersampled(*disc(moved, 0.55, device), size) * weight).sum()))
        wanted.append((ends[1] - ends[0]) / (2 * step))
    wanted = torch.tensor(wanted, dtype=torch.float64, device=device)
    assert (place.grad - wanted).norm() < 0.03 * wanted.norm()


def test_the_gradient_of_a_growing_disc_is_its_circumference(device):
    ratio = []
    for x in (0.0, 0.013, 0.026, 0.039):
        radius = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)
        clip, faces = disc(torch.tensor([x, 0.5 * x], dtype=torch.float64, device=device), radius, device)
        silhouette(clip, faces, (40, 48)).sum().backward()
        ratio.append(float(radius.grad) / (2 * math.pi * 0.5 * 20 * 24))  # pixels to a unit of NDC; their aspect cancels
    assert sum(ratio) / len(ratio) == pytest.approx(1, abs=0.02)
    assert max(abs(r - 1) for r in ratio) < 0.05


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.4])
def test_coverage_is_continuous_while_an_edge_moves(device, slope):
    points = torch.tensor([[-9.0, -9], [9 * slope, -9], [-9 * slope, 9], [-9, 9]], dtype=torch.float64, device=device)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], device=device)
    shift = torch.tensor([1.0, 0], dtype=torch.float64, device=device)
    images = [silhouette(flat(points + d * shift), faces, (8, 8)) for d in torch.linspace(0, 0.5, 51).tolist()]
    steps = torch.stack(images).diff(dim=0)
    assert steps.abs().max() < 0.05  # the edge moves by a twenty-fifth of a pixel a step
    assert steps.sum().item() == pytest.approx(16, rel=0.02)  # and in all by two pixels in 8 rows


def test_the_inside_of_a_closed_mesh_is_not_touched(device, torus, camera):
    vertices, faces = torus(around=24, across=12, device=device)
    clip = camera(vertices)
    raster = rasterizer.rasterize(clip, faces, 32, 32)
    image = torch.rand(1, 32, 32, 3, dtype=torch.float64).to(device)
    changed = (rasterizer.antialias(image, raster, clip, faces) != image).any(-1)[0]
    seen = raster.triangle[0] >= 0
    depth = torch.nn.functional.pad(raster.depth, (1, 1, 1, 1), value=1.0)
    window = depth.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)[0]
    jump = window.amax(-1) - window.amin(-1) > 0.02
    assert (changed & seen).any() and not (changed & ~jump).any()


def test_values_stay_within_those_of_the_image(device, soup):
    clip, faces = soup(triangles=60, extent=0.15, behind=0.0, device=device)  # many are smaller than a pixel
    raster = rasterizer.rasterize(clip, faces, 20, 20)
    image = torch.rand(1, 20, 20, 2, dtype=torch.float64).to(device)
    out = rasterizer.antialias(image, raster, clip, faces)
    assert (out != image).sum() > 50
    assert out.min() >= image.min() and out.max() <= image.max()


def test_slivers_along_the_outline_do_not_hide_it(device):
    """A square with a rim of strips, a fifth of a pixel wide each, is blended as the plain square is."""
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], device=device)
    x = torch.tensor([-3, *(0.13 + 0.05 * k for k in range(5))], dtype=torch.float64, device=device)
    points = torch.stack([x.repeat(2), torch.tensor([-3.0, 3]).to(x).repeat_interleave(6)], 1)
    strips = torch.cat([torch.tensor([[k, k + 1, k + 7], [k, k + 7, k + 6]]) for k in range(5)]).to(device)
    plain = points[[0, 5, 11, 6]]
    torch.testing.assert_close(silhouette(flat(points), strips, (8, 8)), silhouette(flat(plain), faces, (8, 8)))


def test_edges_that_are_given_and_edges_that_are_found_are_the_same(device, torus, camera):
    vertices, faces = torus(device=device)
    clip = camera(vertices)
    raster = rasterizer.rasterize(clip, faces, 24, 24)
    image = torch.rand(1, 24, 24, 3, dtype=torch.float64).to(device)
    given = rasterizer.antialias(image, raster, clip, faces, rasterizer.edge_adjacency(faces))
    assert torch.equal(given, rasterizer.antialias(image, raster, clip, faces))


def test_adjacency_pairs_half_edges_and_marks_boundary_and_non_manifold_edges(device):
    faces = torch.tensor([[0, 1, 2], [2, 1, 3], [4, 5, 6], [5, 4, 7], [4, 5, 8]], device=device)
    edges = rasterizer.edge_adjacency(faces)
    assert edges.dtype == torch.int32
    assert edges.tolist() == [[5, -1, -1], [-1, -1, 0], [-1, -1, -2], [-1, -1, -2], [-1, -1, -2]]


def test_every_edge_of_a_closed_mesh_has_its_opposite(device, torus):
    _, faces = torus(device=device)
    edges = rasterizer.edge_adjacency(faces).flatten().long()
    assert (edges >= 0).all()
    assert torch.equal(edges[edges], torch.arange(len(edges), device=device))


def test_flipping_a_face_does_not_change_the_silhouette(device, torus, camera):
    vertices, faces = torus(device=device)
    clip = camera(vertices)
    mixed = faces.clone()
    mixed[::3] = mixed[::3][:, [0, 2, 1]]
    torch.testing.assert_close(silhouette(clip, mixed, (24, 24)), silhouette(clip, faces, (24, 24)))


def test_gradients_of_image_and_positions_are_true(native, torus, camera):
    vertices, faces = torus(around=5, across=3, device=native)
    clip = torch.cat([camera(vertices), camera(vertices, tilt=1.1)]).requires_grad_()
    size = (5, 6)
    raster = rasterizer.rasterize(clip.detach(), faces, *size)
    image = torch.rand(2, *size, 2, dtype=torch.float64).to(native).requires_grad_()
    changed = rasterizer.antialias(image, raster, clip, faces) != image
    assert changed.sum() > 25

    def blended(i, c):
        return rasterizer.antialias(i, raster, c, faces)

    assert gradcheck(blended, (image, clip), eps=1e-7, atol=1e-5, nondet_tol=ANY_ORDER)
