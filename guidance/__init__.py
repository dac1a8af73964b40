"""Guidance: what a diffusion model thinks of a rendered image."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from guidance.base import Guidance
    from guidance.weights import Resolved
    from nerf.config.config import Config


def build(config: "Config", device: "torch.device | str", resolved: "Resolved | None" = None) -> "Guidance":
    """The guidance model of a run, its prompt embedded.

    Args:
        config: the frozen options.
        device: where the diffusion model runs.
        resolved: ``weights.Resolved``, if the caller asked already (presets depend on it); None asks now.

    Returns:
        A prepared :class:`guidance.base.Guidance`.

    Raises:
        UserError: guidance that is not built yet, no usable weights, or a prompt or a picture size the model cannot take.
    """
    import torch

    from guidance import weights
    from guidance.base import Conditions
    from guidance.perpneg_utils import PerpNeg
    from guidance.sd_utils import Settings, StableDiffusion, log
    from nerf.core.errors import UserError

    wanted = config.guidance
    others = [name for name in wanted.guidance if name != "SD"]
    if others or wanted.IF:
        raise UserError(f"--guidance {(others or ['IF'])[0]} is not built yet; use --guidance SD")
    device = torch.device(device)
    if resolved is None:
        resolved = weights.resolve(wanted.sd_version, wanted.hf_key, config.prompt.text)
    if resolved.kind == "embedded" and config.camera.w != config.camera.h:
        raise UserError(
            f"--w and --h must be one number under the embedded prior, which sees square pictures, got "
            f"{config.camera.w} and {config.camera.h}"
        )
    log.info(resolved.sentence)
    if resolved.kind == "sd" and device.type == "cpu":
        log.warning("guidance: Stable Diffusion takes about a minute a step on a CPU; try --sd_version embedded")
    dtype = torch.float32
    if config.optim.bf16:
        dtype = torch.bfloat16
    elif config.optim.fp16 and device.type == "cuda":
        dtype = torch.float16
    perpneg = None
    if wanted.perpneg:
        perpneg = PerpNeg(wanted.negative_w, wanted.front_decay_factor, wanted.side_decay_factor)
    settings = Settings(
        wanted.guidance_scale, wanted.guidance_rescale, wanted.guidance_weighting, perpneg=perpneg, vram_O=wanted.vram_O
    )
    model = StableDiffusion(weights.fetch(resolved), device, dtype, settings)
    model.prepare(Conditions(config.prompt.text, config.prompt.negative))
    return model
