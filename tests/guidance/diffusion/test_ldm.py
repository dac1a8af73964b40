"""The published files of latent diffusion become the modules of diffusers, tensor by tensor."""

import functools

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from guidance.diffusion import ldm
from guidance.diffusion.multiview import ImageAttention, link_frames
from guidance.diffusion.multiview_parts import load_resampler
from guidance.diffusion.single_file import TensorFile
from nerf.core.errors import UserError
from tests.guidance.camera_models import FOLDERS, LAYERS, published, tiny_tensors

MULTIVIEW = ("mvdream", "imagedream")
CLIP = {"zero123": "cond_stage_model.model.", "mvdream": "cond_stage_model.model.", "imagedream": "clip_model.model."}
VAE = {"zero123": "first_stage_model.", "mvdream": "first_stage_model.", "imagedream": "vae_model."}


class Shapes(dict):
    """The published shapes in the place of a file."""

    path = "published"

    def shape(self, name):
        return self[name]


def heads(width):
    return 8


@functools.cache
def published_unet(layout):
    """The UNet for the published shapes, on the meta device, and its config."""
    config = ldm.unet_config(Shapes(published(layout)), heads)
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=32, **config)
        if layout in MULTIVIEW:
            link_frames(unet, 5, 16 if layout == "imagedream" else 0)
    return unet, config


@pytest.mark.parametrize("layout", ["zero123", *MULTIVIEW])
def test_every_published_tensor_of_the_unet_has_its_place(layout):
    shapes, (unet, config) = published(layout), published_unet(layout)
    names = ldm.unet_names(list(unet.state_dict()), config)
    wanted = {ldm.UNET + theirs: tuple(unet.state_dict()[ours].shape) for ours, theirs in names.items()}
    of_unet = {n: s for n, s in shapes.items() if n.startswith(ldm.UNET) and "image_embed" not in n}
    assert wanted == of_unet


@pytest.mark.parametrize("layout", ["zero123", *MULTIVIEW])
def test_names_of_the_unet_are_those_that_diffusers_converts_to(layout):
    unet, config = published_unet(layout)
    names = ldm.unet_names(list(unet.state_dict()), config)
    file = {name: object() for name in published(layout)}
    plain = {k: v for k, v in config.items() if "class" not in k}  # diffusers has no name for a camera
    converted = convert_ldm_unet_checkpoint(file, plain)
    assert {ours for ours in names if ".processor." not in ours and "class_embedding" not in ours} <= set(converted)
    for ours, theirs in names.items():
        if ".processor." not in ours and "class_embedding" not in ours:
            assert converted[ours] is file[ldm.UNET + theirs], ours


def test_config_of_zero123_is_the_published_one():
    config, known = ldm.unet_config(Shapes(published("zero123")), heads), FOLDERS["zero123 unet"]
    assert (
        config["attention_head_dim"] == (8, 8, 8, 8)
        and not config["use_linear_projection"]
        and "class_embed_type" not in config
    )
    for key in ("in_channels", "out_channels", "layers_per_block", "cross_attention_dim"):
        assert config[key] == known[key]
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        assert list(config[key]) == known[key]


def test_config_of_mvdream_has_a_camera_and_linear_projections():
    config = ldm.unet_config(Shapes(published("mvdream")), lambda width: width // 64)
    assert config["attention_head_dim"] == (5, 10, 20, 20) and config["use_linear_projection"]
    assert config["class_embed_type"] == "projection" and config["projection_class_embeddings_input_dim"] == 16


@pytest.mark.parametrize("layout", ["zero123", *MULTIVIEW])
def test_every_published_tensor_of_the_vae_has_its_place(layout):
    prefix, shapes = VAE[layout], published(layout)
    config = ldm.vae_config(Shapes(shapes), prefix)
    assert config["block_out_channels"] == (128, 256, 512, 512) and config["layers_per_block"] == 2
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    names = {ours: ldm.ldm_vae_name(ours, 4) for ours in vae.state_dict()}
    assert {prefix + theirs for theirs in names.values()} == {name for name in shapes if name.startswith(prefix)}
    file = {
        f"first_stage_model.{n.removeprefix(prefix)}": torch.empty(s, device="meta")
        for n, s in shapes.items()
        if n.startswith(prefix)
    }
    sources = {id(tensor): name for name, tensor in file.items()}
    converted = convert_ldm_vae_checkpoint(file, config)
    assert set(converted) == set(names)
    for ours, theirs in names.items():
        if converted[ours].ndim == file[f"first_stage_model.{theirs}"].ndim:  # the 1x1 convolutions of attention become linear
            assert sources[id(converted[ours])] == f"first_stage_model.{theirs}", ours


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The tiny file of each layout."""
    made = {}
    for layout in ("zero123", *MULTIVIEW):
        path = tmp_path_factory.mktemp("ldm") / f"{layout}.pt"
        torch.save(tiny_tensors(layout), path)
        made[layout] = TensorFile(path)
    return made


def test_vae_equals_the_one_that_diffusers_converts(files):
    file = files["zero123"]
    theirs = AutoencoderKL(**ldm.vae_config(file))
    theirs.load_state_dict(convert_ldm_vae_checkpoint({n: file[n] for n in file if n.startswith(ldm.VAE)}, dict(theirs.config)))
    ours = ldm.load_vae(file, torch.float32)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.parametrize("layout", ["zero123", "imagedream"])
def test_every_published_tensor_of_the_image_encoder_has_its_place(files, layout):
    prefix, asked = f"{CLIP[layout]}visual.", []
    file = files[layout]

    class Watched(dict):
        path = file.path
        shape = staticmethod(file.shape)

        def __getitem__(self, name):
            asked.append(name)
            return file[name]

    config = CLIPVisionConfig(**ldm.clip_vision_config(file, prefix, 80 if layout == "imagedream" else 64, "gelu"))
    ldm.load_clip(CLIPVisionModelWithProjection, config, Watched(), prefix, torch.float32)
    assert set(asked) == {name for name in file if name.startswith(prefix)}


@pytest.mark.parametrize(("layout", "width", "layers"), [("zero123", 1024, 24), ("imagedream", 1280, 32)])
def test_config_of_the_published_image_encoder(layout, width, layers):
    config = ldm.clip_vision_config(Shapes(published(layout)), f"{CLIP[layout]}visual.", 80 if width == 1280 else 64, "gelu")
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (width, layers, 16)
    assert (config["image_size"], config["patch_size"], config["intermediate_size"]) == (224, 14, 4 * width)


def test_image_encoder_equals_openai_s_in_plain_torch(files):
    file, prefix = files["zero123"], "cond_stage_model.model.visual."
    config = CLIPVisionConfig(**ldm.clip_vision_config(file, prefix, 64, "quick_gelu"))
    model = ldm.load_clip(CLIPVisionModelWithProjection, config, file, prefix, torch.float64)
    image = torch.randn(2, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def at(name):
        return file[prefix + name].double()

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], at(f"{name}.weight"), at(f"{name}.bias"))

    x = torch.nn.functional.conv2d(image, at("conv1.weight"), stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([at("class_embedding").expand(2, 1, -1), x], 1) + at("positional_embedding")
    x = norm(x, "ln_pre")
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}."
        y = norm(x, f"{block}ln_1")
        q, k, v = (y @ at(f"{block}attn.in_proj_weight").T + at(f"{block}attn.in_proj_bias")).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 64**0.5, -1)  # one head of 64
        x = x + weights @ v @ at(f"{block}attn.out_proj.weight").T + at(f"{block}attn.out_proj.bias")
        y = norm(x, f"{block}ln_2") @ at(f"{block}mlp.c_fc.weight").T + at(f"{block}mlp.c_fc.bias")
        y = y * torch.sigmoid(1.702 * y)
        x = x + y @ at(f"{block}mlp.c_proj.weight").T + at(f"{block}mlp.c_proj.bias")
    expected = norm(x[:, 0], "ln_post") @ at("proj")
    torch.testing.assert_close(model(image).image_embeds, expected)


@pytest.mark.parametrize("layout", MULTIVIEW)
def test_text_encoder_is_the_one_that_diffusers_converts(files, layout):
    file, prefix = files[layout], CLIP[layout]
    config = CLIPTextConfig(**ldm.clip_text_config(file, prefix))
    assert config.num_hidden_layers == LAYERS  # the last block of the file is not used, as in Stable Diffusion 2
    model = ldm.load_clip(CLIPTextModel, config, file, prefix, torch.float32)
    renamed = {f"cond_stage_model.model.{n.removeprefix(prefix)}": file[n] for n in file if n.startswith(prefix)}
    theirs = convert_open_clip_checkpoint(model, renamed)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[f"text_model.{name}"]), name


def test_resampler_equals_the_original_in_plain_torch(files):
    file, prefix = files["imagedream"], "model.diffusion_model.image_embed."
    model = load_resampler(file, prefix, torch.float64)
    features = torch.randn(2, 5, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def at(name):
        return file[prefix + name].double()

    def linear(x, name):
        return x @ at(f"{name}.weight").T + (at(f"{name}.bias") if f"{prefix}{name}.bias" in file else 0)

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], at(f"{name}.weight"), at(f"{name}.bias"))

    x, latents = linear(features, "proj_in"), at("latents").expand(2, -1, -1)
    for i in range(4):
        a, b = norm(x, f"layers.{i}.0.norm1"), norm(latents, f"layers.{i}.0.norm2")
        q = linear(b, f"layers.{i}.0.to_q").unflatten(-1, (12, 4)).transpose(1, 2)
        k, v = linear(torch.cat([a, b], 1), f"layers.{i}.0.to_kv").chunk(2, -1)
        k, v = (y.unflatten(-1, (12, 4)).transpose(1, 2) for y in (k, v))
        out = (torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v).transpose(1, 2).flatten(2)
        latents = linear(out, f"layers.{i}.0.to_out") + latents
        y = linear(norm(latents, f"layers.{i}.1.0"), f"layers.{i}.1.1")
        latents = linear(torch.nn.functional.gelu(y), f"layers.{i}.1.3") + latents
    torch.testing.assert_close(model(features), norm(linear(latents, "proj_out"), "norm_out"))


def test_keys_and_values_of_image_tokens_are_those_of_the_file(files):
    file = files["imagedream"]
    unet = ldm.load_unet(file, lambda _: 1, 8, torch.float32, change=lambda unet: link_frames(unet, 5, 4))
    for name, module in unet.named_modules():
        if isinstance(module, ImageAttention):
            theirs = ldm.unet_names([f"{name}.to_k_ip.weight", f"{name}.to_v_ip.weight"], unet.config)
            for ours, original in theirs.items():
                assert torch.equal(unet.get_parameter(ours), file[ldm.UNET + original])


def test_averaged_weights_are_taken_where_a_checkpoint_has_them(tmp_path):
    from tests.guidance.camera_models import with_averages, write_lightning

    tensors = tiny_tensors("zero123")
    file = TensorFile(write_lightning(tmp_path / "z.ckpt", with_averages(tensors, 0.5)))
    unet = ldm.load_unet(file, heads, 32, torch.float32)
    assert torch.equal(unet.conv_in.weight, 0.5 * tensors[f"{ldm.UNET}input_blocks.0.0.weight"])


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path, files):
    tensors = {name: files["zero123"][name] for name in files["zero123"] if name.startswith(ldm.UNET)}
    torch.save({n: t for n, t in tensors.items() if "output_blocks.3.1.norm.bias" not in n}, tmp_path / "missing.pt")
    with pytest.raises(UserError, match=r"lacks the tensor model.diffusion_model.output_blocks.3.1.norm.bias; restore"):
        ldm.load_unet(TensorFile(tmp_path / "missing.pt"), heads, 32, torch.float32)
    torch.save(tensors | {f"{ldm.UNET}out.0.bias": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"holds conv_norm_out.bias as \[3\] and not \[32\]"):
        ldm.load_unet(TensorFile(tmp_path / "other.pt"), heads, 32, torch.float32)
