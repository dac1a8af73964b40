"""Perturbs the training photographs of a Blender folder as NeRF-W does, and writes the truth of it: what a wild run must undo.

Example: python scripts/perturb_photos.py lego lego_wild --colour --occluders
"""

import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core import interrupt  # noqa: E402

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import UserError  # noqa: E402
from nerf.core.files import new_folder, write_json  # noqa: E402
from nerf.core.ranges import SEED  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

LOSSLESS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98}}  # as far as the format can
TRUTH = "truth"  # the folder of what was done, in the folder that is made


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(
        description=__doc__.split("\n", 1)[0],
        epilog="The first training photograph, and those for validation and test, stay as they are. OUT/truth holds "
        "perturbation.json and, with --occluders, a mask of each photograph that is white where the occluder is.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder with transforms_train.json")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--colour", "--color", action="store_true", help="an affine colour for each photograph")
    parser.add_argument("--occluders", action="store_true", help="a striped square before each photograph")
    parser.number("--seed", int, 0, SEED, "seed of all draws; 0 repeats the published ones")
    return parser


def _inside(folder: Path, picture: Path) -> Path:
    """The path of a picture from its folder on.

    Raises:
        UserError: it lies elsewhere.
    """
    relative = Path(os.path.normpath(os.path.relpath(picture, folder)))
    if ".." in relative.parts:
        raise UserError(f"{picture} is not inside {folder}; copy it there, and correct the path in its transforms file")
    return relative


def _copy(folder: Path, out: Path, files: Sequence[Path]) -> None:
    """Copy files of a folder to the same places in another one."""
    for file in files:
        target = out / _inside(folder, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _write_picture(pixels: "np.ndarray", target: Path, like: Path) -> None:
    """Write pixels [H, W, C] in the format of another picture, whatever its name ends with."""
    from PIL import Image

    from nerf.core.pictures import FORMATS, open_picture

    with open_picture(like, f"photograph {like}", "replace the file") as opened:
        kind = opened.format if opened.format in FORMATS else "JPEG"  # a phone's JPEG may hold several pictures
    Image.fromarray(pixels).save(target, format=kind, **LOSSLESS.get(kind, {}))


def write_perturbed(folder: Path, out: Path, colour: bool, occluders: bool, seed: int) -> int:
    """Fill the empty folder ``out``; returns how many photographs were perturbed."""
    import numpy as np
    from PIL import Image

    from nerf.data.folder import read_folder
    from nerf.data.image_store import decode_image, read_header
    from nerf.data.perturbation import draw_perturbation, perturb

    dataset = read_folder(folder)
    training = set(dataset.splits["train"])
    said: dict[str, dict] = {}
    for i, frame in enumerate(dataset.frames):
        target = out / _inside(folder, frame.image)
        _copy(folder, out, [path for path in (frame.mask, frame.normal, frame.depth) if path is not None])
        if i not in training:
            _copy(folder, out, [frame.image])
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = decode_image(frame.image, "RGBA" if read_header(frame.image)[2] else "RGB").numpy()
        drawn = draw_perturbation(i, *pixels.shape[:2], colour, occluders, seed)
        changed, occluded = perturb(pixels, drawn)
        _write_picture(changed, target, frame.image)
        said[frame.name] = drawn.as_json()
        if occluders:
            mask = out / TRUTH / "occluders" / _inside(folder, frame.image)
            mask = mask if mask.suffix == ".png" else mask.with_name(f"{mask.name}.png")
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(occluded, np.uint8(255), np.uint8(0))).save(mask)
            said[frame.name]["mask"] = mask.relative_to(out).as_posix()
    for path in sorted(folder.glob("transforms_*.json")):
        shutil.copyfile(path, out / path.name)
    write_json(out / TRUTH / "perturbation.json", {"colour": colour, "occluders": occluders, "seed": seed, "photographs": said})
    return sum("scale" in one or "square" in one for one in said.values())


def main(arguments: list[str] | None = None) -> int:
    """Write the perturbed folder; returns 0."""
    args: Namespace = parser_of().parse_args(arguments)
    if not (args.colour or args.occluders):
        raise UserError("nothing is asked for; give --colour, --occluders or both")
    if not (args.folder / "transforms_train.json").exists():
        raise UserError(f"{args.folder} has no transforms_train.json; give a folder in the format of Blender's scenes")
    with new_folder(args.out) as unfinished:
        count = write_perturbed(args.folder, unfinished, args.colour, args.occluders, args.seed)
    print(f"{args.out}: {count} photographs perturbed; the truth is in {args.out / TRUTH}")
    return 0


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
