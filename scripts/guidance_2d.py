"""Draws pictures with any guidance model, to see what it knows before an hour is spent on a shape.

Examples:
  python scripts/guidance_2d.py --guidance SD --text "a hamburger" --out hamburger.png
  python scripts/guidance_2d.py --sd_version embedded --text "a red car" --views 8 --out views.png
  python scripts/guidance_2d.py --guidance SD clip --text "a hamburger" --optimise --steps 500 --out distilled.png
  python scripts/guidance_2d.py --image hamburger_rgba.png --zero123 zero123-xl --views 4 --out around.png

A model samples as it was published; with --optimise the pixels of a picture are moved by the losses that would move a shape,
those of several models together. The flags of main.py for prompts, guidance, weights and device are read, too.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core import interrupt  # noqa: E402

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import DivergenceError, UserError  # noqa: E402
from nerf.core.ranges import between  # noqa: E402
from nerf.core.script import Parser, log_to_stderr, refuse, run  # noqa: E402

STEPS, OPTIMISATION_STEPS, SIZE = 50, 300, 256


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags of this program, and the others, which are main.py's."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = Parser(prog="guidance_2d.py", description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="picture.png", metavar="FILE.png", help="a sheet of all pictures [picture.png]")
    parser.number("--count", int, 1, between(1, 256), "pictures, where no cameras are given")
    parser.number("--views", int, 0, between(0, 256), "cameras around the object; 8 for a model that is told the camera")
    parser.number("--polar", float, 75.0, between(0, 180), "polar angle of the cameras, degrees")
    steps = f"of sampling; if it is not given, {STEPS}, and {OPTIMISATION_STEPS} of optimisation"
    parser.number("--steps", int, None, between(1, 10**6), steps)
    parser.add_argument("--optimise", action="store_true", help="move pixels by the losses of the models, instead of sampling")
    return parser.parse_known_args(argv)


def draw(own: argparse.Namespace, others: list[str]) -> int:
    """Draw; returns the number of pictures.

    Raises:
        UserError: a flag that contradicts another or that a model cannot serve, or no usable weights.
    """
    from nerf.config.config import parse
    from nerf.config.kept import StoredRun
    from nerf.config.resolve import resolve

    if not own.out.lower().endswith(".png"):
        raise UserError(f"--out must name a .png file, got {own.out}")
    if Path(own.out).is_dir():
        raise UserError(f"--out {own.out} is a folder; name a file in it, as in {Path(own.out) / 'picture.png'}")
    above = next(folder for folder in Path(os.path.abspath(own.out)).parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out {own.out}: {above} is no folder; name a file in one")
    import guidance

    asked = parse(others)
    if not asked.prompt.kinds:
        raise UserError('nothing to draw: give --text "a hamburger", or --image X_rgba.png')
    plan = resolve(asked, StoredRun(), guidance.choose_weights)
    config = plan.config
    from guidance import preview
    from main import device_name
    from nerf.data.image_prompt import image_conditions
    from nerf.training.schedule import control_at

    models = guidance.build(config, device_name(config), plan.weights, image_conditions(plan.references))
    steps = own.steps or (OPTIMISATION_STEPS if own.optimise else STEPS)
    scale = config.guidance.of(models[0].name).guidance_scale if config.asked("guidance_scale") else None
    seed = config.runtime.seed if config.asked("seed") else 0
    drawing = preview.Drawing(own.views, own.count, own.polar, seed or 0, steps, scale)
    if own.optimise:
        options = {model.name: config.guidance.of(model.name) for model in models}
        own_options = {model.name: model.stage_options(options[model.name]) for model in models}
        pictures = preview.optimise(
            models,
            [options[model.name].guidance_weights for model in models],
            lambda model, fraction: control_at(fraction, options[model.name], own_options[model.name]),
            drawing,
            config.camera.w if config.asked("w") else SIZE,
            report=lambda step, loss: _progress(step, steps, loss),
        )
    else:
        if len(models) > 1:
            raise UserError("several models cannot sample one picture; name one of them, or add --optimise")
        pictures = preview.sample(models[0], drawing)
    preview.write_sheet(own.out, pictures)
    return len(pictures)


def _progress(step: int, steps: int, loss: float) -> None:
    """A line at every twentieth of the way."""
    if step % max(steps // 20, 1) == 0:
        print(f"step {step} of {steps}: loss {loss:.4g}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Read the flags and draw; returns the exit code."""
    own, others = arguments(argv)
    log_to_stderr()
    began = time.monotonic()
    try:
        count = draw(own, others)
    except (UserError, DivergenceError) as error:
        code = refuse(str(error), "guidance_2d.py")
        return code if isinstance(error, UserError) else 1
    except OSError as error:
        return refuse(f"{error.filename or own.out} cannot be written: {error.strerror or error}", "guidance_2d.py")
    print(f"wrote {own.out}: {count} picture{'s' if count > 1 else ''} in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
