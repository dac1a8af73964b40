"""The protocol of half images: what the light may be read from, what is measured, the leak, and the table."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.core.cameras import centred_views, look_at, view_rays
from nerf.core.structs import Batch, RenderSettings
from nerf.run import half_images
from nerf.run.half_images import Judge, eight_bits, measure, table
from nerf.run.lights import of_part
from tests.nerf import wild

HEIGHT, WIDTH = 16, 25  # odd: the right half is the larger one


def batch(rgb):
    """A view whose pixels are ``rgb`` [H, W, 3]."""
    position = torch.tensor([[0.0, 0.0, 2.0]])
    views = centred_views(look_at(position, torch.zeros(3)), torch.tensor([50.0]), *rgb.shape[:2])
    return Batch(view_rays(views), views, rgb.reshape(-1, 3))


@pytest.fixture
def halves():
    """A photograph that is dark on the left and bright on the right."""
    rgb = torch.full((HEIGHT, WIDTH, 3), 0.2)
    rgb[:, WIDTH // 2 :] = 0.8
    return batch(rgb)


def mean_judge(photograph, valid=None, perceptual=None):
    """Its light is the mean colour of what may be seen, and all it renders is that colour."""
    return Judge(
        lambda i: (photograph, valid),
        lambda one, seen, valid: one.rgb[seen].mean(0),
        lambda one, vector: vector.expand(len(one.rgb), 3),
        perceptual,
    )


def test_the_left_half_alone_is_fair_and_the_whole_leaks(halves, tmp_path):
    found = measure(mean_judge(halves), [0], tmp_path / "x")
    left = 0.2
    whole = (12 * 0.2 + 13 * 0.8) / 25
    assert found["left"]["right"]["psnr"] == pytest.approx(-20 * math.log10(0.8 - left), abs=0.1)
    assert found["whole"]["right"]["psnr"] == pytest.approx(-20 * math.log10(0.8 - whole), abs=0.1)
    assert found["leak"] == pytest.approx(found["whole"]["right"]["psnr"] - found["left"]["right"]["psnr"])
    assert found["leak"] > 5
    assert found["left"]["right"]["lpips"] is None


def test_the_left_half_of_the_light_does_not_depend_on_the_right_half_of_the_photograph(halves, tmp_path):
    seen = []
    judge = mean_judge(halves)
    other = batch(torch.cat([halves.rgb.reshape(HEIGHT, WIDTH, 3)[:, : WIDTH // 2], torch.rand(HEIGHT, 13, 3)], 1))
    for photograph in (halves, other):
        one = Judge(lambda i, p=photograph: (p, None), lambda b, s, v: seen.append(b.rgb[s]) or b.rgb[s].mean(0), judge.render)
        measure(one, [0], tmp_path / "x")
    torch.testing.assert_close(seen[0], seen[2])
    assert len(seen[0]) == HEIGHT * 12 and len(seen[1]) == HEIGHT * WIDTH


@pytest.mark.parametrize("kind", ["encoder", "embedding"])
def test_the_light_of_a_part_is_that_of_its_pixels_and_of_no_others(kind):
    model = wild.model(appearance=kind)[0]
    rgb = torch.rand(HEIGHT, WIDTH, 3)
    seen = (torch.arange(WIDTH) < WIDTH // 2).expand(HEIGHT, -1).reshape(-1)
    vectors = []
    for right in (0.0, 1.0):
        one = batch(torch.where(seen.reshape(HEIGHT, WIDTH, 1), rgb, torch.full_like(rgb, right)))
        settings = RenderSettings(training=False, view_dependent=True)
        vectors.append(of_part(model, one, seen, None, settings))
    torch.testing.assert_close(*vectors)
    whole = of_part(model, one, torch.ones_like(seen), None, settings)
    assert not torch.allclose(whole, vectors[1])


def test_a_fitted_light_is_not_read_from_masked_pixels():
    model, settings = wild.model(appearance="embedding")[0], RenderSettings(training=False, view_dependent=True)
    seen, valid = (torch.rand(HEIGHT * WIDTH, generator=torch.Generator().manual_seed(k)) < 0.5 for k in (0, 1))
    rgb = torch.rand(HEIGHT, WIDTH, 3)
    spoilt = torch.where(valid.reshape(HEIGHT, WIDTH, 1), rgb, 1 - rgb)
    vectors = [of_part(model, batch(one), seen, valid, settings) for one in (rgb, spoilt)]
    torch.testing.assert_close(*vectors)
    assert torch.equal(of_part(model, batch(rgb), seen, torch.zeros_like(valid), settings), model.appearance.first_guess())


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_photograph_a_few_pixels_wide_is_measured(width, tmp_path):
    found = measure(mean_judge(batch(torch.rand(HEIGHT, width, 3))), [0], tmp_path / "x")
    assert all(math.isfinite(found[light]["right"]["ssim3"]) for light in half_images.LIGHTS)


def test_renders_are_judged_in_eight_bits():
    values = torch.tensor([-0.1, 0.0, 0.5 / 255, 0.6 / 255, 1.2])
    torch.testing.assert_close(eight_bits(values) * 255, torch.tensor([0.0, 0.0, 0.0, 1.0, 255.0]))


def test_masked_pixels_do_not_count(halves, tmp_path):
    valid = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    valid[:, WIDTH // 2 :] = False
    valid[:, -1] = True
    rgb = halves.rgb.reshape(HEIGHT, WIDTH, 3).clone()
    rgb[:, -1] = 0.2
    found = measure(mean_judge(batch(rgb), valid.reshape(-1)), [0], tmp_path / "x")
    assert found["left"]["right"]["psnr"] is None and found["leak"] is None, "equal where it counts: infinite, so no mean"
    judge = Judge(lambda i: (halves, valid.reshape(-1)), lambda b, s, v: b.rgb[s].mean(0), lambda b, v: 0 * b.rgb + 0.3)
    found = measure(judge, [0], tmp_path / "x")
    assert found["left"]["whole"]["psnr"] == pytest.approx(-10 * math.log10((12 * 0.1**2 + 0.5**2) / 13), abs=0.05)


def test_pictures_and_table(halves, tmp_path):
    found = measure(mean_judge(halves, perceptual=lambda a, b: (a - b).abs().mean()), [3, 4], tmp_path / "deep" / "x")
    picture = np.asarray(Image.open(tmp_path / "deep" / "x_0003.png"))
    assert picture.shape == (HEIGHT, 3 * WIDTH, 3) and (tmp_path / "deep" / "x_0004.png").is_file()
    lines = table(found)
    assert lines[0].split() == ["light", "from", "measured", "on", "PSNR", "SSIM", "11x11", "SSIM", "3x3", "LPIPS"]
    assert lines[1].startswith("left half") and "right halves" in lines[1] and lines[-1].endswith("dB on right halves")
    assert f"{found['leak']:.2f} dB" in lines[-1]
    assert set(found) == {*half_images.LIGHTS, "leak"}
