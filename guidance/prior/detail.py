"""What the patches of the prior blur, put back pixel by pixel. B images.

The prior says 8x8 pixels from one cell of 96 channels, so an outline stays soft even where the noisy picture still shows
it. A small UNet sees the noisy picture and the prior's estimate at full size and adds what lies between the estimate and the
clean picture; it is told the same words and camera. (What a picture shows at low resolution, its fine structure in a light
network at full resolution: DeCo, Ma et al. 2025, arXiv 2511.19365.)
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guidance.prior import IMAGE_SIZE, TEXT_DIM, TINY_TEXT_DIM, UNSHUFFLE
from guidance.prior.camera import CONDITION_DIM

CHANNELS = (32, 64, 64)
DETAIL_UNSHUFFLE = 2  # its own patches: with 4x4 it had learnt nothing when 2x2 had taken a third off the error


def build(tiny: bool = False) -> nn.Module:
    """A detail network with random weights that adds nothing yet.

    Args:
        tiny: a few thousand parameters and the same interface, for tests.
    """
    from diffusers import UNet2DConditionModel

    channels = (8, 8) if tiny else CHANNELS
    pixels = 3 * DETAIL_UNSHUFFLE**2
    network = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // DETAIL_UNSHUFFLE,
        in_channels=2 * pixels,
        out_channels=pixels,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        # Convolutions where there are many pixels; attention, to words and among cells, on the coarsest level alone.
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        cross_attention_dim=TINY_TEXT_DIM if tiny else TEXT_DIM,
        attention_head_dim=2 if tiny else 4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=CONDITION_DIM,
    )
    nn.init.zeros_(network.conv_out.weight)
    nn.init.zeros_(network.conv_out.bias)
    return network.eval()


def fits(network: nn.Module, size: int, text_dim: int, camera_dim: int) -> bool:
    """Whether a network takes two pictures of ``size`` pixels, packed by one patch, and gives one, told as the prior is."""
    told = (network.config.cross_attention_dim, network.config.projection_class_embeddings_input_dim)
    given = network.config.out_channels
    patch = math.isqrt(given // 3)
    packed = given == 3 * patch**2 > 0 and network.config.in_channels == 2 * given and size % patch == 0
    return packed and told == (text_dim, camera_dim)


def sharpen(
    network: nn.Module,
    noisy: Tensor,
    estimate: Tensor,
    t: Tensor,
    text: Tensor,
    camera: Tensor,
    unshuffle: int = UNSHUFFLE,
) -> Tensor:
    """The estimate with its details.

    Args:
        network: of :func:`build`; it runs in its own dtype, and its channels tell the side of its patches.
        noisy: [B, 3 u^2, S / u, S / u] noisy images, packed by u.
        estimate: like noisy, the prior's x_0.
        t: [B] int64 in [0, 1000).
        text: [B, L, D] states of the words that the estimate was told.
        camera: [B, 8] what it was told of the camera, zeros where unknown.
        unshuffle: u.

    Returns:
        Like the estimate, in its dtype. Differentiable in all but ``t``.
    """
    patch = math.isqrt(network.config.out_channels // 3)
    pictures = torch.cat([pixel_shuffle(noisy, unshuffle), pixel_shuffle(estimate, unshuffle)], 1)
    packed, text, camera = (v.to(network.dtype) for v in (pixel_unshuffle(pictures, patch), text, camera))
    added = network(packed, t, encoder_hidden_states=text, class_labels=camera).sample
    return estimate + pixel_unshuffle(pixel_shuffle(added, patch), unshuffle).to(estimate.dtype)
