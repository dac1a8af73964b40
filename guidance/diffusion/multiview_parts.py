"""The networks of MVDream and ImageDream, from each layout in which they were published.

(a) the diffusers folders of ashawkey, whose ``unet/`` holds a ``MultiViewUNetModel`` with the tensor names of the original
code; (b) the original ``.pt`` (or the same tensors as ``.safetensors``). Both become diffusers' own UNet, see
:mod:`guidance.diffusion.multiview`. None of them was at hand when this was written: the names of files and tensors are those of
public code (tests/guidance/layouts/).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from guidance import folders, tokenizers, weights
from guidance.diffusion import Network, ldm, loader
from guidance.diffusion.multiview import CAMERA_DIM, LINKED, link_frames
from guidance.diffusion.single_file import TensorFile
from guidance.diffusion.text import Checkpoint, TextEncoder
from guidance.distillation import NoiseSchedule
from nerf.core.errors import UserError
from nerf.core.files import read_json

GRID = 32  # side of the latents of 256 x 256 pixels
HEAD_WIDTH = 64  # channels of an attention head
VISION_HEAD_WIDTH = 80  # of the image encoder, ViT-H/14
RESAMPLER_HEADS = 12
CLIP = {False: "cond_stage_model.model.", True: "clip_model.model."}  # in the original file; True: ImageDream's
VAE = {False: ldm.VAE, True: "vae_model."}


class _UNet(msgspec.Struct):
    """What of the config of a ``MultiViewUNetModel`` its tensors do not say."""

    num_head_channels: int = HEAD_WIDTH
    image_size: int = GRID
    num_heads: int = -1


@dataclass(frozen=True)
class Parts:
    """What MVDream and ImageDream consist of. Encoders of prompts are made when they are needed."""

    unet: Network
    vae: Network
    schedule: NoiseSchedule
    text_encoder: TextEncoder
    image_encoder: Callable[[], Network] | None  # of ImageDream
    resampler: Network | None  # of ImageDream: image features [1, L, D] -> tokens [1, T, C]


def missing(files: list[str], image: bool) -> str | None:
    """The name of what a folder of layout (a) lacks; None if it is complete.

    Args:
        files: of the folder, relative to it.
        image: ImageDream, which has an image encoder.
    """
    return folders.missing_part(files, (*folders.PARTS, "image_encoder") if image else folders.PARTS)


def load(path: Path, image: bool, device: torch.device, dtype: torch.dtype) -> Parts:
    """The networks, frozen, on their device.

    Args:
        path: a folder of layout (a) or a file of layout (b).
        image: ImageDream.
        device: where they will run.
        dtype: of their weights.

    Raises:
        UserError: it is neither, incomplete, damaged, or of the other model.
    """
    loader.require_diffusers()
    return _from_folder(path, image, device, dtype) if path.is_dir() else _from_file(path, image, device, dtype)


def _multi_view_unet(
    file: TensorFile, prefix: str, image: bool, heads: Callable[[int], int], grid: int, dtype: torch.dtype
) -> Network:
    """The UNet of a file with the original names, as diffusers' own with joint attention."""
    tokens = f"{prefix}image_embed.latents"
    name = "ImageDream" if image else "MVDream"
    if f"{prefix}camera_embed.0.weight" not in file:
        raise UserError(f"weights: {file.path} lacks {prefix}camera_embed.0.weight, so it is not of {name}")
    if file.shape(f"{prefix}camera_embed.0.weight")[-1] != CAMERA_DIM:
        raise UserError(f"weights: {file.path} takes cameras of another form than {CAMERA_DIM} numbers; it is not of {name}")
    if image != (tokens in file):
        other = "MVDream, which takes no picture" if image else "ImageDream, which needs a picture"
        raise UserError(f"weights: {file.path} is of {other}; give --guidance {'MVDream' if image else 'ImageDream'}")
    count = file.shape(tokens)[1] if image else 0
    return ldm.load_unet(
        file, heads, grid, dtype, prefix, change=lambda unet: link_frames(unet, LINKED + int(image), image_tokens=count)
    )


def _resampler_name(name: str) -> str:
    """The original name of a tensor of diffusers' resampler; its keys and values are two halves of one matrix there."""
    parts = name.split(".")
    if parts[0] != "layers":
        return name
    layer, rest = ".".join(parts[:2]), ".".join(parts[2:])
    table = {
        "ln0.": "0.norm1.",
        "ln1.": "0.norm2.",
        "attn.to_q.": "0.to_q.",
        "attn.to_k.": "0.to_kv.",
        "attn.to_v.": "0.to_kv.",
        "attn.to_out.0.": "0.to_out.",
        "ff.0.": "1.0.",
        "ff.1.net.0.proj.": "1.1.",
        "ff.1.net.2.": "1.3.",
    }
    start = next(start for start in table if rest.startswith(start))
    return f"{layer}.{table[start]}{rest.removeprefix(start)}"


def load_resampler(file: TensorFile, prefix: str, dtype: torch.dtype) -> Network:
    """The network that turns image features into tokens, as diffusers' own.

    Args:
        file: the tensors.
        prefix: up to ``image_embed.``.
        dtype: of the weights.
    """
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    depth = 0
    while f"{prefix}layers.{depth}.0.to_q.weight" in file:
        depth += 1
    _, queries, width = file.shape(f"{prefix}latents")
    inner = file.shape(f"{prefix}layers.0.0.to_q.weight")[0]
    network = IPAdapterPlusImageProjection(
        embed_dims=file.shape(f"{prefix}proj_in.weight")[1],
        output_dims=file.shape(f"{prefix}proj_out.weight")[0],
        hidden_dims=width,
        depth=depth,
        dim_head=inner // RESAMPLER_HEADS,
        heads=RESAMPLER_HEADS,
        num_queries=queries,
        ffn_ratio=file.shape(f"{prefix}layers.0.1.1.weight")[0] // width,
    )

    def take(name: str, _: Tensor) -> Tensor:
        tensor = file[prefix + _resampler_name(name)]
        if ".attn.to_k." in name:
            return tensor.chunk(2)[0].contiguous()
        return tensor.chunk(2)[1].contiguous() if ".attn.to_v." in name else tensor

    return ldm.fill(network, file, take, dtype)


def _from_folder(folder: Path, image: bool, device: torch.device, dtype: torch.dtype) -> Parts:
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionModel

    files = folders.files_of(folder)
    lacks = missing(files, image)
    if lacks is not None:
        raise UserError(f"weights folder {folder} lacks {lacks}; {folders.RESTORE}")
    name = folders.weight_file(files, "unet")
    assert name is not None  # missing() looked
    if ".index." in name:
        raise UserError(f"weights: {folder / name} is an index of several files; give a folder whose unet/ is one file")
    file, config = TensorFile(folder / name), read_json(folder / "unet" / "config.json", folders.RESTORE, _UNet)

    def heads(width: int) -> int:
        return config.num_heads if config.num_head_channels < 1 else max(width // config.num_head_channels, 1)

    unet = _multi_view_unet(file, "", image, heads, config.image_size, dtype).to(device)
    resampler = load_resampler(file, "image_embed.", dtype).to(device) if image else None
    return Parts(
        unet,
        loader.load_part(folder, "vae", AutoencoderKL, device, dtype),
        loader.load_schedule(folder, device),
        TextEncoder(folder),
        (lambda: loader.load_part(folder, "image_encoder", CLIPVisionModel, device, dtype)) if image else None,
        resampler,
    )


def _from_file(path: Path, image: bool, device: torch.device, dtype: torch.dtype) -> Parts:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    file = TensorFile(path)
    unet = _multi_view_unet(file, ldm.UNET, image, lambda width: max(width // HEAD_WIDTH, 1), GRID, dtype).to(device)
    clip = CLIP[image]
    text = ldm.clip_text_config(file, clip)

    def text_encoder() -> Network:
        return ldm.load_clip(CLIPTextModel, CLIPTextConfig(**text), file, clip, dtype)

    def image_encoder() -> Network:
        prefix = f"{clip}visual."
        config = ldm.clip_vision_config(file, prefix, VISION_HEAD_WIDTH, "gelu")
        return ldm.load_clip(CLIPVisionModel, CLIPVisionConfig(**config), file, prefix, dtype).to(device)

    return Parts(
        unet,
        ldm.load_vae(file, dtype, VAE[image]).to(device),
        ldm.noise_schedule(device),
        TextEncoder(tokenizer_folder(path), checkpoint=Checkpoint(path, text["max_position_embeddings"], text_encoder)),
        image_encoder if image else None,
        load_resampler(file, f"{ldm.UNET}image_embed.", dtype).to(device) if image else None,
    )


def tokenizer_folder(path: Path) -> Path:
    """A folder with the ``tokenizer/`` that an original file lacks: beside the file, or Stable Diffusion 2's in the cache.

    Raises:
        UserError: there is none.
    """
    found = tokenizers.beside(path) or tokenizers.cached(
        hub_id for version in ("2.1", "2.0") for hub_id in weights.MODELS[version].ids
    )
    if found is not None:
        return found[0]
    raise UserError(
        f"weights: {path} holds no tokenizer; put the folder tokenizer/ of Stable Diffusion 2.1 (vocab.json and merges.txt) "
        "beside it"
    )
