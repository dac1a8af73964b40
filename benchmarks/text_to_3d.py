"""Measures complete runs, from the command line to the GLB that a user gets: a prompt of every kind, with held-out colours.

``python benchmarks/text_to_3d.py --minutes 60`` runs ``main.py`` for one prompt after the other until the time is over,
measures every ``mesh.glb`` against the true family, and writes ``docs/benchmarks/kinds.json``, the table ``kinds.md``, and the
page ``docs/kinds.md`` with pictures of all kinds. Finished measurements are not repeated. ``--measure`` trains nothing: it
measures the meshes of finished workspaces again. ``--stages nerf --prompts published`` measures the first stage alone on the
first 16 prompts, into ``text_to_3d.json``, ``.md`` and ``.png``.
"""

import sys
import threading
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import kinds_page, mesh_measure, runs, shape_measure  # noqa: E402
from benchmarks.records import read_record, read_result, write_record  # noqa: E402
from guidance.prior.benchmark import JUDGING, PROMPTS, PUBLISHED, TUNING, half_of  # noqa: E402
from guidance.prior.shapes import Shape, canonical, caption_of, palette  # noqa: E402
from nerf.config import config  # noqa: E402
from nerf.core.errors import UserError  # noqa: E402
from nerf.core.files import check_writable  # noqa: E402
from nerf.core.images import to_uint8  # noqa: E402
from nerf.core.ranges import SEED  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

BALL_FAMILY = 8  # members of a family that the best ball is fitted to
SETS = {"all": PROMPTS, "tuning": TUNING, "judging": JUDGING, "published": PUBLISHED}
MEASURING = threading.Lock()  # the libraries of the prior load a model under a state of the whole process
STAGES = ("nerf,dmtet", "nerf")  # as of make demo; the first stage alone


def slug(prompt: str, seed: int) -> str:
    """Name of the workspace of a run of the first stage."""
    return f"{prompt.replace(' ', '_')}_seed{seed}"


def workspace_name(prompt: str, seed: int, stages: str) -> str:
    """Name of the workspace of a run of some stages."""
    return slug(prompt, seed) if stages == "nerf" else f"{slug(prompt, seed)}_{stages.replace(',', '_')}"


def run_prompt(prompt: str, seed: int, workspace: Path, extra: list[str]) -> dict[str, object]:
    """Run the command line once, see :func:`benchmarks.runs.run_main`."""
    return runs.run_main(["--text", prompt, "-O", "--sd_version", "embedded", "--seed", str(seed), *extra], workspace)


def measure_prompt(prompt: str, path: Path) -> dict[str, object]:
    """All measures of one GLB against the true family: those of :mod:`benchmarks.mesh_measure` and, against the member nearest
    to it, of :mod:`benchmarks.shape_measure`; and the IoU of the best ball."""
    caption, mesh = caption_of(prompt), mesh_measure.read_mesh(path)
    found = mesh_measure.measure(mesh, caption)
    shape = Shape(caption.kind, found["proportions"], palette(caption))
    _, truths = mesh_measure.family_voxels(caption, BALL_FAMILY)
    found |= shape_measure.from_every_side(mesh, shape) | shape_measure.recognition(mesh, shape, caption)
    return {**found, "ball": mesh_measure.best_ball(truths)}


def picture_row(prompt: str, path: Path | None, views: int = 6, size: int = 96) -> np.ndarray:
    """The true canonical shape above the result, [2S, K*S, 3] uint8; the lower row is grey if there is no mesh."""
    cameras = mesh_measure.view_angles(views)
    truth, _ = mesh_measure.true_views(canonical(prompt), cameras, size)
    seen = np.full_like(truth, 0.5)
    if path is not None:
        seen, _ = mesh_measure.mesh_views(mesh_measure.read_mesh(path), cameras, size)
    rows = [np.concatenate(list(row), 1) for row in (truth, seen)]
    return to_uint8(np.concatenate(rows, 0))


def write(results: dict[str, dict], out: Path, work: Path, page: Path | None, changed: Collection[str]) -> None:
    """Write the JSON, the table and the pictures: a page with all kinds, or one sheet where there is no page.

    Args:
        results: by workspace.
        out: folder of the record.
        work: folder of the workspaces.
        page: file of the page.
        changed: workspaces whose pictures on the page are drawn again.
    """
    meshes = {name: work / name / "mesh" / "mesh.glb" for name, row in results.items() if "iou" in row}
    if page is not None:
        write_record(out, "kinds", results, kinds_page.table(results), [])
        kinds_page.write(page, results, meshes, changed)
        return
    first = min((row["seed"] for row in results.values()), default=0)
    rows = [picture_row(row["prompt"], meshes.get(name)) for name, row in results.items() if row["seed"] == first]
    write_record(out, "text_to_3d", results, kinds_page.table(results), rows)


def one_run(prompt: str, seed: int, work: Path, extra: list[str], name: str | None = None) -> dict[str, object]:
    """Run and measure one prompt; a failure is recorded as a result.

    Args:
        prompt, seed: of the run.
        work: folder of the workspaces.
        extra: flags of ``main.py``.
        name: of the workspace; None: that of the first stage.
    """
    workspace = work / (name or slug(prompt, seed))
    result = {"prompt": prompt, "group": half_of(prompt), "seed": seed, **run_prompt(prompt, seed, workspace, extra)}
    mesh = workspace / "mesh" / "mesh.glb"
    reason = runs.failure(result, mesh)
    if reason is not None:
        return {**result, "failure": reason}
    with MEASURING:
        return {**result, **measure_prompt(prompt, mesh)}


def measure_again(results: dict[str, dict], wanted: dict[str, tuple[str, int]], work: Path) -> None:
    """Measure the meshes of finished workspaces, whether or not the record has them; rows of runs that failed are kept."""
    for name, (prompt, seed) in wanted.items():
        mesh = work / name / "mesh" / "mesh.glb"
        if not mesh.is_file() or "failure" in results.get(name, {}):
            continue
        if name not in results:
            seconds = read_result(work / name).seconds
            results[name] = {"prompt": prompt, "group": half_of(prompt), "seed": seed, "seconds": seconds}
        results[name] |= measure_prompt(prompt, mesh)
        print(f"{name}: IoU {results[name]['iou']:.3f}", flush=True)


def prompts_of(given: Collection[str]) -> list[str]:
    """The prompts that are meant by words of ``--prompts``: names of sets, and prompts."""
    return [prompt for word in given for prompt in SETS.get(word, (word,))]


def check_flags(args: Namespace) -> None:
    """Refuse what would fail in every run, or after the last one.

    Raises:
        UserError: an unknown prompt, flags that ``main.py`` does not take, or a page that cannot be written.
    """
    runs.check_prompts(prompts_of(args.prompts))
    config.parse(["--text", PROMPTS[0], "--workspace", "any", *args.extra])
    if args.page.suffix != ".md" or args.page.is_dir():
        raise UserError(f"--page must be a file of Markdown, as docs/kinds.md, got {args.page}")
    check_writable(args.page.parent, "--page")


def main() -> None:
    """Run prompts from the command line to the GLB and measure them; resumable, within a budget of minutes."""
    parser = Parser(description=main.__doc__)
    runs.add_flags(parser, "prompt", 150, "text_to_3d")
    parser.add_argument("--prompts", nargs="*", default=["all"], help=f"prompts, or {', '.join(SETS)}")
    parser.add_argument("--stages", choices=STAGES, default=STAGES[0], help="which stages a run has")
    parser.number("--seeds", int, [0], SEED, "of the runs", nargs="*")
    parser.add_argument("--measure", action="store_true", help="train nothing; measure the meshes of finished runs again")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "kinds.md", help="the page with pictures of both stages")
    parser.add_argument(
        "--person", nargs=2, action="append", default=[], metavar=("PROMPT", "VERDICT"), help="what a person sees in it"
    )
    args = runs.parse_flags(parser, check_flags)
    page = None if args.stages == "nerf" else args.page
    record = args.out / ("text_to_3d.json" if page is None else "kinds.json")
    results = {} if args.again else read_record(record)
    wanted = {
        workspace_name(prompt, seed, args.stages): (prompt, seed) for seed in args.seeds for prompt in prompts_of(args.prompts)
    }
    for prompt, verdict in args.person:
        rows = [row for row in results.values() if row["prompt"] == prompt]
        if not rows:
            raise UserError(f"--person {prompt!r}: {record} has no measurement of this prompt; measure it first")
        for row in rows:
            row["person"] = verdict
    if args.measure or args.person:
        if args.measure:
            measure_again(results, wanted, args.work)
        if not results:
            raise UserError(f"--measure: no workspace in {args.work} has a mesh of these prompts; run them first")
        write(results, args.out, args.work, page, wanted if args.measure else ())
        print(kinds_page.table(results))
        return
    todo = [name for name in wanted if "iou" not in results.get(name, {})]

    def done(name: str, result: dict) -> None:
        results[name] = result
        write(results, args.out, args.work, page, (name,))

    def one(name: str) -> dict:
        return one_run(*wanted[name], args.work, ["--stages", args.stages, *args.extra], name)

    skipped = runs.work_through(todo, one, done, args.minutes, args.jobs)
    runs.report(kinds_page.table(results), skipped, args.minutes, "prompt")


if __name__ == "__main__":
    sys.exit(run(main))
