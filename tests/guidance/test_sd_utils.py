"""Stable Diffusion as guidance, on a tiny random model in the real file layout."""

import json
import shutil

import pytest
import torch

from guidance.base import CameraRequirements, Conditions
from guidance.diffusion import loader
from guidance.distillation import timestep_weight
from guidance.perpneg_utils import PerpNeg
from guidance.prompts import ViewAngles
from guidance.sd_utils import StableDiffusion
from nerf.core.errors import UserError
from nerf.core.streams import Random, Stream
from nerf.core.structs import Control
from tests.guidance.models import PROMPT, T_RANGE, gradient, image_of, replace_denoiser, views_at
from tests.guidance.models import stable_diffusion as make
from tests.helpers.parts import part_of


@pytest.fixture(scope="module")
def sd(sd_folder):
    return make(sd_folder)


def test_latent_gradient_equals_the_weighted_noise_residual(sd):
    part, views, image = part_of("guided", space="latent", seed=5), views_at(0, 100), image_of(2, 8, channels=4)
    t = torch.randint(20, 981, (2,), generator=part.random.generator(Stream.DIFFUSION_TIME))
    noise = torch.randn(2, 4, 8, 8, generator=part.random.generator(Stream.DIFFUSION_NOISE))
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[t].reshape(2, 1, 1, 1)
    noisy = abar.sqrt() * (2 * image - 1) + (1 - abar).sqrt() * noise
    text = sd.text_embeddings(views, 2, sd.options)
    with torch.no_grad():
        unconditional, conditional = (sd.unet(noisy, t, encoder_hidden_states=e).sample for e in text)
    residual = (1 - abar) * (unconditional + 100 * (conditional - unconditional) - noise)
    expected = 2 * residual / 2  # x = 2 image - 1; the mean over two views
    # float32 and a guidance scale of 100 over x_0 = (x_t - sigma eps) / alpha
    torch.testing.assert_close(gradient(sd, image, views, part), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("size", [64, 48, 100])
def test_gradient_reaches_every_pixel_through_the_vae(sd, size):
    grad = gradient(sd, image_of(1, size), views_at(0))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


def test_same_part_gives_the_same_loss(sd):
    first, second = (sd.loss(image_of(2), views_at(0, 90), part_of("guided", seed=3), Control(T_RANGE)) for _ in range(2))
    assert torch.equal(first.loss, second.loss) and first.stats == second.stats


def test_another_seed_gives_another_loss(sd):
    first, second = (sd.loss(image_of(1), views_at(0), part_of("guided", seed=s), Control(T_RANGE)).loss for s in (1, 2))
    assert first != second


@pytest.mark.parametrize("weighting", ["uniform", "fantasia"])
def test_weighting_of_the_options_scales_the_gradient(sd_folder, sd, weighting):
    other = make(sd_folder, weighting=weighting)
    alpha, sigma = sd.distiller.schedule.levels(torch.tensor([500]), torch.zeros(1, 1))
    factor = (timestep_weight(weighting, alpha, sigma) / timestep_weight("sds", alpha, sigma)).item()
    pair = [gradient(model, image_of(1), views_at(0), t_range=(0.5, 0.5)) for model in (sd, other)]
    assert abs(factor - 1) > 0.1
    torch.testing.assert_close(pair[1], factor * pair[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("perpneg", [None, PerpNeg()])
def test_scale_of_the_step_replaces_that_of_the_options(sd_folder, perpneg):
    image, views = image_of(2), views_at(0, 100)
    mild, strong = (make(sd_folder, guidance_scale=scale, perpneg=perpneg) for scale in (2.0, 50.0))
    expected = gradient(mild, image, views, part_of("guided", seed=3))
    torch.testing.assert_close(gradient(strong, image, views, part_of("guided", seed=3), scale=2.0), expected)
    assert not torch.allclose(gradient(strong, image, views, part_of("guided", seed=3)), expected)


@pytest.mark.parametrize("perpneg", [None, PerpNeg()])
def test_rescale_takes_the_standard_deviation_of_the_conditional_prediction(sd_folder, perpneg):
    model = make(sd_folder, rescale=1.0, perpneg=perpneg)
    predictions = torch.randn(2 if perpneg is None else 4, 1, 4, 8, 8)
    mixed = model.mixer(views_at(45), 50.0, model.options)(predictions)
    torch.testing.assert_close(mixed.std(), predictions[1].std())


@pytest.mark.parametrize("vram_O", [False, True])
def test_gradient_is_the_same_on_every_device(sd_folder, sd, device, vram_O):
    model = StableDiffusion(sd_folder, device, vram_O=vram_O)
    model.prepare(Conditions(PROMPT))
    there = gradient(model, image_of(1).to(device), views_at(0).to(device)).cpu()
    here = gradient(sd, image_of(1), views_at(0))
    assert torch.cosine_similarity(there.flatten(), here.flatten(), dim=0) > 0.99  # TF32 and a scale of 100 on CUDA


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_a_gradient_near_that_of_float32(sd, dtype):
    half = make(sd.folder, dtype=dtype)
    a, b = (gradient(m, image_of(1), views_at(0)).flatten() for m in (sd, half))
    assert b.dtype == torch.float32
    assert torch.cosine_similarity(a, b, dim=0) > 0.9  # 8 bits of mantissa, and a guidance scale of 100


def test_autocast_of_the_caller_does_not_reach_the_model(sd):
    def loss():
        return sd.loss(image_of(1), views_at(45), part_of("guided"), Control(T_RANGE)).loss

    plain = loss()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(), plain)


def test_conditional_embedding_changes_with_the_view(sd):
    front, side, back = sd.text_embeddings(views_at(0, 90, 180), 3, sd.options)[1]
    assert not torch.allclose(front, side) and not torch.allclose(side, back)


def test_unconditional_embedding_is_the_same_for_all_views(sd):
    unconditional = sd.text_embeddings(views_at(0, 180), 2, sd.options)[0]
    assert torch.equal(unconditional[0], unconditional[1])


def test_view_words_change_at_the_angles_of_the_options(sd, sd_folder):
    narrow = make(sd_folder, angles=ViewAngles(front=30.0))
    front, side = narrow.text_embeddings(views_at(0, 90), 2, narrow.options)[1]
    (middle,) = narrow.text_embeddings(views_at(15), 1, narrow.options)[1]
    torch.testing.assert_close(middle, (front + side) / 2)
    assert not torch.allclose(middle, sd.text_embeddings(views_at(15), 1, sd.options)[1, 0])


def test_negative_prompt_replaces_the_empty_one(sd_folder, sd):
    model = make(sd_folder, negative="blurry")
    assert not torch.allclose(model.negative, sd.negative) and torch.equal(model.positive, sd.positive)


def test_perpneg_adds_the_negative_view_words_as_conditions(sd_folder):
    model = make(sd_folder, perpneg=PerpNeg())
    text = model.text_embeddings(views_at(0, 180), 2, model.options)
    assert text.shape[:2] == (4, 2)
    assert torch.equal(text[2, 0], text[1, 0])  # at the front, the negative word "front" is that of the prompt itself
    assert torch.isfinite(gradient(model, image_of(2), views_at(0, 180))).all()


def test_debug_prediction_of_a_perfect_noise_predictor_is_the_image(sd, monkeypatch):
    noise = torch.randn(2, 4, 8, 8, generator=Random(4).generator(Stream.DIFFUSION_NOISE))
    replace_denoiser(monkeypatch, sd, lambda x, t: noise)
    debug = sd.loss(image_of(2), views_at(0, 90), part_of("guided", seed=4), Control(T_RANGE), debug=True).debug
    torch.testing.assert_close(debug["x0"], debug["image"], rtol=0, atol=1e-3)


def test_sampling_without_views_gives_images(sd):
    drawn = sd.sample(None, 2, torch.Generator().manual_seed(0), steps=2, scale=7.5)
    assert drawn.shape == (2, 3, 64, 64) and drawn.min() >= 0 and drawn.max() <= 1


def test_networks_are_frozen(sd):
    assert not any(p.requires_grad for p in [*sd.unet.parameters(), *sd.vae.parameters()])


def test_legacy_files_give_the_same_embeddings_and_gradient(sd, legacy_folder):
    legacy = make(legacy_folder)
    assert torch.equal(legacy.positive, sd.positive)
    torch.testing.assert_close(gradient(legacy, image_of(1), views_at(0)), gradient(sd, image_of(1), views_at(0)))


def test_v_prediction_is_read_from_the_scheduler(broken_folder):
    path = broken_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    model = make(broken_folder)
    assert model.distiller.schedule.prediction_type == "v_prediction"
    assert torch.isfinite(gradient(model, image_of(1), views_at(0))).all()


def write_short_unet(folder, in_channels):
    """A UNet of one level in place of the folder's own, of the layers of the published ones."""
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel(
        in_channels=in_channels,
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=2,
    ).save_pretrained(folder / "unet")


def test_an_inpainting_unet_is_refused(broken_folder):
    write_short_unet(broken_folder, in_channels=9)
    with pytest.raises(UserError, match="expected a UNet of 4 input channels"):
        StableDiffusion(broken_folder)


def test_tiny_models_have_the_tensor_names_of_the_real_ones(sd, layout):
    for part, network in (("unet", sd.unet), ("vae", sd.vae)):
        names = set(network.state_dict())
        assert len(names) == layout[part]["tensors"] and set(layout[part]["some_names"]) <= names


def test_an_empty_prompt_is_refused(sd):
    with pytest.raises(UserError, match="--text"):
        sd.prepare(Conditions("  "))


def test_loss_before_prepare_is_an_error(sd_folder):
    with pytest.raises(RuntimeError, match="prepare"):
        gradient(StableDiffusion(sd_folder), image_of(1), views_at(0))


def test_offloaded_weights_come_for_the_time_of_their_layer_and_give_the_same_gradient(sd_folder, sd, device):
    model, seen = StableDiffusion(sd_folder, device), []
    model.prepare(Conditions(PROMPT))
    for network in (model.unet, model.vae):
        loader.offload(network, device)
    model.unet.conv_in.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.device.type))
    there = gradient(model, image_of(1).to(device), views_at(0).to(device)).cpu()
    here = gradient(sd, image_of(1), views_at(0))
    assert torch.cosine_similarity(there.flatten(), here.flatten(), dim=0) > 0.99 and seen == [device.type]
    if device.type == "cpu":
        torch.testing.assert_close(there, here)
    assert {w.device.type for w in (*model.unet.parameters(), *model.vae.parameters())} == {"cpu"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_unet_gives_the_same_gradient(broken_folder, device, monkeypatch, tmp_path):
    from torch._dynamo.utils import counters
    from torch._inductor import config

    if device.type == "cuda":
        pytest.importorskip("triton")
    monkeypatch.setattr(config, "compile_threads", 1)  # in this process: starting others takes longer than this UNet
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    counters.clear()
    write_short_unet(broken_folder, in_channels=4)
    model = StableDiffusion(broken_folder, device)
    model.prepare(Conditions(PROMPT))
    for network in model.denoisers():
        loader.compile_network(network, "default", device)
    there = gradient(model, image_of(1).to(device), views_at(0).to(device)).cpu()
    here = gradient(make(broken_folder), image_of(1), views_at(0))
    assert torch.cosine_similarity(there.flatten(), here.flatten(), dim=0) > 0.99 and counters["frames"]["ok"] > 0


def test_compiling_on_a_gpu_without_triton_is_a_sentence(monkeypatch):
    monkeypatch.setattr(loader, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install triton"):
        loader.compile_network(torch.nn.Linear(1, 1), "reduce-overhead", torch.device("cuda"))


def test_any_view_is_accepted(sd):
    assert sd.requirements() == CameraRequirements()
