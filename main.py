"""Flags in, a trained model out. No arithmetic here: the options make the parts, the Trainer does the work."""

import sys

from nerf.config import parse
from nerf.errors import UserError


def main(argv: list[str]) -> int:
    """Run one command line; returns the exit code (0 done, 2 bad input)."""
    try:
        parse(argv)
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
