"""Imports a NeRF of stable-dreamfusion: its ``df.pth``, grid backbone, becomes options and weights of GridField.

The two fields are numerically equal: resolutions, rows and hash of the table, smoothstep, ReLU network, blob and activation.
A checkpoint does not hold the activation and the blob of the density; both programs have the same defaults.

The training cameras of stable-dreamfusion have determinant -1: camera to world, x points left. So its objects are mirror
images of what its renders show, in its own exports and here. Mirroring a field means x -> -x, and azimuth -> -azimuth. On a
dense level this permutes the rows (i -> resolution - 1 - i), but on a hashed one corners that share a row would need
different rows, unless the resolution is a power of two; so it is not possible exactly in the table, and not done.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gridencoder.layout import GridLayout
from nerf.config.groups import SURFACE_DENSITY
from nerf.config.limits import BOUND, MOST_LEVELS
from nerf.core.errors import UserError
from nerf.core.files import reading
from nerf.fields.neural import ViewColour
from nerf.run.checkpoint import read_pickle

COARSEST, FINEST = 16, 2048  # corners along a side of stable-dreamfusion's levels; the finest times bound
_WAY_OUT = "give the df.pth of a NeRF that was trained with --backbone grid"


@dataclass(frozen=True)
class StableDreamfusionField:
    """A field of stable-dreamfusion as options and weights of GridField."""

    options: dict[str, Any]  # flag without dashes -> value: the options for which GridField takes the tensors
    tensors: dict[str, Tensor]  # the whole state of that GridField, float32
    threshold: float  # density at the surface in stable-dreamfusion's own export
    meta: dict[str, Any]  # "step" and "epoch" of its training, "mean_density" (None without occupancy grid)


def read_stable_dreamfusion_field(path: str | Path) -> StableDreamfusionField:
    """Read the field of a stable-dreamfusion checkpoint, through the allow-list of :func:`nerf.run.checkpoint.read_pickle`.

    Densities and albedo are equal to those of stable-dreamfusion at the same points of its world, which is a mirror image
    (see the top of this file). It has no view-dependent colour; the weights of that head are those of a new one.

    Raises:
        UserError: the file is missing or damaged, would run code, is of the mesh stage or another backbone, lacks a
            tensor, or has a table that ``GridLayout`` cannot express.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; {_WAY_OUT}")
    found, meta = read_pickle(path)
    with reading(path, _WAY_OUT):  # the checks below name what is wrong with a whole file; a damaged one has any shape
        return _field(path, found, meta)


def _field(path: Path, found: dict[str, Any], meta: dict[str, Any]) -> StableDreamfusionField:
    """The field of a checkpoint that was read as a dictionary."""
    state = {name: value for name, value in found["model"].items() if isinstance(value, Tensor)}
    _check_kind(path, state)
    weights, biases = _network(path, state)
    layout, bound = _layout(path, state)
    if weights[0].shape[1] != layout.output_dim:
        raise UserError(
            f"{path}: sigma_net takes {weights[0].shape[1]} features, but the table gives "
            f"{layout.num_levels} levels of {layout.level_dim}; {_WAY_OUT}"
        )
    options = {
        "backbone": "grid",
        "bound": bound,
        "grid_levels": layout.num_levels,
        "grid_features": layout.level_dim,
        "grid_coarsest": layout.base_resolution,
        "grid_finest": layout.desired_resolution,
        "grid_log2": layout.log2_hashmap_size,
        "hidden": weights[-1].shape[1],
        "layers": len(weights),
    }
    tensors = {"encoder.embeddings": state["encoder.embeddings"].float()}
    names = [f"layers.{i}" for i in range(len(weights) - 1)] + ["head"]
    for name, weight, bias in zip(names, weights, biases, strict=True):
        tensors |= {f"{name}.weight": weight.float(), f"{name}.bias": bias.float()}
    tensors |= _no_view_colour(weights[-1].shape[1])
    mean = float(state["density_grid"].float().mean()) if "density_grid" in state else None
    mean = mean if mean is not None and math.isfinite(mean) else None  # the grid is empty, or the run diverged later
    threshold = (
        min(mean, SURFACE_DENSITY) if mean is not None and mean > 0 else SURFACE_DENSITY
    )  # as stable-dreamfusion's export_mesh
    return StableDreamfusionField(
        options, tensors, threshold, {"step": meta["step"], "epoch": meta["epoch"], "mean_density": mean}
    )


def _check_kind(path: Path, state: dict[str, Tensor]) -> None:
    """Refuse files that are not a NeRF with a grid backbone, and weights that are not finite."""
    if "sdf" in state or "deform" in state:
        raise UserError(
            f"{path} is of stable-dreamfusion's mesh stage (it holds sdf and deform); expected the stage before: {_WAY_OUT}"
        )
    if "encoder.params" in state:
        raise UserError(f"{path} was trained with --backbone grid_tcnn, whose table has another layout; {_WAY_OUT}")
    if "encoder.embeddings" not in state or "encoder.offsets" not in state:
        raise UserError(
            f"{path} lacks encoder.embeddings or encoder.offsets, so it was trained with another backbone; {_WAY_OUT}"
        )
    names = [name for name in state if name.startswith(("encoder.embeddings", "sigma_net."))]
    flat = [name for name in names if state[name].ndim not in (1, 2) or not state[name].is_floating_point()]
    if flat:
        raise UserError(f"{path}: {flat[0]} is no matrix of numbers, so the file is damaged; {_WAY_OUT}")
    bad = [name for name in names if not torch.isfinite(state[name]).all()]
    if bad:
        raise UserError(f"{path}: {bad[0]} has values that are not finite, so that run diverged; give an earlier checkpoint")


def _network(path: Path, state: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of the ReLU network from features to raw density and albedo logits."""
    count = len([name for name in state if name.startswith("sigma_net.net.") and name.endswith(".weight")])
    names = [f"sigma_net.net.{i}.{kind}" for i in range(max(count, 1)) for kind in ("weight", "bias")]
    missing = [name for name in names if name not in state]
    if missing:
        raise UserError(f"{path} lacks {missing[0]}; {_WAY_OUT}")
    weights, biases = [state[name] for name in names[::2]], [state[name] for name in names[1::2]]
    widths = [weight.shape[0] for weight in weights]
    expected = [widths[0]] * (count - 1) + [4]
    chained = [weight.shape[1] for weight in weights[1:]] == widths[:-1]
    if widths != expected or not chained or any(b.shape != (w,) for b, w in zip(biases, widths, strict=True)):
        raise UserError(
            f"{path}: sigma_net has shapes {[list(weight.shape) for weight in weights]}; expected hidden layers "
            "of one width and four outputs, density and colour"
        )
    return weights, biases


def _layout(path: Path, state: dict[str, Tensor]) -> tuple[GridLayout, float]:
    """The layout of the table, checked against its offsets, and the bound of its box."""
    table, starts = state["encoder.embeddings"], state["encoder.offsets"]
    if starts.ndim != 1 or not 2 <= len(starts) <= MOST_LEVELS + 1 or starts.is_floating_point() or starts.is_complex():
        raise UserError(
            f"{path}: encoder.offsets has shape {list(starts.shape)} of {starts.dtype}; expected the first row of each of at "
            f"most {MOST_LEVELS} levels, and the number of rows; {_WAY_OUT}"
        )
    offsets = [int(o) for o in starts]
    box = state.get("aabb_train")
    bound = 1.0 if box is None else float(box.reshape(-1)[-1]) if box.numel() else math.nan
    largest = max((b - a for a, b in zip(offsets, offsets[1:], strict=False)), default=0)
    if table.ndim != 2 or offsets[0] != 0 or largest <= 0 or offsets[-1] != len(table) or not BOUND.holds(bound):
        raise UserError(
            f"{path}: a table of shape {list(table.shape)} does not fit offsets {offsets} and a box of half side "
            f"{bound:g}; the file is damaged"
        )
    levels, rows = len(offsets) - 1, math.ceil(math.log2(largest))
    wanted = _resolutions(levels, bound)
    for finest in {math.floor(FINEST * bound), math.ceil(FINEST * bound)}:
        try:
            layout = GridLayout(3, levels, table.shape[1], COARSEST, finest, rows)
        except ValueError as error:
            raise UserError(f"{path}: its table cannot be expressed here: {error}") from None
        if layout.resolutions == wanted and list(layout.first) == offsets:
            return layout, bound
    raise UserError(
        f"{path}: its table has offsets {offsets}, which are not those of {levels} levels from {COARSEST} to "
        f"{FINEST * bound:g} corners along a side; it was trained with another grid and cannot be expressed here"
    )


def _resolutions(levels: int, bound: float) -> tuple[int, ...]:
    """Corners along a side of the levels as in stable-dreamfusion's kernel: ``ceil(16 * 2^(l S))`` in single precision."""
    growth = np.float32(math.log2(FINEST * bound / COARSEST) / max(levels - 1, 1))
    return tuple(int(np.ceil(np.exp2(np.float32(level) * growth) * np.float32(COARSEST))) for level in range(levels))


def _no_view_colour(width: int) -> dict[str, Tensor]:
    """The state of a new view-dependent head, whose output is zero; the global random state is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {f"view_colour.{name}": value for name, value in ViewColour(width).state_dict().items()}
