"""Tiny random checkpoints of Stable Diffusion and SDXL in one file, and the folders that diffusers itself makes of them.

The names of the tensors are the published ones (``layouts/``), the configs of the folder are those of the published folders,
and the conversion of the folder is that of diffusers, so nothing here shares code with ``guidance/diffusion/original.py``.
"""

import functools
import json
from pathlib import Path

from safetensors.torch import save_file

from tests.guidance.camera_models import DEPTH, LAYERS, TOKENS, tiny_tensors
from tests.guidance.conftest import LAYOUT, write_tokenizer
from tests.guidance.tiny import LAYOUTS, write_scheduler

FAMILIES = {"sd1": "SD", "sd2": "SD", "sdxl": "SDXL"}
NARROW = {"block_out_channels": (32, 64, 128, 128)}
TEXT = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}


@functools.cache
def tensors_of(layout):
    """Random tensors of a tiny model; do not change them."""
    return tiny_tensors(layout, seed=3)


def write_file(path, tensors, metadata=None):
    """A checkpoint as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def write_clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Path:
    """The tiny tokenizer with the token 0 of the published one, "!", with which OpenCLIP's fills up."""
    assert write_tokenizer(folder) == TOKENS
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["a"], vocabulary["!"] = vocabulary["!"], vocabulary["a"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps(LAYOUT["tokenizer_config"] | {"pad_token": pad}))
    return folder


def _filled(network, tensors, drop="text_model."):
    """A network with the tensors that diffusers converted."""
    names = set(network.state_dict())
    found = {name if name in names else name.removeprefix(drop): tensor for name, tensor in tensors.items()}
    missing = network.load_state_dict({name: tensor for name, tensor in found.items() if name in names}, strict=False)
    assert not missing.missing_keys, missing
    return network


def write_folder(folder, layout, tensors):
    """The folder in diffusers layout of the same tensors, converted by diffusers."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    unet = published_unet(layout)
    plain = dict(unet.config)
    _filled(unet, convert_ldm_unet_checkpoint(dict(tensors), plain)).save_pretrained(folder / "unet")
    known = LAYOUTS["sdxl"]["vae"]["config"] if layout == "sdxl" else LAYOUT["vae"]["config"]
    vae = AutoencoderKL(**known, block_out_channels=(32, 64, 128, 128), sample_size=64)
    _filled(vae, convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config))).save_pretrained(folder / "vae")
    _write_text(folder, layout, tensors)
    write_scheduler(folder, LAYOUTS["sdxl"]["scheduler"] if layout == "sdxl" else LAYOUT["scheduler"])
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "of the published ones"}))
    return folder


def published_unet(layout):
    """diffusers' UNet with the published config, every width cut down."""
    from diffusers import UNet2DConditionModel

    if layout == "sdxl":
        config = LAYOUTS["sdxl"]["unet"]["config"] | {"attention_head_dim": [1, 1, 2], "addition_time_embed_dim": 8}
        config |= {
            "transformer_layers_per_block": [1, 2, DEPTH],
            "block_out_channels": (32, 64, 128),
            "cross_attention_dim": 192,
        }
        return UNet2DConditionModel(**config, sample_size=128, projection_class_embeddings_input_dim=128 + 6 * 8)
    known = LAYOUT["unet"]["1.5" if layout == "sd1" else "2.1"]
    heads = {} if layout == "sd1" else {"attention_head_dim": [1, 1, 2, 2]}
    return UNet2DConditionModel(**LAYOUT["unet"]["both"], **known | heads, **NARROW, sample_size=64, cross_attention_dim=64)


def _write_text(folder, layout, tensors):
    """The text encoders and their tokenizers."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shared = {"vocab_size": TOKENS, "max_position_embeddings": 77, "bos_token_id": TOKENS - 2, "eos_token_id": TOKENS - 1}
    if layout in TEXT:
        config = CLIPTextConfig(
            hidden_size=64,
            intermediate_size=256,
            num_attention_heads=1,
            num_hidden_layers=LAYERS + 1,
            hidden_act="quick_gelu",
            **shared,
        )
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(TEXT[layout])}
        _filled(CLIPTextModel(config), convert_ldm_clip_checkpoint(own)).save_pretrained(folder / "text_encoder")
        write_clip_tokenizer(folder / "tokenizer")
    if layout in OPEN_CLIP:
        second, width = layout == "sdxl", 128 if layout == "sdxl" else 64
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=width // 64,
            num_hidden_layers=LAYERS + second,  # Stable Diffusion 2 uses all but the last one
            hidden_act="gelu",
            projection_dim=width,
            **shared,
        )
        model = (CLIPTextModelWithProjection if second else CLIPTextModel)(config)
        converted = convert_open_clip_checkpoint(model, dict(tensors), prefix=OPEN_CLIP[layout])
        suffix = "_2" if second else ""
        _filled(model, converted).save_pretrained(folder / f"text_encoder{suffix}")
        write_clip_tokenizer(folder / f"tokenizer{suffix}", pad="!")
