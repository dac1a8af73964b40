"""``python -m guidance.sd_utils "a red car"``: draw a prompt in two dimensions, to see what a model knows."""

import logging
from collections.abc import Sequence

import torch

from guidance import weights
from guidance.base import Conditions
from guidance.prior.guidance import EmbeddedPrior
from guidance.sd_utils import StableDiffusion
from nerf.core.cameras import orbit
from nerf.core.errors import UserError
from nerf.core.images import contact_sheet, write_png
from nerf.core.ranges import between
from nerf.core.script import SEED, Parser, log_to_stderr, refuse

log = logging.getLogger("somnia.guidance")

AZIMUTHS, RADIUS, FOVY = 8, 3.2, 20.0  # the views of the embedded prior


def main(argv: Sequence[str] | None = None) -> int:
    """Draw eight azimuths of one object with the embedded prior, or one image with Stable Diffusion.

    Returns:
        The exit code.
    """
    parser = Parser(prog="python -m guidance.sd_utils", description="draw a prompt in two dimensions")
    parser.add_argument("text", help="the prompt, in quotes")
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--sd_version", default="auto")
    parser.add_argument("--hf_key")
    parser.number("--steps", int, 50, between(1, 1000), "of the sampler")
    parser.number("--guidance_scale", float, 7.5, between(0, 1e6), "of the sampler")
    parser.number("--polar", float, 75.0, between(0, 180), "degrees from above, for the embedded prior")
    parser.number("--seed", int, 0, SEED, "of the random numbers")
    parser.add_argument("--output", default="sample.png")
    options = parser.parse_args(argv)
    log_to_stderr()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(options.seed)
    try:
        resolved = weights.resolve(options.sd_version, options.hf_key, options.text)
        log.info(resolved.sentence)
        conditions, folder = Conditions(options.text, options.negative), weights.fetch(resolved)
        if resolved.kind == "embedded":
            prior = EmbeddedPrior(folder, device)
            prior.prepare(conditions)
            azimuth = torch.arange(AZIMUTHS) * (360.0 / AZIMUTHS)
            views = orbit(options.polar, azimuth, RADIUS, FOVY, prior.codec.size, prior.codec.size)
            images = prior.sample(views, AZIMUTHS, generator, options.steps, options.guidance_scale)
        else:
            dtype = torch.float16 if device.type == "cuda" else torch.float32
            model = StableDiffusion(folder, device, dtype)
            model.prepare(conditions)
            images = model.sample(None, 1, generator, options.steps, options.guidance_scale)
    except UserError as error:
        return refuse(str(error), parser.prog)
    try:
        write_png(options.output, contact_sheet(list(images.movedim(1, -1)), min(4, len(images)), gap=0))
    except OSError as error:
        return refuse(
            f"--output {options.output} cannot be written: {error.strerror or error}; choose another place", parser.prog
        )
    log.info("wrote %s%s", options.output, " (azimuth 0, 45, ... 315 degrees)" if len(images) > 1 else "")
    return 0
