"""Every rung gives the same pixels and gradients, with the same bits for any number of threads, and refuses bad input."""

import pytest
import torch

import extension
import rasterizer


def render(clip, faces, colours, height, width):
    """All that the folder computes: raster, colours, and gradients of both under a fixed weight of pixels."""
    clip, colours = clip.detach().requires_grad_(), colours.detach().requires_grad_()
    raster = rasterizer.rasterize(clip, faces, height, width)
    flat = rasterizer.interpolate(colours, raster, faces)
    image = rasterizer.antialias(flat, raster, clip, faces)
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(image.shape, generator=g, dtype=torch.float64).to(image)
    weight_of_depth = torch.randn(raster.depth.shape, generator=g, dtype=torch.float64).to(image)
    grads = torch.autograd.grad((image * weight).sum() + (raster.depth * weight_of_depth).sum(), (clip, colours))
    return [x.detach() for x in (raster.triangle, raster.bary, raster.depth, flat, image, *grads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mesh_is_the_same_on_every_rung(native, torus, camera, dtype):
    vertices, faces = torus(dtype=dtype, device=native)
    clip = torch.cat([camera(vertices), camera(vertices, tilt=1.3)])
    colours = torch.rand(1, len(vertices), 3, generator=torch.Generator().manual_seed(0)).to(clip)
    ours = render(clip, faces, colours, 40, 56)
    with extension.scope("torch"):
        reference = render(clip, faces, colours, 40, 56)
    assert int((ours[3] != ours[4]).sum()) > 300  # there are silhouettes
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5  # gradients are sums of up to a hundred pixels
    for got, want in zip(ours, reference, strict=True):
        scale = float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale)


def test_random_triangles_are_the_same_on_every_rung(native, soup):
    clip, faces = soup(views=2, device=native)
    colours = torch.rand(2, clip.shape[1], 4, generator=torch.Generator().manual_seed(0)).to(clip)
    ours = render(clip, faces, colours, 24, 31)
    with extension.scope("torch"):
        reference = render(clip, faces, colours, 24, 31)
    for got, want in zip(ours, reference, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7 * float(want.abs().max()))
