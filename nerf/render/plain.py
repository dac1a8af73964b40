"""The plain path: evenly spaced samples, then more where they met something. Torch only, every step written out.

N rays, of which n hit the box; S samples a ray, M = n * S.
"""

from dataclasses import fields

import torch
from torch import Tensor

from nerf.core.streams import Stream
from nerf.core.structs import FieldOutput, Rays, RenderSettings, Samples
from nerf.fields.base import Field
from nerf.render.base import RenderPath, Trace, box, points_at, sample_values
from raymarching import near_far_from_aabb

# Every interval keeps this much of a chance of a fine sample, so that a thin part the coarse ones missed can be found.
PDF_FLOOR = 1e-5


class PlainPath(RenderPath):
    """Stratified and importance sampling (NeRF, sec. 5.2), with one network and one evaluation of each sample.

    Args:
        num_steps: evenly spaced samples on every ray that hits the box.
        upsample_steps: further samples, drawn by the weights of the first; 0 for none.
        min_near: no sample is nearer to the camera than this, scene units.
    """

    def __init__(self, num_steps: int, upsample_steps: int, min_near: float):
        super().__init__()
        self.num_steps, self.upsample_steps, self.min_near = num_steps, upsample_steps, min_near

    def trace(self, field: Field, rays: Rays, settings: RenderSettings) -> Trace:
        """See :meth:`RenderPath.trace`."""
        near, far = near_far_from_aabb(rays.origins, rays.directions, box(field.bound, rays.origins), self.min_near)
        hit = torch.nonzero(far > near)[:, 0]
        span = torch.stack([near[hit], far[hit]], dim=-1)
        t = stratified(span, self.num_steps, self._random(settings, Stream.COARSE_SAMPLES, len(hit), self.num_steps, span))
        samples = self._samples(rays, hit, t, span)
        output = field.query(points_at(samples, rays, settings), settings)
        if self.upsample_steps > 0:
            alpha = field.to_alpha(output, samples.dt).detach().view_as(t)
            random = self._random(settings, Stream.FINE_SAMPLES, len(hit), self.upsample_steps, span)
            fine = importance(borders(t, span), transmitted(alpha)[0], random)
            extra = field.query(points_at(self._samples(rays, hit, fine, span), rays, settings), settings)
            t, order = torch.cat([t, fine], dim=-1).sort(dim=-1)
            samples, output = self._samples(rays, hit, t, span), merged(output, extra, order)
        return self._composite(field, rays, settings, hit, samples, output)

    def _random(self, settings: RenderSettings, stream: int, n: int, s: int, like: Tensor) -> Tensor:
        """Where in its stratum each sample lies, [n, s] in [0, 1): random in training, the middle otherwise."""
        if not settings.training:
            return torch.full((n, s), 0.5, device=like.device, dtype=like.dtype)
        return torch.rand(n, s, generator=settings.random.generator(stream, like.device), device=like.device, dtype=like.dtype)

    def _samples(self, rays: Rays, hit: Tensor, t: Tensor, span: Tensor) -> Samples:
        """Packed samples at distances t [n, S] of the rays that hit the box."""
        ray_index = hit.repeat_interleave(t.shape[1])
        flat = t.reshape(-1)
        positions = rays.origins[ray_index] + flat[:, None] * rays.directions[ray_index]
        count = torch.zeros(len(rays), dtype=torch.int64, device=t.device)
        count[hit] = t.shape[1]
        dt = borders(t, span).diff(dim=-1).reshape(-1)
        return Samples(positions, flat, dt, ray_index, count.cumsum(0) - count, count)

    def _composite(
        self, field: Field, rays: Rays, settings: RenderSettings, hit: Tensor, samples: Samples, output: FieldOutput
    ) -> Trace:
        n, s = len(hit), samples.t.numel() // max(len(hit), 1)
        weights, opacity = transmitted(field.to_alpha(output, samples.dt).view(n, s))
        values = sample_values(output, rays, settings, samples.ray_index)
        with torch.autocast(weights.device.type, enabled=False):  # colours are summed in float32 on every path
            summed = torch.einsum("ns,nsc->nc", weights, values.view(n, s, values.shape[-1]))
        depth = (weights * samples.t.view(n, s)).sum(-1)
        sums = torch.cat([opacity[:, None], depth[:, None], summed], dim=-1)
        everywhere = sums.new_zeros(len(rays), sums.shape[-1]).index_copy(0, hit, sums)
        normal = everywhere[:, 5:8] if output.normal is not None else None
        kept = (samples, weights.reshape(-1), output) if settings.training else (None, None, None)
        return Trace(everywhere[:, 2:5], everywhere[:, 0], everywhere[:, 1], normal, *kept)


def stratified(span: Tensor, s: int, random: Tensor) -> Tensor:
    """One sample in each of s equal parts of the spans [n, 2], at the fraction ``random`` [n, s] of its part."""
    at = (torch.arange(s, device=span.device, dtype=span.dtype) + random) / s
    return span[:, :1] + (span[:, 1:] - span[:, :1]) * at


def borders(t: Tensor, span: Tensor) -> Tensor:
    """Ends of the steps around samples t [n, S]: half-way between neighbours, and the span's own ends. [n, S + 1]."""
    return torch.cat([span[:, :1], 0.5 * (t[:, 1:] + t[:, :-1]), span[:, 1:]], dim=-1)


def transmitted(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [n, S] ``alpha_i prod_{j<i} (1 - alpha_j)`` of steps [n, S], and their sum [n] (NeRF, eq. 3).

    Differentiable, also where a step is opaque.
    """
    clear = torch.cat([torch.ones_like(alpha[:, :1]), (1.0 - alpha[:, :-1]).clamp(min=1e-10)], dim=-1).cumprod(-1)
    weights = alpha * clear
    return weights, weights.sum(-1)


def importance(edges: Tensor, weights: Tensor, random: Tensor) -> Tensor:
    """Distances drawn in proportion to weights, by inverting their piecewise linear distribution.

    Args:
        edges: [n, S + 1] ends of the steps.
        weights: [n, S] non-negative.
        random: [n, K] place of each draw in its stratum, in [0, 1).

    Returns:
        [n, K] ascending, within the edges. Not differentiable.
    """
    k = random.shape[1]
    pdf = weights + PDF_FLOOR
    cdf = torch.nn.functional.pad((pdf / pdf.sum(-1, keepdim=True)).cumsum(-1), (1, 0)).clamp(max=1.0)
    u = (torch.arange(k, device=random.device, dtype=random.dtype) + random) / k
    above = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, weights.shape[1])
    low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
    start, end = edges.gather(1, above - 1), edges.gather(1, above)
    return start + (end - start) * ((u - low) / (high - low).clamp(min=1e-12)).clamp(0.0, 1.0)


def merged(coarse: FieldOutput, fine: FieldOutput, order: Tensor) -> FieldOutput:
    """What the field said at both sets of samples, in the order [n, S + K] of their distance along the ray."""
    n, s = order.shape
    rows = torch.arange(n, device=order.device)[:, None]
    k = s if n == 0 else len(coarse.density) // n

    def merge(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return None
        both = torch.cat([a.reshape(n, k, *a.shape[1:]), b.reshape(n, s - k, *b.shape[1:])], dim=1)
        return both[rows, order].flatten(0, 1)

    return FieldOutput(*(merge(getattr(coarse, f.name), getattr(fine, f.name)) for f in fields(FieldOutput)))
