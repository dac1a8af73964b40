"""Measures complete runs, from the command line to the written GLB: 16 prompts with colours that were not trained.

``python benchmarks/text_to_3d.py --minutes 60`` runs ``main.py`` for one prompt after the other until the time is over,
measures every ``mesh.glb`` against the true family, and writes ``text_to_3d.json``, ``text_to_3d.md`` and
``text_to_3d.png``. Finished measurements are not repeated.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import mesh_measure, runs  # noqa: E402
from benchmarks.records import read_record, write_record  # noqa: E402
from guidance.prior.captions import BENCHMARK_PROMPTS, parse  # noqa: E402
from nerf.core.images import to_uint8  # noqa: E402
from nerf.core.ranges import SEED  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

BALL_FAMILY = 8  # members of a family that the best ball is fitted to
TARGETS = {
    "symmetric": "IoU >= 0.72 and >= ball + 0.15, silhouette >= 0.85, albedo error <= 0.10",
    "view": "IoU >= 0.60, every prompt above its ball",
}


def slug(prompt: str, seed: int) -> str:
    """Name of the workspace of a run."""
    return f"{prompt.replace(' ', '_')}_seed{seed}"


def run_prompt(prompt: str, seed: int, workspace: Path, extra: list[str]) -> dict[str, object]:
    """Run the command line once, see :func:`benchmarks.runs.run_main`."""
    return runs.run_main(["--text", prompt, "-O", "--sd_version", "embedded", "--seed", str(seed), *extra], workspace)


def measure_prompt(prompt: str, path: Path) -> dict[str, object]:
    """Measures of one GLB: those of :func:`benchmarks.mesh_measure.measure`, and the IoU of the best ball."""
    caption = parse(prompt).caption
    found = mesh_measure.measure(mesh_measure.read_mesh(path), caption)
    _, truths = mesh_measure.family_voxels(caption, BALL_FAMILY)
    return {**found, "ball": mesh_measure.best_ball(truths)}


def picture_row(prompt: str, path: Path | None, views: int = 6, size: int = 96) -> np.ndarray:
    """The true canonical shape above the result, [2S, K*S, 3] uint8; the lower row is grey if there is no mesh."""
    from guidance.prior.shapes import canonical

    cameras = mesh_measure.view_angles(views)
    truth, _ = mesh_measure.true_views(canonical(prompt), cameras, size)
    seen = np.full_like(truth, 0.5)
    if path is not None:
        seen, _ = mesh_measure.mesh_views(mesh_measure.read_mesh(path), cameras, size)
    rows = [np.concatenate(list(row), 1) for row in (truth, seen)]
    return to_uint8(np.concatenate(rows, 0))


def table(results: dict[str, dict]) -> str:
    """Results as a Markdown table: a line for each run, and the means of each group beside its target."""
    head = (
        "| prompt | seed | IoU | best ball | silhouette | albedo error | facing | front/back | seconds |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for group in ("symmetric", "view"):
        rows = [r for r in results.values() if r["group"] == group]
        done = [r for r in rows if "iou" in r]
        for r in rows:
            if "iou" not in r:
                lines.append(f"| {r['prompt']} | {r['seed']} | failed: {r['failure']} | | | | | | {r['seconds']} |")
                continue
            front = {True: "right", False: "WRONG", None: "same"}[r["front_back"]]
            lines.append(
                f"| {r['prompt']} | {r['seed']} | {r['iou']:.3f} | {r['ball']:.3f} | {r['silhouette']:.3f} "
                f"| {r['albedo']:.3f} | {r['facing']:.2f} | {front} | {r['seconds']:.0f} |"
            )
        first = [r for r in done if r["seed"] == min(q["seed"] for q in done)]
        if first:
            names = ("iou", "ball", "silhouette", "albedo", "seconds")
            mean = {name: float(np.mean([r[name] for r in first])) for name in names}
            lines.append(
                f"| **mean, {group}** ({len(first)}; target: {TARGETS[group]}) | | **{mean['iou']:.3f}** "
                f"| {mean['ball']:.3f} | {mean['silhouette']:.3f} | {mean['albedo']:.3f} | | "
                f"| {mean['seconds']:.0f} |"
            )
    return head + "\n".join(lines) + "\n"


def write(results: dict[str, dict], out: Path, work: Path) -> None:
    """Write the JSON, the Markdown table, and the contact sheet of the first seed."""
    rows, first = [], min((r["seed"] for r in results.values()), default=0)
    for name, r in ((n, r) for n, r in results.items() if r["seed"] == first):
        path = work / name / "mesh" / "mesh.glb"
        rows.append(picture_row(r["prompt"], path if path.is_file() and "iou" in r else None))
    write_record(out, "text_to_3d", results, table(results), rows)


def one_run(prompt: str, seed: int, work: Path, extra: list[str]) -> dict[str, object]:
    """Run and measure one prompt; a failure is recorded as a result."""
    workspace = work / slug(prompt, seed)
    group = dict(BENCHMARK_PROMPTS).get(prompt, "view")
    result = {"prompt": prompt, "group": group, "seed": seed, **run_prompt(prompt, seed, workspace, extra)}
    mesh = workspace / "mesh" / "mesh.glb"
    reason = runs.failure(result, mesh)
    if reason is not None:
        return {**result, "failure": reason}
    return {**result, **measure_prompt(prompt, mesh)}


def main() -> None:
    """Run prompts from the command line to the GLB and measure them; resumable, within a budget of minutes."""
    parser = Parser(description=main.__doc__)
    runs.add_flags(parser, "prompt", 75, "text_to_3d")
    parser.add_argument("--prompts", nargs="*", default=[p for p, _ in BENCHMARK_PROMPTS], help="which prompts")
    parser.number("--seeds", int, [0], SEED, "of the runs", nargs="*")
    parser.add_argument("--measure", action="store_true", help="run nothing; measure the meshes of measured runs again")
    args = runs.parse_flags(parser)
    results = {} if args.again else read_record(args.out / "text_to_3d.json")
    if args.measure:
        for name, row in results.items():
            if "iou" in row:
                row |= measure_prompt(row["prompt"], args.work / name / "mesh" / "mesh.glb")
        write(results, args.out, args.work)
        print(table(results))
        return
    wanted = {slug(prompt, seed): (prompt, seed) for seed in args.seeds for prompt in args.prompts}
    todo = [name for name in wanted if "iou" not in results.get(name, {})]

    def done(name: str, result: dict) -> None:
        results[name] = result
        write(results, args.out, args.work)

    def one(name: str) -> dict:
        return one_run(*wanted[name], args.work, args.extra)

    skipped = runs.work_through(todo, one, done, args.minutes, args.jobs)
    runs.report(table(results), skipped, args.minutes, "prompt")


if __name__ == "__main__":
    sys.exit(run(main))
