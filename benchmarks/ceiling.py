"""Where a shape is lost: prior, field, extraction or mesh stage. Each prompt is run with the embedded prior and a perfect one.

``python -m benchmarks.ceiling --minutes 60`` runs both stages of ``main.py`` for one prompt after the other, once guided by the
embedded prior and once by true pictures of the shape (:mod:`guidance.prior.perfect`), which is the ceiling of all that
comes after the prior, and writes ``ceiling.json`` and ``ceiling.md``. Finished measurements are not repeated.

``python -m benchmarks.ceiling --estimates`` runs nothing, and prints how good the prior's estimates of all kinds are.

``python -m benchmarks.ceiling --perfect FLAGS`` is ``main.py FLAGS`` with the perfect prior.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import guidance
import main as program
from benchmarks import mesh_measure, runs
from benchmarks.records import read_record, write_record
from benchmarks.text_to_3d import slug
from guidance.prior import WEIGHTS, diagnose
from guidance.prior.benchmark import recolored
from guidance.prior.captions import parse
from guidance.prior.model import Prior, load
from guidance.prior.shapes import KINDS, Shape, canonical
from nerf.config import config as options
from nerf.core.ranges import SEED
from nerf.core.script import Parser, run
from nerf.mesh.hidden import hidden_from
from nerf.mesh.isosurface import extract_surface
from nerf.mesh.mesh import Mesh, largest_parts, weld
from nerf.mesh.repair import clean_surface
from nerf.mesh.soundness import genus_of
from nerf.mesh.voxels import caves
from nerf.renderer import NeRFRenderer

if TYPE_CHECKING:
    from guidance.prior.perfect import PerfectPrior
    from guidance.weights import Resolved
    from nerf.config.config import Config

# The kinds that come out worst, the demo's house, and a mug, which is hollow.
PROMPTS = (
    "a purple sofa", "a blue umbrella", "a green bed with a white pillow", "a green cactus", "a pink teddy bear",
    "a blue house with a red roof", "a yellow mug",
)  # fmt: skip
GUIDED = {"embedded": ("main.py",), "perfect": ("-m", "benchmarks.ceiling", "--perfect")}
TIMESTEPS = (500, 850)
VIEWS = 12  # of which the estimates are measured


def perfect(config: "Config", device: "torch.device", resolved: "Resolved | None") -> "PerfectPrior":
    """Build the perfect prior; see :data:`guidance.Builder`."""
    from guidance import weights
    from guidance.diffusion import loader
    from guidance.prior.perfect import PerfectPrior

    assert resolved is not None, "it has the weights of the embedded prior"
    return PerfectPrior(weights.fetch(resolved), **loader.placement(config, device))


def perfect_run(flags: list[str]) -> int:
    """``main.py`` with the perfect prior in the place of the embedded one; returns its exit code."""
    guidance.FAMILIES["SD"] = replace(guidance.FAMILIES["SD"], build=perfect)
    return program.main(flags)


@torch.no_grad()
def prior_measures(prior: Prior, prompt: str, views: int = VIEWS) -> dict[str, float]:
    """How far one-step estimates at the right camera are from true pictures of the canonical shape.

    Returns:
        ``error <t>``, the root mean squared error as a share of what the object differs from the white background, and
        ``silhouette <t>``, the IoU of the silhouettes (half of the object's median contrast), for each of :data:`TIMESTEPS`.
    """
    caption = parse(prompt).caption
    cameras = mesh_measure.view_angles(views, 70.0)
    picture, mask = mesh_measure.true_views(canonical(caption), cameras)
    truth = torch.from_numpy(picture).float().permute(0, 3, 1, 2) * 2 - 1
    text = prior.encode_text([caption.text]).expand(views, -1, -1)
    shown = (1 - truth).amax(1)  # [K, 64, 64] contrast with the background
    half = 0.5 * shown[torch.from_numpy(mask)].median()
    found = {}
    for t in TIMESTEPS:
        noisy = diagnose.add_noise(prior, truth, t, seed=1)
        x0 = diagnose.estimate(prior, noisy, t, text, cameras)
        seen = ((1 - x0).amax(1) > half).numpy()
        found[f"error {t}"] = float(((x0 - truth).square().mean() / (1 - truth).square().mean()).sqrt())
        found[f"silhouette {t}"] = float(np.mean([mesh_measure.iou(a, b) for a, b in zip(seen, mask, strict=True)]))
    return found


def estimates_table(prior: Prior, kinds: Iterable[str]) -> str:
    """The measures of one-step estimates of kinds in blue, and red where they have two colours, worst first, in Markdown."""
    found = {kind: prior_measures(prior, recolored(kind, ("blue", "red")).text, 8) for kind in kinds}
    columns = [f"{name} {t}" for name in ("error", "silhouette") for t in TIMESTEPS]
    lines = [f"| kind | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for kind in sorted(found, key=lambda kind: found[kind][f"silhouette {TIMESTEPS[-1]}"]):
        lines.append(f"| {kind} | " + " | ".join(f"{found[kind][name]:.2f}" for name in columns) + " |")
    return "\n".join(lines) + "\n"


def surface_measures(mesh: Mesh, members: list[Shape], truths: list[np.ndarray]) -> dict[str, float | int | None]:
    """IoU with the nearest member of the family, genus, and caves as a share of the volume."""
    voxels = mesh_measure.voxelize(mesh_measure.ColoredMesh(mesh.vertices, mesh.faces))
    score, _ = mesh_measure.nearest_member(voxels, members, truths)
    return {"iou": score, "genus": genus_of(mesh.faces), "caves": caves(mesh)}


def field_iou(model: NeRFRenderer, threshold: float, members: list[Shape], truths: list[np.ndarray]) -> float:
    """IoU of the points at which the density is above the threshold, enclosed cavities filled."""
    from scipy.ndimage import binary_fill_holes

    centres = mesh_measure.voxel_centres().reshape(-1, 3)
    inside = (centres.abs() <= model.bound).all(-1)
    density = torch.zeros(len(centres))
    with torch.no_grad():
        density[inside] = model.level_set(threshold).value(centres[inside])
    solid = binary_fill_holes((density > threshold).reshape(truths[0].shape).numpy())
    return mesh_measure.nearest_member(solid, members, truths)[0]


def stage_measures(prompt: str, workspace: Path) -> dict[str, object]:
    """Field, extraction (as the mesh stage begins with it) and mesh of a finished run with both stages."""
    members, truths = mesh_measure.family_voxels(parse(prompt).caption)
    asked = options.parse(["--workspace", str(workspace), "--test", "--stages", "nerf", "--no_save_mesh"])
    with program.ready(asked) as (_, trainer, _):
        model, config = trainer.model, trainer.config
        output = config.output
        field = field_iou(model, output.mesh_threshold, members, truths)
        level_set, cameras = model.level_set(output.mesh_threshold), hidden_from(config.mesh, config.camera)
        raw, _ = extract_surface(level_set, model.bound, output.mcubes_resolution, output.mesh_smooth, cameras=cameras)
    extracted, _ = largest_parts(clean_surface(raw, model.bound)[0], config.mesh.mesh_min_part)
    written = mesh_measure.read_mesh(workspace / "mesh" / "mesh.glb")
    final = weld(Mesh(written.vertices, written.faces))
    return {"field": field, "extraction": surface_measures(extracted, members, truths),
            "mesh": surface_measures(final, members, truths)}  # fmt: skip


def one_run(name: str, prompt: str, seed: int, work: Path, extra: list[str]) -> dict[str, object]:
    """Run and measure a prompt with one of the two priors; a failure is recorded as a result."""
    kind = name.rsplit(" ", 1)[-1]
    workspace = work / f"{slug(prompt, seed)}_{kind}"
    flags = ["--text", prompt, "-O", "--sd_version", "embedded", "--stages", "nerf,dmtet", "--seed", str(seed), *extra]
    made = runs.run_main(flags, workspace, GUIDED[kind])
    result = {"prompt": prompt, "seed": seed, "group": kind, **made}
    reason = runs.failure(made, workspace / "mesh" / "mesh.glb")
    return result | ({"failure": reason} if reason else stage_measures(prompt, workspace))


def table(results: dict[str, dict]) -> str:
    """Results as a Markdown table, a line for each prompt, the embedded prior before the perfect one."""
    lines = [
        "| prompt | estimates: error at t = 500 / 850, silhouette IoU | field | extraction | mesh stage | genus | caves |",
        "|---|---|---|---|---|---|---|",
    ]
    for prompt in dict.fromkeys(row["prompt"] for row in results.values()):
        rows = {row["group"]: row for row in results.values() if row["prompt"] == prompt}
        prior = next((row["prior"] for row in rows.values() if "prior" in row), None)
        first = "" if prior is None else f"{prior['error 500']:.2f} / {prior['error 850']:.2f}, {prior['silhouette 850']:.2f}"
        cells = [[_cells(rows.get(kind, {}))[i] for kind in GUIDED] for i in range(5)]
        lines.append(f"| {prompt} | {first} | {' | '.join(' / '.join(pair) for pair in cells)} |")
    return "\n".join(lines) + "\n"


def _cells(row: dict) -> list[str]:
    """Field, extraction, mesh stage, genus and caves of a run."""
    if "mesh" not in row:
        return ["failed" if "failure" in row else "-"] * 5
    mesh = row["mesh"]
    genus = "open" if mesh["genus"] is None else str(mesh["genus"])
    figures = [f"{value:.2f}" for value in (row["field"], row["extraction"]["iou"], mesh["iou"])]
    return [*figures, genus, f"{100 * mesh['caves']:.1f} %"]


def main() -> None:
    """Run prompts with the embedded prior and with true pictures, and measure each stage; resumable, within some minutes."""
    parser = Parser(description=main.__doc__)
    runs.add_flags(parser, "run", 120, "ceiling")
    parser.add_argument("--prompts", nargs="*", default=list(PROMPTS), help="which prompts")
    parser.number("--seed", int, 0, SEED, "of the runs")
    parser.add_argument("--estimates", action="store_true", help="run nothing; print how good the prior's estimates are")
    args = runs.parse_flags(parser, lambda typed: runs.check_prompts(typed.prompts))
    if args.estimates:
        print(estimates_table(load(WEIGHTS), KINDS))
        return
    results = {} if args.again else read_record(args.out / "ceiling.json")
    wanted = {f"{slug(prompt, args.seed)} {kind}": prompt for prompt in args.prompts for kind in GUIDED}
    todo = [name for name in wanted if "mesh" not in results.get(name, {})]
    prior = load(WEIGHTS) if todo else None

    def done(name: str, result: dict) -> None:
        if prior is not None and result["group"] == "embedded":
            result["prior"] = prior_measures(prior, result["prompt"])
        results[name] = result
        write_record(args.out, "ceiling", results, table(results), [])

    def one(name: str) -> dict:
        return one_run(name, wanted[name], args.seed, args.work, args.extra)

    skipped = runs.work_through(todo, one, done, args.minutes, args.jobs)
    runs.report(table(results), skipped, args.minutes, "run")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--perfect"]:
        sys.exit(perfect_run(sys.argv[2:]))
    sys.exit(run(main))
