"""Measures complete runs from a picture to the written GLB: 12 held-out references of known shapes.

``python benchmarks/image_to_3d.py --minutes 60`` writes the pictures, runs ``main.py --image`` for one after the other until
the time is over, measures every ``mesh.glb`` against the true shape, and writes ``image_to_3d.json``, ``image_to_3d.md`` and
``image_to_3d.png``. Finished measurements are not repeated. Settings may be chosen on the half called "tuning".

K views of S x S pixels. The run's world has the reference at azimuth 0; the shape's own front is elsewhere.
"""

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import mesh_measure, runs  # noqa: E402
from benchmarks.records import read_record, write_record  # noqa: E402
from guidance.prior.camera import look_at, rays  # noqa: E402
from guidance.prior.references import (  # noqa: E402
    REFERENCES,
    Reference,
    cameras_at,
    picture,
    seen_from,
    shape_of,
    true_layers,
)
from nerf.core.images import to_uint8, write_png  # noqa: E402
from nerf.core.ranges import SEED  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

SIZE = 96  # pixels a side of the measured views
AROUND = 8  # views at the height of the default view, and half as many from above; none is the reference's
POLAR, RAISED = 75.0, 50.0  # degrees
BALL_RADII = np.linspace(0.1, 0.6, 21)  # scene units
BALL_HEIGHTS = np.linspace(-0.2, 0.2, 9)
BACKGROUNDS = (0.0, 1.0)  # grey levels
TEXELS = (24, 48)  # of the ball: latitude, longitude
TARGETS = {"psnr": 15.0, "above_ball": 3.0, "iou": 0.60, "seconds": 360.0, "reference": 25.0}


def novel_views() -> dict[str, torch.Tensor]:
    """The cameras that results are measured at, in the world of the run, each [K]."""
    low = (torch.arange(AROUND) + 0.5) * 360 / AROUND
    high = torch.arange(AROUND // 2) * 720 / AROUND
    polar = torch.cat([torch.full_like(low, POLAR), torch.full_like(high, RAISED)])
    return cameras_at(polar, torch.cat([low, high]))


def reference_view(reference: Reference) -> dict[str, torch.Tensor]:
    """The camera of the picture, in the world of the run, each [1]."""
    return cameras_at(torch.tensor([reference.polar]), torch.zeros(1))


def over(layers: np.ndarray, background: float) -> np.ndarray:
    """Images [K, S, S, 3] of layers [K, S, S, 4] (colour times coverage, then coverage) over a grey background."""
    return layers[..., :3] + background * (1 - layers[..., 3:])


def over_white(layers: np.ndarray) -> np.ndarray:
    """As :func:`over`, over white."""
    return over(layers, 1.0)


def over_both(layers: np.ndarray) -> np.ndarray:
    """Images [2, K, S, S, 3] over black and over white: what is measured, so that no texture can imitate the background."""
    return np.stack([over(layers, background) for background in BACKGROUNDS])


def truth(reference: Reference, cameras: dict[str, torch.Tensor], size: int = SIZE) -> np.ndarray:
    """Layers [K, S, S, 4] of the true shape, for cameras in the world of the run."""
    own = seen_from(reference, cameras["polar"], cameras["azimuth"])
    return true_layers(shape_of(reference), own, size).permute(0, 2, 3, 1).double().numpy()


def rendered(mesh: mesh_measure.ColoredMesh, cameras: dict[str, torch.Tensor], size: int = SIZE) -> np.ndarray:
    """Layers [K, S, S, 4] of a mesh, unlit, averaged over 2 x 2 samples as the true views are."""
    image, mask = mesh_measure.mesh_views(mesh, cameras, 2 * size)
    fine = np.concatenate([image * mask[..., None], mask[..., None]], -1)
    return fine.reshape(len(fine), size, 2, size, 2, 4).mean((2, 4))


def psnr(seen: np.ndarray, true: np.ndarray) -> float:
    """PSNR in dB of layers [K, S, S, 4] over the pixels that either of them covers, all views and both backgrounds together."""
    foreground = (seen[..., 3] > 0) | (true[..., 3] > 0)
    error = np.square(over_both(seen) - over_both(true))[:, foreground]
    return decibels(float(error.mean())) if error.size else math.inf


def decibels(error: float) -> float:
    """PSNR of a mean squared error of colours in [0, 1]."""
    return -10 * math.log10(max(error, 1e-10))


def ball_texels(cameras: dict[str, torch.Tensor], radius: float, height: float, size: int) -> np.ndarray:
    """The texel of a ball that each pixel shows, [K, S, S], -1 where it shows none; its centre is at ``height``."""
    poses = look_at(cameras["polar"], cameras["azimuth"], cameras["radius"]).double()
    origin, direction = (v.numpy() for v in rays(poses, cameras["fovy"].double(), size))
    origin = (origin - [0, height, 0])[:, None, None]
    along = -(origin * direction).sum(-1)
    half = radius**2 - (np.square(origin).sum(-1) - along**2)
    point = (origin + (along - np.sqrt(np.maximum(half, 0)))[..., None] * direction) / radius
    latitude = np.arccos(point[..., 1].clip(-1, 1)) / np.pi * TEXELS[0]
    longitude = (np.arctan2(point[..., 0], point[..., 2]) / (2 * np.pi)) % 1 * TEXELS[1]
    texel = latitude.astype(int).clip(max=TEXELS[0] - 1) * TEXELS[1] + longitude.astype(int) % TEXELS[1]
    return np.where(half > 0, texel, -1)


def best_ball(true: np.ndarray, cameras: dict[str, torch.Tensor]) -> float:
    """PSNR of the best textured ball: of every size and height, each texel in the colour that suits the true views best.

    It is fitted to the very views that it is measured at, so it is an upper bound for anything without a shape. The best
    colour of a texel, by least squares, is the mean over the pixels that show it.

    Args:
        true: layers [K, S, S, 4] of the true views.
        cameras: of these.
    """
    images, covered, best = over_both(true), true[..., 3] > 0, math.inf
    middle = images.mean(0)  # the colours that suit both backgrounds best
    for radius in BALL_RADII:
        for height in BALL_HEIGHTS:
            texel = ball_texels(cameras, float(radius), float(height), true.shape[1])
            shown = texel >= 0
            index, colours = texel[shown], middle[shown]
            count = np.bincount(index, minlength=TEXELS[0] * TEXELS[1])
            total = np.stack([np.bincount(index, colours[:, c], len(count)) for c in range(3)], -1)
            fitted = over_both(np.zeros_like(true))
            fitted[:, shown] = (total / np.maximum(count, 1)[:, None])[index]
            best = min(best, float(np.square(fitted - images)[:, shown | covered].mean()))
    return decibels(best)


def turned(mesh: mesh_measure.ColoredMesh, degrees: float) -> mesh_measure.ColoredMesh:
    """A mesh turned about the vertical, so that what was at azimuth 0 comes to ``degrees``."""
    angle = math.radians(degrees)
    x, y, z = mesh.vertices.T
    vertices = np.stack([x * math.cos(angle) + z * math.sin(angle), y, z * math.cos(angle) - x * math.sin(angle)], -1)
    return replace(mesh, vertices=vertices)


def measure(reference: Reference, mesh: mesh_measure.ColoredMesh) -> dict[str, float]:
    """All measures of a mesh in the world of the run.

    Returns:
        ``psnr`` and ``ball`` over the novel views, ``iou``, ``reference`` over the whole picture and
        ``reference_foreground`` over its foreground.
    """
    cameras, given = novel_views(), reference_view(reference)
    true, shown = truth(reference, cameras), truth(reference, given)
    again = rendered(mesh, given)
    solid = mesh_measure.true_voxels(shape_of(reference))
    found = {
        "psnr": psnr(rendered(mesh, cameras), true),
        "ball": best_ball(true, cameras),
        "iou": mesh_measure.iou(mesh_measure.voxelize(turned(mesh, reference.front)), solid),
        "reference": decibels(float(np.square(over_white(again) - over_white(shown)).mean())),
        "reference_foreground": psnr(again, shown),
    }
    return {name: round(value, 4) for name, value in found.items()}


def write_picture(reference: Reference, folder: Path) -> Path:
    """The picture as ``<name>_rgba.png`` in a folder."""
    return write_png(folder / f"{reference.name}_rgba.png", picture(reference).permute(1, 2, 0))


def picture_row(reference: Reference, path: Path | None, views: int = 6, size: int = 96) -> np.ndarray:
    """The picture, and the true views above those of the result, [2S, (K + 1) S, 3] uint8; grey if there is no mesh."""
    cameras = cameras_at(torch.full((views,), POLAR), torch.arange(views) * 360.0 / views)
    true = over_white(truth(reference, cameras, size))
    seen = np.full_like(true, 0.5) if path is None else over_white(rendered(mesh_measure.read_mesh(path), cameras, size))
    shown = over_white(truth(reference, reference_view(reference), size))[0]
    rows = [np.concatenate([shown, *true], 1), np.concatenate([np.ones_like(shown), *seen], 1)]
    return to_uint8(np.concatenate(rows, 0))


def table(results: dict[str, dict]) -> str:
    """Results as a Markdown table: a line for each reference, and the means of each half and of all."""
    lines = [
        "| reference | half | group | novel views, dB | best ball, dB | IoU | picture, dB | its foreground, dB | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    numbers = ("psnr", "ball", "iou", "reference", "reference_foreground", "seconds")

    def line(head: str, row: dict[str, float]) -> str:
        cells = [f"{row[n]:.3f}" if n == "iou" else f"{row[n]:.0f}" if n == "seconds" else f"{row[n]:.1f}" for n in numbers]
        return f"| {head} | {' | '.join(cells)} |"

    for r in results.values():
        head = f"{r['prompt']} | {r['half']} | {r['group']}"
        lines.append(line(head, r) if "iou" in r else f"| {head} | failed: {r['failure']} | | | | | {r['seconds']:.0f} |")
    done = [r for r in results.values() if "iou" in r]
    for half in ("tuning", "test", "all"):
        rows = [r for r in done if half in (r["half"], "all")]
        if rows:
            lines.append(
                line(f"**mean, {half}** ({len(rows)}) | | ", {n: float(np.mean([r[n] for r in rows])) for n in numbers})
            )
    bars = (
        f"Bars: novel views >= {TARGETS['psnr']:g} dB and >= the best ball + {TARGETS['above_ball']:g} dB, mean IoU >= "
        f"{TARGETS['iou']:.2f}, the picture itself >= {TARGETS['reference']:g} dB, at most {TARGETS['seconds']:g} s each."
    )
    return "\n".join([*lines, "", bars]) + "\n"


def write(results: dict[str, dict], out: Path, work: Path) -> None:
    """Write the JSON, the Markdown table, and the contact sheet."""
    rows = [
        picture_row(r, work / r.name / "mesh" / "mesh.glb" if "iou" in results[r.name] else None)
        for r in REFERENCES
        if r.name in results
    ]
    write_record(out, "image_to_3d", results, table(results), rows)


def one_run(reference: Reference, work: Path, seed: int, extra: list[str]) -> dict[str, object]:
    """Run and measure one reference; a failure is recorded as a result."""
    path = write_picture(reference, work)
    flags = ["--image", os.path.relpath(path, ROOT), "--ref_polars", f"{reference.polar:g}", "-O", "--zero123", "embedded"]
    about = {"prompt": reference.prompt, "half": reference.half, "group": reference.group, "seed": seed}
    result = {**about, **runs.run_main([*flags, "--seed", str(seed), *extra], work / reference.name)}
    mesh = work / reference.name / "mesh" / "mesh.glb"
    reason = runs.failure(result, mesh)
    if reason is not None:
        return {**result, "failure": reason}
    return {**result, **measure(reference, mesh_measure.read_mesh(mesh))}


def main() -> None:
    """Run references from the picture to the GLB and measure them; resumable, within a budget of minutes."""
    parser = Parser(description=main.__doc__)
    known = {r.name: r for r in REFERENCES}
    runs.add_flags(parser, "reference", 75, "image_to_3d")
    parser.add_argument("--names", nargs="*", default=list(known), choices=known, metavar="NAME", help="which references")
    parser.add_argument("--half", choices=("tuning", "test"), default=None, help="only the references of one half")
    parser.number("--seed", int, 0, SEED, "of the runs")
    parser.add_argument("--measure", action="store_true", help="run nothing; measure the meshes of measured runs again")
    args = runs.parse_flags(parser)
    results = {} if args.again else read_record(args.out / "image_to_3d.json")
    if args.measure:
        for name, row in results.items():
            if "iou" in row:
                row |= measure(known[name], mesh_measure.read_mesh(args.work / name / "mesh" / "mesh.glb"))
        write(results, args.out, args.work)
        print(table(results))
        return
    todo = [n for n in args.names if "iou" not in results.get(n, {}) and args.half in (None, known[n].half)]

    def done(name: str, result: dict) -> None:
        results[name] = result
        write(results, args.out, args.work)

    def one(name: str) -> dict:
        return one_run(known[name], args.work, args.seed, args.extra)

    skipped = runs.work_through(todo, one, done, args.minutes, args.jobs)
    runs.report(table(results), skipped, args.minutes, "reference")


if __name__ == "__main__":
    sys.exit(run(main))
