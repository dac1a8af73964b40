"""A mesh of 20 000 triangles at 512 x 512, forward and backward: python -m benchmarks.rasterizer

The task: an image of a torus whose vertices have colours, with antialiased silhouettes, and the gradients of a weighted sum of
its pixels with respect to the positions and the colours of the vertices.

Ours is rasterize, interpolate and antialias on float32, with perspective-correct colours; positions are in clip space. Back
faces are culled, as DEODR culls them, except in "ours, both sides". "ours, edges found" also pairs half edges each
time, which a fixed mesh needs once.

DEODR (de La Gorce et al. 2011; PyPI, BSD; float64, one thread) culls back faces, as its gradients demand, interpolates
colours linearly in the image and draws silhouettes over it in the same call; its positions are in pixels, so the projection
is in neither. "DEODR" finds the silhouette edges of the view with its own numpy code, as a user of it must for every view;
"DEODR, edges given" gets them as input and runs nothing but its C++ code. The bar is 1 times, the aim 2 times, DEODR.

On a GPU the contenders are the time that reading and writing every array once takes at the memory's speed, and nvdiffrast
where it is installed.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import rasterizer
from benchmarks import timing
from nerf.core.ranges import between
from nerf.core.script import Parser, run

Work = Callable[[], object]


@dataclass(frozen=True)
class Scene:
    """What all contenders draw."""

    clip: Tensor  # [1, V, 4]
    faces: Tensor  # [T, 3] int32, counter-clockwise from outside
    colours: Tensor  # [1, V, 3]
    weight: Tensor  # [1, H, W, 3] of the pixels in the sum
    size: int

    @staticmethod
    def torus(triangles: int, size: int, device: str) -> "Scene":
        """A tilted torus that covers a little over a third of the image."""
        across = round(math.sqrt(triangles / 4))
        around = triangles // (2 * across)
        a = torch.arange(around, dtype=torch.float64)[:, None] * 2 * math.pi / around
        b = torch.arange(across, dtype=torch.float64)[None] * 2 * math.pi / across
        ring = 0.7 + 0.35 * b.cos()
        x, y, z = (v.flatten() for v in (ring * a.sin(), 0.35 * b.sin() + 0 * a, ring * a.cos()))
        y, z = 0.6 * y - 0.8 * z, 0.8 * y + 0.6 * z - 3.2
        clip = torch.stack([2.8 * x, 2.8 * y, -1.1 * z - 1.05, -z], -1)[None].float()
        i, j = torch.arange(around)[:, None], torch.arange(across)[None]
        corner = [(i + di) % around * across + (j + dj) % across for di, dj in ((0, 0), (1, 0), (1, 1), (0, 1))]
        quads = torch.stack(corner, -1).reshape(-1, 4)
        faces = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).int()
        colours, weight = torch.rand(1, len(x), 3), torch.randn(1, size, size, 3)
        colours = (0.5 + 0.5 * torch.stack([x, y, z + 3.2], -1)[None].float() + 0.1 * colours).clamp(0, 1)
        return Scene(clip.to(device), faces.to(device), colours.to(device), weight.to(device), size)


def ours(
    scene: Scene, keep_edges: bool, cull_back: bool = True
) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]:
    """Forward, and forward with backward."""
    clip, colours = scene.clip.clone().requires_grad_(), scene.colours.clone().requires_grad_()
    kept = rasterizer.edge_adjacency(scene.faces) if keep_edges else None

    def forward() -> Tensor:
        raster = rasterizer.rasterize(clip, scene.faces, scene.size, scene.size, cull_back)
        image = rasterizer.interpolate(colours, raster, scene.faces)
        return rasterizer.antialias(image, raster, clip, scene.faces, kept)

    return forward, lambda: torch.autograd.grad(forward(), (clip, colours), scene.weight)


def deodr(scene: Scene, edges_given: bool) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]:
    """Forward, and forward with backward, of DEODR's C++ renderer through its own thin Python layer."""
    import numpy as np
    from deodr.differentiable_renderer import Scene2D
    from deodr.triangulated_mesh import TriMesh

    size = scene.size
    ndc = (scene.clip[0, :, :3] / scene.clip[0, :, 3:]).double()
    ij = ((torch.stack([ndc[:, 0] + 1, 1 - ndc[:, 1]], -1) * size - 1) / 2).numpy()
    faces = scene.faces.numpy().astype(np.uint32)
    mesh = TriMesh(faces, np.concatenate([ij, np.zeros((len(ij), 1))], 1), clockwise=False)
    count = len(ij)
    drawn = Scene2D(
        faces=faces, faces_uv=faces, ij=ij, depths=scene.clip[0, :, 3].double().numpy(),
        textured=np.zeros(len(faces), dtype=bool), uv=np.zeros((count, 2)), shade=np.zeros(count),
        colors=scene.colours[0].double().numpy(), shaded=np.zeros(len(faces), dtype=bool),
        edgeflags=mesh.edge_on_silhouette(ij), height=size, width=size, nb_colors=3, texture=np.zeros((0, 0)),
        background_color=np.zeros(3), clockwise=False, backface_culling=True,
    )  # fmt: skip
    weight = scene.weight[0].double().numpy()

    def forward() -> Tensor:
        if not edges_given:
            drawn.edgeflags = mesh.edge_on_silhouette(ij)
        return torch.from_numpy(drawn.render(sigma=1)[0])

    def step() -> tuple[Tensor, ...]:
        forward()
        drawn.clear_gradients()
        drawn.render_backward(weight, make_copies=False)
        return torch.from_numpy(drawn.ij_b), torch.from_numpy(drawn.colors_b)

    return forward, step


def nvdiffrast(scene: Scene) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]:
    """Forward, and forward with backward."""
    import nvdiffrast.torch as dr

    context = dr.RasterizeCudaContext(scene.clip.device)
    clip, colours = scene.clip.clone().requires_grad_(), scene.colours.clone().requires_grad_()
    topology = dr.antialias_construct_topology_hash(scene.faces)

    def forward() -> Tensor:
        raster, _ = dr.rasterize(context, clip, scene.faces, (scene.size, scene.size))
        image, _ = dr.interpolate(colours, raster, scene.faces)
        return dr.antialias(image, raster, clip, scene.faces, topology_hash=topology)

    return forward, lambda: torch.autograd.grad(forward(), (clip, colours), scene.weight)


def floor(scene: Scene, backward: bool) -> Work:
    """Copies as many bytes as the arrays that every stage reads and writes hold."""
    pixels = scene.size**2
    raster, image, crossing = 16 * pixels, 12 * pixels, 8 * pixels
    total = 3 * raster + 4 * image + crossing + scene.clip.nbytes + scene.faces.nbytes + scene.colours.nbytes
    total *= 3 if backward else 1
    source = torch.empty(total // 2, dtype=torch.uint8, device=scene.clip.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def contenders(scene: Scene) -> dict[str, tuple[Work, Work]]:
    """Forward, and forward with backward, of each; DEODR's image and gradients are checked against ours."""
    chosen = {"ours": ours(scene, True), "ours, edges found": ours(scene, False), "ours, both sides": ours(scene, True, False)}
    if scene.clip.is_cuda:
        chosen["bandwidth floor"] = (floor(scene, False), floor(scene, True))
        if importlib.util.find_spec("nvdiffrast"):
            chosen["nvdiffrast"] = nvdiffrast(scene)
        return chosen
    if not importlib.util.find_spec("deodr"):
        print("DEODR is not installed: pip install somnia[bench], or deodr")
        return chosen
    chosen |= {"DEODR": deodr(scene, False), "DEODR, edges given": deodr(scene, True)}
    image, theirs = chosen["ours"][0]().detach()[0].double(), chosen["DEODR"][0]()
    covered, difference = float((image.sum(-1) > 0).double().mean()), float((image - theirs).abs().mean())
    print(f"covered {covered:.0%}, mean difference of the images {difference:.5f}")
    grad, grad_theirs = chosen["ours"][1]()[1][0].double().flatten(), chosen["DEODR"][1]()[1].flatten()
    alike = float(torch.dot(grad, grad_theirs) / (grad.norm() * grad_theirs.norm()))
    print(f"cosine between the gradients of the colours {alike:.4f}")
    return chosen


def main() -> None:
    """Run the comparison and print it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.number("--triangles", int, 20_000, between(4, 10**7), "of the mesh")
    parser.number("--size", int, 512, between(1, 8192), "pixels along a side")
    timing.add_arguments(parser)
    arguments = parser.parse_args()
    timing.prepare(arguments)
    torch.manual_seed(0)
    scene = Scene.torus(arguments.triangles, arguments.size, arguments.device)
    both = contenders(scene)
    groups = {}
    for index, kind in enumerate(("forward", "forward and backward")):
        title = f"{len(scene.faces)} triangles, {arguments.size} x {arguments.size}, {kind}"
        works = {name: pair[index] for name, pair in both.items()}
        groups[title] = timing.compare(works, arguments.rounds, arguments.device)
        print(timing.table(title, groups[title], "ours"))
    timing.save(arguments.json, arguments.device, groups)


if __name__ == "__main__":
    sys.exit(run(main))
