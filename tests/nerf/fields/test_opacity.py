"""Opacity of steps through a signed distance: what NeuS proves, closed forms and derivatives."""

import math

import pytest
import torch

from nerf.fields.opacity import annealed_slope, light_before, sdf_to_alpha, section_alpha
from nerf.render.plain import weights_from_alpha

D = torch.float64


def phi(x):
    return torch.sigmoid(x)


def test_alpha_is_the_quotient_of_the_paper():
    sdf, dt, s = torch.linspace(-0.4, 0.4, 41, dtype=D), 0.02, 30.0
    before, after = phi(s * (sdf + 0.01 * 0.7)), phi(s * (sdf - 0.01 * 0.7))
    torch.testing.assert_close(sdf_to_alpha(sdf, torch.tensor(-0.7, dtype=D), dt, s), (before - after) / before)


def test_alpha_is_exact_where_the_quotient_underflows():
    alpha = sdf_to_alpha(torch.tensor([-5.0]), -1.0, 0.01, 100.0)  # deep inside log Phi(x) is x
    torch.testing.assert_close(alpha, torch.tensor([-math.expm1(-1.0)]))


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_a_surface_that_faces_away_is_transparent(slope):
    assert (sdf_to_alpha(torch.linspace(-1, 1, 21), torch.tensor(slope), 0.1, 50.0) == 0).all()


@pytest.mark.parametrize("grazing", [0.0, 45.0, 75.0, 85.0])
@pytest.mark.parametrize("sharpness", [20.0, 200.0])
def test_the_weight_of_a_ray_through_a_plane_peaks_at_the_plane(grazing, sharpness):
    cosine = -math.cos(math.radians(grazing))
    length = 60.0 / sharpness / -cosine  # from 30 to -30 widths, whatever the angle
    edges = torch.linspace(0, length, 4001, dtype=D)
    t, dt = 0.5 * (edges[1:] + edges[:-1]), edges.diff()
    sdf = (t - length / 2) * cosine
    weights, opacity = weights_from_alpha(sdf_to_alpha(sdf, torch.tensor(cosine, dtype=D), dt, sharpness)[None])
    assert abs(float(sdf[weights[0].argmax()])) <= float(dt[0])  # within a step: unbiased to first order
    assert float(opacity[0]) == pytest.approx(1.0, abs=1e-9)
    assert float((weights[0] * t).sum()) == pytest.approx(length / 2, rel=1e-6)


@pytest.mark.parametrize("grazing", [0.0, 60.0, 80.0])
def test_a_density_has_no_such_peak(grazing):
    """The naive conversion, a logistic density of the distance, is biased: its weight peaks before the surface."""
    cosine, s = -math.cos(math.radians(grazing)), 20.0
    edges = torch.linspace(0, 3.0 / -cosine, 4001, dtype=D)
    t, dt = 0.5 * (edges[1:] + edges[:-1]), edges.diff()
    sdf = (t - t.mean()) * cosine
    density = s * phi(s * sdf) * (1 - phi(s * sdf))  # the logistic density itself
    weights, _ = weights_from_alpha(-torch.expm1(-10 * density * dt)[None])
    assert float(sdf[weights[0].argmax()]) > 1e-2


@pytest.mark.parametrize("steps", [8, 64, 1000])
def test_the_transmittance_of_a_straight_distance_does_not_depend_on_the_steps(steps):
    edges = torch.linspace(0, 1, steps + 1, dtype=D)
    t, dt = 0.5 * (edges[1:] + edges[:-1]), edges.diff()
    alpha = sdf_to_alpha(0.4 - 0.8 * t, torch.tensor(-0.8, dtype=D), dt, 25.0)
    left = (1 - alpha).prod()
    torch.testing.assert_close(left, phi(torch.tensor(25.0 * -0.4, dtype=D)) / phi(torch.tensor(25.0 * 0.4, dtype=D)))


def test_the_slope_is_annealed_from_half_to_facing():
    cosine = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    torch.testing.assert_close(annealed_slope(cosine, 0.0), torch.tensor([-1.0, -0.75, -0.5, -0.25, 0.0]))
    torch.testing.assert_close(annealed_slope(cosine, 1.0), torch.tensor([-1.0, -0.5, 0.0, 0.0, 0.0]))
    half = 0.5 * (annealed_slope(cosine, 0.0) + annealed_slope(cosine, 1.0))
    torch.testing.assert_close(annealed_slope(cosine, 0.5), half)


def test_sections_behind_a_surface_are_not_sampled():
    t = torch.linspace(0, 2, 21, dtype=D)[None]
    alpha = section_alpha((t - 0.5).abs() - 0.0, t, 64.0)  # falls to the surface at 0.5, rises behind it
    assert float(alpha[0, 4]) > 0.45 and float(alpha[0, 6:].max()) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_the_light_before_a_step_is_no_less_than_what_its_opacities_leave(seed):
    generator = torch.Generator().manual_seed(seed)
    count, s = torch.tensor([40, 0, 25, 60]), 200.0
    ray = torch.repeat_interleave(torch.arange(4), count)
    dt = torch.full((len(ray),), 0.01, dtype=D)
    t = 0.01 * torch.cat([torch.arange(n) for n in count.tolist()]).to(D)
    keep = torch.rand(len(ray), generator=generator) > 0.1  # steps of empty cells are missing
    wave = torch.rand(4, generator=generator, dtype=D)[ray]
    sdf = 0.1 - 0.7 * t + 0.02 * torch.sin(30 * t + 6 * wave)  # slopes of -1.3 to -0.1
    slope = (-0.7 + 0.6 * torch.cos(30 * t + 6 * wave)).clamp(min=-1.0)
    light = light_before(sdf[keep], t[keep], dt[keep], ray[keep], s)
    alpha = sdf_to_alpha(sdf, slope, dt, s)[keep]
    for one in range(4):
        own = ray[keep] == one
        left = torch.log1p(-alpha[own]).cumsum(0)
        true = torch.cat([left.new_zeros(1), left])[:-1] if len(left) else left
        assert (light[own] >= 1.2 * true - 1e-9).all() or (light[own] >= true - 1.0).all()
        assert not len(left) or light[own][0] == 0
    assert light.min() < -5  # and it falls behind the surface


def test_alpha_is_differentiable_twice():
    generator = torch.Generator().manual_seed(0)
    sdf = (0.1 * torch.randn(6, generator=generator, dtype=D)).requires_grad_()
    slope = (-torch.rand(6, generator=generator, dtype=D)).clamp(max=-0.05).requires_grad_()
    sharpness = torch.tensor(20.0, dtype=D, requires_grad=True)

    def alpha(sdf, slope, sharpness):
        return sdf_to_alpha(sdf, slope, 0.03, sharpness)

    assert torch.autograd.gradcheck(alpha, (sdf, slope, sharpness))
    assert torch.autograd.gradgradcheck(alpha, (sdf, slope, sharpness))
