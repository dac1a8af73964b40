"""Makes tourist photographs of a mesh: other light, camera, size and passers-by in each, posed, in the layout of phototourism.

Example: python scripts/make_tourists.py bunny.obj tourists --photographs 1000 --size 640x480
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core import interrupt  # noqa: E402

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import UserError  # noqa: E402
from nerf.core.files import new_folder  # noqa: E402
from nerf.core.ranges import SEED, between  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

SIDES = between(32, 8192)  # of a photograph, pixels
TOLD = 100  # photographs between two lines


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(
        description=__doc__.split("\n", 1)[0],
        epilog="OUT/truth holds a mask of the passers-by in each photograph, and the lights.",
    )
    parser.add_argument("mesh", type=Path, metavar="MESH", help="what they look at: GLB, OBJ, PLY or STL, +Y up")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.number("--photographs", int, 1000, between(3, 100_000), "how many; every fiftieth is for testing")
    parser.add_argument("--size", default="640x480", metavar="WxH", help="the largest photograph, pixels [640x480]")
    parser.number("--seed", int, 0, SEED, "seed of cameras, lights and people")
    return parser


def read_size(word: str) -> tuple[int, int]:
    """Width and height.

    Raises:
        UserError: the word is not WxH, or a side is too small or too large.
    """
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", word)
    if found is None or not all(SIDES.holds(int(side)) for side in found.groups()):
        raise UserError(f"--size must be WxH with sides {SIDES.expected}, got {word:.40}")
    return int(found[1]), int(found[2])


def main(arguments: list[str] | None = None) -> int:
    """Write the photographs; returns 0."""
    args = parser_of().parse_args(arguments)
    size = read_size(args.size)
    import trimesh  # which takes a while

    from benchmarks.tourists import write_tourists
    from nerf.mesh.compare import read_shape

    found = read_shape(args.mesh).mesh
    if found is None:
        raise UserError(f"{args.mesh} is a point cloud, which hides nothing; give a GLB, OBJ, PLY or STL with triangles")
    mesh = trimesh.Trimesh(found.vertices, found.faces, process=False)

    def told(done: int) -> None:
        if done % TOLD == 0:
            print(f"{done} of {args.photographs}", flush=True)

    with new_folder(args.out) as unfinished:
        write_tourists(mesh, unfinished, args.photographs, size, args.seed, told)
    print(f"{args.out}: {args.photographs} photographs; the truth is in {args.out / 'truth'}")
    return 0


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
