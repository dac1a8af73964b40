"""Measures mesh files: closed, manifold, outward, self-intersections, uv, textures, size, material, extras.

Example: python scripts/mesh_report.py trial/mesh/mesh.glb
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core import interrupt  # noqa: E402

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import visible  # noqa: E402
from nerf.core.ranges import between  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Print the report of every file that can be measured; returns 0, or 2 if one cannot."""
    parser = Parser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a GLB, glTF, OBJ, PLY or STL")
    parser.add_argument("--json", action="store_true", help="print a JSON list with an object per file")
    parser.number("--samples", int, 5_000, between(0, 10**9), "triangles tested for crossing others")
    args = parser.parse_args(arguments)
    from nerf.mesh.report import report_file

    reports = []
    for path in args.files:
        try:
            reports.append(report_file(path, args.samples))
        except (ValueError, OSError) as error:
            print(visible(f"mesh_report: {error}"), file=sys.stderr)
    if args.json:
        print(json.dumps([report.as_dict() for report in reports], indent=1, ensure_ascii=False))
    elif reports:
        print("\n\n".join("\n".join(map(visible, [report.file, *report.lines()])) for report in reports))
    return 0 if len(reports) == len(args.files) else 2


if __name__ == "__main__":
    with protected():  # extras and names of files may hold what the terminal cannot show, and head closes the pipe
        sys.exit(run(main))
