"""The geometry network: depth, normals and coverage behind a noisy picture, for ``--lambda_prior_depth``. B images of S x S.

Pictures alone do not tell a mug from a mug filled to the brim: where neither light nor parallax shows the difference, score
distillation leaves what formed first. The network knows the captioned shapes: it is the UNet of the prior with another output,
and predicts from the same input what the picture shows. (Depth and normals as a prior of text to 3D: RichDreamer, Qiu et al.
2024, arXiv 2311.16918; estimated from pictures as a cue for a surface: MonoSDF, Yu et al. 2022, arXiv 2206.00665.)
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize, pixel_shuffle

from guidance.base import GeometryEstimate
from guidance.diffusion import Network
from nerf.core.errors import UserError
from nerf.core.structs import Views

CHANNELS = 5
UNIT = 0.25  # scene units of relief for which the network's output is one


class Geometry(NamedTuple):
    """What the pixels of B pictures show."""

    relief: Tensor  # [B, S, S] how much nearer than the origin the surface is, scene units: radius - distance along the ray
    normal: Tensor  # [B, 3, S, S] unit, in camera axes
    coverage: Tensor  # [B, S, S] by the object, in [0, 1]


def from_unet(unet: Network, unshuffle: int, seed: int = 0) -> Network:
    """A geometry network with the weights of the prior's UNet up to its output layer, which is new."""
    torch.manual_seed(seed)
    network: Network = type(unet).from_config({**unet.config, "out_channels": CHANNELS * unshuffle**2})
    known = {name: value for name, value in unet.state_dict().items() if not name.startswith("conv_out.")}
    network.load_state_dict(known, strict=False)
    nn.init.zeros_(network.conv_out.bias)
    return network.eval()


def fits(network: Network, unet: Network, unshuffle: int) -> bool:
    """Whether a network takes what the UNet takes and gives geometry in patches of ``unshuffle`` pixels a side."""
    ours, theirs = dict(network.config), dict(unet.config)
    same = ("in_channels", "cross_attention_dim", "projection_class_embeddings_input_dim")
    return ours["out_channels"] == CHANNELS * unshuffle**2 and all(ours[name] == theirs[name] for name in same)


def check_fit(network: Network, unet: Network, unshuffle: int, folder: Path) -> None:
    """Check that a network read from ``folder`` :func:`fits` the UNet.

    Raises:
        UserError: it does not.
    """
    if not fits(network, unet, unshuffle):
        raise UserError(
            f"weights: {folder} does not fit the UNet; expected its input, text and cameras, and "
            f"{CHANNELS * unshuffle**2} channels out"
        )


def predict(network: Network, noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor, ray: Tensor, unshuffle: int) -> Geometry:
    """The geometry of noisy pictures.

    Args:
        network: of :func:`from_unet`; it runs in its own dtype.
        noisy: [B, 3 u^2, S / u, S / u] packed x_t.
        t: [B] int64 timesteps in [0, 1000).
        text: [B, L, D] text embeddings.
        camera: [B, 8] camera vectors.
        ray: [B, 13, S / u, S / u] ray maps.
        unshuffle: u.

    Returns:
        In float32. Differentiable in all but ``t``.
    """
    packed, text, camera = (v.to(network.dtype) for v in (torch.cat([noisy, ray], 1), text, camera))
    out = pixel_shuffle(network(packed, t, encoder_hidden_states=text, class_labels=camera).sample.float(), unshuffle)
    return Geometry(out[:, 0] * UNIT, normalize(out[:, 1:4], dim=1), out[:, 4].sigmoid())


def in_world(found: Geometry, views: Views, size: int) -> GeometryEstimate:
    """The geometry in images of ``size``: depth along the rays of B views that look at the origin, normals in world axes."""
    given = torch.cat([found.relief[:, None], found.normal, found.coverage[:, None]], 1)
    if size != given.shape[-1]:
        given = interpolate(given, size=(size, size), mode="bilinear", align_corners=False, antialias=size < given.shape[-1])
    normal = torch.einsum("bij,bjhw->bihw", views.pose[:, :3, :3].to(given), given[:, 1:4])
    return GeometryEstimate(views.radius.to(given)[:, None, None] - given[:, 0], normalize(normal, dim=1), given[:, 4])
