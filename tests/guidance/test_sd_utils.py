"""Stable Diffusion and the embedded prior as guidance, on tiny random models in the real file layouts."""

import json
import logging
import shutil
import weakref

import pytest
import torch
import torch.nn.functional as F

from guidance import sd_utils
from guidance.base import CameraRequirements, Conditions
from guidance.distillation import weight
from guidance.perpneg_utils import PerpNeg
from guidance.prior import detail, model
from guidance.sd_utils import Settings, StableDiffusion, StageOptions
from nerf.core.cameras import orbit
from nerf.core.errors import DivergenceError, UserError
from nerf.core.streams import Random, Stream
from nerf.core.structs import Control
from tests.helpers.parts import part_of

T_RANGE = (0.02, 0.98)
PROMPT = "a red car"


def views_at(*azimuth, size=64):
    return orbit(75.0, torch.tensor([float(a) for a in azimuth]), 3.2, 20.0, size, size)


def picture(count, size=64, channels=3, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def make(folder, text=PROMPT, negative="", dtype=torch.float32, **settings):
    model = StableDiffusion(folder, "cpu", dtype, Settings(**settings))
    model.prepare(Conditions(text, negative))
    return model


@pytest.fixture(scope="module")
def sd(sd_folder):
    return make(sd_folder)


@pytest.fixture(scope="module")
def embedded(prior_folder):
    return make(prior_folder, guidance_scale=7.5)


def gradient(model, image, views, part=None, **control):
    """Gradient of the loss with respect to the image."""
    image = image.clone().requires_grad_()
    model.loss(image, views, part or part_of("guided"), Control(**{"t_range": T_RANGE} | control)).loss.backward()
    return image.grad


def packed(model, image):
    """A picture as the embedded prior's denoiser sees it."""
    return F.pixel_unshuffle(2 * image - 1, model.somnia["unshuffle"])


def fake_unet(monkeypatch, model, answer):
    """Replace the denoiser by ``answer(noisy, t)``, the same under every condition."""
    monkeypatch.setattr(model, "denoiser", lambda views, count, *how: lambda x, t: answer(x, t).expand(2, *x.shape))


def test_latent_gradient_equals_the_weighted_noise_residual(sd):
    part, views, image = part_of("guided", space="latent", seed=5), views_at(0, 100), picture(2, 8, channels=4)
    t = torch.randint(20, 981, (2,), generator=part.random.generator(Stream.DIFFUSION_TIME))
    noise = torch.randn(2, 4, 8, 8, generator=part.random.generator(Stream.DIFFUSION_NOISE))
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[t].reshape(2, 1, 1, 1)
    noisy = abar.sqrt() * (2 * image - 1) + (1 - abar).sqrt() * noise
    text = sd.branches(views, 2)
    with torch.no_grad():
        without, with_prompt = (sd.unet(noisy, t, encoder_hidden_states=e).sample for e in text)
    residual = (1 - abar) * (without + 100 * (with_prompt - without) - noise)
    expected = 2 * residual / 2  # x = 2 image - 1; the mean over two views
    # float32 and a guidance scale of 100 over x_0 = (x_t - sigma eps) / alpha
    torch.testing.assert_close(gradient(sd, image, views, part), expected, rtol=2e-3, atol=2e-3)


def test_pixel_gradient_equals_the_weighted_distance_to_the_estimate(embedded):
    part, views, image = part_of("guided", seed=5), views_at(0, 100), picture(2)
    t = torch.randint(20, 981, (2,), generator=part.random.generator(Stream.DIFFUSION_TIME))
    x = packed(embedded, image)
    noise = torch.randn(x.shape, generator=part.random.generator(Stream.DIFFUSION_NOISE))
    abar = embedded.distillation.alphas_cumprod[t].reshape(2, 1, 1, 1)
    noisy = abar.sqrt() * x + (1 - abar).sqrt() * noise
    with torch.no_grad():
        without, with_prompt = embedded.denoiser(views, 2)(noisy, t)
    x0 = (without + 7.5 * (with_prompt - without)).clamp(-1, 1)
    residual = F.pixel_shuffle((abar * (1 - abar)).sqrt() * (x - x0), embedded.somnia["unshuffle"])
    torch.testing.assert_close(gradient(embedded, image, views, part), 2 * residual / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [64, 48, 100])
def test_gradient_reaches_every_pixel_through_the_vae(sd, size):
    grad = gradient(sd, picture(1, size), views_at(0))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("size", [64, 48, 128])
def test_gradient_of_the_embedded_prior_reaches_pixels_of_any_size(embedded, size):
    grad = gradient(embedded, picture(1, size), views_at(0))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


def test_same_part_gives_the_same_loss(sd):
    first, second = (sd.loss(picture(2), views_at(0, 90), part_of("guided", seed=3), Control(T_RANGE)) for _ in range(2))
    assert torch.equal(first.loss, second.loss) and first.stats == second.stats


def test_log_says_how_late_the_time_was_and_how_long_the_gradient(sd):
    stats = sd.loss(picture(2), views_at(0, 90), part_of("guided"), Control((0.5, 0.5))).stats
    assert stats["t"].item() == pytest.approx(0.5) and stats["gradient_norm"] > 0
    assert not any(value.requires_grad or value.ndim for value in stats.values())


@pytest.mark.parametrize("weighting", ["uniform", "fantasia"])
def test_weighting_of_the_settings_scales_the_gradient(sd_folder, sd, weighting):
    other = make(sd_folder, weighting=weighting)
    alpha, sigma = sd.distillation.levels(torch.tensor([500]), torch.zeros(1, 1))
    factor = (weight(weighting, alpha, sigma) / weight("sds", alpha, sigma)).item()
    pair = [gradient(model, picture(1), views_at(0), t_range=(0.5, 0.5)) for model in (sd, other)]
    assert abs(factor - 1) > 0.1
    torch.testing.assert_close(pair[1], factor * pair[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("perpneg", [None, PerpNeg()])
def test_scale_of_a_part_takes_the_place_of_the_settings_own(sd_folder, perpneg):
    image, views = picture(2), views_at(0, 100)
    mild, strong = (make(sd_folder, guidance_scale=scale, perpneg=perpneg) for scale in (2.0, 50.0))
    expected = gradient(mild, image, views, part_of("guided", seed=3))
    torch.testing.assert_close(gradient(strong, image, views, part_of("guided", seed=3), scale=2.0), expected)
    assert not torch.allclose(gradient(strong, image, views, part_of("guided", seed=3)), expected)


@pytest.mark.parametrize("perpneg", [None, PerpNeg()])
def test_rescale_of_the_settings_keeps_the_spread_of_the_prompts_own_branch(sd_folder, perpneg):
    model = make(sd_folder, rescale=1.0, guidance_scale=50.0, perpneg=perpneg)
    branches = torch.randn(2 if perpneg is None else 4, 1, 4, 8, 8)
    mixed = model.mixer(views_at(45))(branches)
    torch.testing.assert_close(mixed.std(), branches[1].std())


def test_another_seed_gives_another_loss(sd):
    first, second = (sd.loss(picture(1), views_at(0), part_of("guided", seed=s), Control(T_RANGE)).loss for s in (1, 2))
    assert first != second


@pytest.mark.parametrize("vram_O", [False, True])
def test_gradient_is_the_same_on_every_device(sd_folder, sd, device, vram_O):
    model = StableDiffusion(sd_folder, device, settings=Settings(vram_O=vram_O))
    model.prepare(Conditions(PROMPT))
    there = gradient(model, picture(1).to(device), views_at(0).to(device)).cpu()
    here = gradient(sd, picture(1), views_at(0))
    assert torch.cosine_similarity(there.flatten(), here.flatten(), dim=0) > 0.99  # TF32 and a scale of 100 on CUDA


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd", "embedded"])
def test_half_precision_weights_give_a_gradient_near_that_of_float32(request, name, dtype):
    wide = request.getfixturevalue(name)
    half = make(wide.folder, dtype=dtype, guidance_scale=wide.settings.guidance_scale)
    a, b = (gradient(m, picture(1), views_at(0)).flatten() for m in (wide, half))
    assert b.dtype == torch.float32
    assert torch.cosine_similarity(a, b, dim=0) > 0.9  # 8 bits of mantissa, and a guidance scale up to 100


def test_view_prompts_change_the_embedding_with_the_view(sd):
    front, side, back = sd.branches(views_at(0, 90, 180), 3)[1]
    assert not torch.allclose(front, side) and not torch.allclose(side, back)


def test_branch_without_the_prompt_is_the_same_from_all_sides(sd):
    empty = sd.branches(views_at(0, 180), 2)[0]
    assert torch.equal(empty[0], empty[1])


def test_embedded_prior_gets_no_view_words(embedded):
    front, back = embedded.branches(views_at(0, 180), 2)[1]
    assert torch.equal(front, back)


def test_embedded_prior_is_told_the_camera(embedded):
    x, t = torch.zeros(2, *embedded.codec.shape), torch.tensor([900, 900])
    front, back = embedded.denoiser(views_at(0, 180), 2)(x, t)[1]
    assert (front - back).abs().max() > 1e-4


def test_each_branch_of_the_embedded_prior_is_what_the_prior_itself_predicts(prior_folder, embedded):
    views, x, t = views_at(0, 90), torch.randn(2, *embedded.codec.shape), torch.tensor([100, 700])
    prior = model.load(prior_folder)
    rays, vector = embedded._camera(views, 2, 2)
    with torch.no_grad():
        for branch, words in enumerate(("", PROMPT)):
            expected = prior.predict(x, t, prior.encode_text([words] * 2), vector[:2], rays[:2])
            torch.testing.assert_close(embedded.denoiser(views, 2)(x, t)[branch], expected, rtol=1e-4, atol=1e-5)


def test_a_prior_without_details_guides_and_its_estimate_is_another(prior_folder, embedded, tmp_path):
    folder = shutil.copytree(prior_folder, tmp_path / "plain")
    shutil.rmtree(folder / "detail")
    views, x, t = views_at(0), torch.randn(1, *embedded.codec.shape), torch.tensor([300])
    pair = [prior.denoiser(views, 1)(x, t) for prior in (make(folder), embedded)]
    torch.testing.assert_close(embedded.denoiser(views, 1, sharp=False)(x, t), pair[0])
    assert pair[0].shape == pair[1].shape and (pair[0] - pair[1]).abs().max() > 1e-3


def test_a_part_says_whether_its_estimates_are_sharpened(prior_folder, embedded, tmp_path):
    folder = shutil.copytree(prior_folder, tmp_path / "plain")
    shutil.rmtree(folder / "detail")
    image, views = picture(2), views_at(0, 100)
    plain, blurred, sharp = (
        gradient(model, image, views, part_of("guided", seed=3), options=StageOptions(detail=wanted))
        for model, wanted in ((make(folder, guidance_scale=7.5), True), (embedded, False), (embedded, True))
    )
    torch.testing.assert_close(blurred, plain)
    assert not torch.allclose(sharp, plain)


def test_scale_one_asks_the_model_under_the_prompt_alone(embedded, monkeypatch):
    image, views = picture(2), views_at(0, 100)
    near = gradient(embedded, image, views, part_of("guided", seed=3), scale=1 + 1e-6)
    asked, kind = [], type(embedded.unet)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x, *a, **k: asked.append(len(x)) or forward(self, x, *a, **k))
    torch.testing.assert_close(
        gradient(embedded, image, views, part_of("guided", seed=3), scale=1.0), near, rtol=1e-3, atol=1e-5
    )
    gradient(embedded, image, views, part_of("guided", seed=3), scale=1.5)
    assert asked == [2, 2, 4, 4]  # the UNet and the detail network, two views each


def test_a_detail_network_of_another_shape_is_refused(prior_folder, tmp_path):
    folder = shutil.copytree(prior_folder, tmp_path / "other")
    detail.build().save_pretrained(folder / "detail")  # for words of another width
    with pytest.raises(UserError, match="detail does not fit the UNet; .* words of 32 numbers and cameras of 8"):
        StableDiffusion(folder)


@pytest.mark.parametrize("keep", [True, False])
def test_branch_without_the_prompt_keeps_the_camera_if_asked(prior_folder, keep):
    model = make(prior_folder, keep_camera=keep)
    rays, vector = model._camera(views_at(0, 90), 2, 2)
    known = [bool(v.any()) for v in vector]
    assert known == [keep, keep, True, True] and [bool(r.any()) for r in rays] == known
    torch.testing.assert_close(vector[2:], sd_utils.camera.condition(75.0, torch.tensor([0.0, 90.0]), 3.2, 20.0))


def test_negative_prompt_takes_the_place_of_the_empty_one(sd_folder, sd):
    model = make(sd_folder, negative="blurry")
    assert not torch.allclose(model.negative, sd.negative) and torch.equal(model.positive, sd.positive)


def test_perpneg_adds_the_wrong_views_as_branches(sd_folder):
    model = make(sd_folder, perpneg=PerpNeg())
    text = model.branches(views_at(0, 180), 2)
    assert text.shape[:2] == (4, 2)
    assert torch.equal(text[2, 0], text[1, 0])  # at the front, the negative word "front" is the prompt itself
    assert torch.isfinite(gradient(model, picture(2), views_at(0, 180))).all()


def test_perpneg_is_refused_by_the_embedded_prior(prior_folder):
    with pytest.raises(UserError, match="--perpneg needs view words"):
        StableDiffusion(prior_folder, settings=Settings(perpneg=PerpNeg()))


def test_perfect_denoiser_leaves_nothing_to_do(embedded, monkeypatch):
    image = picture(2)
    fake_unet(monkeypatch, embedded, lambda x, t: packed(embedded, image))
    assert gradient(embedded, image, views_at(0, 90)).abs().max() < 1e-6


def test_debug_estimate_of_a_perfect_pixel_denoiser_is_the_picture(embedded, monkeypatch):
    target = picture(2, seed=7)
    fake_unet(monkeypatch, embedded, lambda x, t: packed(embedded, target))
    debug = embedded.loss(picture(2), views_at(0, 90), part_of("guided"), Control(T_RANGE), debug=True).debug
    torch.testing.assert_close(debug["x0"], target)


def test_debug_estimate_of_a_perfect_noise_predictor_is_the_picture(sd, monkeypatch):
    noise = torch.randn(2, 4, 8, 8, generator=Random(4).generator(Stream.DIFFUSION_NOISE))
    fake_unet(monkeypatch, sd, lambda x, t: noise)
    debug = sd.loss(picture(2), views_at(0, 90), part_of("guided", seed=4), Control(T_RANGE), debug=True).debug
    torch.testing.assert_close(debug["x0"], debug["image"], rtol=0, atol=1e-3)


def test_debug_pictures_are_made_only_when_asked_for(sd):
    assert sd.loss(picture(1), views_at(0), part_of("guided"), Control(T_RANGE)).debug is None


def test_sampling_with_a_perfect_denoiser_draws_its_picture(embedded, monkeypatch):
    target = picture(2, seed=7)
    fake_unet(monkeypatch, embedded, lambda x, t: packed(embedded, target))
    drawn = embedded.sample(views_at(0, 90), 2, torch.Generator().manual_seed(0), steps=3)
    torch.testing.assert_close(drawn, target)


@pytest.mark.parametrize("name", ["sd", "embedded"])
def test_sampling_without_views_draws_pictures(request, name):
    drawn = request.getfixturevalue(name).sample(None, 2, torch.Generator().manual_seed(0), steps=2)
    assert drawn.shape == (2, 3, 64, 64) and drawn.min() >= 0 and drawn.max() <= 1


def test_nan_in_a_picture_is_an_error(embedded):
    image = picture(2)
    image[1, 0, 3, 3] = float("nan")
    with pytest.raises(DivergenceError, match=r"rendered pictures \[1\] of 2"):
        embedded.loss(image, views_at(0, 90), part_of("guided"), Control(T_RANGE))


def test_text_encoder_is_freed_after_the_prompt_is_embedded(sd_folder, monkeypatch):
    seen, load = [], sd_utils.load_part

    def watch(folder, part, *args):
        network = load(folder, part, *args)
        if part == "text_encoder":
            seen.append(weakref.ref(network))
        return network

    monkeypatch.setattr(sd_utils, "load_part", watch)
    make(sd_folder)
    assert len(seen) == 1 and seen[0]() is None


def test_networks_do_not_learn(sd):
    assert not any(p.requires_grad for p in [*sd.unet.parameters(), *sd.codec.vae.parameters()])


def test_a_prompt_that_is_too_long_is_cut_before_its_view_word(sd_folder, caplog):
    with caplog.at_level(logging.WARNING, "somnia.guidance"):
        model = make(sd_folder, text="a " * 70 + "zebra")
    (record,) = [r for r in caplog.records if r.name == "somnia.guidance"]
    assert "left out" in record.getMessage() and "zebra" in record.getMessage()
    front, back = model.branches(views_at(0, 180), 2)[1]
    assert front.shape == (77, 16) and not torch.allclose(front, back)


def test_unknown_words_are_named_with_their_neighbours(prior_folder, caplog):
    with caplog.at_level(logging.WARNING, "somnia.guidance"):
        make(prior_folder, text="a red chaair car")
    assert "'chaair' (nearest: chair" in caplog.text


def test_legacy_files_give_the_same_embeddings_and_gradient(sd, legacy_folder):
    legacy = make(legacy_folder)
    assert torch.equal(legacy.positive, sd.positive)
    torch.testing.assert_close(gradient(legacy, picture(1), views_at(0)), gradient(sd, picture(1), views_at(0)))


def test_pickled_code_in_legacy_files_is_refused_and_not_run(legacy_folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"conv_in.weight": Bomb()}, legacy_folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="unet cannot be read"):
        StableDiffusion(legacy_folder)
    assert not (tmp_path / "exploded").exists()


def test_v_prediction_is_read_from_the_scheduler(broken_folder):
    path = broken_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    model = make(broken_folder)
    assert model.distillation.parameterisation == "v_prediction"
    assert torch.isfinite(gradient(model, picture(1), views_at(0))).all()


def test_a_cut_off_weights_file_is_refused_by_name(broken_folder):
    path = broken_folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="vae cannot be read"):
        StableDiffusion(broken_folder)


def test_weights_that_lack_a_tensor_are_refused_by_name(broken_folder):
    from safetensors.torch import load_file, save_file

    path = broken_folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "conv_out.weight"}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 tensors of unet, first conv_out\.weight"):
        StableDiffusion(broken_folder)


def test_an_inpainting_unet_is_refused(broken_folder):
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel(
        in_channels=9,
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=16,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    ).save_pretrained(broken_folder / "unet")
    with pytest.raises(UserError, match="expected a UNet of 4 input channels"):
        StableDiffusion(broken_folder)


def test_tiny_models_have_the_tensor_names_of_the_real_ones(sd, layout):
    for part, network in (("unet", sd.unet), ("vae", sd.codec.vae)):
        names = set(network.state_dict())
        assert len(names) == layout[part]["tensors"] and set(layout[part]["some_names"]) <= names


def test_latent_pictures_are_refused_by_the_embedded_prior(embedded):
    with pytest.raises(ValueError, match=r"expected a space among \('rgb',\), got 'latent'"):
        embedded.loss(picture(1, channels=4), views_at(0), part_of("guided", space="latent"), Control(T_RANGE))


def test_pictures_that_do_not_match_the_views_are_refused(sd):
    with pytest.raises(ValueError, match=r"expected image \[2, 3, H, W\], got \[1, 3, 64, 64\]"):
        sd.loss(picture(1), views_at(0, 90), part_of("guided"), Control(T_RANGE))


def test_embedded_prior_refuses_pictures_that_are_not_square(embedded):
    with pytest.raises(ValueError, match="square"):
        embedded.loss(picture(1)[..., :32], views_at(0), part_of("guided"), Control(T_RANGE))


def test_an_empty_prompt_is_refused(sd):
    with pytest.raises(UserError, match="--text"):
        sd.prepare(Conditions("  "))


def test_offloaded_weights_give_the_same_gradient(sd_folder, sd):
    model = make(sd_folder)
    for network in (model.unet, model.codec.vae):
        sd_utils.offload(network, torch.device("cpu"))
    assert model.unet.conv_in.weight.device.type == "meta"
    torch.testing.assert_close(gradient(model, picture(1), views_at(0)), gradient(sd, picture(1), views_at(0)))


def test_embedded_prior_wishes_for_the_cameras_it_was_trained_on(embedded, sd):
    needs = embedded.requirements()
    assert needs.square and needs.radius_range == (3.0, 3.5) and sd.requirements() == CameraRequirements()


def test_command_line_draws_eight_sides_of_an_object(prior_folder, tmp_path):
    from PIL import Image

    path = tmp_path / "new" / "sheet.png"
    assert sd_utils.main(["a red car", "--hf_key", str(prior_folder), "--steps", "1", "--output", str(path)]) == 0
    assert Image.open(path).size == (256, 128)


def test_command_line_says_what_is_wrong_in_one_sentence(tmp_path, capsys):
    assert sd_utils.main(["a red car", "--hf_key", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err
