"""The process that runs COLMAP for :mod:`nerf.data.sfm`; an assertion that fails in COLMAP aborts its process, and not a run.

The request is the first argument, as JSON. Each line of the standard output is a JSON object: ``{"doing": ..., "total": n}``
where a step begins, ``{"done": n}`` as it advances, and at the end ``{"model": {...}}``, or null if no picture was placed. The
largest model is written to ``model`` in the scratch folder. Only the standard library and pycolmap are imported.
"""

import json
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2  # between two looks at how far COLMAP is
QUIET = 2  # level of COLMAP's log from which it is written: errors


def say(line: dict[str, Any]) -> None:
    """Write one line to the standard output at once."""
    print(json.dumps(line), flush=True)


def rows(database: Path, table: str) -> int:
    """How many rows a table of COLMAP's database has by now, or fewer.

    The file is read as if nobody wrote to it: a lock, however short, would abort COLMAP.
    """
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{database}?immutable=1", uri=True)) as opened:
        return int(opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    return 0


def watched(doing: str, total: int, work: Callable[[], Any], done: Callable[[], int]) -> Any:
    """Run a step of COLMAP while another thread says how far it is."""
    say({"doing": doing, "total": total})
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            say({"done": min(done(), total)})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        return work()
    finally:
        ended.set()
        watcher.join()


def main() -> None:
    """Features, matches and incremental mapping of the pictures that the request names."""
    import pycolmap

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends this one
    request = json.loads(sys.argv[1])
    images, scratch, names, seed = Path(request["images"]), Path(request["scratch"]), request["names"], request["seed"]
    pycolmap.logging.minloglevel = QUIET
    pycolmap.set_random_seed(seed)
    database, cpu = scratch / "database.db", pycolmap.Device.cpu
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.max_image_size = request["threads"], request["size"]
    mode = pycolmap.CameraMode.SINGLE if request["single"] else pycolmap.CameraMode.PER_IMAGE
    watched(
        "looking for features",
        len(names),
        lambda: pycolmap.extract_features(
            database, images, image_names=names, camera_mode=mode, extraction_options=extraction, device=cpu
        ),
        lambda: rows(database, "keypoints"),
    )
    _match(database, request)
    placed = [0]

    def count() -> None:
        placed[0] += 1

    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.random_seed, mapping.min_model_size = seed, request["fewest"]
    mapping.num_threads = 1  # the same bits every time
    models = watched(
        "placing cameras",
        len(names),
        lambda: pycolmap.incremental_mapping(database, images, scratch, options=mapping, next_image_callback=count),
        lambda: placed[0],
    )
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    if best is None or best.num_reg_images() == 0:
        say({"model": None})
        return
    (scratch / "model").mkdir()
    best.write(scratch / "model")
    registered = sorted(image.name for image in best.images.values() if image.has_pose)
    say({"model": {"names": registered, "points": len(best.points3D), "error": best.compute_mean_reprojection_error()}})


def _match(database: Path, request: dict[str, Any]) -> None:
    """Compare the pictures, all pairs or neighbours in the order of their names."""
    import pycolmap

    matching, verification = pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions()
    matching.num_threads, verification.ransac.random_seed = request["threads"], request["seed"]
    common: dict[str, Any] = {
        "matching_options": matching,
        "verification_options": verification,
        "device": pycolmap.Device.cpu,
    }
    count, overlap = len(request["names"]), request["overlap"]

    def compared() -> int:
        return rows(database, "two_view_geometries")

    if overlap is None:
        total = count * (count - 1) // 2
        watched("matching pictures", total, lambda: pycolmap.match_exhaustive(database, **common), compared)
        return
    pairing = pycolmap.SequentialPairingOptions()
    pairing.overlap = overlap
    watched(
        "matching pictures",
        count * overlap,
        lambda: pycolmap.match_sequential(database, pairing_options=pairing, **common),
        compared,
    )


if __name__ == "__main__":
    began = time.monotonic()
    main()
    say({"seconds": time.monotonic() - began})
