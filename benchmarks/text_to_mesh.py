"""Compares the mesh stage with marching cubes of the NeRF at equal numbers of triangles, on 16 prompts.

``python benchmarks/text_to_mesh.py`` takes the workspaces of ``benchmarks/text_to_3d.py`` (and makes those that are
missing), runs ``main.py --dmtet --init_with`` on each, decimates the NeRF's own mesh to the triangles of the new one, and
measures both against the true family: volumetric IoU, the boundary F-score of silhouettes at 256 pixels (the harmonic
mean of the fractions of outline pixels within two pixels of the other outline), and the colour error of the written meshes.
Finished measurements are not repeated.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import mesh_measure, runs, text_to_3d  # noqa: E402
from benchmarks.records import read_record, read_result, write_record  # noqa: E402
from benchmarks.shape_measure import outlines  # noqa: E402
from guidance.prior.captions import BENCHMARK_PROMPTS, parse  # noqa: E402
from nerf.core.ranges import SEED  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

KINDS = ("iou", "boundary_f", "albedo")
TARGET = "IoU not lower by more than 0.01 in the mean, F higher on at least 12 of 16, all watertight, at most 600 s"


def decimated(mesh: mesh_measure.ColoredMesh, target: int) -> mesh_measure.ColoredMesh:
    """The mesh without its colours, welded, with about ``target`` triangles."""
    from nerf.mesh.decimate import decimate
    from nerf.mesh.mesh import Mesh, weld

    smaller = decimate(weld(Mesh(mesh.vertices, mesh.faces)), target)
    return mesh_measure.ColoredMesh(smaller.vertices, smaller.faces, color=np.full((len(smaller.vertices), 3), 0.5))


def measure(mesh: mesh_measure.ColoredMesh, prompt: str) -> dict[str, float]:
    """IoU with the nearest member of the family, and F-score and IoU of the silhouettes against that member."""
    shapes, truths = mesh_measure.family_voxels(parse(prompt).caption, 64)
    score, shape = mesh_measure.nearest_member(mesh_measure.voxelize(mesh), shapes, truths)
    return {"iou": score, **outlines(mesh, shape), "triangles": len(mesh.faces)}


def one_run(prompt: str, seed: int, work: Path, extra: list[str]) -> dict[str, object]:
    """Run and measure both stages of one prompt; a failure is recorded as a result."""
    nerf = work / text_to_3d.slug(prompt, seed)
    result: dict[str, object] = {"prompt": prompt, "seed": seed, "group": dict(BENCHMARK_PROMPTS).get(prompt, "view")}
    if not (nerf / "mesh" / "mesh.glb").is_file():
        made = text_to_3d.run_prompt(prompt, seed, nerf, extra)
        if made["returncode"] != 0:
            return {**result, "failure": f"NeRF: exit code {made['returncode']}"}
    workspace = work / f"{nerf.name}_dmtet"
    flags = ["--text", prompt, "--dmtet", "--init_with", os.path.relpath(nerf, ROOT), "-O", "--sd_version", "embedded"]
    made = runs.run_main([*flags, "--seed", str(seed), *extra], workspace)
    if made["returncode"] != 0:
        return {**result, "failure": f"mesh stage: exit code {made['returncode']}"}
    first, second = read_result(nerf), read_result(workspace)
    if second.mesh is None:
        return {**result, "failure": "mesh stage: it wrote no mesh"}
    return {**result, "command": made["command"], **compared(nerf, workspace, prompt),
            "watertight": second.mesh.watertight, "seconds": round(first.seconds + made["seconds"], 1)}  # fmt: skip


def compared(nerf: Path, workspace: Path, prompt: str) -> dict[str, dict[str, float]]:
    """Measures of the meshes of two workspaces; the first is decimated to the number of triangles of the second."""
    written = {"nerf": nerf, "dmtet": workspace}
    meshes = {stage: mesh_measure.read_mesh(folder / "mesh" / "mesh.glb") for stage, folder in written.items()}
    shapes = {**meshes, "nerf": decimated(meshes["nerf"], len(meshes["dmtet"].faces))}
    caption = parse(prompt).caption
    return {stage: {**measure(shapes[stage], prompt), "albedo": mesh_measure.measure(mesh, caption)["albedo"]}
            for stage, mesh in meshes.items()}  # fmt: skip


def table(results: dict[str, dict]) -> str:
    """Results as a Markdown table, with the target below it."""
    lines = ["| prompt | triangles | IoU, NeRF | DMTet | F, NeRF | DMTet | albedo error, NeRF | DMTet | closed | seconds |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    done = [r for r in results.values() if "dmtet" in r]
    for r in results.values():
        if "dmtet" not in r:
            lines.append(f"| {r['prompt']} | failed: {r['failure']} | | | | | | | | |")
            continue
        a, b = r["nerf"], r["dmtet"]
        figures = " | ".join(f"{stage[kind]:.3f}" for kind in KINDS for stage in (a, b))
        lines.append(f"| {r['prompt']} | {b['triangles']:,} | {figures} | {'yes' if r['watertight'] else 'NO'} | "
                     f"{r['seconds']:.0f} |")  # fmt: skip
    if done:
        mean = {(s, k): float(np.mean([r[s][k] for r in done])) for s in ("nerf", "dmtet") for k in KINDS}
        better = sum(r["dmtet"]["boundary_f"] > r["nerf"]["boundary_f"] for r in done)
        figures = [f"{mean['nerf', kind]:.3f} | **{mean['dmtet', kind]:.3f}**" for kind in KINDS]
        figures[1] += f" (higher on {better})"
        lines.append(f"| **mean of {len(done)}** | | {' | '.join(figures)} | {sum(r['watertight'] for r in done)} | "
                     f"{max(r['seconds'] for r in done):.0f} at most |")  # fmt: skip
    return "\n".join(lines) + f"\n\nTarget: {TARGET}.\n"


def write(results: dict[str, dict], out: Path, work: Path) -> None:
    """Write the JSON, the table, and a contact sheet: truth, NeRF and mesh of each prompt from six sides."""
    rows = []
    for name, r in results.items():
        if "dmtet" in r:
            pair = text_to_3d.picture_row(r["prompt"], work / name / "mesh" / "mesh.glb")
            last = text_to_3d.picture_row(r["prompt"], work / f"{name}_dmtet" / "mesh" / "mesh.glb")
            rows.append(np.concatenate([pair, last[len(last) // 2 :]], 0))
    write_record(out, "text_to_mesh", results, table(results), rows)


def main() -> None:
    """Run the mesh stage on the NeRFs of the prompts, and measure both; resumable."""
    parser = Parser(description=main.__doc__)
    runs.add_flags(parser, "prompt", 120, "text_to_3d")
    parser.add_argument("--prompts", nargs="*", default=[p for p, _ in BENCHMARK_PROMPTS], help="which prompts")
    parser.number("--seed", int, 0, SEED, "of the random numbers")
    args = runs.parse_flags(parser)
    results = {} if args.again else read_record(args.out / "text_to_mesh.json")
    wanted = {text_to_3d.slug(prompt, args.seed): prompt for prompt in args.prompts}
    todo = [name for name in wanted if "dmtet" not in results.get(name, {})]

    def done(name: str, result: dict) -> None:
        results[name] = result
        write(results, args.out, args.work)

    def one(name: str) -> dict:
        return one_run(wanted[name], args.seed, args.work, args.extra)

    skipped = runs.work_through(todo, one, done, args.minutes, args.jobs)
    runs.report(table(results), skipped, args.minutes, "prompt")


if __name__ == "__main__":
    sys.exit(run(main))
