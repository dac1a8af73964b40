"""Surfaces from photographs with --backbone sdf: from the pictures to the written mesh, against the truth.

    python -m benchmarks.surfaces spot dtu --data SHARED_DATA [--minutes 8] [--extra "--iters 2000"]

``spot`` and ``bunny`` are photographs of known meshes, rendered by ray casting; ``-unmasked`` ones are opaque and before a
textured background. ``dtu`` is scan 24 of DTU at 400x300 with every 8th view held out, ``lego`` NeRF's at 200x200. Each run is
one command line of ``main.py``, its mesh is measured as by ``scripts/evaluate_mesh.py``, and a picture of it from above, behind
and below is written beside the table. Settings of the presets were chosen on ``spot``, ``spot-unmasked``, ``dtu`` and the
validation views of ``lego``; the others are held apart.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import scenes
from benchmarks.inverse_rendering import Colors
from benchmarks.paint import colors_of, read_texture, sheet, solid_of
from benchmarks.records import read_record, read_result, write_record
from benchmarks.runs import add_flags, failure, parse_flags, report, run_main, work_through
from nerf.core.errors import UserError
from nerf.core.files import reading
from nerf.core.images import write_png
from nerf.core.ranges import SEED, above, between
from nerf.core.script import Parser, run
from nerf.data.silhouettes import read_silhouettes
from nerf.mesh import compare
from nerf.mesh.report import report_file
from nerf.mesh.source import read_source
from nerf.run.mesh_evaluation import silhouette_iou

CASES = ("spot", "spot-unmasked", "bunny", "bunny-unmasked", "dtu", "dtu-unmasked", "lego")
CHOSEN_ON = ("spot", "spot-unmasked", "dtu", "lego")  # cases on which settings were chosen
HOLDOUT = 8  # every 8th photograph of DTU is held out
VIDEO = "--dataset_size_test 8 --W 200 --H 200"  # the video is not what is measured
COLUMNS = {
    "PSNR": ("test_psnr", 2), "mesh PSNR": ("mesh_psnr", 2), "inside": ("mesh_psnr_inside", 2), "mask IoU": ("mask_iou", 4),
    "Chamfer %": ("chamfer_percent", 4), "normals °": ("normal_error", 2), "closed": ("watertight", 0), "genus": ("genus", 0),
    "parts": ("parts", 0), "steps": ("steps", 0), "training s": ("train_seconds", 0), "all s": ("seconds", 0),
    "CPU s": ("cpu_seconds", 0), "MB": ("megabytes", 0),
}  # fmt: skip


class Figures(msgspec.Struct):
    """What is read of ``result.json``."""

    steps: int
    train_seconds: float
    test_psnr: float | None = None
    mesh_psnr: float | None = None
    mesh_psnr_inside: float | None = None
    mesh_iou: float | None = None


def true_mesh(case: str, data: Path) -> Path | None:
    """The file of the true surface of a case; None of real photographs and of lego."""
    name = case.removesuffix("-unmasked")
    return data / "mesh" / f"{name}.obj" if name in ("spot", "bunny") else None


def colours(case: str, data: Path) -> tuple[Any, Colors]:
    """The true mesh of trimesh, and what colour it has where."""
    path = true_mesh(case, data)
    assert path is not None
    source = read_source(path)
    texture = data / "mesh" / f"{path.stem}_texture.png"
    if not texture.is_file():
        return solid_of(source), marbled(source.placed)
    with reading(f"texture {texture}", "give a PNG"):
        return solid_of(source), colors_of(source, read_texture(texture))


def marbled(vertices: np.ndarray) -> Colors:
    """Colours of a mesh without a texture: soft waves, so that photographs have something to match."""
    size, rng = float(np.ptp(vertices, axis=0).max()), np.random.default_rng(0)
    waves, phase, mix = rng.normal(size=(3, 40)) * 25 / size, rng.uniform(0, 6.3, 40), rng.normal(size=(40, 3)) / 40**0.5

    def color(_: np.ndarray, points: np.ndarray) -> np.ndarray:
        return np.clip(0.6 + 0.25 * np.sin(points @ waves + phase) @ mix, 0.05, 0.95)

    return color


def photographs(case: str, args: Namespace) -> Path:
    """The folder for ``--data`` of a case, made where it has to be."""
    masks, name = not case.endswith("-unmasked"), case.removesuffix("-unmasked")
    if name == "lego":
        return args.data / "lego"
    if name == "dtu":
        scan = args.data / "dtu_scan24"
        return scan if masks else scenes.without_masks(scan, args.work / "photographs" / case)
    folder = args.work / "photographs" / f"{case}_{args.count}_{args.size}"
    if not (folder / "transforms_test.json").is_file():
        solid, color_of = colours(case, args.data)
        scenes.write_scene(solid, folder, color_of, masks, args.count, max(args.count // 6, 2), args.size)
    return folder


def flags(case: str, folder: Path, args: Namespace) -> list[str]:
    """The command line of one run, without its workspace."""
    words = ["--data", str(folder), "--backbone", args.backbone, "--save_mesh", "--export_frame", "source", "--ckpt", "scratch"]
    words += ["--minutes", f"{args.training_minutes:g}", "--threads", str(args.threads), "--seed", str(args.seed)]
    return [*words, "--holdout", str(HOLDOUT if case.startswith("dtu") else 0), *VIDEO.split(), *args.extra]


def one_run(case: str, args: Namespace) -> dict[str, Any]:
    """Run the command line on a case and measure what it wrote; a failure is a result, too."""
    workspace = args.work / f"{case}_{args.backbone}_{args.seed}"
    found = run_main(flags(case, photographs(case, args), args), workspace) | {"prompt": case, "group": case, "seed": args.seed}
    glb = workspace / "mesh" / "mesh.glb"
    wrong = failure(found, glb)
    if (workspace / "result.json").is_file() and not found["returncode"]:
        found |= {k: v for k, v in msgspec.structs.asdict(read_result(workspace, Figures)).items() if v is not None}
    if wrong is not None:
        return found | {"failure": wrong}
    shape = report_file(glb, samples=0)
    found |= {"faces": shape.faces, "parts": shape.parts, "watertight": shape.watertight, "genus": shape.genus}
    truth = true_mesh(case, args.data)
    if truth is not None:
        against = compare.read_shape(truth)
        measured = compare.compare(compare.read_shape(glb), against, [against.diagonal / 100])
        found |= {
            "chamfer_percent": measured.chamfer_percent,
            "normal_error": measured.normal_error,
            "f_score_1_percent": measured.thresholds[0].f_score,
        }
    elif case.startswith("dtu"):
        found["mask_iou"] = mask_iou(glb, args.data / "dtu_scan24")
    if "mask_iou" not in found and "mesh_iou" in found:
        found["mask_iou"] = found["mesh_iou"]
    source = read_source(glb)
    painted = colors_of(source, read_texture(workspace / "mesh" / "albedo.png"))
    write_png(args.out / f"surfaces_{case}.png", sheet(solid_of(source), [painted, grey]))
    return found


def grey(triangle: np.ndarray, _: np.ndarray) -> np.ndarray:
    """One colour, to show the shape alone."""
    return np.full((len(triangle), 3), 0.8)


def mask_iou(glb: Path, folder: Path) -> float:
    """Mean intersection over union of the silhouettes of a mesh, by ray casting, and the masks of held-out photographs."""
    solid = solid_of(read_source(glb))
    seen = read_silhouettes(folder, "test", HOLDOUT)
    return float(np.mean([silhouette_iou(scenes.cast_silhouette(solid, s.projection, s.mask.shape), s.mask) for s in seen]))


def table(results: dict[str, dict]) -> str:
    """The record as a Markdown table."""
    titles = ["case", *COLUMNS]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, row in results.items():
        cells = [_cell(row.get(key), digits) for key, digits in COLUMNS.values()]
        said = f"{name}: {row['failure']}" if row.get("failure") else name
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    chosen = f"{', '.join(CHOSEN_ON[:-1])} and {CHOSEN_ON[-1]}"
    return "\n".join(lines) + f"\n\nSettings were chosen on {chosen}; the other cases are held apart.\n"


def _cell(value: Any, digits: int) -> str:
    """A value as the table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.{digits}f}"


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(prog="benchmarks.surfaces", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "cases", nargs="*", choices=CASES, default=list(CASES), metavar="CASE", help=f"{', '.join(CASES)} [all]"
    )
    given = os.environ.get("SOMNIA_TEST_DATA")
    parser.add_argument(
        "--data", type=Path, default=given and Path(given), help="folder with mesh/, dtu_scan24/ and lego/ [SOMNIA_TEST_DATA]"
    )
    add_flags(parser, "run", 1e6, "surfaces", parallel=False)
    parser.number("--training_minutes", float, 8.0, above(0, 1e6), "of each run")
    parser.add_argument("--backbone", default="sdf", help="of main.py [sdf]")
    parser.number("--threads", int, 1, between(1, 1024), "of each run")
    parser.number("--seed", int, 0, SEED, "of each run")
    parser.number("--count", int, 48, between(4, 1000), "photographs of a known mesh")
    parser.number("--size", int, 256, between(8, 4096), "pixels along a side of these")
    return parser


def main() -> int:
    """Run what is left to do, and write the record, its table and the pictures."""
    args = parse_flags(parser_of())
    if args.data is None or not args.data.is_dir():
        raise UserError(
            f"--data must name the folder with the photographs and meshes, got {args.data}; or set SOMNIA_TEST_DATA"
        )
    args.data = args.data.resolve()
    results = read_record(args.out / "surfaces.json")

    def key(case: str) -> str:
        return f"{case}, {args.backbone}, seed {args.seed}"

    def done(case: str, result: dict) -> None:
        results[key(case)] = result
        write_record(args.out, "surfaces", results, table(results), [])

    todo = [case for case in args.cases if args.again or key(case) not in results]
    skipped = work_through(todo, lambda case: one_run(case, args), done, args.minutes, 1)
    report(table(results), skipped, args.minutes, "run")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
