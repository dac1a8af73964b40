"""The multi-view prior: the text-conditioned prior with joint attention over four linked views.

Its weights are those of the text-conditioned prior with other attention blocks, which are stored alone. Every self-attention
layer sees the tokens of all four views of a group (as in MVDream, :mod:`guidance.diffusion.multiview`). What a token gives to
those of other views is damped by a learned offset of the attention logits, which starts low: the new tokens must not take the
attention from those that the weights know, and the prior starts as what it was.

G groups of F = 4 views, B = F G.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guidance.diffusion import Network
from guidance.diffusion.multiview import LINKED, JointAttention, split_heads
from guidance.prior import WEIGHTS
from guidance.prior import model as text_model
from guidance.prior.model import Prior
from nerf.core.errors import UserError

FILE = "changes.safetensors"
FIRST_OFFSET = -3.0  # of the logits towards other views: their 192 tokens get 13 % of the attention where all are alike
BLOCKS = ".attentions."  # in the names of the tensors that are trained
_RESTORE = "restore it from version control"


class LinkedAttention(JointAttention, nn.Module):
    """Joint self-attention with a learned offset of the logits between tokens of different views.

    Plain rather than fused: fused attention is slower in bf16 on a CPU, where the prior is trained (docs/prior.md).

    Args:
        heads: of the layer.
        frames: F; 1 attends to each view alone.
    """

    def __init__(self, heads: int, frames: int = LINKED):
        nn.Module.__init__(self)
        JointAttention.__init__(self, frames)
        self.offset = nn.Parameter(torch.full((heads,), FIRST_OFFSET))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """See :meth:`JointAttention.attend`; differentiable, in the offset too."""
        q, k, v = (split_heads(x, heads) for x in (query, key, value))
        precise = torch.promote_types(q.dtype, torch.float32)
        logits = (q @ k.transpose(-1, -2)).to(precise) * q.shape[-1] ** -0.5
        if self.frames > 1:
            view = torch.arange(self.frames, device=q.device).repeat_interleave(q.shape[-2] // self.frames)
            logits = logits + self.offset.to(precise)[:, None, None] * (view[:, None] != view)
        return (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def self_attention(unet: Network) -> list[Network]:
    """The self-attention layers of a UNet."""
    return [module for name, module in unet.named_modules() if name.endswith(".attn1")]


def link(unet: Network) -> None:
    """Give every self-attention layer of a UNet a :class:`LinkedAttention`, in place; those that it has stay."""
    for layer in self_attention(unet):
        if not isinstance(layer.processor, LinkedAttention):
            weight = layer.to_q.weight
            layer.set_processor(LinkedAttention(layer.heads).to(weight.device, weight.dtype))


def join(unet: Network, joined: bool) -> None:
    """Whether the views of a group attend to each other from now on, or each to itself alone."""
    for layer in self_attention(unet):
        layer.processor.frames = LINKED if joined else 1


def changes(unet: Network) -> dict[str, nn.Parameter]:
    """The parameters of a linked UNet that differ from the text-conditioned prior's, by name."""
    return {name: value for name, value in unet.named_parameters() if BLOCKS in name}


def build(base: Path | str = WEIGHTS) -> Prior:
    """The multi-view prior before any training: it predicts nearly what the text-conditioned prior does without its details.

    Args:
        base: folder of the text-conditioned prior.
    """
    prior = replace(text_model.load(base), detail=None)
    link(prior.unet)
    return prior


def save(prior: Prior, folder: Path | str, recipe: dict[str, Any] | None = None) -> None:
    """Write what differs from the text-conditioned prior, in fp16, and ``recipe.json`` if given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous() for name, value in changes(prior.unet).items()}, folder / FILE)
    if recipe is not None:
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


def change(unet: Network, folder: Path | str) -> None:
    """Turn the UNet of the text-conditioned prior into that of the multi-view prior, in place.

    Args:
        unet: of the text-conditioned prior; it keeps its device and dtype.
        folder: written by :func:`save`.

    Raises:
        UserError: the file is missing, damaged, or does not fit the UNet.
    """
    path = Path(folder) / FILE
    try:
        tensors = load_file(path)
    except Exception as error:  # what safetensors raises is of no common type
        raise UserError(f"weights: {path} cannot be read ({error}); {_RESTORE}") from error
    link(unet)
    wanted = changes(unet)
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in wanted.items()}:
        raise UserError(f"weights: {path} does not fit the text-conditioned prior; {_RESTORE}")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(tensors[name])


def load(folder: Path | str, base: Path | str = WEIGHTS) -> Prior:
    """Read what :func:`save` wrote, on top of the text-conditioned prior, in float32, in evaluation mode.

    Raises:
        UserError: it is missing, damaged, or does not fit.
    """
    prior = text_model.load(base)
    change(prior.unet, folder)
    return prior
