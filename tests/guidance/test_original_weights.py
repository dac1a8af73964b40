"""Checkpoint files of Stable Diffusion and SDXL among the weights of a run: what is refused, and where the tokenizer is."""

import shutil

import pytest
import torch

from guidance import choose_weights, tokenizers
from guidance.diffusion.checkpoint_kinds import version_of
from guidance.diffusion.single_file import TensorFile
from guidance.text_weights import keys
from guidance.weights import resolve
from nerf.config.config import parse
from nerf.core.errors import UserError
from tests.guidance.camera_models import tiny_tensors
from tests.guidance.conftest import pretend_hub, put_into_cache
from tests.guidance.single_files import tensors_of, write_clip_tokenizer, write_file

UNET = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture
def tokenizer(tmp_path):
    return write_clip_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def sd1(tmp_path, tokenizer):
    return write_file(tmp_path / "dream.safetensors", tensors_of("sd1"))


def config(*words):
    return parse(["--text", "a red car", *map(str, words)])


def with_channels(count):
    return tensors_of("sd1") | {UNET: torch.zeros(32, count, 3, 3)}


def without(prefix, layout="sd1"):
    return {name: tensor for name, tensor in tensors_of(layout).items() if not name.startswith(prefix)}


def alone(prefix, keep=""):
    """One network of a checkpoint, with its names without the prefix."""
    return {keep + n.removeprefix(prefix): t for n, t in tensors_of("sd1").items() if n.startswith(prefix)}


def refiner():
    return {n.replace("embedders.1.", "embedders.0."): t for n, t in tensors_of("sdxl").items() if "embedders.0." not in n}


ONE = {"x": torch.zeros(2)}
BAD = {
    "a LoRA": lambda: {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)},
    "a LoRA, which": lambda: {"unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight": torch.zeros(4, 8)},
    "merge it into the model": lambda: {"unet.mid_block.attentions.0.to_q.lora.down.weight": torch.zeros(4, 8)},
    "a textual inversion": lambda: {"emb_params": torch.zeros(2, 768)},
    "a ControlNet": lambda: {"control_model.time_embed.0.weight": torch.zeros(2, 2)},
    "a motion module": lambda: {"down_blocks.0.motion_modules.0.temporal_transformer.norm.bias": torch.zeros(2)},
    "Stable Diffusion 3": lambda: {"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": torch.zeros(2, 2)},
    "Flux or a relative": lambda: {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(2)},
    "a diffusion model of another kind": lambda: {"model.diffusion_model.layers.0.attention.qkv.weight": torch.zeros(2, 2)},
    "the refiner of SDXL": refiner,
    "the noise levels of EDM": lambda: tensors_of("sdxl") | {"edm_vpred.sigma_max": torch.tensor(120.0)},
    "noise levels of EDM": lambda: tensors_of("sdxl") | {"edm_mean": torch.zeros(4)},
    "Stable unCLIP": lambda: tensors_of("sd2") | {"noise_augmentor.data_mean": torch.zeros(2)},
    "takes more than a prompt": lambda: tensors_of("sd2") | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2, 2)},
    "Zero123, which takes a picture; give it to --guidance zero123": lambda: tiny_tensors("zero123"),
    "MVDream or ImageDream": lambda: tiny_tensors("mvdream"),
    "an inpainting model": lambda: with_channels(9),
    "takes depth": lambda: with_channels(5),
    "edits a picture": lambda: with_channels(8),
    "takes 6 channels and not 4": lambda: with_channels(6),
    "a VAE alone": lambda: alone("first_stage_model."),
    "a VAE alone;": lambda: alone("first_stage_model.", "first_stage_model."),
    "a UNet alone": lambda: alone("model.diffusion_model."),
    "a text encoder alone": lambda: alone("cond_stage_model."),
    "one network of a folder in diffusers layout": lambda: {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(2, 2)},
    "lacks its text encoder": lambda: without("cond_stage_model."),
    "lacks its VAE": lambda: without("first_stage_model."),
    "no checkpoint of a model that is known": lambda: ONE,
    "takes text of 64 channels, and text encoders that give 32": lambda: (
        tensors_of("sd1") | {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.zeros(84, 32)}
    ),
    "is SDXL; give it with --guidance SDXL --hf_keys SDXL=": lambda: tensors_of("sdxl"),
}


@pytest.mark.parametrize("sentence", list(BAD))
def test_another_file_is_refused_with_what_it_is_and_what_to_give(tmp_path, tokenizer, sentence):
    path = write_file(tmp_path / "x.safetensors", BAD[sentence]())
    with pytest.raises(UserError) as raised:
        resolve(hf_key=str(path))
    message = str(raised.value)
    assert sentence in message and str(path) in message and "; " in message and "\n" not in message


@pytest.mark.parametrize("layout", ["sd1", "sd2"])
def test_stable_diffusion_is_refused_as_sdxl(tmp_path, tokenizer, layout):
    path = write_file(tmp_path / "x.safetensors", tensors_of(layout))
    with pytest.raises(UserError, match=r"is Stable Diffusion \d.x; give it with --guidance SD --hf_keys SD="):
        choose_weights(config("--guidance", "SDXL", "--hf_keys", f"SDXL={path}"))


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_a_truncated_file_is_refused_in_one_sentence(tmp_path, tokenizer, name):
    path = tmp_path / name
    write_file(path, tensors_of("sd1")) if name.endswith("safetensors") else torch.save(tensors_of("sd1"), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{name}.*") as raised:
        resolve(hf_key=str(path))
    assert "\n" not in str(raised.value)


def test_a_file_without_one_tensor_or_with_nan_is_refused_when_it_is_read(tmp_path, tokenizer):
    from guidance.diffusion.original import Original

    name = "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"
    lacks = write_file(tmp_path / "a.safetensors", {k: v for k, v in tensors_of("sd1").items() if k != name})
    with pytest.raises(UserError, match=f"lacks the tensor {name}"):
        Original(lacks, "SD").unet(torch.device("cpu"), torch.float32)
    broken = write_file(tmp_path / "b.safetensors", tensors_of("sd1") | {name: tensors_of("sd1")[name] * torch.nan})
    with pytest.raises(UserError, match=r"numbers that are not finite, in up_blocks.1.resnets.0.conv1.weight"):
        Original(broken, "SD").unet(torch.device("cpu"), torch.float32)


# ---- among the weights of a run ----


def test_a_file_is_the_weights_of_a_run(sd1):
    found = choose_weights(config("--hf_key", sd1))["SD"]
    assert (found.source, found.kind, found.remote) == (str(sd1), "sd", False)
    assert found.title == "dream.safetensors (Stable Diffusion 1.x)" and "unknown" in found.licence


def test_a_file_of_sdxl_is_given_by_hf_keys_or_hf_key(tmp_path, tokenizer):
    path = write_file(tmp_path / "xl.safetensors", tensors_of("sdxl"), {"modelspec.license": "Some\nLicence 1.0"})
    for words in (("--hf_keys", f"SDXL={path}"), ("--hf_key", path)):
        found = choose_weights(config("--guidance", "SDXL", *words))["SDXL"]
        assert found.source == str(path) and found.licence == "Some Licence 1.0"


def test_the_version_is_told_by_the_text_encoder(tmp_path):
    for layout, name in {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}.items():
        file = TensorFile(write_file(tmp_path / f"{layout}.safetensors", tensors_of(layout)))
        assert version_of(file, "SDXL" if layout == "sdxl" else "SD").name == name


# ---- tokenizer ----


def test_without_a_tokenizer_and_a_network_a_sentence_says_what_to_do(sd1, tokenizer, no_weights):
    shutil.rmtree(tokenizer)
    with pytest.raises(UserError, match=r"holds no tokenizer, and CLIP's is not on this machine.*put the folder tokenizer/"):
        choose_weights(config("--hf_key", sd1))


def test_the_tokenizer_is_looked_for_beside_the_file_in_a_folder_and_in_the_cache(sd1, tokenizer, hub_cache, tmp_path):
    assert tokenizers.find(sd1) == (tmp_path, "tokenizer")
    other = shutil.copytree(tokenizer, tmp_path / "other")
    shutil.rmtree(tokenizer)
    found = choose_weights(config("--hf_key", sd1, "--hf_keys", f"tokenizer={other}"))["SD"]
    assert found.source == str(sd1) and tokenizers.find(sd1, str(other)) == (other, ".")
    put_into_cache(hub_cache, "openai/clip-vit-base-patch32", other)
    assert tokenizers.find(sd1)[1] == "." and "clip-vit-base-patch32" in str(tokenizers.find(sd1)[0])
    whole = tmp_path / "whole"
    shutil.copytree(other, whole / "tokenizer")
    put_into_cache(hub_cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", whole)
    folder, inside = tokenizers.find(sd1)
    assert inside == "tokenizer" and (folder / inside / "merges.txt").is_file()
    with pytest.raises(UserError, match="is no folder with CLIP's tokenizer"):
        choose_weights(config("--hf_key", sd1, "--hf_keys", f"tokenizer={tmp_path / 'nowhere'}"))


def test_the_tokenizer_alone_is_downloaded_where_it_is_nowhere(sd1, tokenizer, hub_cache, monkeypatch, tmp_path):
    hub_folder = shutil.move(tokenizer, tmp_path / "downloaded")
    asked = pretend_hub(monkeypatch, ["vocab.json", "merges.txt", "model.safetensors"], hub_folder)
    assert tokenizers.find(sd1) is None and not asked
    assert tokenizers.fetch(sd1) == (hub_folder, ".")
    ((name, _, patterns),) = asked
    assert name == "openai/clip-vit-large-patch14" and "vocab.json" in patterns and "model.safetensors" not in patterns


def test_the_tokenizer_is_a_name_of_hf_keys():
    assert keys(config("--hf_keys", "tokenizer=a/b", "--hf_key", "x").guidance) == {"tokenizer": "a/b", "SD": "x"}
