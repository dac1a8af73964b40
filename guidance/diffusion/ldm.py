"""Models in the files of the original latent diffusion code (LDM), as the modules of diffusers and transformers.

Stable Diffusion, SDXL, Zero123, MVDream, ImageDream and most finetunes of them were published as one file with the tensor names
of LDM. Here the shapes of the tensors give the module of diffusers, and each tensor that the module needs is taken from the
file under the name that LDM gives it. What the shapes do not say (number of attention heads, activation) is passed in; for each
model it is in its config file.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from guidance.diffusion import Network
from guidance.diffusion.single_file import TensorFile
from guidance.distillation import NoiseSchedule
from nerf.core.errors import UserError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
STEPS, FIRST_BETA, LAST_BETA = 1000, 0.00085, 0.012  # of the noise schedule
SCALING_FACTOR = 0.18215  # of the latents
DEEPEST = 32  # transformer blocks of one attention layer that are looked for; SDXL has 10

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "camera_embed.0",
    "class_embedding.linear_2": "camera_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_CLIP_TOP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
}


def _starts(name: str, table: dict[str, str]) -> str | None:
    """The name with its beginning replaced by the table, None if no entry fits; whole parts between dots are compared."""
    for ours, theirs in table.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return None


# ---- UNet -----------------------------------------------------------------------------------------------------------------


def ldm_unet_name(name: str, per_level: int, attention: tuple[bool, ...]) -> str:
    """The LDM name, without prefix, of a tensor of diffusers' UNet.

    Args:
        name: in diffusers.
        per_level: residual blocks of a level on the way down.
        attention: for each level, whether it has attention.
    """
    top = _starts(name, _UNET_TOP)
    block = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if top is None and block is None:
        raise ValueError(f"no LDM name is known for {name}")
    if top is not None:
        place, _, rest = top.partition(".")
        number, _, rest = rest.partition(".")
        kind = "resnets" if name.startswith("mid_block.resnets") else ""
        head = f"{place}.{number}"
    else:
        assert block is not None
        way, level, kind, index, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
        if way == "down":
            slot = 1 + level * (per_level + 1) + (per_level if kind == "downsamplers" else index)
            head = f"input_blocks.{slot}.{1 if kind == 'attentions' else 0}"
        else:
            slot = level * (per_level + 1) + (per_level if kind == "upsamplers" else index)
            last = 2 if attention[len(attention) - 1 - level] else 1
            head = f"output_blocks.{slot}.{ {'resnets': 0, 'attentions': 1}.get(kind, last) }"
    if kind == "resnets":
        rest = _starts(rest, _RESNET) or rest
    elif kind == "downsamplers":
        rest = rest.replace("conv.", "op.")
    return f"{head}.{rest}".replace(".processor.to_", ".to_")


def unet_config(file: TensorFile, heads: Callable[[int], int], prefix: str = UNET) -> dict[str, Any]:
    """The arguments of diffusers' UNet2DConditionModel for the tensors of a file.

    Args:
        file: the tensors.
        heads: channels of a level -> its attention heads.
        prefix: of the UNet's tensors.
    """

    def has(name: str) -> bool:
        return prefix + name in file

    per_level = 1
    while has(f"input_blocks.{1 + per_level}.0.in_layers.0.weight"):
        per_level += 1
    levels = 1 + sum(has(f"input_blocks.{i}.0.op.weight") for i in range(1, 64))
    first = [1 + level * (per_level + 1) for level in range(levels)]
    widths = tuple(file.shape(f"{prefix}input_blocks.{i}.0.in_layers.2.weight")[0] for i in first)
    attention = tuple(has(f"input_blocks.{i}.1.norm.weight") for i in first)
    middle = "middle_block.1"
    inner = f"{prefix}{middle}.transformer_blocks.0"

    def depth(block: str) -> int:
        return sum(has(f"{block}.transformer_blocks.{i}.norm1.weight") for i in range(DEEPEST))

    # diffusers gives the middle the depth of the last level, which has no attention of its own in Stable Diffusion 1 and 2.
    depths = [depth(f"input_blocks.{i}.1") or 1 for i in first]
    depths[-1] = depths[-1] if attention[-1] else depth(middle)
    config = {
        "in_channels": file.shape(f"{prefix}input_blocks.0.0.weight")[1],
        "out_channels": file.shape(f"{prefix}out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": per_level,
        "down_block_types": tuple("CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attention)),
        "cross_attention_dim": file.shape(f"{inner}.attn2.to_k.weight")[1],
        "attention_head_dim": tuple(heads(width) for width in widths),  # the argument's name is historical: a number of heads
        "transformer_layers_per_block": tuple(depths),
        "use_linear_projection": len(file.shape(f"{prefix}{middle}.proj_in.weight")) == 2,
    }
    if has("camera_embed.0.weight"):
        camera_dim = file.shape(f"{prefix}camera_embed.0.weight")[1]
        config |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": camera_dim}
    return config


def unet_names(names: list[str], config: Any) -> dict[str, str]:
    """diffusers name -> LDM name, for tensors of a UNet with this config."""
    attention = tuple("CrossAttn" in kind for kind in config["down_block_types"])
    return {name: ldm_unet_name(name, config["layers_per_block"], attention) for name in names}


# ---- VAE ------------------------------------------------------------------------------------------------------------------


def ldm_vae_name(name: str, levels: int) -> str:
    """The LDM name, without prefix, of a tensor of diffusers' AutoencoderKL of so many levels."""
    name = name.replace("conv_norm_out", "norm_out")
    name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", name)
    name = name.replace("encoder.down_blocks", "encoder.down")
    name = re.sub(r"(down|up)\.(\d+)\.resnets", r"\1.\2.block", name).replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    attention = re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", name)
    if attention is not None:
        return f"{attention[1]}.mid.attn_1.{_starts(attention[2], _VAE_ATTENTION)}"
    return name


def vae_config(file: TensorFile, prefix: str = VAE, scaling_factor: float = SCALING_FACTOR) -> dict[str, Any]:
    """The arguments of diffusers' AutoencoderKL for the tensors of a file; nothing in it says ``scaling_factor``."""
    levels = 0
    while f"{prefix}encoder.down.{levels}.block.0.conv1.weight" in file:
        levels += 1
    layers = 0
    while f"{prefix}encoder.down.0.block.{layers}.conv1.weight" in file:
        layers += 1
    widths = tuple(file.shape(f"{prefix}encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels))
    return {
        "in_channels": file.shape(f"{prefix}encoder.conv_in.weight")[1],
        "out_channels": file.shape(f"{prefix}decoder.conv_out.weight")[0],
        "latent_channels": file.shape(f"{prefix}post_quant_conv.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "scaling_factor": scaling_factor,
    }


# ---- CLIP -----------------------------------------------------------------------------------------------------------------


def _clip_tensor(name: str, tensors: Callable[[str], Tensor]) -> Tensor:
    """A tensor of transformers' CLIP from those of OpenAI's or OpenCLIP's, whose attention has one matrix for q, k and v."""
    if name == "visual_projection.weight":
        return tensors("proj").T.contiguous()
    if name == "text_projection.weight":
        try:
            return tensors("text_projection").T.contiguous()
        except KeyError:  # of a program that keeps it as a linear layer
            return tensors(name)
    top = _starts(name, _CLIP_TOP)
    if top is not None:
        return tensors(top)
    block = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if block is None:
        raise ValueError(f"no name of OpenCLIP is known for {name}")
    layer, part, kind = f"transformer.resblocks.{block[1]}", block[2], block[3]
    third = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}.get(part)
    if third is not None:
        return tensors(f"{layer}.attn.in_proj_{kind}").chunk(3)[third].contiguous()
    return tensors(f"{layer}.{_CLIP_BLOCK[part]}.{kind}")


def open_clip_layers(file: TensorFile, prefix: str) -> int:
    """Number of transformer blocks of an encoder of OpenCLIP under a prefix."""
    count = 0
    while f"{prefix}transformer.resblocks.{count}.ln_1.weight" in file:
        count += 1
    return count


def clip_vision_config(file: TensorFile, prefix: str, head_width: int, activation: str) -> dict[str, Any]:
    """The arguments of transformers' CLIPVisionConfig for the image encoder under a prefix.

    Args:
        file: the tensors.
        prefix: up to ``visual.``.
        head_width: channels of an attention head, 64 in ViT-L/14 and 80 in ViT-H/14.
        activation: "quick_gelu" for the weights of OpenAI, "gelu" for those of OpenCLIP.
    """
    width, _, _, patch = file.shape(f"{prefix}conv1.weight")
    positions = file.shape(f"{prefix}positional_embedding")[0]
    return {
        "hidden_size": width,
        "intermediate_size": file.shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": open_clip_layers(file, prefix),
        "num_attention_heads": width // head_width,
        "image_size": patch * round((positions - 1) ** 0.5),
        "patch_size": patch,
        "projection_dim": file.shape(f"{prefix}proj")[1],
        "hidden_act": activation,
    }


def clip_text_config(file: TensorFile, prefix: str, skipped: int = 1) -> dict[str, Any]:
    """The arguments of transformers' CLIPTextConfig for OpenCLIP's text encoder under a prefix.

    Args:
        file: the tensors.
        prefix: before ``token_embedding``.
        skipped: last blocks that are not used: Stable Diffusion 2 takes the output of the last but one.
    """
    words, width = file.shape(f"{prefix}token_embedding.weight")
    linear = f"{prefix}text_projection.weight"
    projected = file.shape(linear)[0] if linear in file else None
    if f"{prefix}text_projection" in file:
        projected = file.shape(f"{prefix}text_projection")[1]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": file.shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": open_clip_layers(file, prefix) - skipped,
        "num_attention_heads": width // 64,
        "max_position_embeddings": file.shape(f"{prefix}positional_embedding")[0],
        "hidden_act": "gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "projection_dim": width if projected is None else projected,
    }


def transformers_text_config(file: TensorFile, prefix: str) -> dict[str, Any]:
    """The arguments of CLIPTextConfig for OpenAI's text encoder under a prefix, with the tensor names of transformers.

    Args:
        file: the tensors.
        prefix: before ``embeddings``.
    """
    words, width = file.shape(f"{prefix}embeddings.token_embedding.weight")
    layers = 0
    while f"{prefix}encoder.layers.{layers}.layer_norm1.weight" in file:
        layers += 1
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": file.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "max_position_embeddings": file.shape(f"{prefix}embeddings.position_embedding.weight")[0],
        "hidden_act": "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }


def noise_schedule(device: torch.device) -> NoiseSchedule:
    """The noise schedule of all of these models: the square root of beta is linear in the timestep."""
    betas = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, STEPS, dtype=torch.float64) ** 2
    return NoiseSchedule(torch.cumprod(1 - betas, 0).float().to(device))


# ---- filling modules ------------------------------------------------------------------------------------------------------


def fill(network: Network, file: TensorFile, take: Callable[[str, Tensor], Tensor], dtype: torch.dtype) -> Network:
    """A network whose every tensor is taken from a file; frozen, in evaluation mode.

    Args:
        network: made of the right shape; may be on the meta device.
        file: named in messages.
        take: (name, tensor of the network) -> the tensor of the file.
        dtype: of the weights.

    Raises:
        UserError: the file lacks a tensor, or has one of another shape.
    """
    state = {}
    for name, wanted in network.state_dict().items():
        try:
            tensor = take(name, wanted)
        except KeyError as error:
            raise UserError(f"weights: {file.path} lacks the tensor {error.args[0]}; restore or download it again") from None
        if tensor.numel() == wanted.numel() and tensor.ndim == wanted.ndim + 2:  # a 1x1 convolution that is a linear layer
            tensor = tensor.reshape(wanted.shape)
        if tensor.shape != wanted.shape:
            raise UserError(
                f"weights: {file.path} holds {name} as {list(tensor.shape)} and not {list(wanted.shape)}; it is another model"
            )
        state[name] = tensor.to(dtype)
        if not bool(state[name].isfinite().all()):
            raise UserError(f"weights: {file.path} holds numbers that are not finite, in {name}; restore or download it again")
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def load_unet(
    file: TensorFile,
    heads: Callable[[int], int],
    size: int,
    dtype: torch.dtype,
    prefix: str = UNET,
    change: Callable[[Network], None] | None = None,
    averages: bool = True,
    further: dict[str, Any] | None = None,
) -> Network:
    """The UNet of a file, on the CPU.

    Args:
        file: the tensors.
        heads: channels of a level -> its attention heads.
        size: side of its latents.
        dtype: of the weights.
        prefix: of its tensors.
        change: gives the network what diffusers' own lacks, before it is filled.
        averages: take the averaged (EMA) weights where the file has them, as the programs of Zero123 do.
        further: arguments of diffusers' class that the tensors do not say.

    Raises:
        UserError: a tensor is missing or of another shape.
    """
    from diffusers import UNet2DConditionModel

    config = unet_config(file, heads, prefix) | (further or {})
    with torch.device("meta"):
        unet: Network = UNet2DConditionModel(sample_size=size, **config)
        if change is not None:
            change(unet)
    names = unet_names(list(unet.state_dict()), config)

    def take(name: str, _: Tensor) -> Tensor:
        average = ema_name(names[name])
        return file[average if averages and average in file else prefix + names[name]]

    return fill(unet, file, take, dtype)


def ema_name(name: str) -> str:
    """Where a Lightning checkpoint keeps the average of the UNet's tensor of that LDM name: all in one word."""
    return "model_ema.diffusion_model" + name.replace(".", "")


def load_vae(file: TensorFile, dtype: torch.dtype, prefix: str = VAE, scaling_factor: float = SCALING_FACTOR) -> Network:
    """The VAE of a file, on the CPU; see :func:`load_unet`."""
    from diffusers import AutoencoderKL

    config = vae_config(file, prefix, scaling_factor)
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    levels = len(config["block_out_channels"])
    return fill(vae, file, lambda name, _: file[prefix + ldm_vae_name(name, levels)], dtype)


def load_clip(network_type: Any, config: Any, file: TensorFile, prefix: str, dtype: torch.dtype) -> Network:
    """An encoder of CLIP from the tensors of OpenAI's or OpenCLIP's, on the CPU.

    Args:
        network_type: a class of transformers: CLIPVisionModelWithProjection, CLIPVisionModel or CLIPTextModel.
        config: its config.
        file: the tensors.
        prefix: of its tensors.
        dtype: of the weights.
    """
    network = network_type(config)

    def take(name: str, _: Tensor) -> Tensor:
        return _clip_tensor(name.removeprefix("vision_model.").removeprefix("text_model."), lambda n: file[prefix + n])

    return fill(network, file, take, dtype)
