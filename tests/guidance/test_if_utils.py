"""DeepFloyd IF as guidance, on a tiny random model in the published file layouts."""

import json
import shutil

import pytest
import torch

from guidance import text_weights
from guidance.base import Conditions
from guidance.diffusion import loader, text
from guidance.if_utils import DeepFloydIF
from guidance.perpneg_utils import PerpNeg
from guidance.sd_utils import Options
from nerf.core.errors import UserError
from nerf.core.streams import Stream
from tests.guidance.models import PROMPT, gradient, image_of, views_at
from tests.guidance.tiny import LAYOUTS, as_shards
from tests.helpers.parts import part_of

LAYOUT = LAYOUTS["deepfloyd_if"]


def make(folder, dtype=torch.float32, vram_O=False, **options):
    model = DeepFloydIF(folder, "cpu", dtype, Options(**options), vram_O)
    model.prepare(Conditions(PROMPT))
    return model


@pytest.fixture(scope="module")
def model(if_folder):
    return make(if_folder)


def test_gradient_in_pixels_equals_the_weighted_noise_residual_without_the_variance(model):
    part, views, image = part_of("guided", seed=5), views_at(0, 100), image_of(2, 8)
    t = torch.randint(20, 981, (2,), generator=part.random.generator(Stream.DIFFUSION_TIME))
    noise = torch.randn(2, 3, 8, 8, generator=part.random.generator(Stream.DIFFUSION_NOISE))
    place = torch.arange(1001) / 1000
    bar = torch.cos((place + 0.008) / 1.008 * torch.pi / 2) ** 2  # Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17
    abar = torch.cumprod(1 - (1 - bar[1:] / bar[:-1]).clamp(max=0.999), 0)[t].reshape(2, 1, 1, 1)
    noisy = abar.sqrt() * (2 * image - 1) + (1 - abar).sqrt() * noise
    with torch.no_grad():
        rows = [model.unet(noisy, t, encoder_hidden_states=e).sample for e in model.text_embeddings(views, 2, model.options)]
    assert rows[0].shape == (2, 6, 8, 8)
    unconditional, conditional = (row[:, :3] for row in rows)
    expected = (1 - abar) * (unconditional + 100 * (conditional - unconditional) - noise)  # x = 2 image - 1, a mean over 2
    torch.testing.assert_close(gradient(model, image, views, part), expected, rtol=5e-3, atol=5e-3)


def test_the_tiny_model_has_the_tensor_names_of_the_real_one(model, if_folder):
    from safetensors import safe_open

    assert set(LAYOUT["unet"]["some_names"]) <= set(model.unet.state_dict())
    with safe_open(if_folder / "text_encoder" / "model.safetensors", "pt") as file:
        assert set(LAYOUT["text_encoder"]["some_names"]) <= set(file.keys())


@pytest.mark.parametrize("safetensors", [False, True])
def test_half_precision_files_in_shards_give_nearly_the_same_gradient(if_folder, tmp_path, model, safetensors):
    folder = shutil.copytree(if_folder, tmp_path / "shards")
    as_shards(folder, safetensors)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    listed = set(LAYOUT["files"]["fp16 safetensors" if safetensors else "fp16 .bin"])
    assert {n for n in names if n.startswith(("text_encoder", "unet"))} <= listed
    other = make(folder)
    torch.testing.assert_close(other.positive, model.positive, rtol=0, atol=0.02)
    a, b = (gradient(m, image_of(1, 8), views_at(0)).flatten() for m in (model, other))
    assert torch.cosine_similarity(a, b, dim=0) > 0.95  # weights rounded to 11 bits, a guidance scale of 100


@pytest.mark.parametrize("files", LAYOUT["files"])
def test_the_published_file_lists_are_complete(files):
    assert text_weights.LAYOUTS["IF"].missing(LAYOUT["files"][files]) is None
    for lost in ("unet/config.json", "tokenizer/spiece.model"):
        assert text_weights.LAYOUTS["IF"].missing([f for f in LAYOUT["files"][files] if f != lost])


def test_what_is_downloaded_is_the_shards_of_one_variant_and_no_more():
    files = LAYOUT["files"]["fp16 .bin"] + LAYOUT["files"]["fp16 safetensors"]
    wanted = text_weights.LAYOUTS["IF"].wanted(files)
    assert "text_encoder/model.fp16-00002-of-00002.safetensors" in wanted and "tokenizer/*" in wanted
    assert not any(name.endswith(".bin") or name.startswith(("watermarker", "safety_checker")) for name in wanted)


def test_the_text_encoder_runs_once_for_a_prompt_and_is_freed(if_folder, monkeypatch):
    seen, load = [], text.load_part
    monkeypatch.setattr(text, "load_part", lambda folder, part, *rest: seen.append(part) or load(folder, part, *rest))
    first, again = make(if_folder), make(if_folder)
    assert seen == ["text_encoder"] and torch.equal(first.positive, again.positive)


def test_padding_is_masked_in_the_text_encoder(model, if_folder):
    from transformers import T5EncoderModel, T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(if_folder / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(if_folder / "text_encoder").eval()
    ids = tokenizer(f"{PROMPT}, front view", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        short = encoder(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(model.positive[0, : len(short)], short, rtol=1e-4, atol=1e-5)
    assert model.positive.shape[1] == 77


def test_perpneg_and_sampling_work_in_pixels(if_folder):
    model = make(if_folder, perpneg=PerpNeg())
    assert torch.isfinite(gradient(model, image_of(2, 16), views_at(0, 180))).all()
    drawn = model.sample(None, 2, torch.Generator().manual_seed(0), steps=2, scale=7.5)
    assert drawn.shape == (2, 3, 8, 8) and drawn.min() >= 0 and drawn.max() <= 1
    assert model.distiller.schedule.clamp is None


def test_it_accepts_no_latents(model):
    assert model.spaces == ("rgb",)


def test_offloaded_weights_give_the_same_gradient(if_folder, model):
    other = make(if_folder, vram_O=True)
    loader.offload(other.unet, torch.device("cpu"))
    assert other.unet.conv_in._forward_pre_hooks, "the weights come when the layer runs"
    torch.testing.assert_close(gradient(other, image_of(1, 8), views_at(0)), gradient(model, image_of(1, 8), views_at(0)))


def test_stable_diffusion_is_refused_as_if_and_if_as_stable_diffusion(sd_folder, if_folder):
    from guidance.sd_utils import StableDiffusion

    with pytest.raises(UserError, match="is not the first stage of DeepFloyd IF"):
        DeepFloydIF(sd_folder)
    with pytest.raises(UserError, match="lacks vae/config.json"):
        StableDiffusion(if_folder)


def test_a_second_stage_is_refused(if_folder, tmp_path):
    folder = shutil.copytree(if_folder, tmp_path / "stage2")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 6}))
    with pytest.raises(UserError, match="expected a UNet of 3 input channels.*it has 6"):
        DeepFloydIF(folder)


def test_a_tokenizer_that_needs_a_package_says_so(if_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(if_folder, tmp_path / "spiece")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"\x0a\x0e")
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        make(folder)
