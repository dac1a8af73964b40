"""The view-conditioned embedded prior as guidance, on a tiny random model in the real file layout."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from guidance.base import Conditions, ImageCondition
from guidance.prior import camera, detail, view_model
from guidance.prior.guidance import EmbeddedPrior
from guidance.prior.view_guidance import EmbeddedViewPrior, Options, reference_of
from nerf.core.cameras import angles_of
from nerf.core.errors import UserError
from tests.guidance.models import gradient, image_of, replace_denoiser, views_at


def disc(colour=(0.9, 0.2, 0.1), size=64):
    """A disc on a transparent background, RGBA [4, S, S]."""
    at = (torch.arange(size) + 0.5) / size * 2 - 1
    inside = (at[:, None] ** 2 + at**2 < 0.4).float()
    return torch.cat([torch.tensor(colour)[:, None, None].expand(3, size, size), inside[None]])


def prepared(folder, *images, dtype=torch.float32):
    model = EmbeddedViewPrior(folder, dtype=dtype)
    model.prepare(Conditions(images=images or (ImageCondition(disc(), polar=75.0),)))
    return model


@pytest.fixture(scope="module")
def embedded(view_prior_folder):
    return prepared(view_prior_folder)


def packed(model, image):
    return F.pixel_unshuffle(2 * image - 1, model.codec.unshuffle)


@pytest.mark.parametrize("degrees", [0.0, 35.0, -120.0, 180.0])
def test_turned_poses_have_greater_azimuths_and_the_same_height(degrees):
    views = views_at(10.0)
    polar, azimuth, radius = angles_of(camera.turned(views.pose, torch.tensor([degrees])))
    assert abs((float(azimuth) - 10 - degrees + 180) % 360 - 180) < 1e-3
    torch.testing.assert_close((polar, radius), (views.polar, views.radius), rtol=1e-5, atol=1e-4)


def test_camera_conditions_are_those_of_training_in_the_objects_frame(embedded):
    vector, rays = embedded.camera_conditions(views_at(0, 90), torch.tensor([20.0, -50.0]))
    own = {"polar": 75.0, "azimuth": torch.tensor([20.0, 40.0]), "radius": 3.2, "fovy": 20.0}
    torch.testing.assert_close(vector, camera.condition(**own))
    expected = view_model.cameras_of({k: torch.as_tensor(v).expand(2) for k, v in own.items()}, torch.zeros(2))[1]
    torch.testing.assert_close(rays, expected, rtol=1e-4, atol=1e-5)


def test_each_prediction_is_that_of_the_prior_itself(view_prior_folder, embedded):
    views, x, t = views_at(0, 90), torch.randn(2, *embedded.codec.shape), torch.tensor([100, 700])
    prior = view_model.load(view_prior_folder)
    reference = reference_of(disc(), 64).expand(2, -1, -1, -1)
    source = {"polar": torch.full((2,), 75.0), "azimuth": torch.zeros(2), "radius": torch.full((2,), 3.2)}
    source["fovy"] = torch.full((2,), 20.0)
    target = {**source, "azimuth": torch.tensor([0.0, 90.0])}
    with torch.no_grad():
        seen = prior.see(reference, source)
        conditions = view_model.cameras_of(target, seen.offset)
        for k in range(2):
            expected = prior.predict(x, t, seen, *conditions, torch.full((2,), float(k)))
            torch.testing.assert_close(embedded.denoiser(views, 2)(x, t)[k], expected, rtol=1e-3, atol=1e-4)


def test_the_prediction_depends_on_the_pose_and_on_the_reference(view_prior_folder, embedded):
    x, t = torch.zeros(2, *embedded.codec.shape), torch.tensor([900, 900])
    front, back = embedded.denoiser(views_at(0, 180), 2)(x, t)[1]
    assert (front - back).abs().max() > 1e-4
    other = prepared(view_prior_folder, ImageCondition(disc((0.1, 0.3, 0.9)), polar=75.0)).denoiser(views_at(0, 180), 2)(x, t)
    assert (other[1] - embedded.denoiser(views_at(0, 180), 2)(x, t)[1]).abs().max() > 1e-4


def test_only_the_azimuth_from_the_reference_counts(view_prior_folder):
    x, t = torch.zeros(1, 192, 8, 8), torch.tensor([900])
    one, other = (
        prepared(view_prior_folder, ImageCondition(disc(), polar=75.0, azimuth=start)).denoiser(views_at(start + 50), 1)(x, t)
        for start in (0.0, 70.0)
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_several_references_are_mixed_by_how_near_they_are_and_their_weights(view_prior_folder):
    first = ImageCondition(disc(), polar=75.0, azimuth=0.0)
    second = ImageCondition(disc((0.1, 0.3, 0.9)), polar=75.0, azimuth=90.0, weight=2.0)
    silent = ImageCondition(disc((0.1, 0.9, 0.1)), polar=75.0, weight=0.0)
    both = prepared(view_prior_folder, first, second, silent)
    views, x, t = views_at(20, 45), torch.randn(2, 192, 8, 8), torch.tensor([700, 300])
    shares = both.shares(views)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert shares.shape == (2, 2) and shares[0, 0] > 0.5 and shares[1, 1] == pytest.approx(2 / 3, abs=1e-2)
    alone = [prepared(view_prior_folder, image).denoiser(views, 2)(x, t)[1] for image in (first, second)]
    expected = sum(shares[:, k, None, None, None] * alone[k] for k in range(2))
    torch.testing.assert_close(both.denoiser(views, 2)(x, t)[1], expected, rtol=1e-3, atol=1e-4)


def test_gradient_is_zero_where_a_perfect_denoiser_predicts_the_image(embedded, monkeypatch):
    image = image_of(2)
    replace_denoiser(monkeypatch, embedded, lambda x, t: packed(embedded, image))
    assert gradient(embedded, image, views_at(0, 90)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [64, 48, 128])
def test_gradient_reaches_pixels_of_any_size(embedded, size):
    grad = gradient(embedded, image_of(1, size), views_at(0))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


def test_scale_one_evaluates_the_conditional_prediction_alone(embedded, monkeypatch):
    batches, kind = [], type(embedded.unet)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x, *a, **k: batches.append(len(x)) or forward(self, x, *a, **k))
    gradient(embedded, image_of(2), views_at(0, 100), scale=1.0)
    gradient(embedded, image_of(2), views_at(0, 100), scale=1.5)
    assert batches == [2, 4]


def test_half_precision_weights_give_a_gradient_near_that_of_float32(view_prior_folder, embedded):
    half = prepared(view_prior_folder, dtype=torch.bfloat16)
    a, b = (gradient(m, image_of(1), views_at(0)).flatten() for m in (embedded, half))
    assert b.dtype == torch.float32 and torch.cosine_similarity(a, b, dim=0) > 0.9


def test_the_text_priors_detail_network_refines_where_it_fits_and_the_stage_wants_it(view_prior_folder, prior_folder):
    views, x, t = views_at(0, 90), torch.randn(2, 192, 8, 8), torch.tensor([100, 700])
    plain, refined = EmbeddedViewPrior(view_prior_folder), EmbeddedViewPrior(view_prior_folder, details=prior_folder)
    assert plain.prior.detail is None  # the shipped one is of another width than this tiny model
    for model in (plain, refined):
        model.prepare(Conditions(images=(ImageCondition(disc(), polar=75.0),)))
    with torch.no_grad():
        expected = plain.denoiser(views, 2)(x, t)
        torch.testing.assert_close(refined.denoiser(views, 2, refine=False)(x, t), expected)
        got = refined.denoiser(views, 2)(x, t)
        vector, _ = refined.camera_conditions(views, refined.seen.offset.expand(2))
        tokens = (refined.prior.encoder.null.expand(2, -1, -1), refined.seen.tokens.expand(2, -1, -1))
        for k in range(2):
            by_hand = detail.refine(refined.prior.detail, x, expected[k], t, tokens[k], vector)
            torch.testing.assert_close(got[k], by_hand, rtol=1e-3, atol=1e-4)
    assert (got - expected).abs().max() > 1e-3


def test_samples_are_images_of_each_view(embedded):
    out = embedded.sample(views_at(0, 90, 180), 3, torch.Generator().manual_seed(0), 2, 3.0)
    assert out.shape == (3, 3, 64, 64) and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (96, 64), (64, 96), (32, 32)])
def test_references_keep_their_vertical_field_of_view_over_white(shape):
    height, width = shape
    image = torch.zeros(4, height, width)
    image[:, height // 4 : height * 3 // 4, width // 2 - height // 4 : width // 2 + height // 4] = 1
    image[1:3] = 0
    given = reference_of(image, 64)
    assert given.shape == (4, 64, 64)
    covered = (given[3] > 0).nonzero()
    assert covered.amin(0).tolist() == [16, 16] and covered.amax(0).tolist() == [47, 47]
    assert given[:3, 0, 0].tolist() == [1, 1, 1] and given[:, 32, 32].tolist() == [1, -1, -1, 1]


def test_the_colour_of_transparent_pixels_does_not_count():
    image = disc()
    other = image.clone()
    other[:3, image[3] == 0] = 0.123
    torch.testing.assert_close(reference_of(image, 32), reference_of(other, 32))


def test_a_run_without_a_picture_and_an_empty_picture_are_refused(view_prior_folder):
    with pytest.raises(UserError, match="needs a picture; give --image"):
        EmbeddedViewPrior(view_prior_folder).prepare(Conditions("a red car"))
    with pytest.raises(UserError, match="picture 1 is transparent everywhere"):
        prepared(view_prior_folder, ImageCondition(torch.zeros(4, 8, 8)))


def test_a_folder_of_the_other_prior_is_refused(view_prior_folder, prior_folder):
    with pytest.raises(UserError, match="conditioned on text; expected one conditioned on reference images"):
        EmbeddedViewPrior(prior_folder)
    with pytest.raises(UserError, match="conditioned on reference images; expected one conditioned on text"):
        EmbeddedPrior(view_prior_folder)


@pytest.mark.parametrize(
    "break_it, says",
    [
        (lambda f: (f / "encoder" / "model.safetensors").unlink(), "lacks the weights in encoder/"),
        (lambda f: (f / "encoder" / "config.json").write_text('{"width": 5}'), "encoder is damaged"),
        (lambda f: _set(f / "somnia.json", reference_channels=64), "expected a UNet of 269 input channels"),
        (lambda f: _set(f / "somnia.json", reference_channels="x"), "expected reference_channels as a positive whole number"),
    ],
)
def test_a_damaged_folder_is_named(view_prior_folder, tmp_path, break_it, says):
    broken = shutil.copytree(view_prior_folder, tmp_path / "broken")
    break_it(broken)
    with pytest.raises(UserError, match=says):
        EmbeddedViewPrior(broken)


def _set(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_its_default_scale_is_that_of_the_folder(view_prior_folder):
    assert EmbeddedViewPrior(view_prior_folder).options == Options(guidance_scale=3.0)
