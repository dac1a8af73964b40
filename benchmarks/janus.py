"""Measures what helps against the Janus problem, a front on every side, with the embedded prior, whose shapes are known.

``python benchmarks/janus.py --minutes 60`` runs ``main.py`` with one measure and one prompt after the other until the time is
over, measures every ``mesh.glb``, and writes ``janus.json``, ``janus.md`` and ``janus.png``. Finished measurements are not
repeated. Every run has the same number of steps.

The shapes have a clear front. The score is how much the back resembles the true front
(:func:`nerf.evaluation.janus.front_likeness`): 0 the true back, 1 the true front. The embedded prior is told the camera,
a cure by itself, so it is withheld where words alone are to help. Nothing is tuned on the prompts of the second half.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import comparison, runs  # noqa: E402
from benchmarks.comparison import Results, key, sheet  # noqa: E402
from benchmarks.records import read_record  # noqa: E402
from nerf.core.images import write_png  # noqa: E402
from nerf.core.ranges import SEED, between  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402

_MULTIVIEW = "--guidance MVDream --mvdream embedded"
# Name in the table -> flags.
WAYS = {
    "prompt alone": "--prior_views none",
    "view words": "--prior_views words",
    "view words, Perp-Neg": "--prior_views words --perpneg",
    "multi-view, no camera": f"{_MULTIVIEW} --prior_views none",
    "camera": "--prior_views camera",
    "multi-view, camera": f"{_MULTIVIEW} --prior_views camera",
}
# Kinds with a clear front, in colours that were not trained. Settings may be chosen on the first half, never on the second.
TUNING, HELD_OUT = ("an orange chair", "a pink car"), ("a blue dog", "a purple boat")
FEW = ("--dataset_size_test", "2")  # views of the turntable, which nobody looks at here
COLUMNS = {
    "Janus": "janus", "facing": "facing", "IoU": "iou", "silhouette IoU": "silhouette", "albedo error": "albedo",
}  # fmt: skip


def table(results: Results, budget: str) -> str:
    """The means of every way as a Markdown table, and beneath it the score of every prompt."""
    prompts = comparison.prompts_in(results, budget)
    groups = {f"{prompt}{' (held out)' if prompt in HELD_OUT else ''}": group for prompt, group in prompts.items()}
    groups |= {"tuning half": TUNING, "held-out half": HELD_OUT}
    return comparison.table(results, WAYS, budget, f"told of a view, {budget}", COLUMNS, "Janus", groups)


def write(results: Results, budget: str, out: Path, work: Path) -> None:
    """Write the record, the table and the pictures."""
    (out / "janus.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "janus.md").write_text(table(results, budget))
    write_png(out / "janus.png", sheet(results, WAYS, budget, work))


def main() -> None:
    """Run every way on every prompt and measure it; resumable, within a budget."""
    parser = Parser(description=main.__doc__)
    runs.add_flags(parser, "run", 60, "janus", parallel=False)
    parser.number("--iters", int, 300, between(1, 10**9), "steps of training for each run")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), help="which ways")
    parser.add_argument("--prompts", nargs="*", default=[*TUNING, *HELD_OUT], help="which prompts")
    parser.number("--seeds", int, [0], SEED, "of the runs", nargs="*")
    args = runs.parse_flags(parser)
    budget = f"{args.iters} steps"
    results: Results = read_record(args.out / "janus.json")
    # All ways on one prompt before the next, so that a run that is cut short compares them on the same prompts.
    order = [(way, prompt, seed) for seed in args.seeds for prompt in args.prompts for way in args.ways]
    wanted = {key(*each, budget): each for each in order}
    todo = [name for name in wanted if args.again or "iou" not in results.get(name, {})]

    def one(name: str) -> dict:
        way, prompt, seed = wanted[name]
        return comparison.measured(way, WAYS[way], prompt, seed, args.work, args.iters, budget, [*FEW, *args.extra])

    def done(name: str, result: dict) -> None:
        results[name] = result
        write(results, budget, args.out, args.work)

    skipped = runs.work_through(todo, one, done, args.minutes, args.jobs)
    runs.report(table(results, budget), skipped, args.minutes, "run")


if __name__ == "__main__":
    sys.exit(run(main))
