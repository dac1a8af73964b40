"""Tiny random models of DeepFloyd IF, SDXL and CLIP in the published file layouts (``layouts/``), every width cut down."""

import json
import shutil
from pathlib import Path

import torch

from tests.guidance.conftest import write_tokenizer

LAYOUTS = {
    name: json.loads((Path(__file__).parent / "layouts" / f"{name}.json").read_text())
    for name in ("deepfloyd_if", "sdxl", "clip")
}
NARROW = {"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4}
WIDTH = 16


def write_scheduler(folder: Path, config: dict) -> None:
    """The config of a scheduler."""
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


def write_t5_tokenizer(folder: Path) -> int:
    """A tokenizer of T5 with single letters as its pieces, as tokenizer.json; returns its size."""
    from transformers import T5Tokenizer

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -1.0),
        *((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz,."),
    ]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_deepfloyd_if(folder: Path) -> None:
    """DeepFloyd IF, first stage: 8 x 8 pixels, T5 of two layers."""
    from diffusers import UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel

    layout = LAYOUTS["deepfloyd_if"]
    torch.manual_seed(0)
    words = write_t5_tokenizer(folder / "tokenizer")
    sizes = {"sample_size": 8, "attention_head_dim": 4, "cross_attention_dim": 32, "encoder_hid_dim": WIDTH}
    heads = {"addition_embed_type_num_heads": 4}  # 64 in the published model
    UNet2DConditionModel(**layout["unet"]["config"], **NARROW, **sizes, **heads).save_pretrained(folder / "unet")
    t5 = {key: value for key, value in layout["text_encoder"]["config"].items() if key != "model_type"}
    config = T5Config(vocab_size=words, d_model=WIDTH, d_kv=4, d_ff=32, num_layers=2, num_heads=2, **t5)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    write_scheduler(folder, layout["scheduler"])
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "IFPipeline"}))


def as_shards(folder: Path, safetensors: bool) -> None:
    """The text encoder in two half-precision shards, and the UNet in half precision, both as .bin or as safetensors."""
    from safetensors.torch import load_file, save_file

    (unet,) = (folder / "unet").glob("*.safetensors")
    (text,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = {name: value.half() for name, value in load_file(text).items()}
    if not safetensors:
        tensors[LAYOUTS["deepfloyd_if"]["text_encoder"]["legacy_extra"]] = tensors["shared.weight"].clone()
    halves = {name: value.half() for name, value in load_file(unet).items()}
    names, index = list(tensors), {}
    for number, chosen in ((1, names[::2]), (2, names[1::2])):
        stem = f"{'model' if safetensors else 'pytorch_model'}.fp16-{number:05d}-of-00002"
        shard = f"{stem}.{'safetensors' if safetensors else 'bin'}"
        index |= dict.fromkeys(chosen, shard)
        part = {name: tensors[name] for name in chosen}
        save_file(part, text.parent / shard, {"format": "pt"}) if safetensors else torch.save(part, text.parent / shard)
    listing = "model.safetensors.index.fp16.json" if safetensors else "pytorch_model.bin.index.fp16.json"
    (text.parent / listing).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    path = unet.with_name(f"diffusion_pytorch_model.fp16.{'safetensors' if safetensors else 'bin'}")
    save_file(halves, path, {"format": "pt"}) if safetensors else torch.save(halves, path)
    unet.unlink()
    text.unlink()


def write_sdxl(folder: Path) -> None:
    """SDXL's base model: 8 x 8 latents of 64 x 64 pixels, two text encoders."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    layout = LAYOUTS["sdxl"]
    torch.manual_seed(0)
    words = write_tokenizer(folder / "tokenizer")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    config = layout["unet"]["config"] | {"attention_head_dim": [2, 4, 4], "addition_time_embed_dim": 8}
    widths = {"block_out_channels": (8, 16, 32), "norm_num_groups": 4, "sample_size": 8, "cross_attention_dim": 3 * WIDTH}
    UNet2DConditionModel(**config, **widths, projection_class_embeddings_input_dim=6 * 8 + 24).save_pretrained(folder / "unet")
    AutoencoderKL(**layout["vae"]["config"], **NARROW, sample_size=64).save_pretrained(folder / "vae")
    shared = {
        "vocab_size": words,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
    }
    shared |= {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    CLIPTextModel(CLIPTextConfig(hidden_size=WIDTH, **shared)).save_pretrained(folder / "text_encoder")
    second = CLIPTextConfig(hidden_size=2 * WIDTH, projection_dim=24, **shared)
    CLIPTextModelWithProjection(second).save_pretrained(folder / "text_encoder_2")
    write_scheduler(folder, layout["scheduler"])
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index))


def write_taesdxl(folder: Path) -> None:
    """A distilled VAE: 8 x 8 latents of 64 x 64 pixels."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    narrow = (8, 8, 8, 8)
    AutoencoderTiny(encoder_block_out_channels=narrow, decoder_block_out_channels=narrow).save_pretrained(folder)


def write_clip(folder: Path) -> None:
    """CLIP: text and pictures of 32 x 32 pixels in patches of 8, two layers each."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    words = write_tokenizer(folder)
    shared = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    tokens = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1, "max_position_embeddings": 77}
    text = CLIPTextConfig(vocab_size=words, **shared, **tokens)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **shared)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    model.save_pretrained(folder)
