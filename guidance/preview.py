"""``python -m guidance.sd_utils "a red car"``: draw a prompt in two dimensions, to see what a model knows."""

import argparse
import logging
import sys
from collections.abc import Sequence

import torch

from guidance import weights
from guidance.base import Conditions
from guidance.prior.guidance import EmbeddedPrior
from guidance.sd_utils import StableDiffusion
from nerf.core.cameras import orbit
from nerf.core.errors import UserError
from nerf.core.images import contact_sheet, write_png

log = logging.getLogger("somnia.guidance")

AZIMUTHS, RADIUS, FOVY = 8, 3.2, 20.0  # the views of the embedded prior


def main(argv: Sequence[str] | None = None) -> int:
    """Draw eight azimuths of one object with the embedded prior, or one image with Stable Diffusion.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m guidance.sd_utils", description="draw a prompt in two dimensions")
    parser.add_argument("text")
    parser.add_argument("--negative", default="")
    parser.add_argument("--sd_version", default="auto")
    parser.add_argument("--hf_key")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=7.5)
    parser.add_argument("--polar", type=float, default=75.0, help="degrees from above, for the embedded prior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="sample.png")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
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
        print(error, file=sys.stderr)
        return 2
    write_png(options.output, contact_sheet(list(images.movedim(1, -1)), min(4, len(images)), gap=0))
    log.info("wrote %s%s", options.output, " (azimuth 0, 45, ... 315 degrees)" if len(images) > 1 else "")
    return 0
