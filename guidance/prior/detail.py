"""The detail network: refines the prior's x_0 prediction pixel by pixel. B images.

The prior predicts 8x8 pixels from one cell of 96 channels, so outlines stay blurred even at noise levels where the noisy
image still shows them. A small UNet takes the noisy image and the prior's prediction at full resolution, with the same text
and camera, and adds the difference between the prediction and the clean image. (Low resolution for content, a light network
at full resolution for details: DeCo, Ma et al. 2025, arXiv 2511.19365.)
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guidance.diffusion import Network
from guidance.prior import IMAGE_SIZE, TEXT_DIM, TINY_TEXT_DIM, UNSHUFFLE
from guidance.prior.camera import CONDITION_DIM

CHANNELS = (32, 64, 64)
DETAIL_UNSHUFFLE = 2  # side of its own patches: 4x4 had learnt nothing by the time 2x2 had reduced the error by a third


def build(tiny: bool = False) -> Network:
    """A detail network with random weights, whose zero-initialised output changes nothing yet.

    Args:
        tiny: a few thousand parameters and the same interface, for tests.
    """
    from diffusers import UNet2DConditionModel

    channels = (8, 8) if tiny else CHANNELS
    pixels = 3 * DETAIL_UNSHUFFLE**2
    network: Network = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // DETAIL_UNSHUFFLE,
        in_channels=2 * pixels,
        out_channels=pixels,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        # Convolutions at high resolution; self- and cross-attention on the coarsest level alone.
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


def fits(network: Network, size: int, text_dim: int, camera_dim: int) -> bool:
    """Whether a network maps two packed images of ``size`` pixels to one, under text and cameras of these widths."""
    widths = (network.config.cross_attention_dim, network.config.projection_class_embeddings_input_dim)
    given: int = network.config.out_channels
    patch = math.isqrt(given // 3)
    packed = given == 3 * patch**2 > 0 and network.config.in_channels == 2 * given and size % patch == 0
    return bool(packed) and widths == (text_dim, camera_dim)


def refine(
    network: Network,
    noisy: Tensor,
    prediction: Tensor,
    t: Tensor,
    text: Tensor,
    camera: Tensor,
    unshuffle: int = UNSHUFFLE,
) -> Tensor:
    """The x_0 prediction with details added.

    Args:
        network: of :func:`build`; it runs in its own dtype, and its channels give the side of its patches.
        noisy: [B, 3 u^2, S / u, S / u] noisy images, packed by u.
        prediction: like noisy, the prior's x_0.
        t: [B] int64 timesteps in [0, 1000).
        text: [B, L, D] text embeddings, those of the prediction.
        camera: [B, 8] camera vectors, those of the prediction; zeros where unknown.
        unshuffle: u.

    Returns:
        Like the prediction, in its dtype. Differentiable in all but ``t``.
    """
    patch = math.isqrt(network.config.out_channels // 3)
    images = torch.cat([pixel_shuffle(noisy, unshuffle), pixel_shuffle(prediction, unshuffle)], 1)
    packed, text, camera = (v.to(network.dtype) for v in (pixel_unshuffle(images, patch), text, camera))
    added = network(packed, t, encoder_hidden_states=text, class_labels=camera).sample
    return prediction + pixel_unshuffle(pixel_shuffle(added, patch), unshuffle).to(prediction.dtype)
