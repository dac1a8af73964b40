"""Rendering without gradients: rays advance a few samples at a time, and finished rays leave the queue.

    queue = RayQueue.start(origins, directions, near, far)
    while len(queue):
        positions, t, dt, ray_index, first, count = march_rays(queue, bitfield, bound, cascades, grid_size, 16)
        composite_rays(queue, alpha, values, t, first, count)
    queue.image, queue.opacity, queue.depth        # all N rays

The samples are those of march_rays_train without noise; the sums are those of composite_rays_train.
Letters: N rays, A rays alive, M samples, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from extension import Arguments, fill, on_torch
from raymarching import checks, native, reference
from raymarching.raymarching import check_composite


@dataclass
class RayQueue:
    """N rays under way: what each has gathered, and which are still alive."""

    origins: Tensor  # [N, 3]
    directions: Tensor  # [N, 3] unit
    near: Tensor  # [N]
    far: Tensor  # [N]
    alive: Tensor  # [A] int64, rays that may still gather something, ascending
    cursor: Tensor  # [N] int64, the step of its lattice at which a ray goes on; -1: it has left the scene
    transmittance: Tensor  # [N] light that is left
    opacity: Tensor  # [N]
    depth: Tensor  # [N] sum of weight * t
    image: Tensor  # [N, C] sum of weight * values

    def __len__(self) -> int:
        return len(self.alive)

    @classmethod
    def start(cls, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, channels: int = 3) -> "RayQueue":
        """All rays at their beginning; those that miss (near >= far) are not alive.

        Args:
            origins, directions: [N, 3] float32 or float64; directions unit.
            near, far: [N] distances, as from ``near_far_from_aabb``.
            channels: C, how many values a sample has, 1 to 16.

        Raises:
            ValueError: also for a ray that is not finite.
        """
        args = Arguments("RayQueue.start")
        origins, directions, near, far = checks.rays(args, origins, directions, near, far)
        finite = (origins.isfinite() & directions.isfinite()).all() & ~(near.isnan() | far.isnan()).any()
        args.require(bool(finite), "rays must be finite, and at least one is not")
        gathered = torch.zeros(2, len(near), dtype=near.dtype, device=near.device)
        return cls(
            origins,
            directions,
            near,
            far,
            alive=(near < far).nonzero()[:, 0],
            cursor=torch.zeros(len(near), dtype=torch.int64, device=near.device),
            transmittance=torch.ones_like(near),
            opacity=gathered[0],
            depth=gathered[1],
            image=near.new_zeros(len(near), channels),
        )


@torch.no_grad()
def march_rays(
    queue: RayQueue,
    bitfield: Tensor,
    bound: float,
    cascades: int,
    grid_size: int,
    num_steps: int,
    dt_gamma: float = 0.0,
    max_steps: int = 1024,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The next samples, at most ``num_steps`` of each ray that is alive, packed in the order of the rays.

    Args:
        queue: is advanced past these samples.
        bitfield, bound, cascades, grid_size, dt_gamma, max_steps: as for ``march_rays_train``.
        num_steps: most samples of a ray in this round.

    Returns:
        positions [M, 3], t [M], dt [M], ray_index [M] int64 (among all N rays), and first [A], count [A] int64.

    Not differentiable. Waits for a GPU, to learn M. Reference: :func:`raymarching.reference.march_dense`.
    """
    args = Arguments("march_rays")
    args.floats("origins", queue.origins, "N", 3)
    bitfield = checks.grid(args, bitfield, bound, cascades, grid_size)
    checks.steps(args, dt_gamma, max_steps)
    args.require(num_steps >= 1, f"num_steps must be at least 1, got {num_steps}")
    if on_torch(queue.origins):
        return _march_reference(queue, bitfield, bound, cascades, grid_size, num_steps, dt_gamma, max_steps)
    scene = native.scene(bitfield, bound, cascades, grid_size, dt_gamma, max_steps)
    params = fill(
        native.MarchParams, origins=queue.origins, directions=queue.directions, near=queue.near, far=queue.far,
        alive=queue.alive, cursor=queue.cursor, num_rays=len(queue), limit=num_steps, **scene,
    )  # fmt: skip
    count, runs = native.count_samples(params, len(queue), queue.origins)
    first = count.cumsum(0) - count
    return (*native.write_samples(params, first, count, runs, int(count.sum()), queue.origins), first, count)


def _march_reference(
    queue: RayQueue, bitfield: Tensor, bound: float, cascades: int, grid_size: int, num_steps: int, *stepping: float
) -> tuple[Tensor, ...]:
    """march_rays on the torch rung."""
    alive = queue.alive
    rays = tuple(x[alive] for x in (queue.origins, queue.directions, queue.near, queue.far))
    t, dt, local, count, step, ended = reference.march_dense(
        *rays, bitfield, bound, cascades, grid_size, None, *stepping, queue.cursor[alive], num_steps
    )
    first = count.cumsum(0) - count
    last = torch.where(count > 0, first + count - 1, 0)
    after = step[last] + 1 if len(step) else torch.zeros_like(count)
    queue.cursor[alive] = torch.where(ended, -1, after)
    ray_index = alive[local]
    positions = queue.origins[ray_index] + t[:, None] * queue.directions[ray_index]
    return positions, t, dt, ray_index, first, count


@torch.no_grad()
def composite_rays(
    queue: RayQueue,
    alpha: Tensor,
    values: Tensor,
    t: Tensor,
    first: Tensor,
    count: Tensor,
    min_transmittance: float = 1e-4,
) -> None:
    """Blend a round of samples into the queue and let finished rays leave it.

    A ray is finished when it has left the scene, or when less light than ``min_transmittance`` is left of it.

    Args:
        queue: its transmittance, opacity, depth, image and alive are updated.
        alpha: [M] opacity of each sample, in [0, 1]. NaN makes its ray NaN.
        values: [M, C] as many channels as the queue has.
        t, first, count: as :func:`march_rays` returned them.
        min_transmittance: as for ``composite_rays_train``.

    Not differentiable.
    """
    args = Arguments("composite_rays")
    args.floats("the queue's image", queue.image, "N", "C")
    alpha, values = args.floats("alpha", alpha, "M"), args.floats("values", values, "M", "C")
    t = args.floats("t", t, "M")
    first, count = (args.integers(n, x, torch.int64, "A") for n, x in (("first", first), ("count", count)))
    args.require(len(first) == len(queue), f"expected first [A] with A = {len(queue)} rays alive, got [{len(first)}]")
    check_composite(args, values, t, first, count, min_transmittance)
    if on_torch(alpha):
        _composite_reference(queue, alpha, values, t, first, count, min_transmittance)
    else:
        params = fill(
            native.CompositeParams, alpha=alpha, values=values, t=t, first=first, count=count, opacity=queue.opacity,
            depth=queue.depth, image=queue.image, alive=queue.alive, transmittance=queue.transmittance,
            num_rays=len(queue), channels=values.shape[1], min_transmittance=min_transmittance,
        )  # fmt: skip
        native.run("composite_accumulate", params, alpha)
    going_on = (queue.cursor[queue.alive] >= 0) & (queue.transmittance[queue.alive] >= min_transmittance)
    queue.alive = queue.alive[going_on]


def _composite_reference(queue: RayQueue, *arguments: Tensor | float) -> None:
    """composite_rays on the torch rung."""
    alive = queue.alive
    _, opacity, depth, image, left = reference.blend(*arguments, queue.transmittance[alive])
    queue.opacity[alive] += opacity
    queue.depth[alive] += depth
    queue.image[alive] += image
    queue.transmittance[alive] = left
