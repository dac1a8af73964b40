"""Tiny random models in the published layouts of one file or of several views, every width cut down."""

import json
import math
import re
from pathlib import Path

import torch

from guidance.base import ImageCondition
from tests.guidance.conftest import write_tokenizer

LAYOUTS = Path(__file__).parent / "layouts"
FOLDERS = json.loads((LAYOUTS / "folders.json").read_text())
LAYERS = 2  # transformer blocks of a tiny encoder, of 12 to 32
WORDS = 1 << 7  # of the tiny text encoder
TOKENS = 84  # of the tiny tokenizer, whose end token the pooled embedding of SDXL is looked up at
DEPTH = 3  # transformer blocks of a tiny SDXL where the published one has 10

# Prefix of names -> published width -> tiny width. Image embedding, text and UNet have widths of their own.
UNET = {320: 32, 640: 64, 960: 96, 1280: 128, 1920: 192, 2560: 256, 5120: 512, 10240: 1024}
VAE = {128: 32, 256: 64, 512: 128}
TEXT = {49408: WORDS, 1024: 64, 3072: 192, 4096: 256}
WIDTHS = {
    "zero123": {
        "model.diffusion_model.": UNET | {768: 16},
        "first_stage_model.": VAE,
        "cond_stage_model.model.visual.": {1024: 64, 3072: 192, 4096: 256, 768: 16, 257: 5},
        "cond_stage_model.model.": {49408: WORDS, 768: 16, 2304: 48, 3072: 64},
        "cc_projection.": {768: 16, 772: 20},
    },
    "mvdream": {
        "model.diffusion_model.": UNET | {1024: 64},
        "cond_stage_model.model.": TEXT,
        "first_stage_model.": VAE,
    },
    "imagedream": {
        "model.diffusion_model.image_embed.": {1024: 64, 1280: 80, 768: 48, 1536: 96, 4096: 256, 16: 4},
        "model.diffusion_model.": UNET | {1024: 64},
        "clip_model.model.visual.": {1280: 80, 3840: 240, 5120: 320, 1024: 64, 257: 5},
        "clip_model.model.": TEXT,
        "vae_model.": VAE,
    },
    "sd1": {
        "model.diffusion_model.": UNET | {768: 64},
        "first_stage_model.": VAE,
        "cond_stage_model.transformer.text_model.": {49408: TOKENS, 768: 64, 3072: 256},
    },
    "sd2": {
        "model.diffusion_model.": UNET | {1024: 64},
        "cond_stage_model.model.": TEXT | {49408: TOKENS},
        "first_stage_model.": VAE,
    },
    "sdxl": {
        "model.diffusion_model.": UNET | {2048: 192, 2816: 128 + 6 * 8},
        "first_stage_model.": VAE,
        "conditioner.embedders.0.transformer.text_model.": {49408: TOKENS, 768: 64, 3072: 256},
        "conditioner.embedders.1.model.": {49408: TOKENS, 1280: 128, 3840: 384, 5120: 512},
    },
}
FILES = {
    "zero123": "zero123.ckpt.txt",
    "mvdream": "mvdream.pt.txt",
    "imagedream": "imagedream.pt.txt",
    "sd1": "stable_diffusion_1.ckpt.txt",
    "sd2": "stable_diffusion_2.ckpt.txt",
    "sdxl": "sdxl.safetensors.txt",
}


def published(layout):
    """Name -> shape of every tensor of a published file."""
    lines = [line.split() for line in (LAYOUTS / FILES[layout]).read_text().splitlines() if not line.startswith("#")]
    return {
        one: () if shape == "scalar" else tuple(int(n) for n in shape.split("x"))
        for name, shape in lines
        for one in _each(name)
    }


def _each(name):
    """The names that one with a range, as resblocks.{0-23}, stands for."""
    numbers = re.search(r"\{(\d+)-(\d+)\}", name)
    return (
        [name] if numbers is None else [name.replace(numbers[0], str(n)) for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    )


def _kept(name):
    """Whether a tiny model has the tensor: its encoders are a few blocks deep."""
    parts = name.split(".")
    if "transformer_blocks" in parts and int(parts[parts.index("transformer_blocks") + 1]) >= DEPTH:
        return False
    blocks = "resblocks" if "resblocks" in parts else "layers" if "encoder" in parts and "layers" in parts else None
    return blocks is None or int(parts[parts.index(blocks) + 1]) < LAYERS + ("visual" not in parts)


def tiny_shapes(layout):
    """Name -> shape of every tensor of a tiny model."""
    shapes = {}
    for name, shape in published(layout).items():
        prefix = next((prefix for prefix in WIDTHS[layout] if name.startswith(prefix)), None)
        table = WIDTHS[layout].get(prefix, {})
        if name.endswith("camera_embed.0.weight"):  # its 16 is not a width
            table = {1280: 128}
        if _kept(name):
            shapes[name] = tuple(table.get(n, n) for n in shape)
    return shapes


def tiny_tensors(layout, seed=0):
    """Random tensors of a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tiny_shapes(layout).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            tensors[name] = noise * 0.1 + (name.endswith("weight"))
        else:
            tensors[name] = noise / math.sqrt(math.prod(shape[1:]))
    return tensors


def with_averages(tensors, factor=1.0):
    """The tensors and, as in a Lightning checkpoint, the averages of the UNet's under their joined names."""
    prefix = "model."
    averages = {
        f"model_ema.{name.removeprefix(prefix).replace('.', '')}": tensor * factor
        for name, tensor in tensors.items()
        if name.startswith("model.diffusion_model.")
    }
    return tensors | averages


class Callback:
    """An object of a class of our own, as Lightning stores callbacks and settings."""

    def __init__(self):
        self.monitor = {"val/loss": 1.0}


def write_lightning(path, tensors):
    """A checkpoint as PyTorch Lightning writes it: weights, optimiser state, counters, and objects of other classes."""
    torch.save(
        {
            "epoch": 3,
            "global_step": 105000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": tensors,
            "callbacks": {Callback: {"best": torch.tensor(0.5)}, "Callback": Callback()},
            "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(7)}}, "param_groups": [{"lr": 1e-4}]}],
            "lr_schedulers": [Callback()],
        },
        path,
    )
    return path


def _save(tensors, folder, stem, half=False, pickled=False):
    """Write the weights of one part of a folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if pickled:
        torch.save(tensors, folder / f"{stem}.bin")
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{stem}{'.fp16' if half else ''}.safetensors")


def _json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_zero123_folder(folder, layout, parts, grid=32):
    """A diffusers folder of layout "zero123 (a)" or "zero123 (b)" with the networks of a loaded model.

    Args:
        folder: to make.
        layout: a key of ``FOLDERS``.
        parts: of :mod:`guidance.diffusion.zero123_parts`.
        grid: side of the latents that its config gives.
    """
    known, pickled = FOLDERS[layout], layout.endswith("(b)")
    encoder = parts.image_encoder()
    networks = {"unet": parts.unet, "vae": parts.vae, "image_encoder": encoder}
    for name, network in networks.items():
        stem = ("pytorch_model" if pickled else "model") if name == "image_encoder" else "diffusion_pytorch_model"
        _save(network.state_dict(), folder / name, stem, half=not pickled, pickled=pickled)
        if name == "image_encoder":
            network.config.save_pretrained(folder / name)
        else:
            network.save_config(folder / name)
    _json(folder / "unet" / "config.json", json.loads((folder / "unet" / "config.json").read_text()) | {"sample_size": grid})
    names = list(known["projection"]["tensors"])
    tensors = {names[0]: parts.projection.weight.data, names[1]: parts.projection.bias.data}
    place = "cc_projection" if pickled else "clip_camera_projection"
    _save(tensors, folder / place, "diffusion_pytorch_model", half=not pickled, pickled=pickled)
    _json(folder / place / "config.json", known["projection"]["config"])
    _json(folder / "scheduler" / "scheduler_config.json", FOLDERS["scheduler"])
    _json(folder / "feature_extractor" / "preprocessor_config.json", {})
    _json(folder / "model_index.json", {"_class_name": "Zero123Pipeline"})
    if pickled:
        _json(folder / "safety_checker" / "config.json", {})
        _save({"a": torch.zeros(1)}, folder / "safety_checker", "pytorch_model", pickled=True)


def write_original(folder, layout, seed=0):
    """An original ``.pt`` of "mvdream" or "imagedream" with a tokenizer beside it; returns the file."""
    write_tokenizer(folder / "tokenizer")
    path = folder / f"{layout}.pt"
    torch.save(tiny_tensors(layout, seed), path)
    return path


def write_multiview_folder(folder, name, seed=0):
    """The diffusers folder of "MVDream" or "ImageDream": the original UNet, all else as in Stable Diffusion."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    from guidance.diffusion import ldm
    from guidance.diffusion.single_file import TensorFile

    image = name == "ImageDream"
    write_tokenizer(folder / "tokenizer")
    _json(folder / "tokenizer" / "special_tokens_map.json", {})
    tensors = tiny_tensors(name.lower(), seed)
    prefix = "model.diffusion_model."
    _save(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)},
        folder / "unet",
        "diffusion_pytorch_model",
    )
    _json(folder / "unet" / "config.json", FOLDERS[name]["unet"] | {"image_size": 8})
    torch.save(tensors, folder / "original.pt")
    file = TensorFile(folder / "original.pt")
    clip = "clip_model.model." if image else "cond_stage_model.model."
    vae = ldm.load_vae(file, torch.float32, "vae_model." if image else "first_stage_model.")
    _save(vae.state_dict(), folder / "vae", "diffusion_pytorch_model")
    vae.save_config(folder / "vae")
    text = ldm.load_clip(CLIPTextModel, CLIPTextConfig(**ldm.clip_text_config(file, clip)), file, clip, torch.float32)
    text.save_pretrained(folder / "text_encoder")
    if image:
        config = CLIPVisionConfig(**ldm.clip_vision_config(file, f"{clip}visual.", 80, "gelu"))
        ldm.load_clip(CLIPVisionModel, config, file, f"{clip}visual.", torch.float32).save_pretrained(folder / "image_encoder")
        _json(folder / "feature_extractor" / "preprocessor_config.json", {})
    _json(folder / "scheduler" / "scheduler_config.json", FOLDERS["scheduler"])
    _json(folder / "model_index.json", {"_class_name": "MVDreamPipeline"})
    (folder / "original.pt").unlink()
    return folder


def picture(polar=90.0, azimuth=0.0, radius=3.2, weight=1.0, size=32, seed=0):
    """An image prompt: random colours in a disc."""
    image = torch.rand(4, size, size, generator=torch.Generator().manual_seed(seed))
    ramp = torch.linspace(-1, 1, size)
    image[3] = (ramp[:, None] ** 2 + ramp**2 < 0.6).float()
    return ImageCondition(image, polar, azimuth, radius, weight=weight)
