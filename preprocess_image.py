#!/usr/bin/env python3
"""A picture of an object -> NAME_rgba.png, NAME_depth.png and NAME_normal.png, the image prompt of ``main.py --image``."""

import argparse
import sys
from pathlib import Path

from nerf.core import interrupt

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.config.limits import BORDER, SIDE
from nerf.core import script
from nerf.core.console import protected
from nerf.core.errors import UserError

PROGRAM = "preprocess_image.py"


def parser() -> script.Parser:
    """The flags."""
    made = script.Parser(
        prog=PROGRAM,
        description="Cut an object out of a picture, centre it, and estimate its depth and normals.",
    )
    made.add_argument("paths", nargs="+", metavar="PATH", help="pictures: PNG, JPEG, WebP, BMP or TIFF")
    made.number("--size", int, 256, SIDE, "pixels of the square result")
    made.number("--border_ratio", float, 0.2, BORDER, "share of it left around the object")
    made.add_argument("--recenter", action="store_true", help="move the object to the middle (the default)")
    made.add_argument("--dont_recenter", action="store_true", help="keep the picture as it is framed, padded to a square")
    made.add_argument("--largest", action="store_true", help="of several objects keep the largest alone")
    made.add_argument("--output", type=Path, help="folder of the results [that of the picture]")
    made.add_argument(
        "--matting",
        default="grabcut",
        metavar="grabcut|none|u2netp|MODEL.onnx",
        help="how the background is removed from a picture without alpha [grabcut]",
    )
    made.add_argument(
        "--matting_layout", default="auto", metavar="auto|u2net|isnet|birefnet", help="what MODEL.onnx takes [by its name]"
    )
    made.add_argument("--depth", default="auto", metavar="auto|none|MODEL", help="Depth Anything V2 or Marigold [auto]")
    made.add_argument("--normal", default="auto", metavar="auto|none|MODEL", help="Marigold [auto]")
    made.add_argument("--device", default="cpu", help="where the models of depth and normals run [cpu]")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Every picture in its turn; one that cannot be used does not stop the others."""
    from nerf.data import preprocess

    if arguments.recenter and arguments.dont_recenter:
        raise UserError("--recenter and --dont_recenter contradict each other; leave one out")
    options = preprocess.Options(
        arguments.size, arguments.border_ratio, not arguments.dont_recenter, arguments.largest, arguments.output
    )
    paths = [Path(path).expanduser() for path in arguments.paths]
    preprocess.check_outputs(paths, options)
    tools = preprocess.load_tools(
        arguments.matting, arguments.matting_layout, arguments.depth, arguments.normal, arguments.device
    )
    for line in tools.lines:
        print(line)
    code = 0
    for path in paths:
        try:
            result = preprocess.preprocess(path, options, tools)
        except UserError as error:
            code = script.refuse(str(error), PROGRAM)
            continue
        for line in result.lines:
            print(f"{path}: {line}")
        print(f"{path} -> {', '.join(map(str, result.files))}")
    return code


def main(argv: list[str] | None = None) -> int:
    """Read the flags, run, and turn an error into one sentence and an exit code."""
    return script.run(lambda: run(parser().parse_args(argv)), PROGRAM)


if __name__ == "__main__":
    with protected():
        sys.exit(main())
