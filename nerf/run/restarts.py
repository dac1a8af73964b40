"""What ``torchrun --max-restarts`` needs of a run: that its processes, started again, go on and do not begin anew."""

from pathlib import Path

from nerf.config.config import Config, with_values
from nerf.config.groups import CKPT_WORDS
from nerf.core import torchrun
from nerf.run import checkpoint
from nerf.run.distributed import from_first, is_main

MARK = ".torchrun"  # in the workspace: when torchrun first started the run


def with_restart(asked: Config) -> Config:
    """The options of a run: restarted by torchrun, it goes on from the newest checkpoint that it has written itself.

    So ``--ckpt scratch``, and a file, count in the first start alone.
    """
    if not _begins_elsewhere(asked):
        return asked
    mark = Path(asked.output.workspace, MARK)
    if is_main() and torchrun.restarts() == 0:
        mark.unlink(missing_ok=True)  # of another run
    own = torchrun.restarts() > 0 and is_main() and _has_newer(mark)
    return with_values(asked, {"ckpt": CKPT_WORDS[0]}, "default") if from_first(int(own)) else asked


def record_start(asked: Config) -> None:
    """Note that a run begins, in its open workspace; checkpoints that are older are not its own.

    Args:
        asked: what :func:`with_restart` returned.

    Raises:
        OSError: it cannot be written.
    """
    if _begins_elsewhere(asked) and is_main():
        Path(asked.output.workspace, MARK).write_text("torchrun began this run\n", encoding="utf-8")


def _begins_elsewhere(asked: Config) -> bool:
    """Whether a run of torchrun begins anew, or from a file, and not from the newest checkpoint of its workspace."""
    return torchrun.world_size() > 1 and asked.trains and asked.runtime.ckpt != CKPT_WORDS[0]


def _has_newer(mark: Path) -> bool:
    """Whether a checkpoint beside a mark is younger than it."""
    files = (mark.parent / "checkpoints").glob(f"*{checkpoint.SUFFIX}")
    return mark.is_file() and any(path.stat().st_mtime_ns >= mark.stat().st_mtime_ns for path in files)
