"""Runs many jobs of main.py on the cores of this machine or on a cluster, and makes a page of their results.

Examples: python scripts/batch.py prompts.txt --out batch -- -O --iters 500
          python scripts/batch.py --seeds 4 --pick best --out cars -- --text "a red car" -O
"""

import re
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from batch_jobs.jobs import Job
    from batch_jobs.scores import Judging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core import interrupt  # noqa: E402

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import Stopped, UserError  # noqa: E402
from nerf.core.ranges import above, between  # noqa: E402
from nerf.core.script import FAILURE, Parser, run  # noqa: E402
from nerf.core.words import counted  # noqa: E402

FILES = """\
JOBS is a text file with a prompt a line, or a .csv or .jsonl file with a flag of main.py a column (and a column called name
for the folder of a job). Flags after -- are those of main.py for all jobs; a job's own count more. The same command again
goes on where a killed batch stopped, runs what failed once more, and nothing twice. See docs/batch.md."""


class BatchParser(Parser):
    """Says of a flag of main.py where it belongs."""

    def error(self, message: str) -> NoReturn:
        """See :meth:`Parser.error`."""
        from nerf.config.config import OPTIONS

        unknown = re.match(r"unrecognized arguments: (--?([^\s=]+))", message)
        if unknown is not None and unknown[2] in OPTIONS:
            message = f"{unknown[1]} is a flag of main.py; write it behind all others and --, as in -- {unknown[1]}"
        super().error(message)


def parser_of() -> Parser:
    """The command line, without the flags of main.py."""
    parser = BatchParser(
        description=__doc__,
        epilog=FILES,
        formatter_class=RawDescriptionHelpFormatter,
        usage="%(prog)s [JOBS] --out DIR [flags] [-- flags of main.py]",
    )
    parser.add_argument("jobs", type=Path, nargs="?", metavar="JOBS", help="the jobs; without it, one of the flags after --")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for each job, and index.html")
    parser.number("--seeds", int, None, between(1, 10_000), "runs of each job, with the seeds from its own (or 0) on")
    parser.add_argument("--pick", choices=["best"], help="keep the meshes and checkpoints of the best seed alone")
    parser.add_argument("--clip", metavar="PATH_OR_ID", help="CLIP that judges for --pick, in place of the embedded prior")
    parser.number("--workers", int, None, between(1, 10_000), "processes at a time; as many as fit if not given")
    parser.number("--cpus_per_job", float, 1.0, above(0, 1024), "cores of a job, and its --threads")
    parser.number("--gpus_per_job", float, None, between(0, 1024), "GPUs of a job, or a share of one; 1 where Ray has some")
    parser.number("--tries", int, 3, between(1, 100), "of a job in a row that save no further checkpoint")
    parser.add_argument("--address", help="of a Ray cluster, or auto; the cores of this machine if not given")
    parser.add_argument("--no_dashboard", action="store_true", help="do not start Ray's dashboard")
    return parser


def batch(args: Namespace, common: list[str]) -> int:
    """Run a batch; returns the exit code."""
    from batch_jobs import plan, state
    from batch_jobs.engine import require_ray
    from batch_jobs.jobs import Row, expand, read_rows
    from batch_jobs.scores import judging_of
    from nerf.run import lock

    if args.jobs is None and not common:
        raise UserError('there is nothing to do; give JOBS, or flags of main.py after --, as in -- --text "a red car"')
    if args.clip is not None and args.pick is None:
        raise UserError("--clip judges for --pick best; give both, or neither")
    require_ray()
    rows = [Row("the command line", {})] if args.jobs is None else read_rows(args.jobs)
    jobs = expand(rows, common, args.seeds)
    out = args.out
    state.check_folder(out)
    state.check_jobs(out, jobs)
    try:
        with lock.hold(out):
            judging = None if args.pick is None else judging_of(jobs, args.clip)
            left = plan.unfinished(jobs, out, None if judging is None else judging.scorer)
            return run_jobs(args, jobs, plan.recipes(left, out, judging is not None, args.address is None), judging)
    except lock.InUseError as error:
        way_out = "wait until that batch has ended, or choose another --out"
        raise UserError(f"--out {out} is in use by {error.owner}; {way_out}") from None


def run_jobs(args: Namespace, jobs: "list[Job]", recipes: "dict[Job, str]", judging: "Judging | None") -> int:
    """Run what is left of checked jobs; returns the exit code."""
    from batch_jobs import state
    from batch_jobs.display import Display
    from batch_jobs.engine import Engine, Resources, connected
    from batch_jobs.page import write_page
    from batch_jobs.scores import keep_best

    display = Display(len(jobs), len(jobs) - len(recipes))
    resources = Resources(args.workers, args.cpus_per_job, args.gpus_per_job, args.tries, judging)
    if recipes:
        with connected(args.address, not args.no_dashboard) as dashboard:
            engine = Engine(args.out, recipes, resources, display, fixed=args.address is None)
            state.record_jobs(args.out, jobs)
            where = f"; dashboard: http://{dashboard}" if dashboard else ""
            display.log(f"{counted(len(recipes), 'job')}, {engine.limit} at a time{where}")
            try:
                engine.run()
            except Stopped as stopped:
                display.log("stopped; the same command goes on")
                return stopped.exit_code
            finally:
                display.close()
    if judging is not None:
        best = keep_best(args.out, jobs, judging.scorer)
        display.log(f"best of their seeds: {', '.join(best) or 'none, as no job was judged'}")
    display.log(f"the page of the results: {write_page(args.out, jobs, args.out.absolute().name)}")
    return FAILURE if display.failed else 0


def main() -> int:
    """Read the flags and run the batch; returns the exit code."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    with protected():
        args = parser_of().parse_args(words[:split])
        return run(lambda: batch(args, words[split + 1 :]), "batch.py")


if __name__ == "__main__":
    sys.exit(main())
