"""The networks of Zero123, Zero123-XL and Stable Zero123, from each layout in which they were published.

(a) a diffusers folder with ``clip_camera_projection/`` (ashawkey), (b) one with ``cc_projection/`` (kxic), (c) the original
``.ckpt`` or the same tensors as ``.safetensors``. None of them was at hand when this was written: the names of files and
tensors are those of public code (tests/guidance/layouts/).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from guidance import folders
from guidance.diffusion import Network, ldm, loader
from guidance.diffusion.single_file import TensorFile
from guidance.distillation import NoiseSchedule
from nerf.core.errors import UserError

PARTS = ("unet", "vae", "image_encoder", "scheduler")
PROJECTIONS = {"clip_camera_projection": "proj", "cc_projection": "projection"}  # folder -> name of the layer in its file
CAMERA_DIM = 4  # numbers of the relative camera
GRID = 32  # side of the latents of 256 x 256 pixels
HEADS = 8  # of attention, in every level
_CLIP = "cond_stage_model.model.visual."
_KIND = "give a folder or file of Zero123, Zero123-XL or Stable Zero123"


@dataclass(frozen=True)
class Parts:
    """What Zero123 consists of. The image encoder is made when it is needed, for the reference pictures alone."""

    unet: Network
    vae: Network
    projection: nn.Linear  # image embedding [D] and camera [4] -> [D]
    schedule: NoiseSchedule
    image_encoder: Callable[[], Network]


def missing(files: Iterable[str]) -> str | None:
    """The name of what a folder of layout (a) or (b) lacks; None if it is complete."""
    have = list(files)
    lacks = folders.missing_part(have, PARTS)
    if lacks is None and projection_of(have) is None:
        return f"{' or '.join(f'{name}/' for name in PROJECTIONS)} with its weights"
    return lacks


def projection_of(files: list[str]) -> tuple[str, str] | None:
    """(weight file of the camera projection, name of its layer) in a folder with these files, if there is one."""
    found = ((folders.weight_file(files, folder), layer) for folder, layer in PROJECTIONS.items())
    return next(((file, layer) for file, layer in found if file is not None), None)


def load(path: Path, device: torch.device, dtype: torch.dtype) -> Parts:
    """The networks, frozen, on their device.

    Args:
        path: a folder of layout (a) or (b), or a file of layout (c).
        device: where they will run.
        dtype: of their weights.

    Raises:
        UserError: it is none of the three, incomplete or damaged.
    """
    loader.require_diffusers()
    parts = _from_folder(path, device, dtype) if path.is_dir() else _from_file(TensorFile(path), device, dtype)
    expected = 2 * parts.vae.config.latent_channels
    if parts.unet.config.in_channels != expected:
        raise UserError(
            f"weights: {path} has a UNet of {parts.unet.config.in_channels} input channels and not {expected}, the noisy "
            f"latents and those of the reference; {_KIND}"
        )
    embedding = parts.projection.in_features - CAMERA_DIM
    if embedding != parts.projection.out_features or embedding != parts.unet.config.cross_attention_dim:
        raise UserError(
            f"weights: the camera projection of {path} maps {parts.projection.in_features} to "
            f"{parts.projection.out_features} numbers, and its UNet takes {parts.unet.config.cross_attention_dim}; expected "
            f"the image embedding and {CAMERA_DIM} numbers of the camera; {_KIND}"
        )
    return parts


def _linear(weight: Tensor, bias: Tensor, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """A frozen linear layer with these weights."""
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise UserError(f"weights: a camera projection of shapes {list(weight.shape)} and {list(bias.shape)}; {_KIND}")
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.load_state_dict({"weight": weight.to(device, dtype), "bias": bias.to(device, dtype)}, assign=True)
    return layer.requires_grad_(False)


def _from_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Parts:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPVisionModelWithProjection

    files = folders.files_of(folder)
    lacks = missing(files)
    if lacks is not None:
        raise UserError(f"weights folder {folder} lacks {lacks}; {_KIND}")
    found = projection_of(files)
    assert found is not None  # missing() looked
    file, layer = TensorFile(folder / found[0]), found[1]
    for kind in ("weight", "bias"):
        file.shape(f"{layer}.{kind}")  # names what is not there
    return Parts(
        loader.load_part(folder, "unet", UNet2DConditionModel, device, dtype),
        loader.load_part(folder, "vae", AutoencoderKL, device, dtype),
        _linear(file[f"{layer}.weight"], file[f"{layer}.bias"], device, dtype),
        loader.load_schedule(folder, device),
        lambda: loader.load_part(folder, "image_encoder", CLIPVisionModelWithProjection, device, dtype),
    )


def _from_file(file: TensorFile, device: torch.device, dtype: torch.dtype) -> Parts:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    for name in ("cc_projection.weight", "cc_projection.bias", f"{ldm.UNET}input_blocks.0.0.weight", f"{_CLIP}proj"):
        if name not in file:
            raise UserError(f"weights: {file.path} lacks the tensor {name}; {_KIND}")

    def image_encoder() -> Network:
        config = CLIPVisionConfig(**ldm.clip_vision_config(file, _CLIP, head_width=64, activation="quick_gelu"))
        return ldm.load_clip(CLIPVisionModelWithProjection, config, file, _CLIP, dtype).to(device)

    return Parts(
        ldm.load_unet(file, lambda _: HEADS, GRID, dtype).to(device),
        ldm.load_vae(file, dtype).to(device),
        _linear(file["cc_projection.weight"], file["cc_projection.bias"], device, dtype),
        ldm.noise_schedule(device),
        image_encoder,
    )
