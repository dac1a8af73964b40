"""Measures every distillation method on the same prompts, seeds and budget, with the embedded prior, whose shapes are known.

``python benchmarks/distillation.py --minutes 90`` runs ``main.py`` for one method and prompt after the other until the time is
over, measures every ``mesh.glb`` against the true shapes, and writes ``distillation.json`` and ``distillation.png`` to
``docs/benchmarks`` and the table to ``docs/distillation.md``. Finished measurements are not repeated.

The budget of a run is the time of its training: a method whose steps cost twice as much takes half of them, and its schedules
end with its last one. ``--iters`` gives every method the same number of steps instead.
"""

import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import comparison, runs  # noqa: E402
from benchmarks.comparison import Results, key, measured, sheet, workspace_of  # noqa: E402
from benchmarks.records import read_record, read_result  # noqa: E402
from benchmarks.text_to_3d import run_prompt, slug  # noqa: E402
from nerf.core.errors import UserError  # noqa: E402
from nerf.core.images import write_png  # noqa: E402
from nerf.core.ranges import SEED, above, between  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

# Name in the table -> flags.
METHODS = {
    "SDS": "--distillation sds",
    "SDS, t linear": "--distillation sds --t_schedule linear",
    "SDS, t sqrt": "--distillation sds --t_schedule sqrt",
    "SDS, t DreamTime": "--distillation sds --t_schedule dreamtime",
    "SJC": "--distillation sjc",
    "VSD": "--distillation vsd",
    "CSD": "--distillation csd",
    "NFSD": "--distillation nfsd",
    "ISM": "--distillation ism",
    "SDI": "--distillation sdi",
}
# Colours that were not trained; the last three have a clear front.
PROMPTS = ("a purple mushroom", "an orange chair", "a pink car", "a yellow mug")
SPEED_STEPS = 150  # of the run that measures how long a step takes; the first ones are the slowest
LEAST_STEPS = 20
COLUMNS = {
    "IoU": "iou", "silhouette IoU": "silhouette", "albedo error": "albedo", "Janus": "janus", "facing": "facing",
    "steps": "steps", "s of training": "train_seconds", "s in all": "seconds", "MB": "megabytes",
}  # fmt: skip
BEGIN, END = "<!-- the table begins -->\n", "<!-- the table ends -->\n"


def steps_within(seconds: float, method: str, prompt: str, work: Path, extra: list[str]) -> int:
    """How many training steps of a method take so long, by a short run whose result is thrown away.

    Raises:
        UserError: the run failed.
    """
    folder = workspace_of(work, method, "speed")
    folder.mkdir(parents=True, exist_ok=True)
    workspace = folder / slug(prompt, 0)
    flags = ["--iters", str(SPEED_STEPS), "--no_save_mesh", "--dataset_size_test", "1", "--ckpt", "scratch"]
    done = run_prompt(prompt, 0, workspace, [*shlex.split(METHODS[method]), *flags, *extra])
    if done["returncode"] != 0:
        raise UserError(f"{method}: {done['command']} ended with {done['returncode']}; see {workspace.with_suffix('.log')}")
    return max(LEAST_STEPS, int(seconds / (read_result(workspace).train_seconds / SPEED_STEPS)))


def table(results: Results, budget: str) -> str:
    """The means of every method as a Markdown table, and beneath it the IoU of every prompt."""
    return comparison.table(results, METHODS, budget, "method", COLUMNS, "IoU", comparison.prompts_in(results, budget))


def write(results: Results, budget: str, out: Path, page: Path, work: Path) -> None:
    """Write the record, the pictures, and the table between its two marks on the page."""
    (out / "distillation.json").write_text(json.dumps(results, indent=1) + "\n")
    write_png(out / "distillation.png", sheet(results, METHODS, budget, work))
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    seeds = sorted({row["seed"] for row in results.values() if row["budget"] == budget})
    caption = f"Means over the prompts, seeds {', '.join(map(str, seeds))}; {budget} for each run.\n\n"
    page.write_text(before + BEGIN + caption + table(results, budget) + END + after)


def main() -> None:
    """Run every method on every prompt and measure it; resumable, within a budget."""
    parser = Parser(description=main.__doc__)
    runs.add_flags(parser, "run", 90, "distillation", parallel=False)
    parser.number("--seconds", float, 60, above(0, 1e6), "of training for each run")
    parser.number("--iters", int, None, between(1, 10**9), "steps for each run, in place of --seconds")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="which methods")
    parser.add_argument("--prompts", nargs="*", default=list(PROMPTS), help="which prompts")
    parser.number("--seeds", int, [0], SEED, "of the runs", nargs="*")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "distillation.md", help="where the table goes")
    args = runs.parse_flags(parser)
    budget = f"{args.iters} steps" if args.iters else f"{args.seconds:g} s of training"
    results: Results = read_record(args.out / "distillation.json")
    # All methods on one prompt before the next, so that a run that is cut short compares them on the same prompts.
    order = [(method, prompt, seed) for seed in args.seeds for prompt in args.prompts for method in args.methods]
    wanted = {key(*each, budget): each for each in order}
    todo = [name for name in wanted if args.again or "iou" not in results.get(name, {})]
    steps = {row["method"]: row["steps"] for row in results.values() if row["budget"] == budget}

    def one(name: str) -> dict:
        method, prompt, seed = wanted[name]
        if method not in steps:
            steps[method] = args.iters or steps_within(args.seconds, method, prompt, args.work, args.extra)
        return measured(method, METHODS[method], prompt, seed, args.work, steps[method], budget, args.extra)

    def done(name: str, result: dict) -> None:
        results[name] = result
        write(results, budget, args.out, args.page, args.work)

    skipped = runs.work_through(todo, one, done, args.minutes, args.jobs)
    runs.report(table(results, budget), skipped, args.minutes, "run")


if __name__ == "__main__":
    sys.exit(run(main))
