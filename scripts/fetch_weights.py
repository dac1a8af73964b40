"""Downloads published weights by name, so that runs find them on this machine.

Examples:
  python scripts/fetch_weights.py --list               all names, with sizes, licences, and what is here already
  python scripts/fetch_weights.py sd-2.1               Stable Diffusion 2.1, into the Hugging Face cache (HF_HOME)
  python scripts/fetch_weights.py sd-2.1 --dry-run     which files, how large, where to; nothing is written
  python scripts/fetch_weights.py u2netp               a model for preprocess_image.py --matting, out of a package, by pip

A download that was stopped goes on where it ended when the same command is run again. Checksums are compared where they are
known, those of weights that are here already, too: a damaged file is removed and downloaded again.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import UserError  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402
from nerf.core.words import did_you_mean, quoted  # noqa: E402

if TYPE_CHECKING:
    from nerf.run.published import Published

PROGRAM = "fetch_weights.py"
# Other words for a name, without dashes, as users type them.
SYNONYMS = {
    "sd": "sd-2.1", "stable_diffusion": "sd-2.1", "2.1": "sd-2.1", "2.0": "sd-2.0", "1.5": "sd-1.5", "sd21": "sd-2.1",
    "sd15": "sd-1.5", "sd1.5": "sd-1.5", "sd2.1": "sd-2.1", "deepfloyd": "if", "deepfloyd_if": "if", "u2net": "u2netp",
    "matting": "u2netp", "rembg": "u2netp", "depth": "depth-anything", "normal": "marigold-normals",
    "stable_diffusion_xl": "sdxl",
}  # fmt: skip


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = Parser(prog=PROGRAM, description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the weights; --list shows all")
    parser.add_argument("--list", action="store_true", help="show all names, and download nothing")
    parser.add_argument("--dry-run", action="store_true", help="show what would be downloaded, and download nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Read the flags and download; returns the exit code."""
    return run(lambda: fetch_all(arguments(argv)), PROGRAM)


def fetch_all(asked: argparse.Namespace) -> int:
    """List, describe or download what is asked for.

    Raises:
        UserError: a name that is not known, or a download that failed.
    """
    if not asked.list and not asked.names:
        raise UserError("name the weights to download, such as sd-2.1; --list shows all")
    if asked.list and (asked.names or asked.dry_run):
        raise UserError("--list shows all weights and takes nothing beside it; leave out the rest, or --list")
    try:
        from nerf.run.published import table
    except ImportError as error:
        raise UserError(
            f"{sys.executable} lacks {error.name or error}; run make venv, and this with .venv/bin/python"
        ) from error

    known = table()
    if asked.list:
        show_list(known)
        return 0
    for name in asked.names:
        if name.lower() not in known:
            hint = did_you_mean(name, known, SYNONYMS) or f"; known names are {', '.join(known)}"
            raise UserError(f"there are no weights called {quoted(name)}{hint}")
    for name in dict.fromkeys(name.lower() for name in asked.names):
        describe(name, known[name])
        if asked.dry_run:
            show_plan(known[name])
        else:
            fetch(known[name])
    return 0


def size_of(weights: "Published") -> str:
    """The size of a download in words."""
    from guidance import hub

    return hub.gigabytes(round(weights.gigabytes * 1e9))


def show_list(known: "dict[str, Published]") -> None:
    """Print a line for each set of weights."""
    wide = max(map(len, known))
    for name, weights in known.items():
        state = "here" if weights.find() is not None else ""
        gated = "; gated: accept it on the hub first, and set HF_TOKEN" if weights.gated else ""
        print(f"{name:{wide}}  {size_of(weights):>8}  {state:4}  {weights.title}; licence: {weights.licence}{gated}")


def describe(name: str, weights: "Published") -> None:
    """Print what the weights are and their licence, before anything else."""
    print(f"{name}: {weights.title}, {size_of(weights)}, from {' or '.join(weights.places)}")
    print(f"licence of the weights: {weights.licence}; read it where they come from before you publish what they made")
    if weights.gated:
        print(f"gated: accept its licence at huggingface.co/{weights.places[0]} first, and set HF_TOKEN to your token")


def show_plan(weights: "Published") -> None:
    """Print what a download would fetch.

    Raises:
        UserError: the network cannot be asked.
    """
    from guidance import hub

    found = weights.find()
    if found is not None:
        print(f"here already, complete: {found}")
        return
    source = weights.look()
    for file, listed in sorted(source.files.items()):
        size = "size unknown" if listed.size is None else hub.gigabytes(listed.size)
        print(f"  {file}  {size}{f'  sha256 {listed.sha256}' if listed.sha256 else ''}")
    print(f"{hub.gigabytes(source.remaining)} to download from {source.place} to {source.folder}; nothing was written")


def fetch(weights: "Published") -> None:
    """Download what is not here yet, and compare checksums.

    Raises:
        UserError: a download that failed, or the environment forbids it.
    """
    from guidance import hub

    found = weights.find()
    if found is not None:
        compared, damaged = hub.remove_damaged(found) if found.is_dir() else (1, [])
        if not damaged:
            print(f"here already, complete: {found} ({compared} checksums agree)")
            return
        print(f"damaged, and downloaded again: {', '.join(damaged)}")
    folder = weights.fetch()
    print(f"complete: {folder}\nuse it with: {weights.use}")


if __name__ == "__main__":
    with protected():
        sys.exit(main())
