"""Interpolation reproduces what is linear on a triangle, and its gradients are true."""

import pytest
import torch
from torch.autograd import gradcheck

import rasterizer
from tests.helpers.rounding import ANY_ORDER


def test_ones_stay_ones_where_something_is_visible(device, torus, camera):
    vertices, faces = torus(device=device)
    raster = rasterizer.rasterize(camera(vertices), faces, 20, 24)
    ones = rasterizer.interpolate(vertices.new_ones(1, len(vertices), 1), raster, faces)[..., 0]
    torch.testing.assert_close(ones, (raster.triangle >= 0).to(ones))


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_pixels_are_the_weighted_corners(device, torus, camera, channels):
    vertices, faces = torus(device=device)
    raster = rasterizer.rasterize(camera(vertices), faces, 16, 16)
    attributes = torch.rand(1, len(vertices), channels, dtype=torch.float64).to(device)
    image = rasterizer.interpolate(attributes, raster, faces)
    seen = raster.triangle[0] >= 0
    corner = attributes[0][faces[raster.triangle[0][seen].long()]]
    u, v = raster.bary[0][seen].unbind(-1)
    weight = torch.stack([u, v, 1 - u - v], -1)
    torch.testing.assert_close(image[0][seen], (corner * weight[..., None]).sum(1))


def test_attributes_of_one_view_serve_all(device, torus, camera):
    vertices, faces = torus(device=device)
    clip = torch.cat([camera(vertices), camera(vertices, tilt=1.2)])
    raster = rasterizer.rasterize(clip, faces, 16, 16)
    one = torch.rand(1, len(vertices), 3, dtype=torch.float64).to(device).requires_grad_()
    both = one.detach().repeat(2, 1, 1).requires_grad_()
    images = [rasterizer.interpolate(a, raster, faces) for a in (one, both)]
    torch.testing.assert_close(*images)
    weight = torch.randn_like(images[0])
    for image in images:
        (image * weight).sum().backward()
    torch.testing.assert_close(one.grad[0], both.grad.sum(0))


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("channels", [2, 3])
def test_gradients_of_attributes_and_weights_are_true(native, soup, views, channels):
    clip, faces = soup(triangles=5, views=2, device=native)
    raster = rasterizer.rasterize(clip, faces, 4, 5)
    attributes = torch.rand(views, clip.shape[1], channels, dtype=torch.float64).to(native).requires_grad_()
    bary = raster.bary.clone().requires_grad_()

    def image(a, b):
        return rasterizer.interpolate(a, rasterizer.Raster(b, raster.depth, raster.triangle), faces)

    assert gradcheck(image, (attributes, bary), nondet_tol=ANY_ORDER)
