"""What multi-view diffusion adds to a UNet: joint attention over the views, cameras, and an image prompt. B views, F frames.

The frames of a group are denoised together: in every self-attention layer, the tokens of all of them attend to each other
(Shi et al. 2023, MVDream, arXiv 2308.16512, sec. 3.1). The camera of each frame enters with the timestep. ImageDream (Wang and
Shi 2023, arXiv 2312.02201) adds a picture in two ways: as a further frame without noise and without a camera, and as tokens to
which every cross-attention layer attends with keys and values of their own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidance.diffusion import Network
from nerf.core.cameras import wrap_degrees
from nerf.core.errors import UserError
from nerf.core.structs import Views
from nerf.core.transfer import upload

LINKED = 4  # views of a group
CAMERA_DIM = 16  # numbers of a camera: a matrix [4, 4]
# Our world (+Y up, front +Z) -> the world of the training renders (Blender's: +Z up, front -Y).
TO_Z_UP = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
ANGLE_TOLERANCE = 0.1  # degrees between linked views and where they should be
LENGTH_TOLERANCE = 1e-3  # relative, of radius and field of view


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, C] -> [B, heads, L, C / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention of queries [B, L, C] over keys and values [B, M, C], in so many heads; [B, L, C]."""
    out = F.scaled_dot_product_attention(split_heads(query, heads), split_heads(key, heads), split_heads(value, heads))
    return out.transpose(1, 2).flatten(2)


class JointAttention:
    """Self-attention over all frames of a group, as a processor of diffusers' ``Attention``.

    Args:
        frames: F; consecutive rows of the batch are one group.
    """

    def __init__(self, frames: int):
        self.frames = frames

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """The attention of the F L tokens of each group to each other, [B, F L, C]."""
        return attention(query, key, value, heads)

    def __call__(self, attn: Network, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B F, L, C] -> [B F, L, C]."""
        x = hidden_states.unflatten(0, (-1, self.frames)).flatten(1, 2)
        out = self.attend(attn.to_q(x), attn.to_k(x), attn.to_v(x), attn.heads)
        out = attn.to_out[1](attn.to_out[0](out))
        return out.unflatten(1, (self.frames, -1)).flatten(0, 1)


class ImageAttention(nn.Module):
    """Cross-attention to text tokens and, with keys and values of their own, to image tokens; a processor of diffusers.

    Args:
        width: channels of the layer.
        context: channels of the tokens.
        tokens: number of image tokens, the last ones of the context.
    """

    def __init__(self, width: int, context: int, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.to_k_ip = nn.Linear(context, width, bias=False)
        self.to_v_ip = nn.Linear(context, width, bias=False)

    def forward(self, attn: Network, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, L, C] attending to [B, M + tokens, D] -> [B, L, C]."""
        text, image = encoder_hidden_states[:, : -self.tokens], encoder_hidden_states[:, -self.tokens :]
        query = attn.to_q(hidden_states)
        out = attention(query, attn.to_k(text), attn.to_v(text), attn.heads)
        out = out + attention(query, self.to_k_ip(image), self.to_v_ip(image), attn.heads)
        result: Tensor = attn.to_out[1](attn.to_out[0](out))
        return result


def link_frames(unet: Network, frames: int, image_tokens: int = 0) -> None:
    """Make a UNet of diffusers one of multi-view diffusion, in place.

    Args:
        unet: an ``UNet2DConditionModel`` with a projected class embedding for the camera.
        frames: of a group, those of an image prompt included.
        image_tokens: number of the tokens of an image prompt; 0 for none.
    """
    for name, module in unet.named_modules():
        if name.endswith(".attn1"):
            module.set_processor(JointAttention(frames))
        elif name.endswith(".attn2") and image_tokens:
            width, context = module.to_k.out_features, module.to_k.in_features
            module.set_processor(ImageAttention(width, context, image_tokens))


def camera_numbers(views: Views, front: float = 0.0) -> Tensor:
    """The cameras of B views as multi-view diffusion is told: [B, 16] float32.

    Camera to world in the axes of the training renders (OpenGL camera, z-up world), with the camera moved to distance 1.

    Args:
        views: B cameras.
        front: the azimuth that counts as the object's front, degrees.
    """
    turn = torch.deg2rad(torch.tensor(-front))
    cos, sin = float(turn.cos()), float(turn.sin())
    about_y = torch.tensor([[cos, 0.0, sin, 0.0], [0.0, 1.0, 0.0, 0.0], [-sin, 0.0, cos, 0.0], [0.0, 0.0, 0.0, 1.0]])
    (to_theirs,) = upload([torch.tensor(TO_Z_UP) @ about_y], views.pose.device)
    matrix = to_theirs @ views.pose.float()
    length = matrix[:, :3, 3].norm(dim=-1).clamp(min=1e-8)[:, None]
    matrix = torch.cat([matrix[:, :, :3], torch.cat([matrix[:, :3, 3] / length, matrix[:, 3:, 3]], 1)[..., None]], -1)
    return matrix.flatten(1)


def check_linked(views: Views, name: str) -> None:
    """Refuse views that are not whole groups of four around the object.

    Args:
        views: B cameras.
        name: of the guidance, for the message.

    Raises:
        UserError: a group is incomplete, or its views differ in polar angle, radius or lens, or are not a quarter turn apart.
    """
    count = len(views)
    if count % LINKED:
        raise UserError(
            f"guidance {name} judges groups of {LINKED} views at once, got {count}; give --batch_size a multiple of {LINKED}"
        )
    numbers = torch.stack([views.polar, views.azimuth, views.radius, views.fovy]).cpu()  # a GPU is waited for once
    polar, azimuth, *lengths = numbers.unflatten(1, (-1, LINKED))
    turns = wrap_degrees(azimuth - azimuth[:, :1] - torch.arange(LINKED) * (360.0 / LINKED)).abs()
    stretch = max((length / length[:, :1] - 1).abs().max() for length in lengths)
    if max(turns.max(), (polar - polar[:, :1]).abs().max()) > ANGLE_TOLERANCE or stretch > LENGTH_TOLERANCE:
        azimuths = ", ".join(f"{a:g}" for a in azimuth[0].tolist())
        raise UserError(
            f"guidance {name} needs linked views: groups of {LINKED} at one polar angle, radius and field of view, a quarter "
            f"turn apart; the first group is at azimuths {azimuths}, so the source of views does not honour its requirements()"
        )
