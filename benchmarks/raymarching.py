"""March and composite, forward and backward, against vectorised plain-torch marches: python -m benchmarks.raymarching

The torch contenders are the strongest we know of: ``dense`` tests every step of every ray at once against a plain
boolean grid (no Morton codes); ``two levels`` first tests groups of 8 steps against a pooled and dilated grid and looks
only into groups that hit; each composites by the faster of a padded product and a packed sum of logarithms. All use the
same samples. The bar is 5 times the dense march with its compositing, the aim 15 times.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import extension
import raymarching
from benchmarks import timing
from nerf.core.ranges import between, power_of_two
from nerf.core.script import Parser, run

GROUP = 8  # steps tested at once by the two-level torch march; must stay shorter than a pooled cell
MIN_TRANSMITTANCE = 1e-4  # early stop of all contenders


def scene(kind: str, grid_size: int, device: str) -> Tensor:
    """A boolean grid [H, H, H]: "shell", the surface of a ball and a bar (some 5 % of the cells), or "fog", a ball."""
    axis = (torch.arange(grid_size, device=device) + 0.5) / grid_size * 2 - 1
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    radius = (x * x + y * y + z * z).sqrt()
    if kind == "fog":
        return radius < 0.7
    return ((radius - 0.55).abs() < 0.04) | ((x.abs() < 0.06) & (z.abs() < 0.06) & (y.abs() < 0.8))


def bits_of(grid: Tensor) -> Tensor:
    """The Morton-ordered bitfield of a boolean grid."""
    cells = torch.arange(grid.numel(), dtype=torch.int32, device=grid.device)
    x, y, z = raymarching.morton3D_invert(cells).long().unbind(-1)
    return raymarching.packbits(grid[x, y, z].float()[None], 0.5)


def image_rays(side: int, device: str) -> tuple[Tensor, Tensor]:
    """side x side rays of a pinhole camera 2.2 from the origin, field of view 50 degrees."""
    axis = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1) * 0.4663
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    directions = F.normalize(torch.stack([x, y, -torch.ones_like(x)], -1).reshape(-1, 3), dim=-1)
    turn = torch.tensor([[0.8, 0.2, 0.5657], [0, 0.9428, -0.3333], [-0.6, 0.2667, 0.7542]], device=device)
    turn = torch.linalg.qr(turn)[0]
    origin = turn @ torch.tensor([0.0, 0.0, 2.2], device=device)
    return origin.expand_as(directions).contiguous(), (directions @ turn.T).contiguous()


def inside(positions: Tensor, grid: Tensor) -> Tensor:
    """Values [...] of a boolean grid over [-1, 1]^3 at positions [..., 3], by linear index."""
    size = grid.shape[0]
    cell = ((positions + 1) * (size / 2)).to(torch.int32).clamp_(0, size - 1)
    return grid.reshape(-1)[(cell[..., 0] * size + cell[..., 1]) * size + cell[..., 2]]


def pack(t: Tensor, ray: Tensor, rays: tuple[Tensor, ...], dt: float) -> tuple[Tensor, ...]:
    """The results of a march, from the samples' distances t [M] and rays [M]."""
    origins, directions = rays[:2]
    positions = origins[ray] + t[:, None] * directions[ray]
    count = torch.bincount(ray, minlength=len(origins))
    return positions, t, torch.full_like(t, dt), ray, count.cumsum(0) - count, count


def march_dense(rays: tuple[Tensor, ...], grid: Tensor, noise: Tensor, dt: float) -> tuple[Tensor, ...]:
    """Every step of every ray at once."""
    origins, directions, near, far = rays
    steps = int(torch.where(near < far, (far - near) / dt, 0.0).amax()) + 2
    t = near[:, None] + (torch.arange(steps, device=near.device) + noise[:, None]) * dt
    keep = inside(origins[:, None] + t[..., None] * directions[:, None], grid) & (t < far[:, None])
    ray, step = keep.nonzero(as_tuple=True)
    return pack(t[ray, step], ray, rays, dt)


def march_two_levels(rays: tuple[Tensor, ...], grid: Tensor, pooled: Tensor, noise: Tensor, dt: float) -> tuple[Tensor, ...]:
    """Groups of steps against a pooled grid first, then the steps of the groups that hit."""
    origins, directions, near, far = rays
    groups = int(torch.where(near < far, (far - near) / (GROUP * dt), 0.0).amax()) + 2
    start = near[:, None] + (torch.arange(groups, device=near.device) * GROUP + noise[:, None]) * dt
    middle = start + 0.5 * (GROUP - 1) * dt
    ray, group = (inside(origins[:, None] + middle[..., None] * directions[:, None], pooled) & (start < far[:, None])).nonzero(
        as_tuple=True
    )
    t = start[ray, group][:, None] + torch.arange(GROUP, device=near.device) * dt
    keep = inside(origins[ray, None] + t[..., None] * directions[ray, None], grid) & (t < far[ray, None])
    row, step = keep.nonzero(as_tuple=True)
    return pack(t[row, step], ray[row], rays, dt)


def dilated(grid: Tensor) -> Tensor:
    """The grid pooled over 4^3 cells and grown by one pooled cell to every side."""
    pooled = F.max_pool3d(grid.float()[None, None], 4)
    return F.max_pool3d(pooled, 3, 1, 1)[0, 0] > 0


def composite_padded(alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    """Composite on a padded [N, K] tensor by a cumulative product."""
    k = torch.arange(int(count.max()), device=alpha.device)
    valid = k < count[:, None]
    padded = torch.zeros(valid.shape, dtype=alpha.dtype, device=alpha.device).masked_scatter(valid, alpha)
    behind = (1 - padded).cumprod(-1)
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], -1)
    weights = (padded * before * (before >= MIN_TRANSMITTANCE))[valid]
    return weights, *gather(weights, values, t, count)


def composite_packed(alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    """Composite packed samples by a cumulative sum of logarithms (in float64, or thousands of rays cancel to noise)."""
    logs = torch.log1p(-alpha.double())
    total = logs.cumsum(0) - logs
    begin = total[first.clamp(max=len(alpha) - 1)]
    before = (total - begin.repeat_interleave(count, output_size=len(alpha))).exp().to(alpha.dtype)
    weights = alpha * before * (before >= MIN_TRANSMITTANCE)
    return weights, *gather(weights, values, t, count)


def gather(weights: Tensor, values: Tensor, t: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of weight, weight * t and weight * values of each ray."""
    ray = torch.repeat_interleave(torch.arange(len(count), device=t.device), count, output_size=len(t))
    what = weights[:, None] * torch.cat([torch.ones_like(t)[:, None], t[:, None], values], -1)
    sums = torch.zeros(len(count), what.shape[1], dtype=t.dtype, device=t.device).index_add(0, ray, what)
    return sums[:, 0], sums[:, 1], sums[:, 2:]


def composite_ours(alpha: Tensor, values: Tensor, t: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    """The kernel."""
    return raymarching.composite_rays_train(alpha, values, t, first, count, MIN_TRANSMITTANCE)


def step(march, composite, leaves: dict[int, tuple[Tensor, Tensor]], device: str):
    """March, composite, and the gradient of all outputs, as one function."""

    def work():
        _, t, _, _, first, count = march()
        if len(t) not in leaves:  # marches may differ by a few samples on cell faces
            g = torch.Generator().manual_seed(0)
            alpha = 0.05 * torch.rand(len(t), generator=g)
            values = torch.rand(len(t), 3, generator=g)
            leaves[len(t)] = (alpha.to(device).requires_grad_(), values.to(device).requires_grad_())
        alpha, values = leaves[len(t)]
        weights, opacity, depth, image = composite(alpha, values, t, first, count)
        loss = weights.square().sum() + opacity.sum() + depth.sum() + image.square().sum()
        return torch.autograd.grad(loss, (alpha, values))

    return work


def compare(kind: str, side: int, arguments: argparse.Namespace) -> dict[str, dict[str, timing.Timing]]:
    """Time one scene: the march, the compositing, and both together."""
    device = arguments.device
    grid = scene(kind, arguments.grid_size, device)
    bits, pooled = bits_of(grid), dilated(grid)
    origins, directions = image_rays(side, device)
    box = torch.tensor([-1.0, -1, -1, 1, 1, 1], device=device)
    rays = (origins, directions, *raymarching.near_far_from_aabb(origins, directions, box))
    noise = torch.rand(side * side, generator=torch.Generator().manual_seed(0)).to(device)
    dt, _ = raymarching.step_sizes(1.0, arguments.max_steps, arguments.grid_size)
    marches = {
        "ours": lambda: raymarching.march_rays_train(*rays, bits, 1.0, 1, arguments.grid_size, noise, 0.0, arguments.max_steps),
        "torch two levels": lambda: march_two_levels(rays, grid, pooled, noise, dt),
        "torch dense": lambda: march_dense(rays, grid, noise, dt),
    }
    if arguments.compile:
        compiled = torch.compile(march_two_levels, dynamic=True)
        marches["torch two levels, compiled"] = lambda: compiled(rays, grid, pooled, noise, dt)
    samples = {name: march() for name, march in marches.items()}
    check(samples)
    share = float(grid.float().mean())
    title = f"{kind}, {side}x{side} rays, {len(samples['ours'][0])} samples, {share:.1%} of cells occupied"
    leaves: dict[int, tuple[Tensor, Tensor]] = {}
    compositors = {"ours": composite_ours, "torch padded": composite_padded, "torch packed": composite_packed}
    composites = {n: step(lambda: samples["ours"], c, leaves, device) for n, c in compositors.items()}
    groups = {f"{title}: march": timing.compare(marches, arguments.rounds, device)}
    groups[f"{title}: composite forward and backward"] = timing.compare(composites, arguments.rounds, device)
    fastest = min((t for n, t in list(groups.values())[1].items() if n != "ours"), key=lambda t: t.median).name
    both = {
        n if n == "ours" else f"{n}, {fastest.removeprefix('torch ')}": step(
            m, compositors["ours" if n == "ours" else fastest], leaves, device
        )
        for n, m in marches.items()
    }
    groups[f"{title}: march and composite, forward and backward"] = timing.compare(both, arguments.rounds, device)
    return groups


def check(samples: dict[str, tuple[Tensor, ...]]) -> None:
    """All marches must take the same samples, except those that rounding puts on the other side of a cell's face."""
    ours = samples["ours"]
    for name, other in samples.items():
        differ = int((other[5] - ours[5]).abs().sum())
        if differ > 1e-3 * len(ours[0]) + 2:
            raise RuntimeError(f"{name} takes {differ} samples more or fewer than ours, of {len(ours[0])}")


def main() -> None:
    """Run all scenes and print tables."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    timing.add_arguments(parser)
    parser.number("--grid_size", int, 128, power_of_two(8, 512), "cells along a side of the occupancy grid")
    parser.number("--max_steps", int, 1024, between(1, 2**16), "samples of a ray at most")
    parser.number("--sides", int, [64, 128], between(1, 8192), "image sides", nargs="+")
    parser.add_argument("--compile", action="store_true", help="also torch.compile the best torch march")
    arguments = parser.parse_args()
    timing.prepare(arguments)
    print(f"backend {extension.backend(arguments.device)}")
    groups = {}
    for kind in ("shell", "fog"):
        for side in arguments.sides:
            found = compare(kind, side, arguments)
            for title, timings in found.items():
                print(timing.table(title, timings, "ours"), flush=True)
            groups |= found
    timing.save(arguments.json, arguments.device, groups)


if __name__ == "__main__":
    sys.exit(run(main))
