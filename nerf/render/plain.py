"""The plain path: stratified samples, then importance samples where the weights are high. Pure torch.

N rays, of which n hit the box; S samples a ray, M = n * S.
"""

import torch
from torch import Tensor

from nerf.core.streams import Stream
from nerf.core.structs import FieldOutput, Rays, RenderSettings, Samples, Trace, join_records
from nerf.fields.base import Field
from nerf.render.base import RaySums, RenderPath, near_far, points_at, sample_values, split_values

# Added to every weight of the coarse samples, so that fine samples can find a thin part that the coarse ones missed.
PDF_FLOOR = 1e-5


class PlainPath(RenderPath):
    """Stratified and importance sampling (NeRF, sec. 5.2), with one network and one evaluation of each sample.

    Args:
        num_steps: stratified samples on every ray that hits the box.
        upsample_steps: further samples, drawn in proportion to the weights of the first; 0 for none.
        min_near: smallest distance of a sample from the camera, scene units.
    """

    def __init__(self, num_steps: int, upsample_steps: int, min_near: float):
        super().__init__()
        self.num_steps, self.upsample_steps, self.min_near = num_steps, upsample_steps, min_near
        self.samples_per_ray = num_steps + upsample_steps

    def render(self, field: Field, rays: Rays, settings: RenderSettings) -> RaySums:
        """Composite N rays; see :meth:`RenderPath.render`."""
        near, far = near_far(rays, field.bound, settings, self.min_near)
        hit = torch.nonzero(far > near)[:, 0]
        span = torch.stack([near[hit], far[hit]], dim=-1)
        t = stratified(span, self.num_steps, self._random(settings, Stream.COARSE_SAMPLES, len(hit), self.num_steps, span))
        several = field.upsampling_rounds > 1 and self.upsample_steps > 0
        if several:
            t = self._refined(field, rays, hit, t, span, settings)
        samples = self._samples(rays, hit, t, span)
        points = points_at(samples, rays)
        output = field.query(points, settings)
        if self.upsample_steps > 0 and not several:
            alpha = field.opacity(output, points, samples.dt, settings).detach().view_as(t)
            random = self._random(settings, Stream.FINE_SAMPLES, len(hit), self.upsample_steps, span)
            fine = sample_pdf(bin_edges(t, span), weights_from_alpha(alpha)[0], random)
            extra = field.query(points_at(self._samples(rays, hit, fine, span), rays), settings)
            t, order = torch.cat([t, fine], dim=-1).sort(dim=-1)
            samples, output = self._samples(rays, hit, t, span), merged(output, extra, order)
            points = points_at(samples, rays)
        alpha = field.opacity(output, points, samples.dt, settings)
        return self._composite(alpha, rays, settings, hit, samples, output)

    @torch.no_grad()
    def _refined(self, field: Field, rays: Rays, hit: Tensor, t: Tensor, span: Tensor, settings: RenderSettings) -> Tensor:
        """Samples t [n, S] and fine ones between them, drawn in rounds by :meth:`Field.section_opacity` (NeuS): [n, S + K]."""
        values = field.section_value(points_at(self._samples(rays, hit, t, span), rays), settings).view_as(t)
        rounds, fine = field.upsampling_rounds, torch.empty(0)
        random = self._random(settings, Stream.FINE_SAMPLES, len(hit), self.upsample_steps, span)
        for number, draws in enumerate(random.tensor_split(rounds, dim=1)):
            if number > 0:
                more = field.section_value(points_at(self._samples(rays, hit, fine, span), rays), settings).view_as(fine)
                t, order = torch.cat([t, fine], dim=-1).sort(dim=-1)
                values = torch.cat([values, more], dim=-1).gather(1, order)
            alpha = field.section_opacity(values, t, number)
            fine = sample_pdf(t, weights_from_alpha(alpha)[0], draws)
        return torch.cat([t, fine], dim=-1).sort(dim=-1).values

    def _random(self, settings: RenderSettings, stream: Stream, n: int, s: int, like: Tensor) -> Tensor:
        """Position of each sample in its stratum, [n, s] in [0, 1): random in training, the middle otherwise."""
        if not settings.training:
            return torch.full((n, s), 0.5, device=like.device, dtype=like.dtype)
        return torch.rand(n, s, generator=settings.random.generator(stream, like.device), device=like.device, dtype=like.dtype)

    def _samples(self, rays: Rays, hit: Tensor, t: Tensor, span: Tensor) -> Samples:
        """Packed samples at distances t [n, S] on the rays ``hit`` [n] that hit the box in ``span`` [n, 2]."""
        ray_index = hit.repeat_interleave(t.shape[1])
        flat = t.reshape(-1)
        positions = rays.origins[ray_index] + flat[:, None] * rays.directions[ray_index]
        count = torch.zeros(len(rays), dtype=torch.int64, device=t.device)
        count[hit] = t.shape[1]
        dt = bin_edges(t, span).diff(dim=-1).reshape(-1)
        return Samples(positions, flat, dt, ray_index, count.cumsum(0) - count, count)

    def _composite(
        self, alpha: Tensor, rays: Rays, settings: RenderSettings, hit: Tensor, samples: Samples, output: FieldOutput
    ) -> RaySums:
        """Sums along N rays of samples with opacities ``alpha`` [M]; zeros for rays that miss the box."""
        n, s = len(hit), samples.t.numel() // max(len(hit), 1)
        weights, opacity = weights_from_alpha(alpha.view(n, s))
        values = sample_values(output, rays, settings, samples.ray_index)
        with torch.autocast(weights.device.type, enabled=False):  # colours are summed in float32 on every path
            summed = torch.einsum("ns,nsc->nc", weights, values.view(n, s, values.shape[-1]))
        depth = (weights * samples.t.view(n, s)).sum(-1)
        sums = torch.cat([opacity[:, None], depth[:, None], summed], dim=-1)
        everywhere = sums.new_zeros(len(rays), sums.shape[-1]).index_copy(0, hit, sums)
        color, normal, extras = split_values(everywhere[:, 2:], output)
        trace = Trace(samples=samples, weights=weights.reshape(-1), field=output) if settings.training else None
        return RaySums(color=color, opacity=everywhere[:, 0], depth=everywhere[:, 1], normal=normal, extras=extras, trace=trace)


def stratified(span: Tensor, s: int, random: Tensor) -> Tensor:
    """One sample in each of s equal strata of the spans [n, 2], at the fraction ``random`` [n, s] of its stratum: [n, s]."""
    at = (torch.arange(s, device=span.device, dtype=span.dtype) + random) / s
    return span[:, :1] + (span[:, 1:] - span[:, :1]) * at


def bin_edges(t: Tensor, span: Tensor) -> Tensor:
    """Edges [n, S + 1] of the steps around samples t [n, S]: midpoints between neighbours, and the ends of the span [n, 2]."""
    return torch.cat([span[:, :1], 0.5 * (t[:, 1:] + t[:, :-1]), span[:, 1:]], dim=-1)


def weights_from_alpha(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Compositing weights ``alpha_i prod_{j<i} (1 - alpha_j)`` (NeRF, eq. 3).

    Args:
        alpha: [n, S] opacity of the steps of each ray, front to back.

    Returns:
        The weights [n, S] and their sum [n]. Differentiable, also where a step is opaque.
    """
    transmittance = torch.cat([torch.ones_like(alpha[:, :1]), (1.0 - alpha[:, :-1]).clamp(min=1e-10)], dim=-1).cumprod(-1)
    weights = alpha * transmittance
    return weights, weights.sum(-1)


def sample_pdf(edges: Tensor, weights: Tensor, random: Tensor) -> Tensor:
    """Draw distances in proportion to weights by inverting the piecewise linear CDF (NeRF, sec. 5.2).

    Args:
        edges: [n, S + 1] edges of the steps.
        weights: [n, S] non-negative.
        random: [n, K] position of each draw in its stratum of the CDF, in [0, 1).

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
    """Field outputs at coarse and fine samples, sorted by distance along each ray.

    Args:
        coarse: at n * S samples.
        fine: at n * K samples.
        order: [n, S + K] indices that sort the samples of a ray, coarse ones first.

    Returns:
        The output at n * (S + K) samples; arrays that one of the two lacks are missing. Differentiable.
    """
    n, total = order.shape
    rows = torch.arange(n, device=order.device)[:, None]
    s = total if n == 0 else len(coarse) // n

    def sort(pair: list[Tensor]) -> Tensor:
        a, b = pair
        both = torch.cat([a.reshape(n, s, *a.shape[1:]), b.reshape(n, total - s, *b.shape[1:])], dim=1)
        return both[rows, order].flatten(0, 1)

    return join_records([coarse, fine], sort)
