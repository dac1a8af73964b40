"""Judges finished runs: agreement with the prompt, Janus problem, surface, photographs; a row a workspace, with intervals.

Example: python scripts/evaluate.py trial another --prior --out evaluation
"""

import os
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core import interrupt  # noqa: E402

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import UserError, visible  # noqa: E402
from nerf.core.ranges import SEED, between  # noqa: E402
from nerf.core.script import FAILURE, Parser, run  # noqa: E402

if TYPE_CHECKING:
    from nerf.evaluation.judge import Protocol, Row
    from nerf.evaluation.scorers import Scorer
    from nerf.evaluation.workspaces import Finished


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.split("\n", 1)[0], epilog="docs/evaluation.md says what each figure means.")
    parser.add_argument("workspaces", nargs="+", type=Path, metavar="WORKSPACE", help="the folder of a finished run")
    models = parser.add_argument_group("models that judge pictures")
    models.add_argument("--clip", metavar="PATH_OR_ID", help="CLIP: a folder, or a hub id; not the one that guided the run")
    models.add_argument("--prior", action="store_true", help="the embedded prior as a classifier, for prompts that it knows")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="text file with the captions to choose from, one a line")
    parser.number("--views", int, 8, between(2, 1000), "views of the circle")
    parser.number("--polar", float, 70.0, between(1, 179), "degrees of the circle, 90 the horizon")
    parser.add_argument("--background", default="white", choices=("white", "grey", "black"), help="behind the mesh [white]")
    parser.add_argument("--crop", default="none", choices=("none", "object"), help="the whole picture, or the object [none]")
    parser.add_argument(
        "--fit",
        default="auto",
        choices=("auto", "always", "never"),
        help="move the mesh into the ball that guided runs fill; auto: if it lies outside [auto]",
    )
    parser.number(
        "--region", int, None, between(0, 3), "T3Bench's best region on an icosphere split N times; 2: 162 viewpoints"
    )
    parser.add_argument("--truth", type=Path, metavar="FILE", help="the true surface of all runs, in the frame of their files")
    parser.number("--points", int, 50_000, between(100, 10**7), "random points on each of two surfaces")
    parser.add_argument("--no_photographs", action="store_true", help="do not compare with held-out photographs")
    parser.add_argument("--no_bound", action="store_true", help="do not judge the true shapes of the embedded prior as well")
    parser.number("--seed", int, 0, SEED, "of all random numbers")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write evaluation.json and evaluation.md there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def protocol_of(args: Namespace, runs: "list[Finished]") -> "Protocol":
    """How the runs are judged; without ``--captions`` the pool is the benchmark of the prior, or the prompts of the runs.

    Raises:
        UserError: the file of captions is broken.
    """
    from guidance.prior.captions import BENCHMARK_PROMPTS
    from nerf.evaluation.captions import normalised, read_captions
    from nerf.evaluation.judge import Protocol

    if args.captions is not None:
        captions = read_captions(args.captions)
    else:
        prompts = [run.prompt for run in runs if run.prompt is not None]
        benchmark = [prompt for prompt, _ in BENCHMARK_PROMPTS] if args.prior else []
        captions = list({normalised(prompt): prompt for prompt in [*benchmark, *prompts]}.values())
    return Protocol(
        views=args.views,
        polar=args.polar,
        background=args.background,
        crop=args.crop,
        fit=args.fit,
        region=args.region,
        captions=tuple(captions),
        truth=args.truth,
        points=args.points,
        upper_bound=not args.no_bound,
        photographs=not args.no_photographs,
        seed=args.seed,
    )


def scorers_of(args: Namespace, captions: "tuple[str, ...]", runs: "list[Finished]") -> "list[Scorer]":
    """The models that were asked for.

    Raises:
        UserError: one is not there, or does not know a caption.
    """
    found: list[Scorer] = []
    if args.prior:
        from nerf.evaluation.prior_scorer import PriorScorer

        prompts = [run.prompt for run in runs if run.prompt is not None]
        try:
            found.append(PriorScorer([*captions, *prompts], seed=args.seed))
        except UserError as error:
            raise UserError(f"{args.captions or 'the prompts of the runs'}: {error}") from None
    if args.clip is not None:
        from nerf.evaluation.scorers import ClipScorer

        found.append(ClipScorer(args.clip))
    return found


def settings_of(protocol: "Protocol", scorers: "list[Scorer]") -> dict[str, Any]:
    """What the figures depend on, for the report."""
    models = {f"model, {scorer.name}": f"{scorer.title}, pictures of {scorer.size} x {scorer.size}" for scorer in scorers}
    return (
        models
        | {"captions": len(protocol.captions)}
        | {name: value for name, value in protocol.as_dict().items() if name != "captions"}
    )


def judged(args: Namespace) -> "tuple[list[Row], Protocol, list[Scorer]]":
    """The rows of all runs; everything is read and checked before the first picture.

    Raises:
        UserError: a workspace, a caption, a model or --out is not what is expected.
    """
    from nerf.core.files import check_writable
    from nerf.evaluation.judge import Judge, check
    from nerf.evaluation.workspaces import read_finished

    if args.out is not None:
        check_writable(args.out, "--out")
    if not (args.prior or args.clip):
        for name in ("region", "captions"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} needs a model that judges pictures; add --prior or --clip, or leave it out")
    for folder, others in Counter(folder.resolve() for folder in args.workspaces).items():
        if others > 1:
            raise UserError(f"the workspace {folder} is given twice, and would count twice; name it once")
    runs = [read_finished(folder) for folder in args.workspaces]
    protocol = protocol_of(args, runs)
    check(runs, protocol, scored=args.prior or args.clip is not None)
    scorers = scorers_of(args, protocol.captions, runs)
    judge, rows = Judge(scorers, protocol), []
    for number, one in enumerate(runs, start=1):
        rows.append(row := judge.row(one))
        said = f": failed: {row.failure}" if row.failure else ""
        print(visible(f"evaluate: {number}/{len(runs)} {one.folder}{said}"), file=sys.stderr, flush=True)
    return rows, protocol, scorers


def main(arguments: list[str] | None = None) -> int:
    """Print the report, and write it where ``--out`` says; returns the exit code."""
    args = parser_of().parse_args(arguments)
    # Idle OpenMP threads sleep rather than spin, as in main.py: on a busy machine spinning costs many times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows, protocol, scorers = judged(args)
    from nerf.core.files import write_atomically, write_json
    from nerf.evaluation import tables

    settings = settings_of(protocol, scorers)
    found = tables.as_json(rows, settings | {"captions": list(protocol.captions)}, args.seed)
    text = tables.as_markdown(rows, settings, [scorer.name for scorer in scorers], args.seed)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "evaluation.json", found)
        write_atomically(args.out / "evaluation.md", lambda path: path.write_text(text, encoding="utf-8"))
    if args.json:
        import json

        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(map(visible, text.splitlines())))
    return FAILURE if any(row.failure for row in rows) else 0


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
