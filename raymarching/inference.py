"""Rendering without gradients: rays advance a few samples at a time, and finished rays leave the queue.

    queue = RayQueue.start(origins, directions, near, far)
    while len(queue):
        positions, t, dt, ray_index, first, count = march_rays(queue, bitfield, bound, cascades, grid_size, 16)
        composite_rays(queue, alpha, values, t, first, count)
    queue.image, queue.opacity, queue.depth        # all N rays

The samples are those of march_rays_train without noise; the sums are those of composite_rays_train.
Letters: N rays, A rays alive, M samples, C channels or cascades, H cells along an axis.
"""

import torch
from torch import Tensor

from extension import Arguments, implementation, register
from raymarching import checks, native, reference
from raymarching.ray_queue import RayQueue


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
        bitfield: uint8 [C * H^3 / 8].
        bound, cascades, grid_size, dt_gamma, max_steps: as for ``march_rays_train``.
        num_steps: most samples of a ray in this round.

    Returns:
        positions [M, 3], t [M], dt [M], ray_index [M] int64 (among all N rays), and first [A], count [A] int64.

    Not differentiable. Waits for a GPU, to learn M. Reference: :func:`raymarching.reference.march_rays`.
    """
    args = Arguments("march_rays")
    args.floats("origins", queue.origins, "N", 3)
    bitfield = checks.grid(args, bitfield, bound, cascades, grid_size)
    checks.steps(args, dt_gamma, max_steps)
    args.require(num_steps >= 1, f"num_steps must be at least 1, got {num_steps}")
    run = implementation("raymarching.march_rays", queue.origins)
    samples: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = run(
        queue, bitfield, bound, cascades, grid_size, num_steps, dt_gamma, max_steps
    )
    return samples


@torch.no_grad()
def composite_rays(
    queue: RayQueue,
    alpha: Tensor,
    values: Tensor,
    t: Tensor,
    first: Tensor,
    count: Tensor,
    min_transmittance: float = checks.MIN_TRANSMITTANCE,
) -> None:
    """Composite a round of samples into the queue and remove finished rays from it.

    A ray is finished when it has left the scene, or when its transmittance is below ``min_transmittance`` (early stop).

    Args:
        queue: its transmittance, opacity, depth, image and alive are updated.
        alpha: [M] opacity of each sample, in [0, 1]. NaN makes its ray NaN.
        values: [M, C] as many channels as the queue has.
        t: [M], as :func:`march_rays` returned it.
        first, count: [A], as :func:`march_rays` returned them.
        min_transmittance: as for ``composite_rays_train``.

    Not differentiable. Reference: :func:`raymarching.reference.composite_rays`.
    """
    args = Arguments("composite_rays")
    args.floats("the queue's image", queue.image, "N", "C")
    alpha, values = args.floats("alpha", alpha, "M"), args.floats("values", values, "M", "C")
    t = args.floats("t", t, "M")
    first, count = (args.integers(n, x, torch.int64, "A") for n, x in (("first", first), ("count", count)))
    args.require(len(first) == len(queue), f"expected first [A] with A = {len(queue)} rays alive, got [{len(first)}]")
    checks.compositing(args, values, t, first, count, min_transmittance)
    implementation("raymarching.composite_rays", alpha)(queue, alpha, values, t, first, count, min_transmittance)
    unfinished = (queue.cursor[queue.alive] >= 0) & (queue.transmittance[queue.alive] >= min_transmittance)
    queue.alive = queue.alive[unfinished]


register("raymarching.march_rays", kernels=native.march_rays, torch=reference.march_rays)
register("raymarching.composite_rays", kernels=native.composite_rays, torch=reference.composite_rays)
