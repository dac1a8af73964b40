"""Photographs as a source of training views: what stands behind opaque ones, and that fields become opaque by it."""

from types import SimpleNamespace

import pytest
import torch

from nerf.config.config import parse
from nerf.core.streams import Random
from nerf.core.structs import Part, RenderSettings, ViewRequest
from nerf.provider import PhotographSource, SourceInputs, build_sources
from tests.nerf import photo_folders


def part(layout="rays", seed=1, **request):
    random = Random(seed)
    return Part(ViewRequest("photos", layout=layout, random=random, **request), RenderSettings("photos", random=random))


@pytest.fixture
def opaque(tmp_path):
    return photo_folders.load(photo_folders.write(tmp_path, [photo_folders.pattern(i, 12, 10) for i in range(4)]))


def test_opaque_photographs_are_rendered_over_a_random_colour_per_ray(opaque):
    source = PhotographSource(opaque, fill_behind=True)
    batch = source.batch(part(num_rays=500))
    assert batch.background.shape == (500, 3) and len(batch.background.unique(dim=0)) > 400
    assert 0 <= batch.background.min() < 0.05 and 0.95 < batch.background.max() <= 1
    assert torch.equal(batch.rgb, opaque.batch(part(num_rays=500).request).rgb)  # the photograph itself stays as it is
    again, other = source.batch(part(num_rays=500)), source.batch(part(num_rays=500, seed=2))
    assert torch.equal(batch.background, again.background) and not torch.equal(batch.background, other.background)


def test_whole_opaque_photographs_are_rendered_over_one_random_colour_each(opaque):
    batch = PhotographSource(opaque, fill_behind=True).batch(part("image", num_views=3, height=5, width=6))
    assert batch.background.shape == (3, 3)


def test_a_background_model_shows_behind_opaque_photographs(opaque):
    assert PhotographSource(opaque).batch(part(num_rays=8)).background is None


def test_the_background_of_photographs_with_alpha_is_the_one_they_were_composited_over(tmp_path):
    photos = photo_folders.load(photo_folders.write(tmp_path, [photo_folders.pattern(i, 12, 10, 4) for i in range(4)]))
    request = part(num_rays=64)
    batch = PhotographSource(photos, fill_behind=True).batch(request)
    assert torch.equal(batch.background, photos.batch(request.request).background)


@pytest.mark.parametrize(
    ("flags", "fills"),
    [
        ("--background constant", True),
        ("--background auto --bg_radius=-1", False),  # the box holds the cameras alone, so a contracted scene stands behind it
        ("--background network", False),
        ("--background constant --data_background white", False),
    ],
)
def test_only_where_nothing_stands_behind_and_a_random_colour_is_asked_for(opaque, flags, fills):
    config = parse(["--data", "folder", *flags.split()])
    source = build_sources(SourceInputs(config, "cpu", photographs=opaque))["photos"]
    assert source.fill_behind is fills


def test_a_ray_is_opaque_where_every_colour_behind_it_must_be_hidden():
    """The least mean squared error over random colours is that of an opacity of one, over white any opacity does."""
    target, opacity = torch.tensor([0.9, 0.9, 0.9]), torch.linspace(0, 1, 11)
    behind = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))

    def least_error(behind):
        # The best colour that samples of total weight o can add, o c with c in [0, 1]^3, for each opacity.
        mean = behind.mean(0)
        added = (target - (1 - opacity[:, None]) * mean).clamp(min=0).minimum(opacity[:, None])
        return ((added[:, None] + (1 - opacity[:, None, None]) * behind - target).square()).mean((1, 2))

    assert least_error(behind).argmin() == 10
    assert (least_error(torch.ones(1, 3)) < 1e-12).sum() > 5


def test_sources_are_built_from_the_options_alone(opaque):
    assert build_sources(SourceInputs(SimpleNamespace(), "cpu")) == {}
    assert opaque.background is None
