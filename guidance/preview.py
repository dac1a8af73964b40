"""Pictures that a guidance model draws in two dimensions, to see what it knows before a shape is made from it. B pictures.

``python -m guidance.sd_utils "a red car"`` draws with Stable Diffusion or the embedded prior; ``scripts/guidance_2d.py`` with
any model, and with any flag of main.py.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guidance import weights
from guidance.base import Conditions, Guidance
from guidance.prior.guidance import EmbeddedPrior
from nerf.core.cameras import orbit
from nerf.core.errors import UserError
from nerf.core.images import contact_sheet, write_png
from nerf.core.ranges import SEED, between
from nerf.core.script import Parser, log_to_stderr, refuse
from nerf.core.streams import Random, derived_seed
from nerf.core.structs import Control, Part, RenderSettings, ViewRequest, Views

if TYPE_CHECKING:
    from guidance.sd_utils import StableDiffusion

log = logging.getLogger("somnia.guidance")

VIEWS = 8  # around the object, for a model that is told the camera
POLAR, RADIUS, FOVY = 75.0, 3.2, 20.0  # degrees, scene units, degrees
COLUMNS = 4  # of the sheet


@dataclass(frozen=True)
class Drawing:
    """What is drawn."""

    views: int = 0  # cameras at equal steps of azimuth around the object; 0: none, unless the model needs them
    count: int = 1  # pictures, where there are no cameras
    polar: float = POLAR  # degrees
    seed: int = 0
    steps: int = 50  # of denoising, or of optimisation
    scale: float | None = None  # of classifier-free guidance; None: the model's own

    def cameras(self, models: Sequence[Guidance], size: int) -> Views | None:
        """The cameras of pictures of size x size pixels; within what the models were made for, and None where none is needed.

        Raises:
            UserError: a model needs linked views, and the number of views is no multiple of them.
        """
        wanted = [model.requirements() for model in models]
        linked = max((requirement.linked_views for requirement in wanted), default=1)
        needed = any(model.told_camera for model in models)
        count = self.views or ((linked if linked > 1 else VIEWS) if needed else 0)
        if count == 0:
            return None
        if count % linked:
            raise UserError(f"--views must be a multiple of {linked}, as the model draws so many at once, got {count}")
        middle = {"radius_range": RADIUS, "fovy_range": FOVY, "polar_range": self.polar}
        for name in middle:
            for low, high in (r for r in (getattr(requirement, name) for requirement in wanted) if r is not None):
                middle[name] = min(max(middle[name], low), high)
        # Groups of linked views one after the other, each a step of azimuth further than the one before.
        first, turn = torch.arange(count // linked) * (360.0 / count), torch.arange(linked) * (360.0 / linked)
        azimuth = (first[:, None] + turn).flatten()
        return orbit(middle["polar_range"], azimuth, middle["radius_range"], middle["fovy_range"], size, size)


def sample(model: Guidance, drawing: Drawing, size: int = 64) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] by the model's own sampling.

    Args:
        model: prepared.
        drawing: what.
        size: pixels along a side of the cameras' images; the pictures have the model's own size.

    Raises:
        UserError: the model cannot sample.
    """
    views = drawing.cameras([model], size)
    count = drawing.count if views is None else len(views)
    scale = model.sampling_scale if drawing.scale is None else drawing.scale
    generator = torch.Generator().manual_seed(drawing.seed)
    views = None if views is None else views.to(model_device(model))
    with torch.no_grad():
        return model.sample(views, count, generator, drawing.steps, scale).float().cpu()


def optimise(
    models: Sequence[Guidance],
    shares: Sequence[float],
    control: Callable[[Guidance, float], Control],
    drawing: Drawing,
    size: int,
    lr: float = 0.05,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Tensor:
    """Pictures whose pixels minimise the weighted losses of some models, as a shape would be made: score distillation in 2-D.

    Args:
        models: prepared.
        shares: weight of the loss of each.
        control: what is asked of a model at a fraction of the steps in [0, 1].
        drawing: what; ``scale`` is not used.
        size: pixels along a side.
        lr: learning rate of the pixels' logits (Adam).
        report: called with the step and its loss.

    Returns:
        [B, 3, size, size] in [0, 1].
    """
    device = model_device(models[0])
    views = drawing.cameras(models, size)
    views = orbit(drawing.polar, torch.zeros(drawing.count), RADIUS, FOVY, size, size) if views is None else views
    views = views.to(device)
    start = torch.randn(len(views), 3, size, size, generator=torch.Generator().manual_seed(drawing.seed))
    pixels = (0.1 * start).to(device).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr)
    for step in range(drawing.steps):
        fraction, total = step / drawing.steps, torch.zeros((), device=device)
        optimizer.zero_grad()
        for model, share in zip(models, shares, strict=True):
            random = Random(derived_seed(drawing.seed, step, model.name))
            request = ViewRequest("picture", num_views=len(views), height=size, width=size, fraction=fraction, random=random)
            part = Part(request, RenderSettings("picture", fraction=fraction, random=random), guided=True)
            total = total + share * model.loss(pixels.sigmoid(), views, part, control(model, fraction)).loss
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        report(step, float(total.detach()))
    return pixels.detach().sigmoid().cpu()


def model_device(model: Guidance) -> torch.device:
    """Where a model runs; the CPU where it does not say."""
    device: torch.device = getattr(model, "device", torch.device("cpu"))
    return device


def write_sheet(path: Path | str, pictures: Tensor) -> None:
    """Write pictures [B, 3, H, W] as one PNG, in rows of :data:`COLUMNS`."""
    write_png(path, contact_sheet(list(pictures.movedim(1, -1)), min(COLUMNS, len(pictures)), gap=0))


def main(argv: Sequence[str] | None = None) -> int:
    """Draw eight azimuths of one object with the embedded prior, or one image with Stable Diffusion.

    Returns:
        The exit code.
    """
    parser = Parser(prog="python -m guidance.sd_utils", description="draw a prompt in two dimensions")
    parser.add_argument("text", help="the prompt, in quotes")
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--sd_version", default="auto", help="weights, as of main.py [auto]")
    parser.add_argument("--hf_key", help="diffusers folder, checkpoint file or hub id, in place of --sd_version")
    parser.number("--steps", int, 50, between(1, 1000), "of the sampler")
    parser.number("--guidance_scale", float, None, between(0, 1e6), "of the sampler; without it, the model's own")
    parser.number("--polar", float, POLAR, between(0, 180), "degrees from above, for the embedded prior")
    parser.number("--seed", int, 0, SEED, "of the random numbers")
    parser.add_argument("--output", default="sample.png", help="the PNG file [sample.png]")
    options = parser.parse_args(argv)
    log_to_stderr()
    drawing = Drawing(polar=options.polar, seed=options.seed, steps=options.steps, scale=options.guidance_scale)
    try:
        resolved = weights.resolve(options.sd_version, options.hf_key, options.text)
        log.info(resolved.sentence)
        model = _load(resolved)
        model.prepare(Conditions(options.text, options.negative))
        pictures = sample(model, drawing)
    except UserError as error:
        return refuse(str(error), parser.prog)
    try:
        write_sheet(options.output, pictures)
    except OSError as error:
        return refuse(
            f"--output {options.output} cannot be written: {error.strerror or error}; choose another place", parser.prog
        )
    log.info("wrote %s%s", options.output, " (azimuth 0, 45, ... 315 degrees)" if len(pictures) > 1 else "")
    return 0


def _load(resolved: weights.Resolved) -> "EmbeddedPrior | StableDiffusion":
    """The model of resolved weights, on a GPU where there is one."""
    from guidance.sd_utils import StableDiffusion

    device, folder = torch.device("cuda" if torch.cuda.is_available() else "cpu"), weights.fetch(resolved)
    if resolved.kind == "embedded":
        return EmbeddedPrior(folder, device)
    return StableDiffusion(folder, device, torch.float16 if device.type == "cuda" else torch.float32)
