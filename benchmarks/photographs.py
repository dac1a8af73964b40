"""Image quality after a given training time: train on posed photographs, report PSNR and SSIM of the held-out ones.

    python -m benchmarks.photographs DIR --minutes 10 [--workspace DIR] [any flags of main.py]

It runs ``main.py`` in a process of its own and reads the metrics from the ``result.json`` of the workspace.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.records import read_result
from nerf.core.ranges import above
from nerf.core.script import Parser, run

MAIN = Path(__file__).resolve().parent.parent / "main.py"
METRICS = (
    ("test_psnr", "PSNR", "dB"),
    ("test_ssim", "SSIM", ""),
    ("train_seconds", "training", "s"),
    ("steps", "steps", ""),
    ("seconds", "total", "s"),
)


def command(folder: str, minutes: float, workspace: str, extra: list[str]) -> list[str]:
    """The command line of one run from scratch; ``extra`` are further flags of ``main.py``."""
    return [
        sys.executable,
        str(MAIN),
        "--data",
        folder,
        "--workspace",
        workspace,
        "--minutes",
        f"{minutes:g}",
        "--ckpt",
        "scratch",
        *extra,
    ]


def report(result: dict) -> str:
    """The metrics of a ``result.json``, one per line.

    Raises:
        ValueError: there are no test metrics, as no photograph was held out.
    """
    if "test_psnr" not in result:
        raise ValueError("the run held out no photographs to test on; give --holdout 8, or data with a test split")
    lines = [f"{title:>10}  {result[key]:.4g} {unit}".rstrip() for key, title, unit in METRICS if key in result]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print the command and its metrics; returns the exit code of the run, or 2 if there are no test metrics."""
    parser = Parser(
        prog="benchmarks.photographs",
        description=__doc__.split("\n", 1)[0],
        epilog="Other flags are passed on to main.py.",
    )
    parser.add_argument("folder", help="posed photographs, as for --data")
    parser.number("--minutes", float, 10.0, above(0, 1e7), "training time")
    parser.add_argument("--workspace", help="workspace of the run (default: a temporary folder)")
    args, extra = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        workspace = args.workspace or temporary
        words = command(args.folder, args.minutes, workspace, extra)
        print(" ".join(words), flush=True)
        code = subprocess.run(words, check=False).returncode
        if code != 0:
            return code
        try:
            print(report(read_result(Path(workspace), dict[str, Any])))
        except ValueError as error:
            print(f"benchmarks.photographs: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
