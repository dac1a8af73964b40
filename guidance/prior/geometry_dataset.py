"""The training set of the geometry network: shards like those of :mod:`guidance.prior.dataset`, by cameras that also look up.

``python -m guidance.prior.geometry_dataset --shards 0:80`` writes shards; several processes may share the work.
"""

import sys
from functools import partial
from pathlib import Path

from guidance.prior import dataset
from guidance.prior.camera import GEOMETRY_POLAR_RANGE, random_cameras
from nerf.core.script import run

DATA = Path("local/prior/geometry")


def write_shard(number: int, folder: Path = DATA, size: int = dataset.SHARD) -> Path:
    """Render shard ``number`` of ``size`` renders and write ``shard_<number>.safetensors``, unless it exists."""
    return dataset.draw_shard(number, folder, size, number, 1, partial(random_cameras, polar=GEOMETRY_POLAR_RANGE))


if __name__ == "__main__":
    sys.exit(run(partial(dataset.main, write_shard, DATA)))
