"""The embedded prior as guidance, on a tiny random model in the real file layout."""

import logging
import shutil

import pytest
import torch
import torch.nn.functional as F

from guidance.base import Conditions
from guidance.prior import camera, detail, model
from guidance.prior.guidance import EmbeddedPrior, Options
from nerf.config.config import parse
from nerf.core.errors import DivergenceError, UserError
from nerf.core.streams import Stream
from nerf.core.structs import Control
from tests.guidance.models import PROMPT, T_RANGE, gradient, image_of, replace_denoiser, views_at
from tests.guidance.models import embedded_prior as make
from tests.helpers.parts import part_of


@pytest.fixture(scope="module")
def embedded(prior_folder):
    return make(prior_folder)


@pytest.fixture
def plain_folder(prior_folder, tmp_path):
    """The tiny prior without its detail network."""
    folder = shutil.copytree(prior_folder, tmp_path / "plain")
    shutil.rmtree(folder / "detail")
    return folder


def packed(model, image):
    """An image in the space of the denoiser."""
    return F.pixel_unshuffle(2 * image - 1, model.codec.unshuffle)


def test_pixel_gradient_equals_the_weighted_distance_to_the_prediction(embedded):
    part, views, image = part_of("guided", seed=5), views_at(0, 100), image_of(2)
    t = torch.randint(20, 981, (2,), generator=part.random.generator(Stream.DIFFUSION_TIME))
    x = packed(embedded, image)
    noise = torch.randn(x.shape, generator=part.random.generator(Stream.DIFFUSION_NOISE))
    abar = embedded.distiller.schedule.alphas_cumprod[t].reshape(2, 1, 1, 1)
    noisy = abar.sqrt() * x + (1 - abar).sqrt() * noise
    with torch.no_grad():
        unconditional, conditional = embedded.denoiser(views, 2)(noisy, t)
    x0 = (unconditional + 7.5 * (conditional - unconditional)).clamp(-1, 1)
    residual = F.pixel_shuffle((abar * (1 - abar)).sqrt() * (x - x0), embedded.codec.unshuffle)
    torch.testing.assert_close(gradient(embedded, image, views, part), 2 * residual / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [64, 48, 128])
def test_gradient_reaches_pixels_of_any_size(embedded, size):
    grad = gradient(embedded, image_of(1, size), views_at(0))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_a_gradient_near_that_of_float32(embedded, dtype):
    half = make(embedded.folder, dtype=dtype)
    a, b = (gradient(m, image_of(1), views_at(0)).flatten() for m in (embedded, half))
    assert b.dtype == torch.float32
    assert torch.cosine_similarity(a, b, dim=0) > 0.9  # 8 bits of mantissa, and a guidance scale of 7.5


def test_prediction_depends_on_the_camera(embedded):
    x, t = torch.zeros(2, *embedded.codec.shape), torch.tensor([900, 900])
    front, back = embedded.denoiser(views_at(0, 180), 2)(x, t)[1]
    assert (front - back).abs().max() > 1e-4


def test_each_prediction_is_that_of_the_prior_itself(prior_folder, embedded):
    views, x, t = views_at(0, 90), torch.randn(2, *embedded.codec.shape), torch.tensor([100, 700])
    prior = model.load(prior_folder)
    rays, vector = embedded.camera_conditions(views, 2)
    with torch.no_grad():
        for k, words in enumerate(("", PROMPT)):
            expected = prior.predict(x, t, prior.encode_text([words] * 2), vector, rays)
            torch.testing.assert_close(embedded.denoiser(views, 2)(x, t)[k], expected, rtol=1e-4, atol=1e-5)


def test_camera_conditions_are_those_of_training_and_zero_for_an_unknown_camera(embedded):
    rays, vector = embedded.camera_conditions(views_at(0, 90), 2)
    torch.testing.assert_close(vector, camera.condition(75.0, torch.tensor([0.0, 90.0]), 3.2, 20.0))
    assert rays.flatten(1).any(1).all() and not any(v.any() for v in embedded.camera_conditions(None, 2))


def test_without_a_detail_network_the_predictions_are_not_refined(plain_folder, embedded):
    views, x, t = views_at(0), torch.randn(1, *embedded.codec.shape), torch.tensor([300])
    pair = [prior.denoiser(views, 1)(x, t) for prior in (make(plain_folder), embedded)]
    torch.testing.assert_close(embedded.denoiser(views, 1, refine=False)(x, t), pair[0])
    assert pair[0].shape == pair[1].shape and (pair[0] - pair[1]).abs().max() > 1e-3


def test_options_of_the_stage_switch_the_detail_network(plain_folder, embedded):
    image, views = image_of(2), views_at(0, 100)
    plain, without, refined = (
        gradient(prior, image, views, part_of("guided", seed=3), options=Options(7.5, detail=wanted))
        for prior, wanted in ((make(plain_folder), True), (embedded, False), (embedded, True))
    )
    torch.testing.assert_close(without, plain)
    assert not torch.allclose(refined, plain)


def test_scale_one_evaluates_the_conditional_prediction_alone(embedded, monkeypatch):
    image, views = image_of(2), views_at(0, 100)
    near = gradient(embedded, image, views, part_of("guided", seed=3), scale=1 + 1e-6)
    batches, kind = [], type(embedded.unet)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x, *a, **k: batches.append(len(x)) or forward(self, x, *a, **k))
    torch.testing.assert_close(
        gradient(embedded, image, views, part_of("guided", seed=3), scale=1.0), near, rtol=1e-3, atol=1e-5
    )
    gradient(embedded, image, views, part_of("guided", seed=3), scale=1.5)
    assert batches == [2, 2, 4, 4]  # the UNet and the detail network, two views each


def test_a_detail_network_of_another_shape_is_refused(prior_folder, tmp_path):
    folder = shutil.copytree(prior_folder, tmp_path / "other")
    detail.build().save_pretrained(folder / "detail")  # for text of another width
    with pytest.raises(UserError, match="detail does not fit the UNet; .* text of 32 channels and cameras of 8"):
        EmbeddedPrior(folder)


def test_a_folder_of_another_model_is_refused(sd_folder):
    with pytest.raises(UserError, match="not an embedded prior"):
        EmbeddedPrior(sd_folder)


def test_perpneg_is_refused(embedded):
    with pytest.raises(UserError, match="--perpneg needs view words"):
        embedded.stage_options(parse(["--text", PROMPT, "--perpneg"]).guidance)


def test_gradient_is_zero_where_a_perfect_denoiser_predicts_the_image(embedded, monkeypatch):
    image = image_of(2)
    replace_denoiser(monkeypatch, embedded, lambda x, t: packed(embedded, image))
    assert gradient(embedded, image, views_at(0, 90)).abs().max() < 1e-6


def test_debug_prediction_of_a_perfect_denoiser_is_its_image(embedded, monkeypatch):
    target = image_of(2, seed=7)
    replace_denoiser(monkeypatch, embedded, lambda x, t: packed(embedded, target))
    debug = embedded.loss(image_of(2), views_at(0, 90), part_of("guided"), Control(T_RANGE), debug=True).debug
    torch.testing.assert_close(debug["x0"], target)


def test_sampling_with_a_perfect_denoiser_gives_its_image(embedded, monkeypatch):
    target = image_of(2, seed=7)
    replace_denoiser(monkeypatch, embedded, lambda x, t: packed(embedded, target))
    drawn = embedded.sample(views_at(0, 90), 2, torch.Generator().manual_seed(0), steps=3, scale=7.5)
    torch.testing.assert_close(drawn, target)


def test_sampling_without_views_gives_images(embedded):
    drawn = embedded.sample(None, 2, torch.Generator().manual_seed(0), steps=2, scale=7.5)
    assert drawn.shape == (2, 3, 64, 64) and drawn.min() >= 0 and drawn.max() <= 1


def test_nan_in_an_image_is_an_error_that_names_it(embedded):
    image = image_of(2)
    image[1, 0, 3, 3] = float("nan")
    with pytest.raises(DivergenceError, match=r"rendered images \[1\] of 2"):
        embedded.loss(image, views_at(0, 90), part_of("guided"), Control(T_RANGE))


def test_what_was_understood_is_logged_in_a_line_each_and_kept_for_the_result(prior_folder, caplog):
    with caplog.at_level(logging.INFO, "somnia.guidance"):
        model = make(prior_folder, text="a cute steampunk huose with a red roof")
    assert [line.removeprefix("guidance: ") for line in caplog.messages if line.startswith("guidance: ")] == [
        "understood as: a house, white, with a red roof",
        "read 'huose' as 'house'",
        "ignored, as it changes nothing: cute",
        "left out, as the embedded prior does not know it: 'steampunk'",
    ]
    assert model.results() == {"understood": "a house, white, with a red roof"}


def test_a_prompt_that_cannot_be_had_is_refused(embedded):
    with pytest.raises(UserError, match='one object, not a car and a table; try --text "a car"'):
        embedded.prepare(Conditions("a car on a table"))


def test_a_new_prompt_must_have_known_words_alone(embedded):
    embedded.check_text("a cute red car")
    with pytest.raises(UserError, match="does not know 'steampunk'"):
        embedded.check_text("a steampunk car")


def test_a_bound_prompt_is_embedded_as_the_caption_that_says_the_same(prior_folder):
    bound, trained = (make(prior_folder, text=t) for t in ("a house with red roof, blue", "a blue house with a red roof"))
    assert all(torch.equal(bound.text[name], trained.text[name]) for name in trained.text)


def test_an_empty_prompt_is_refused(embedded):
    with pytest.raises(UserError, match="--text"):
        embedded.prepare(Conditions("  "))


def test_images_that_are_not_square_are_refused(embedded):
    with pytest.raises(ValueError, match="square"):
        embedded.loss(image_of(1)[..., :32], views_at(0), part_of("guided"), Control(T_RANGE))


def test_the_recommended_scale_is_the_default(prior_folder):
    assert EmbeddedPrior(prior_folder).options.guidance_scale == 7.5


def test_required_views_are_those_of_its_training_set(embedded):
    needs = embedded.requirements()
    assert needs.square and needs.radius_range == camera.RADIUS_RANGE
    assert (needs.fovy_range, needs.polar_range) == (camera.FOVY_RANGE, camera.POLAR_RANGE)
