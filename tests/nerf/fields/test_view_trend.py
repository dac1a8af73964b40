"""What vectors of photographs follow from the direction each looks in."""

import pytest
import torch

from nerf.fields.view_trend import EACH, view_trend
from tests.nerf import wild


def directions(count, seed=0):
    """Unit vectors [count, 3]."""
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


def of_directions(axes):
    """Vectors of three numbers that follow from directions by polynomials of degree 2."""
    x, y, z = axes.unbind(-1)
    return torch.stack((x + y * z, 0.3 * z * z - y, x * x), -1)


def test_vectors_that_follow_from_their_directions_are_all_trend():
    axes = directions(80)
    vectors = of_directions(axes) + 5.0
    torch.testing.assert_close(view_trend(vectors, axes), vectors - vectors.mean(0), atol=1e-5, rtol=0)


def test_vectors_that_do_not_have_a_third_of_the_trend_that_a_fit_finds_by_chance():
    generator, found, n = torch.Generator().manual_seed(1), 0.0, 80
    for seed in range(20):
        vectors = torch.randn(n, 6, generator=generator)
        found += float(view_trend(vectors, directions(n, seed)).square().mean()) / 20
    assert found < 8 / n / 3  # least squares with 8 coefficients explain 8 / n of the variance


def test_lights_keep_what_does_not_follow_from_directions():
    axes = directions(100)
    light = 2.0 * torch.randn(100, 3, generator=torch.Generator().manual_seed(3))
    rest = light + of_directions(axes) - view_trend(light + of_directions(axes), axes)
    trend = of_directions(axes) - of_directions(axes).mean(0)
    assert (rest - light - rest.mean(0) + light.mean(0)).square().mean() < 0.6 * trend.square().mean()


@pytest.mark.parametrize(
    ("axes", "why"),
    [(directions(3 * EACH - 1), "few photographs"), (torch.tensor([[0.0, 0.0, -1.0]]).expand(50, 3), "one direction")],
)
def test_there_is_no_trend_in(axes, why):
    assert not view_trend(torch.randn(len(axes), 4), axes).any(), why


def test_the_shown_light_is_without_the_trend():
    count, axes = 60, directions(60)
    appearance = wild.model(appearance="embedding", count=count)[0].appearance
    with torch.no_grad():
        appearance.embedding.weight[:, :3] = of_directions(axes)
        appearance.embedding.weight[:, 3:] = 0.7
    assert torch.equal(appearance.shown(), appearance.embedding.weight[0]), "directions are not known"
    appearance.axes, appearance._shown = axes, None
    torch.testing.assert_close(appearance.shown(), appearance.embedding.weight.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(appearance.light(7), appearance.shown(), atol=1e-5, rtol=0)
