"""Stable Diffusion 1.x, 2.x and SDXL in one file guide as the folders do that diffusers makes of them."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from guidance.base import Conditions
from guidance.diffusion import loader, original
from guidance.sd_utils import StableDiffusion
from guidance.sdxl_utils import StableDiffusionXL
from tests.guidance.camera_models import with_averages, write_lightning
from tests.guidance.models import PROMPT, gradient, image_of, views_at
from tests.guidance.single_files import FAMILIES, OPEN_CLIP, tensors_of, write_clip_tokenizer, write_file, write_folder

LAYOUTS = tuple(FAMILIES)
CLASSES = {"SD": StableDiffusion, "SDXL": StableDiffusionXL}
CLOSE = {"rtol": 0, "atol": 1e-6}


def make(path, layout, prompt=PROMPT, **arguments):
    """A prepared model of a folder or a file, in double precision."""
    arguments = {"dtype": torch.float64} | arguments
    if layout == "sd2":
        arguments = {"prediction": "epsilon"} | arguments
    model = CLASSES[FAMILIES[layout]](path, **arguments)
    model.prepare(Conditions(prompt))
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Layout -> a checkpoint, with CLIP's tokenizer beside it."""
    folder = tmp_path_factory.mktemp("single")
    write_clip_tokenizer(folder / "tokenizer")
    return {layout: write_file(folder / f"{layout}.safetensors", tensors_of(layout)) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Layout -> the folder of the same weights."""
    return {layout: write_folder(tmp_path_factory.mktemp("folders") / layout, layout, tensors_of(layout)) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def models(files):
    """Layout -> the model of its file."""
    return {layout: make(files[layout], layout) for layout in LAYOUTS}


def unet_output(model, seed=0):
    """The UNet's answer to some noise under the prompt."""
    generator = torch.Generator().manual_seed(seed)
    noisy, t = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64), torch.tensor([10, 900])
    with torch.no_grad():
        return model.denoiser(views_at(0, 180), 2, model.options)(noisy, t)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_the_model_of_the_folder_that_diffusers_converts_it_to(models, folders, layout):
    ours, theirs = models[layout], make(folders[layout], layout)
    for name, value in theirs.embeddings.items():
        assert value.std() > 0.1 and value[0].shape == ours.embeddings[name][0].shape
        torch.testing.assert_close(ours.embeddings[name], value, **CLOSE)
    output = unet_output(theirs)
    assert output.std() > 0.1
    torch.testing.assert_close(unet_output(ours), output, **CLOSE)
    assert ours.unet.config.sample_size == theirs.unet.config.sample_size
    assert ours.vae.config.scaling_factor == theirs.vae.config.scaling_factor
    image, latent = image_of(1, 64).double() * 2 - 1, torch.randn(1, 4, 8, 8, dtype=torch.float64)
    mine, other = (copy.deepcopy(model.vae).double() for model in (ours, theirs))  # that of SDXL is in single precision
    with torch.no_grad():
        encoded, decoded = mine.encode(image).latent_dist.mean, mine.decode(latent).sample
        torch.testing.assert_close(encoded, other.encode(image).latent_dist.mean, **CLOSE)
        torch.testing.assert_close(decoded, other.decode(latent).sample, **CLOSE)
    torch.testing.assert_close(
        ours.distiller.schedule.alphas_cumprod, theirs.distiller.schedule.alphas_cumprod, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_a_rendered_image_gets_the_gradient_of_the_folder(files, folders, tmp_path, layout):
    path = write_file(tmp_path / "small.safetensors", tensors_of(layout), {"modelspec.resolution": "128x128"})
    folder = shutil.copytree(folders[layout], tmp_path / "folder")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))
    model, other = make(path, layout, tokenizer=str(files[layout].parent)), make(folder, layout)
    expected = gradient(other, image_of(1, 64), views_at(0))
    assert (expected != 0).float().mean() > 0.9
    # The guidance scale of 100 enlarges the rounding of two ways to build the noise schedule.
    torch.testing.assert_close(gradient(model, image_of(1, 64), views_at(0)), expected, rtol=1e-2, atol=1e-4)


def test_a_half_precision_ckpt_of_lightning_with_averages_gives_the_weights_that_are_not_averaged(files, models, tmp_path):
    tensors = {name: tensor.half() for name, tensor in with_averages(tensors_of("sd1"), factor=3.0).items()}
    path = write_lightning(tmp_path / "model.ckpt", tensors)
    model = make(path, "sd1", tokenizer=str(files["sd1"].parent))
    for ours, full in ((model.unet, models["sd1"].unet), (model.vae, models["sd1"].vae)):
        for name, value in full.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value.half().to(value.dtype)), name
    torch.testing.assert_close(model.positive, models["sd1"].positive, rtol=0, atol=0.05)


def test_offloaded_weights_give_the_same_prediction(files, models):
    model = make(files["sd1"], "sd1", vram_O=True)
    loader.offload(model.unet, torch.device("cpu"))
    torch.testing.assert_close(unet_output(model), unet_output(models["sd1"]))


# ---- text encoders ----


def text_of(path, layout, **arguments):
    """The embeddings of a file, without its UNet and VAE."""
    from guidance.diffusion import text

    encoders = original.Original(path, FAMILIES[layout], **arguments).text_encoders(torch.float32)
    return [text.embed(encoder, [(PROMPT, "")], torch.device("cpu"), torch.float32) for encoder in encoders]


def test_a_short_prompt_is_filled_up_as_each_encoder_was_trained(files):
    from guidance.diffusion import text

    for layout, pads in {"sd1": [83], "sd2": [0], "sdxl": [83, 0]}.items():
        encoders = original.Original(files[layout], FAMILIES[layout]).text_encoders(torch.float32)
        assert [encoder.checkpoint.pad for encoder in encoders] == pads
        seen = []
        kind = text.KINDS[encoders[-1].kind]
        network = encoders[-1].checkpoint.load()
        network.register_forward_pre_hook(lambda _, args, kwargs, seen=seen: seen.append(kwargs["input_ids"]), with_kwargs=True)
        object.__setattr__(encoders[-1].checkpoint, "load", lambda network=network: network)
        text.embed(encoders[-1], [("ox", "")], torch.device("cpu"), torch.float64)
        assert seen[0][0, -70:].unique().tolist() == [pads[-1]] and kind.outputs


def test_a_file_that_leaves_out_the_unused_block_gives_the_same_text(files, tmp_path, monkeypatch):
    monkeypatch.setattr(original, "WHOLE_ENCODER", 2)
    tensors = {name: tensor for name, tensor in tensors_of("sd2").items() if "resblocks.2." not in name}
    path = write_file(tmp_path / "sd2.safetensors", tensors)
    write_clip_tokenizer(tmp_path / "tokenizer")
    torch.testing.assert_close(text_of(path, "sd2")[0]["tokens"], text_of(files["sd2"], "sd2")[0]["tokens"])


def test_the_projection_of_sdxl_is_read_as_a_linear_layer_too(files, tmp_path):
    tensors, name = dict(tensors_of("sdxl")), f"{OPEN_CLIP['sdxl']}text_projection"
    tensors[f"{name}.weight"] = tensors.pop(name).T.contiguous()
    path = write_file(tmp_path / "sdxl.safetensors", tensors)
    write_clip_tokenizer(tmp_path / "tokenizer")
    assert torch.equal(text_of(path, "sdxl")[1]["pooled"], text_of(files["sdxl"], "sdxl")[1]["pooled"])


def test_names_of_2022_without_text_model_are_read(files, tmp_path):
    tensors = {name.replace("transformer.text_model.", "transformer."): value for name, value in tensors_of("sd1").items()}
    path = write_file(tmp_path / "sd1.safetensors", tensors)
    write_clip_tokenizer(tmp_path / "tokenizer")
    assert torch.equal(text_of(path, "sd1")[0]["tokens"], text_of(files["sd1"], "sd1")[0]["tokens"])


def test_a_finetune_that_leaves_out_the_last_layer_says_so(files, tmp_path):
    path = write_file(tmp_path / "sd1.safetensors", tensors_of("sd1"), {"modelspec.encoder_layer": "2"})
    write_clip_tokenizer(tmp_path / "tokenizer")
    (encoder,) = original.Original(path, "SD").text_encoders(torch.float32)
    network = encoder.checkpoint.load()
    assert network.config.num_hidden_layers == 2
    assert not torch.allclose(text_of(path, "sd1")[0]["tokens"], text_of(files["sd1"], "sd1")[0]["tokens"])


def test_stored_embeddings_depend_on_the_text_encoder_and_on_nothing_else_of_the_file(files, tmp_path):
    def identity(tensors, name, **metadata):
        path = tmp_path / name
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata or None)
        (encoder,) = original.Original(path, "SD", str(files["sd1"].parent)).text_encoders(torch.float32)
        return encoder.identity()

    tensors = dict(tensors_of("sd1"))
    first = identity(tensors, "a.safetensors")
    unet = "model.diffusion_model.out.2.bias"
    assert identity(tensors | {unet: tensors[unet] + 1}, "b.safetensors") == first
    text = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight"
    assert identity(tensors | {text: tensors[text] * 1.01}, "c.safetensors") != first
    assert identity(tensors, "d.safetensors", **{"modelspec.encoder_layer": "2"}) != first
    torch.save(tensors, tmp_path / "e.ckpt")
    (encoder,) = original.Original(tmp_path / "e.ckpt", "SD", str(files["sd1"].parent)).text_encoders(torch.float32)
    assert encoder.identity() == first


# ---- what it predicts ----


@pytest.mark.parametrize(
    ("layout", "metadata", "marks", "prediction", "side"),
    [
        ("sd1", {}, (), "epsilon", 64),
        ("sd1", {"modelspec.prediction_type": "v"}, (), "v_prediction", 64),
        ("sd1", {"modelspec.resolution": "768x768"}, (), "epsilon", 96),
        ("sd2", {"modelspec.prediction_type": "epsilon"}, (), "epsilon", 64),
        ("sd2", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, (), "v_prediction", 96),
        ("sd2", {}, (), "v_prediction", 96),  # the answer of random weights to noise has nothing to do with it
        ("sdxl", {}, ("v_pred", "ztsnr"), "v_prediction", 128),
    ],
)
def test_prediction_and_size_are_those_that_the_file_says(tmp_path, layout, metadata, marks, prediction, side):
    tensors = tensors_of(layout) | {mark: torch.zeros(0) for mark in marks}
    model = original.Original(write_file(tmp_path / "x.safetensors", tensors, metadata), FAMILIES[layout])
    unet, schedule = model.unet(torch.device("cpu"), torch.float32), model.schedule(torch.device("cpu"))
    assert (schedule.prediction_type, unet.config.sample_size) == (prediction, side)
    assert (schedule.alphas_cumprod[-1] == 0) == ("ztsnr" in marks)


def test_the_flag_is_stronger_than_what_weights_say(tmp_path, files, folders):
    path = write_file(tmp_path / "x.safetensors", tensors_of("sd1"), {"modelspec.prediction_type": "v"})
    write_clip_tokenizer(tmp_path / "tokenizer")
    assert make(path, "sd1", prediction="epsilon").distiller.schedule.prediction_type == "epsilon"
    assert make(folders["sd1"], "sd1", prediction="v_prediction").distiller.schedule.prediction_type == "v_prediction"


def test_a_schedule_without_signal_at_its_end_is_that_of_diffusers(tmp_path):
    from diffusers import DDPMScheduler

    path = write_file(tmp_path / "x.safetensors", tensors_of("sd1") | {"ztsnr": torch.zeros(0)})
    ours = original.Original(path, "SD").schedule(torch.device("cpu")).alphas_cumprod
    theirs = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)  # diffusers computes products in single precision


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_probe_tells_what_a_perfect_denoiser_of_pictures_predicts(prediction):
    """x_0 ~ N(0.2, 0.3^2): the mean of x_0 given x_t is known, and so is every prediction."""
    from guidance.diffusion.ldm import noise_schedule

    schedule = noise_schedule(torch.device("cpu"))

    def predict(noisy, t):
        alpha, sigma = schedule.levels(t, noisy)
        x0 = 0.2 + 0.09 * alpha / (0.09 * alpha**2 + sigma**2) * (noisy - 0.2 * alpha)
        noise = (noisy - alpha * x0) / sigma
        return noise if prediction == "epsilon" else alpha * noise - sigma * x0

    found, slope = original.probe(predict, (1, 4, 32, 32), torch.device("cpu"))
    assert found == prediction and (abs(slope - 1) < 0.01 if prediction == "epsilon" else abs(slope) < 0.1)
