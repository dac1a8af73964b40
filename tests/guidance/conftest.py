"""Tiny random models in the real file layouts, built once: Stable Diffusion (new and legacy), the embedded prior."""

import json
import shutil
import string
from pathlib import Path

import pytest
import torch

LAYOUT = json.loads((Path(__file__).parent / "layouts" / "stable_diffusion.json").read_text())
WIDTH = 16


@pytest.fixture(scope="session")
def layout():
    """What is known of the published folders, see ``layouts/stable_diffusion.json``."""
    return LAYOUT


@pytest.fixture(autouse=True)
def text_cache_folder(tmp_path_factory, monkeypatch):
    """An empty folder for the text embeddings of each test."""
    folder = tmp_path_factory.mktemp("text")
    monkeypatch.setenv("SOMNIA_TEXT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to use the network fails the test."""
    import socket

    def refuse(*args):
        raise AssertionError("a test tried to use the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer of single letters, in the files of the published ones; returns its size."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase + string.digits + ",.!'-"
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(LAYOUT["tokenizer_config"]))
    return len(tokens)


def write_stable_diffusion(folder: Path) -> None:
    """Stable Diffusion 2.1's layout and tensor names, every width cut down."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    words = write_tokenizer(folder / "tokenizer")
    narrow = {"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4}  # widths in the real proportions
    UNet2DConditionModel(
        **LAYOUT["unet"]["both"],
        **narrow,
        use_linear_projection=True,
        attention_head_dim=2,
        sample_size=8,
        cross_attention_dim=WIDTH,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(**LAYOUT["vae"]["config"], **narrow, sample_size=64).save_pretrained(folder / "vae")
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(LAYOUT["scheduler"]))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


def as_legacy(folder: Path) -> None:
    """Turn a folder's weights into the pickled files and tensor names of 2022."""
    from safetensors.torch import load_file

    for part in ("unet", "vae", "text_encoder"):
        (path,) = (folder / part).glob("*.safetensors")
        tensors = load_file(path)
        path.unlink()
        if part == "vae":
            for new, old in LAYOUT["vae"]["legacy_names"].items():
                new, old = f"attentions.0.{new}.", f"attentions.0.{old}."
                tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        if part == "text_encoder":
            prefix = LAYOUT["text_encoder"]["legacy_prefix"]
            tensors = {prefix + name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            tensors[LAYOUT["text_encoder"]["legacy_extra"]] = torch.arange(77)[None]
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        torch.save(tensors, folder / part / f"{stem}.bin")


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A tiny Stable Diffusion; do not change its files."""
    folder = tmp_path_factory.mktemp("weights") / "sd"
    write_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory):
    """A tiny embedded prior with a detail network; do not change its files."""
    from guidance.prior import detail, model

    folder = tmp_path_factory.mktemp("weights") / "prior"
    prior = model.build(tiny=True)
    prior.detail = detail.build(tiny=True)
    torch.nn.init.normal_(prior.detail.conv_out.weight, std=0.1)
    model.save(prior, folder)
    return folder


def tiny_folder(name):
    """A fixture of a folder with a tiny random model of ``tests/guidance/tiny.py``; do not change its files."""

    @pytest.fixture(scope="session")
    def folder(tmp_path_factory):
        from tests.guidance import tiny

        path = tmp_path_factory.mktemp("weights") / name
        getattr(tiny, f"write_{name}")(path)
        return path

    return folder


if_folder, sdxl_folder = tiny_folder("deepfloyd_if"), tiny_folder("sdxl")
clip_folder, taesdxl_folder = tiny_folder("clip"), tiny_folder("taesdxl")


@pytest.fixture
def broken_folder(sd_folder, tmp_path):
    """A copy of the tiny Stable Diffusion to break."""
    return shutil.copytree(sd_folder, tmp_path / "broken")


@pytest.fixture
def legacy_folder(sd_folder, tmp_path):
    """The tiny Stable Diffusion in the files of 2022."""
    folder = shutil.copytree(sd_folder, tmp_path / "legacy")
    as_legacy(folder)
    return folder
