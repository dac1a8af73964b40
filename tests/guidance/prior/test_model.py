"""The diffusers folder of the prior: words, noise levels, there and back, and missing parts."""

from dataclasses import replace

import pytest
import torch

from guidance.prior import GRID_SIZE, IMAGE_CHANNELS, detail
from guidance.prior.camera import CONDITION_DIM, RAY_CHANNELS
from guidance.prior.captions import vocabulary
from guidance.prior.model import build, load, save, shifted_cosine_betas
from nerf.core.errors import UserError


@pytest.fixture(scope="module")
def prior():
    return build(tiny=True)


def inputs(count=2):
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, IMAGE_CHANNELS, GRID_SIZE, GRID_SIZE, generator=g),
        torch.full((count,), 500),
        torch.randn(count, CONDITION_DIM, generator=g),
        torch.randn(count, RAY_CHANNELS, GRID_SIZE, GRID_SIZE, generator=g),
    )


def test_every_known_word_is_one_token(prior):
    for word in vocabulary():
        assert len(prior.tokenizer(word)["input_ids"]) == 3, word


def test_the_prediction_has_the_shape_of_the_packed_image(prior):
    noisy, t, camera, ray = inputs()
    x0 = prior.predict(noisy, t, prior.encode_text(["a red car", ""]), camera, ray)
    assert x0.shape == noisy.shape


def test_camera_and_ray_map_each_change_the_prediction(prior):
    noisy, t, camera, ray = inputs()
    text = prior.encode_text(["a red car", "a mug"])
    x0 = prior.predict(noisy, t, text, camera, ray)
    assert not torch.equal(x0, prior.predict(noisy, t, text, camera * 0, ray))
    assert not torch.equal(x0, prior.predict(noisy, t, text, camera, ray * 0))


def test_noise_grows_from_almost_none_to_almost_all():
    level = torch.cumprod(1 - torch.tensor(shifted_cosine_betas(), dtype=torch.float64), 0)
    assert (level.diff() < 0).all()
    assert level[0] > 0.999 and level[-1] < 1e-4


def test_the_schedule_is_the_cosine_with_its_signal_to_noise_ratio_divided_by_four():
    """2 log(64 / 32) = log 4; the offset 0.008 of the cosine is in both."""
    level = torch.cumprod(1 - torch.tensor(shifted_cosine_betas(), dtype=torch.float64), 0)
    plain = torch.cumprod(1 - torch.tensor(shifted_cosine_betas(size=32), dtype=torch.float64), 0)
    ratio = (plain / (1 - plain) / (level / (1 - level)))[100:900]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.0), rtol=1e-3, atol=0)


def test_a_saved_prior_loads_as_the_same_prior(prior, tmp_path):
    save(prior, tmp_path, {"seed": 0}, half=False)
    again = load(tmp_path)
    noisy, t, camera, ray = inputs()
    with torch.no_grad():
        a, b = (p.predict(noisy, t, p.encode_text(["a red car", "a mug"]), camera, ray) for p in (prior, again))
    torch.testing.assert_close(a, b)
    assert (tmp_path / "recipe.json").is_file() and again.scheduler.config.prediction_type == "sample"


def test_a_detail_network_is_saved_with_the_prior_and_refines_its_prediction(prior, tmp_path):
    fine = detail.build(tiny=True)
    torch.nn.init.normal_(fine.conv_out.weight, std=0.1)
    save(replace(prior, detail=fine), tmp_path, half=False)
    noisy, t, camera, ray = inputs()
    text = prior.encode_text(["a red car", "a mug"])
    with torch.no_grad():
        x0 = prior.predict(noisy, t, text, camera, ray)
        expected = detail.refine(fine, noisy, x0, t, text, camera)
        torch.testing.assert_close(load(tmp_path).predict(noisy, t, text, camera, ray), expected)
    assert (expected - x0).abs().max() > 1e-3


def test_no_written_file_names_the_folder_that_was_read(prior, tmp_path):
    save(replace(prior, detail=detail.build(tiny=True)), tmp_path / "first")
    save(load(tmp_path / "first"), tmp_path / "second")
    for name in ("unet", "detail", "text_encoder"):
        assert str(tmp_path) not in (tmp_path / "second" / name / "config.json").read_text()


def test_a_missing_tokenizer_is_named_and_not_created(prior, tmp_path):
    save(prior, tmp_path)
    (tmp_path / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(UserError, match="vocab.json, which is missing"):
        load(tmp_path)
