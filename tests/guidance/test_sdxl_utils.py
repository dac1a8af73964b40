"""SDXL as guidance, on a tiny random model in the published file layout, with its VAE and with a distilled one."""

import json
import shutil

import pytest
import torch

from guidance import text_weights
from guidance.base import Conditions
from guidance.diffusion import loader
from guidance.perpneg_utils import PerpNeg
from guidance.sd_utils import Options
from guidance.sdxl_utils import StableDiffusionXL
from nerf.core.errors import UserError
from nerf.core.streams import Stream
from tests.guidance.models import PROMPT, gradient, image_of, views_at
from tests.guidance.tiny import LAYOUTS
from tests.helpers.parts import part_of

LAYOUT = LAYOUTS["sdxl"]


def make(folder, negative="", dtype=torch.float32, codec=None, vram_O=False, **options):
    model = StableDiffusionXL(folder, "cpu", dtype, Options(**options), vram_O, codec)
    model.prepare(Conditions(PROMPT, negative))
    return model


@pytest.fixture(scope="module")
def model(sdxl_folder):
    return make(sdxl_folder)


def test_embeddings_equal_those_of_the_pipeline_of_diffusers(sdxl_folder, model):
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    pipeline = StableDiffusionXLPipeline(
        None,
        CLIPTextModel.from_pretrained(sdxl_folder / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(sdxl_folder / "text_encoder_2"),
        CLIPTokenizer.from_pretrained(sdxl_folder / "tokenizer"),
        CLIPTokenizer.from_pretrained(sdxl_folder / "tokenizer_2"),
        None,
        None,
    )
    tokens, empty, pooled, empty_pooled = pipeline.encode_prompt(f"{PROMPT}, front view", device="cpu")
    torch.testing.assert_close(model.positive[:1], tokens)
    torch.testing.assert_close(model.embeddings["pooled"][:1], pooled)
    torch.testing.assert_close(model.negative, empty)  # zeros
    torch.testing.assert_close(model.embeddings["pooled"][-1:], empty_pooled)
    assert not empty.any()


def test_a_negative_prompt_is_not_zeros(sdxl_folder):
    other = make(sdxl_folder, negative="blurry")
    assert other.negative.any() and other.embeddings["pooled"][-1].any()


def test_latent_gradient_equals_the_weighted_noise_residual(model):
    part, views, image = part_of("guided", space="latent", seed=5), views_at(0, 100), image_of(2, 8, channels=4)
    t = torch.randint(20, 981, (2,), generator=part.random.generator(Stream.DIFFUSION_TIME))
    noise = torch.randn(2, 4, 8, 8, generator=part.random.generator(Stream.DIFFUSION_NOISE))
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[t].reshape(2, 1, 1, 1)
    noisy = abar.sqrt() * (2 * image - 1) + (1 - abar).sqrt() * noise
    tokens, pooled = (model.text_embeddings(views, 2, model.options, name) for name in ("tokens", "pooled"))
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(2, -1)
    with torch.no_grad():
        unconditional, conditional = (
            model.unet(noisy, t, encoder_hidden_states=e, added_cond_kwargs={"text_embeds": p, "time_ids": sizes}).sample
            for e, p in zip(tokens, pooled, strict=True)
        )
    expected = (1 - abar) * (unconditional + 100 * (conditional - unconditional) - noise)
    torch.testing.assert_close(gradient(model, image, views, part), expected, rtol=2e-3, atol=2e-3)


def test_pooled_embeddings_follow_the_view_words(model):
    pooled = model.text_embeddings(views_at(0, 90, 180), 3, model.options, "pooled")
    assert pooled.shape == (2, 3, 24) and not torch.allclose(pooled[1, 0], pooled[1, 2])
    assert torch.equal(pooled[0, 0], pooled[0, 2])


def test_the_vae_stays_in_single_precision_unless_its_config_allows_half(sdxl_folder, tmp_path):
    assert make(sdxl_folder, dtype=torch.bfloat16).vae.dtype == torch.float32
    folder = shutil.copytree(sdxl_folder / "vae", tmp_path / "vae")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": False}))
    assert make(sdxl_folder, dtype=torch.bfloat16, codec=folder).vae.dtype == torch.bfloat16


def test_a_distilled_codec_encodes_and_decodes_as_diffusers_does(sdxl_folder, taesdxl_folder):
    from diffusers import AutoencoderTiny

    model, tiny = make(sdxl_folder, codec=taesdxl_folder), AutoencoderTiny.from_pretrained(taesdxl_folder).eval()
    image, codec = image_of(1), model.distiller.codec
    latent = codec.encode(image, "rgb", torch.Generator())
    assert (codec.size, codec.shape) == (64, (4, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(latent.detach(), tiny.encode(2 * image - 1).latents)
        torch.testing.assert_close(codec.decode(latent), (tiny.decode(latent).sample / 2 + 0.5).clamp(0, 1))
    grad = gradient(model, image, views_at(0))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("size", [64, 48])
def test_gradient_reaches_every_pixel_through_the_vae(model, size):
    grad = gradient(model, image_of(1, size), views_at(0))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


def test_perpneg_and_sampling_work(sdxl_folder):
    model = make(sdxl_folder, perpneg=PerpNeg())
    assert torch.isfinite(gradient(model, image_of(2), views_at(0, 180))).all()
    assert model.sample(None, 1, torch.Generator().manual_seed(0), steps=2, scale=7.5).shape == (1, 3, 64, 64)


def test_the_tiny_model_has_the_tensor_names_of_the_real_one(model):
    names = set(model.unet.state_dict())
    assert len(names) == LAYOUT["unet"]["tensors"] and set(LAYOUT["unet"]["some_names"]) <= names


def test_the_published_file_list_is_complete_and_half_precision_is_taken():
    files = LAYOUT["files"]
    assert text_weights.LAYOUTS["SDXL"].missing(files) is None
    wanted = text_weights.LAYOUTS["SDXL"].wanted(files)
    assert "text_encoder_2/model.fp16.safetensors" in wanted and "sd_xl_base_1.0.safetensors" not in wanted
    assert text_weights.LAYOUTS["SDXL"].missing([f for f in files if not f.startswith("tokenizer_2")])


def test_offloaded_weights_give_the_same_gradient(sdxl_folder, model):
    other = make(sdxl_folder, vram_O=True)
    for network in (other.unet, other.vae):
        loader.offload(network, torch.device("cpu"))
    torch.testing.assert_close(gradient(other, image_of(1), views_at(0)), gradient(model, image_of(1), views_at(0)))


def test_stable_diffusion_and_sdxl_are_told_apart(sd_folder, sdxl_folder):
    from guidance.sd_utils import StableDiffusion

    with pytest.raises(UserError, match="lacks text_encoder_2/config.json"):
        StableDiffusionXL(sd_folder)
    with pytest.raises(UserError, match="--guidance SDXL or IF"):
        StableDiffusion(sdxl_folder)


def test_a_codec_of_another_kind_is_refused(sdxl_folder, sd_folder):
    with pytest.raises(UserError, match="no VAE that is known"):
        StableDiffusionXL(sdxl_folder, codec=sd_folder / "unet")
