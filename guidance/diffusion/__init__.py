"""What diffusion models share as guidance, whatever they are conditioned on.

``loader`` reads the parts of a diffusers folder, ``codecs`` maps images to the space of the denoiser and back, ``text``
encodes prompts, and ``distiller`` joins codec, noise schedule and denoiser to a loss. A model family (``guidance/sd_utils.py``,
``guidance/prior/guidance.py``) adds its conditions: what the denoiser is given besides the noisy input and the timestep.
"""

from typing import Any, TypeAlias

Network: TypeAlias = Any
"""A ``torch.nn.Module`` of diffusers or transformers, whose ``config`` and outputs have no static types."""
