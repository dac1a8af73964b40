"""Backends, meshes and a camera for the tests of the rasteriser."""

import math

import pytest
import torch

import extension

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def needs_a_compiler(device):
    """Skip where the native kernels of a device cannot be built."""
    try:
        extension.load_library("rasterizer", device)
    except extension.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(params=DEVICES)
def native(request):
    """Each native backend in turn; its name is also the device's."""
    needs_a_compiler(request.param)
    with extension.scope(request.param):
        yield request.param


@pytest.fixture(params=[*DEVICES, "torch"])
def device(request):
    """The device of each backend in turn, with that backend requested."""
    if request.param == "torch":
        with extension.scope("torch"):
            yield "cpu"
        return
    needs_a_compiler(request.param)
    with extension.scope(request.param):
        yield request.param


@pytest.fixture
def soup():
    """Makes random triangles: clip [B, V, 4] and faces [T, 3], some of them behind the eye or beyond the planes."""

    def make(triangles=30, views=1, dtype=torch.float64, device="cpu", seed=0, behind=0.2, extent=0.6):
        g = torch.Generator().manual_seed(seed)
        middle = 2 * torch.rand(views, triangles, 1, 3, generator=g, dtype=torch.float64) - 1
        corner = middle + extent * (2 * torch.rand(views, triangles, 3, 3, generator=g, dtype=torch.float64) - 1)
        w = 0.3 + torch.rand(views, triangles, 3, 1, generator=g, dtype=torch.float64)
        w = torch.where(torch.rand(w.shape, generator=g) < behind, -w, w)
        clip = torch.cat([corner * w.abs(), w], -1).flatten(1, 2)
        faces = torch.arange(3 * triangles).view(-1, 3)
        return clip.to(device, dtype), faces.to(device)

    return make


@pytest.fixture
def torus():
    """Makes a torus about the y axis: vertices [V, 3] and faces [T, 3], counter-clockwise seen from outside."""

    def make(around=16, across=8, major=0.7, minor=0.3, dtype=torch.float64, device="cpu"):
        a, b = torch.meshgrid(
            torch.arange(around, dtype=torch.float64) * 2 * math.pi / around,
            torch.arange(across, dtype=torch.float64) * 2 * math.pi / across,
            indexing="ij",
        )
        ring = major + minor * b.cos()
        vertices = torch.stack([ring * a.sin(), minor * b.sin(), ring * a.cos()], -1).reshape(-1, 3)
        i, j = torch.meshgrid(torch.arange(around), torch.arange(across), indexing="ij")
        corner = [((i + di) % around) * across + (j + dj) % across for di, dj in ((0, 0), (1, 0), (1, 1), (0, 1))]
        quads = torch.stack(corner, -1).reshape(-1, 4)
        return vertices.to(device, dtype), torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).to(device)

    return make


@pytest.fixture
def camera():
    """Projects vertices [V, 3] to clip space [1, V, 4], seen along a tilted axis from a distance."""

    def project(vertices, distance=3.0, focal=2.0, tilt=0.6, near=0.5, far=10.0):
        c, s = math.cos(tilt), math.sin(tilt)
        x, y, z = vertices.unbind(-1)
        y, z = c * y - s * z, s * y + c * z - distance
        depth = (far + near) / (near - far) * z + 2 * far * near / (near - far)
        return torch.stack([focal * x, focal * y, depth, -z], -1)[None]

    return project
