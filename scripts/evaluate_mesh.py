"""Compares a mesh or point cloud with the true surface: accuracy, completeness, Chamfer distance, F-scores, normals.

Example: python scripts/evaluate_mesh.py trial/mesh/mesh.glb truth.ply
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core import interrupt  # noqa: E402

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import UserError, visible  # noqa: E402
from nerf.core.ranges import SEED, above, between  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

DILATION = 50  # pixels, as NeuS grows its masks


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(
        description=__doc__.split("\n", 1)[0],
        epilog="Both files are compared as they are: nothing is scaled or aligned unless --icp is given.",
    )
    kinds = "a GLB, glTF, OBJ, PLY or STL; a PLY without faces is a point cloud"
    parser.add_argument("mesh", type=Path, metavar="MESH", help=f"what is judged: {kinds}")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="the true surface, in one of the same formats")
    parser.number("--points", int, 200_000, between(100, 10**7), "random points on each of the two")
    parser.number("--seed", int, 0, SEED, "seed of the points")
    parser.number(
        "--thresholds",
        float,
        [0.25, 0.5, 1.0],
        above(0, 1e9),
        "distances of the F-scores, % of the diagonal of TRUTH's box",
        nargs="+",
    )
    parser.add_argument("--scene_units", action="store_true", help="the thresholds are in the unit of the files instead")
    parser.add_argument("--icp", action="store_true", help="first move MESH rigidly to where it fits best, which flatters it")
    parser.add_argument("--data", type=Path, help="photographs with masks, in the frame of MESH: cull what no mask shows")
    parser.number("--dilation", int, DILATION, between(0, 10_000), "pixels by which the masks grow before MESH is culled")
    parser.add_argument("--obs_mask", type=Path, help="DTU's ObsMaskN_10.mat: follow its protocol as well; with --plane")
    parser.add_argument("--plane", type=Path, help="DTU's PlaneN.mat")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def measured(args: Namespace) -> dict:
    """All measures of the two files: "comparison", "notes", and "surface", "alignment", "culling" and "dtu", each or None."""
    from nerf.mesh import compare

    if (args.obs_mask is None) != (args.plane is None):
        raise UserError("the protocol of DTU needs both --obs_mask and --plane; give both, or neither")
    found, truth = compare.read_shape(args.mesh), compare.read_shape(args.truth)
    said: dict = {
        "mesh": str(args.mesh),
        "truth": str(args.truth),
        "surface": None,
        "culling": None,
        "alignment": None,
        "dtu": None,
        "notes": [],
    }
    if found.mesh is not None:
        said["surface"] = topology(args.mesh)
    elif args.data is not None or args.obs_mask is not None:
        raise UserError(f"--data and --obs_mask are for a mesh, and {args.mesh.name} is a point cloud; give its mesh")
    if args.data is not None:
        found, said["culling"] = culled(found, args.data, args.dilation)
    if args.icp:
        found, motion = compare.aligned(found, truth, args.seed)
        said["alignment"] = motion.tolist()
    if compare.apart(found, truth):
        said["notes"].append(
            "the boxes of the two files do not touch: they hardly are in one frame and unit; main.py exports in that of the "
            "photographs with --export_frame source"
        )
    scale = 1.0 if args.scene_units else truth.diagonal / 100
    said["comparison"] = compare.compare(found, truth, [scale * one for one in args.thresholds], args.points, args.seed)
    if args.obs_mask is not None:
        from nerf.mesh import dtu

        said["dtu"] = dtu.measure(found.mesh, truth.points, dtu.read_region(args.obs_mask, args.plane), args.seed)
    return said


def topology(path: Path) -> dict:
    """Whether a mesh is closed, its parts and its genus."""
    from nerf.mesh.report import report_file

    report = report_file(path, samples=0).as_dict()
    return {
        name: report[name] for name in ("faces", "vertices", "parts", "watertight", "openings", "genus", "outward", "volume")
    }


def culled(found, folder: Path, dilation: int):
    """The part of a mesh inside all masks of a folder, and how that was done in words."""
    import numpy as np

    from nerf.data.silhouettes import read_silhouettes
    from nerf.mesh import compare, dtu

    seen = read_silhouettes(folder)
    mesh = dtu.culled(found.mesh, np.stack([one.projection for one in seen]), [one.mask for one in seen], dilation)
    words = (
        f"{len(mesh.faces):,} of {len(found.mesh.faces):,} triangles lie inside all {len(seen)} masks, each dilated by "
        f"{dilation} pixels"
    )
    return compare.Shape(mesh, mesh.vertices), words


def lines_of(said: dict) -> list[str]:
    """The measures as text."""
    rows = []
    if (surface := said["surface"]) is not None:
        genus = "" if surface["genus"] is None else f", genus {surface['genus']}"
        closed = "closed" if surface["watertight"] else f"NOT closed, {surface['openings']} openings"
        outward = "" if surface["outward"] else ", NOT facing outwards"
        rows.append(("surface", f"{closed}{genus}, {surface['parts']} parts, {surface['faces']:,} triangles{outward}"))
    if said["culling"] is not None:
        rows.append(("culled for the distances", said["culling"]))
    aligned = "none" if said["alignment"] is None else "moved rigidly to where it fits best (--icp), which flatters it"
    lines = [f"{name:<30}{text}" for name, text in [*rows, ("alignment", aligned)]] + said["comparison"].lines()
    if (dtu := said["dtu"]) is not None:
        lines.append(
            f"{'DTU (mm)':<30}overall {dtu.overall:.4f}, accuracy {dtu.accuracy:.4f}, completeness {dtu.completeness:.4f}; "
            f"{dtu.points[0]:,} and {dtu.points[1]:,} points counted"
        )
    return lines + [f"{'note':<30}{note}" for note in said["notes"]]


def main(arguments: list[str] | None = None) -> int:
    """Print the measures; returns 0."""
    args = parser_of().parse_args(arguments)
    said = measured(args)
    if args.json:
        plain = {name: value.as_dict() if hasattr(value, "as_dict") else value for name, value in said.items()}
        print(json.dumps(plain, indent=1, ensure_ascii=False))
    else:
        print("\n".join(map(visible, [f"{args.mesh} against {args.truth}", *lines_of(said)])))
    return 0


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
