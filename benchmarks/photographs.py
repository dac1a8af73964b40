"""How well photographs are learned in a given time: train on a folder, measure PSNR and SSIM on what was held out.

    python -m benchmarks.photographs DIR --minutes 10 [--workspace DIR] [any flags of main.py]

It runs the command line that a user would, and reads the figures from the ``result.json`` that it leaves.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MAIN = Path(__file__).resolve().parent.parent / "main.py"
FIGURES = (
    ("test_psnr", "PSNR", "dB"),
    ("test_ssim", "SSIM", ""),
    ("train_seconds", "training", "s"),
    ("steps", "steps", ""),
    ("seconds", "altogether", "s"),
)


def command(folder: str, minutes: float, workspace: str, extra: list[str]) -> list[str]:
    """The command line of one run that starts from scratch."""
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
    """The figures of a ``result.json``, a line each.

    Raises:
        ValueError: the run measured nothing, as no photograph was held out.
    """
    if "test_psnr" not in result:
        raise ValueError("the run measured no held-out photographs; give --holdout 8, or data with a test split")
    lines = [f"{title:>10}  {result[key]:.4g} {unit}".rstrip() for key, title, unit in FIGURES if key in result]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print the command and its figures; returns the exit code of the run, or 2 if it measured nothing."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.photographs",
        description=__doc__.split("\n", 1)[0],
        epilog="Other flags go to main.py as they are.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="posed photographs, as --data takes them")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training (default 10)")
    parser.add_argument("--workspace", help="where the run writes; a temporary folder by default")
    args, extra = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        workspace = args.workspace or temporary
        words = command(args.folder, args.minutes, workspace, extra)
        print(" ".join(words), flush=True)
        code = subprocess.run(words, check=False).returncode
        if code != 0:
            return code
        try:
            print(report(json.loads((Path(workspace) / "result.json").read_text(encoding="utf-8"))))
        except ValueError as error:
            print(f"benchmarks.photographs: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
