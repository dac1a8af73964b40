"""Every backend gives the same pixels and gradients, with the same bits for any number of threads, and refuses bad input."""

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
def test_a_mesh_is_the_same_on_every_backend(native, torus, camera, dtype):
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


def test_random_triangles_are_the_same_on_every_backend(native, soup):
    clip, faces = soup(views=2, device=native)
    colours = torch.rand(2, clip.shape[1], 4, generator=torch.Generator().manual_seed(0)).to(clip)
    ours = render(clip, faces, colours, 24, 31)
    with extension.scope("torch"):
        reference = render(clip, faces, colours, 24, 31)
    for got, want in zip(ours, reference, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7 * float(want.abs().max()))


def test_one_and_two_threads_give_the_same_bits(torus, camera):
    vertices, faces = torus(around=40, across=20, dtype=torch.float32)
    clip = torch.cat([camera(vertices), camera(vertices, tilt=1.0)])
    colours = torch.rand(1, len(vertices), 3)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(render(clip, faces, colours, 90, 110))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_float32_sees_what_float64_sees_of_the_same_numbers(device, torus, camera):
    vertices, faces = torus(dtype=torch.float32, device=device)
    clip = camera(vertices)
    single, double = (rasterizer.rasterize(c, faces, 50, 60) for c in (clip, clip.double()))
    assert torch.equal(single.triangle, double.triangle)
    torch.testing.assert_close(single.bary.double(), double.bary, rtol=0, atol=1e-7)


def test_autocast_leaves_positions_alone_and_promotes_colours(device, torus, camera):
    vertices, faces = torus(dtype=torch.float32, device=device)
    clip, colours = camera(vertices), torch.rand(1, len(vertices), 3, device=device)
    plain = rasterizer.rasterize(clip, faces, 20, 20)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        raster = rasterizer.rasterize(clip, faces, 20, 20)
        image = rasterizer.interpolate(colours.bfloat16(), raster, faces)
        image = rasterizer.antialias(image.bfloat16(), raster, clip, faces)
        with pytest.raises(TypeError, match="outside autocast"):
            rasterizer.rasterize(clip.bfloat16(), faces, 20, 20)
    assert torch.equal(raster.bary, plain.bary) and image.dtype == torch.float32


def good():
    """Arguments that are accepted."""
    clip = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, 0, 1], [0, 1, 0, 1]]])
    return clip, torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda c, f: (c[0], f, 4, 4), ValueError, r"expected clip \[B, V, 4\], got \[3, 4\]"),
        (lambda c, f: (c[..., :3], f, 4, 4), ValueError, r"expected clip \[B, V, 4\]"),
        (lambda c, f: (c.half(), f, 4, 4), TypeError, "float32 or float64, got torch.float16"),
        (lambda c, f: (c.tolist(), f, 4, 4), TypeError, "expected clip to be a tensor, got list"),
        (lambda c, f: (c, f.float(), 4, 4), TypeError, "expected faces in torch.int32 or torch.int64"),
        (lambda c, f: (c, f[0], 4, 4), ValueError, r"expected faces \[T, 3\], got \[3\]"),
        (lambda c, f: (c, f + 1, 4, 4), ValueError, r"lie in \[0, V\) with V = 3, got values from 1 to 3"),
        (lambda c, f: (c, f - 1, 4, 4), ValueError, "got values from -1 to 1"),
        (lambda c, f: (c, f, 0, 4), ValueError, "height must be a whole number from 1 to 32767, got 0"),
        (lambda c, f: (c, f, 4, 4.0), ValueError, "width must be a whole number"),
        (lambda c, f: (c, f.to("meta"), 4, 4), ValueError, "clip is on cpu but faces is on meta"),
    ],
)
def test_rasterize_refuses_with_a_sentence(change, error, words):
    with pytest.raises(error, match="rasterize: .*" + words):
        rasterizer.rasterize(*change(*good()))


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda a: a[0], ValueError, r"expected attributes \[B or 1, V, C\]"),
        (lambda a: a.double(), TypeError, "raster.bary is torch.float32 but attributes is torch.float64"),
        (lambda a: a.half(), TypeError, "float32 or float64"),
        (lambda a: a[:, :2], ValueError, r"faces must lie in \[0, V\) with V = 2"),
        (lambda a: a.expand(2, -1, -1), ValueError, "1 or B = 1 views, got 2"),
    ],
)
def test_interpolate_refuses_with_a_sentence(change, error, words):
    clip, faces = good()
    raster = rasterizer.rasterize(clip, faces, 4, 4)
    with pytest.raises(error, match="interpolate: .*" + words):
        rasterizer.interpolate(change(torch.rand(1, 3, 3)), raster, faces)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda i, e: (i[0], e), ValueError, r"expected image \[B, H, W, C\]"),
        (lambda i, e: (i[:, 1:], e), ValueError, r"expected image \[B, H, W, C\] with B = 1, H = 4, W = 4"),
        (lambda i, e: (i.double(), e), TypeError, "clip is torch.float32 but image is torch.float64"),
        (lambda i, e: (i, e.long()), TypeError, "expected edges in torch.int32, got torch.int64"),
        (lambda i, e: (i, e[:0]), ValueError, r"expected edges \[T, 3\] with T = 1, got \[0, 3\]"),
    ],
)
def test_antialias_refuses_with_a_sentence(change, error, words):
    clip, faces = good()
    raster = rasterizer.rasterize(clip, faces, 4, 4)
    image, edges = change(torch.rand(1, 4, 4, 3), rasterizer.edge_adjacency(faces))
    with pytest.raises(error, match="antialias: .*" + words):
        rasterizer.antialias(image, raster, clip, faces, edges)
