"""Sizes that no step could hold are refused before anything is loaded: what options need at least, and what there is.

The figures are lower bounds, so nothing that works is refused: what an optimiser keeps for each parameter, a few numbers for
each ray, every frame of a video. What networks and samples take beyond that is found out by running.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from nerf.config.config import Config, as_typed
from nerf.config.stages import Stage
from nerf.core.errors import UserError
from nerf.fields.encoding import grid_layout

FLOAT = 4  # bytes
TRAINED = 5  # floats for each parameter: its value, gradient, average, and two moments of the optimiser
RAY = 16  # floats for each ray of a step: origin, direction, colour, opacity, normal, depth, and their gradients
FRAME = 3  # bytes for each pixel of a video
UNKNOWN_SIDE = 512  # pixels along a frame whose size follows photographs that are not read yet
TET_GRID = 155 * 2**20 / 128**3  # bytes for each cell of a tetrahedral grid (nerf/mesh/tetrahedra.py)
GRID_POINT = 11  # bytes for each point of marching cubes' grid (measured: 12.9 at 256^3 and 11.7 at 384^3, the mesh included)
GIB = 2**30
CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Need:
    """What something takes at least."""

    what: str  # for the message
    flags: tuple[str, ...]  # that it comes from
    bytes: float
    on_host: bool = False  # in main memory also where a GPU computes


def check_memory(stages: Iterable[Stage], device: str) -> None:
    """Refuse a run one of whose parts cannot be held.

    Args:
        stages: those that the run goes through, with their options.
        device: name of the device that computes.

    Raises:
        UserError: what needs how much, which flags to lower, and what there is.
    """
    host = host_memory()
    on_gpu = device.startswith("cuda")
    gpu = float(torch.cuda.get_device_properties(torch.device(device)).total_memory) if on_gpu else math.inf
    for stage in stages:
        for need in needs(stage):
            there, where = (gpu, "the GPU") if on_gpu and not need.on_host else (host, "this machine")
            if need.bytes > there:
                given = " ".join(as_typed(flag, stage.config.value(flag)) for flag in need.flags)
                raise UserError(
                    f"{given}: {need.what} would take {_gib(need.bytes)} GiB at least, and {where} has {_gib(there)}; "
                    f"lower {'one of them' if len(need.flags) > 1 else 'it'}"
                )


def _gib(size: float) -> str:
    """So many bytes in GiB, without an exponent."""
    return f"{size / GIB:,.0f}" if size >= 100 * GIB else f"{size / GIB:.3g}"


def needs(stage: Stage) -> list[Need]:
    """What the options of a stage take at least, part by part."""
    config, kind = stage.config, stage.kind
    found = [_field(config)]
    if kind.triangles and not config.painted:
        found.append(Need("the tetrahedral grid", ("tet_grid_size",), TET_GRID * config.dmtet.tet_grid_size**3))
    elif not kind.triangles and config.render.cuda_ray:
        cascades = max(1, 1 + math.ceil(math.log2(config.field.bound)))
        cells = cascades * config.render.grid_size**3
        found.append(Need("the occupancy grid", ("grid_size", "bound"), FLOAT * cells))
    return [*found, *_pictures(config), *_outputs(config)]


def _field(config: Config) -> Need:
    """The parameters of the field."""
    field, copies = config.field, TRAINED if config.trains else 1
    if not (field.backbone.startswith("grid") or field.backbone == "sdf"):
        return Need("the network", ("hidden",), FLOAT * copies * field.hidden**2)
    layout = grid_layout(field)
    table = FLOAT * copies * layout.rows * field.level_dim
    return Need("the hash grid", ("grid_levels", "grid_features", "grid_log2"), table)


def _pictures(config: Config) -> list[Need]:
    """What a training step renders."""
    camera = config.camera
    if not config.trains or not config.prompt.kinds:
        return []
    rays = camera.batch_size * camera.w * camera.h
    return [Need("the pictures of a step", ("batch_size", "w", "h"), FLOAT * RAY * rays)]


def _outputs(config: Config) -> list[Need]:
    """What is written at the end."""
    output, found = config.output, []
    if not output.six_views:
        frames = (
            FRAME
            * max(len(output.videos), 1)
            * output.dataset_size_test
            * (output.W or UNKNOWN_SIDE)
            * (output.H or UNKNOWN_SIDE)
        )
        found.append(Need("the frames of the video", ("dataset_size_test", "W", "H"), frames, on_host=True))
    if output.save_mesh:
        points = (output.mcubes_resolution + 1) ** 3
        found.append(Need("the grid of marching cubes", ("mcubes_resolution",), GRID_POINT * points, on_host=True))
    return found


def host_memory() -> float:
    """Bytes of main memory and swap that this process may use; infinite where that cannot be found out."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        total = float(sizes["MemTotal"] + sizes.get("SwapTotal", 0))
    except (OSError, ValueError, LookupError):
        return math.inf
    for path in CGROUP:
        try:
            total = min(total, float(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # "max", or no such file
            continue
    return total
