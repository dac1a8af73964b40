"""Depth and normals from one picture: Depth Anything V2 or Marigold, if their weights are on this machine. H rows, W columns.

Nothing is downloaded unless a hub id is named, and weights in pickles are not read.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.core.errors import UserError
from nerf.core.files import read_json, reading
from nerf.core.words import expected_words

log = logging.getLogger("somnia.image")

Kind = Literal["depth", "normal"]
# What "auto" looks for in the Hugging Face cache, best first.
PUBLISHED: dict[Kind, tuple[str, ...]] = {
    "depth": (
        "depth-anything/Depth-Anything-V2-Small-hf",
        "prs-eth/marigold-depth-v1-1",
        "prs-eth/marigold-depth-lcm-v1-0",
    ),
    "normal": ("prs-eth/marigold-normals-v1-1", "prs-eth/marigold-normals-lcm-v0-1"),
}
FETCHED: dict[Kind, str] = {"depth": "depth-anything", "normal": "marigold-normals"}  # names of scripts/fetch_weights.py
PIPELINES: dict[str, Kind] = {"MarigoldDepthPipeline": "depth", "MarigoldNormalsPipeline": "normal"}
DEPTH_ANYTHING = "depth_anything"
SHORT_SIDE, PATCH = 518, 14  # of Depth Anything: pixels that the shorter side is resized to, and what sides are multiples of
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours that it takes
SEED = 0  # of Marigold's noise
_WAY_OUT = "or use --{} none and do without"


class _Index(msgspec.Struct):
    """What of ``model_index.json`` or ``config.json`` says which model a folder holds."""

    pipeline: str | None = msgspec.field(default=None, name="_class_name")
    model_type: str | None = None
    depth_estimation_type: str = "relative"


@dataclass(frozen=True)
class Weights:
    """A folder with a model."""

    folder: Path
    kind: Kind  # of what it predicts
    marigold: bool
    metric: bool = False  # larger is farther, where a relative model gives inverse depth


def find(kind: Kind, name: str) -> Weights | None:
    """The weights of ``--depth`` or ``--normal``.

    Args:
        kind: of what is predicted.
        name: "none"; "auto", one that is in the cache; or a folder or hub id.

    Returns:
        None for "none", and for "auto" where there are none.

    Raises:
        UserError: the folder is not there, or holds another model.
    """
    if name == "none":
        return None
    if name == "auto":
        found = (_cached(hub_id) for hub_id in PUBLISHED[kind])
        folder = next((folder for folder in found if folder is not None), None)
        return None if folder is None else _described(folder, kind)
    folder = Path(name).expanduser()
    if not os.path.isdir(folder):
        cached = _cached(name) if "/" in name else None
        if cached is None:
            ids = expected_words(PUBLISHED[kind])
            hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
            raise UserError(
                f"--{kind} {name:.200} is neither a folder nor a model in the Hugging Face cache; fetch it with: hf download "
                f"{name if hub_id else PUBLISHED[kind][0]} (published ones: {ids}), {_WAY_OUT.format(kind)}"
            )
        folder = cached
    return _described(folder, kind)


def missing(files: Iterable[str]) -> str | None:
    """What a folder lacks: the description of its model, or weights in safetensors."""
    have = set(files)
    if not have & {"model_index.json", "config.json"}:
        return "model_index.json or config.json"
    return None if any(name.endswith(".safetensors") for name in have) else "weights in safetensors"


def _cached(hub_id: str) -> Path | None:
    from guidance import weights

    probes = ("config.json", "model_index.json")
    found = (weights.cached(hub_id, missing, probe) for probe in probes)
    return next((folder for folder in found if folder is not None), None)


def _described(folder: Path, kind: Kind) -> Weights:
    """Which model a folder holds, if it is one for this kind."""
    hint = f"name a folder with Depth Anything V2 or Marigold in the layout of the hub, {_WAY_OUT.format(kind)}"
    index, single = folder / "model_index.json", folder / "config.json"
    if not index.is_file() and not single.is_file():
        raise UserError(f"--{kind} {folder} has neither model_index.json nor config.json; {hint}")
    said = read_json(index if index.is_file() else single, hint, _Index)
    if PIPELINES.get(said.pipeline or "") == kind:
        return Weights(folder, kind, marigold=True)
    if kind == "depth" and said.model_type == DEPTH_ANYTHING:
        return Weights(folder, kind, marigold=False, metric=said.depth_estimation_type == "metric")
    raise UserError(f"--{kind} {folder} holds {said.pipeline or said.model_type or 'an unknown model'}; {hint}")


def estimator(weights: Weights, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """Load a model.

    Args:
        weights: of :func:`find`.
        device: where it runs.

    Returns:
        A function of a picture [H, W, 3] float in [0, 1]. For depth: [H, W], larger is farther, up to a scale and an offset.
        For normals: [H, W, 3] unit vectors in camera axes (x right, y up, z towards the camera).

    Raises:
        UserError: diffusers or transformers is missing, or the folder cannot be read.
    """
    needed = ("diffusers", "transformers") if weights.marigold else ("transformers",)
    for package in needed:
        if find_spec(package) is None:
            raise UserError(f"--{weights.kind} {weights.folder} needs {' and '.join(needed)}: pip install {' '.join(needed)}")
    hint = f"download it again, {_WAY_OUT.format(weights.kind)}"
    with reading(f"--{weights.kind} {weights.folder}", hint), _quiet():
        model = _load(weights, device)
    predict = _marigold if weights.marigold else _depth_anything

    @torch.no_grad()
    def estimate(rgb: np.ndarray) -> np.ndarray:
        picture = torch.from_numpy(np.ascontiguousarray(rgb, np.float32)).permute(2, 0, 1)[None].to(device)
        with reading(f"--{weights.kind} {weights.folder}", hint, problem="does not run"), _quiet():
            predicted = predict(model, picture, weights)
        if not bool(torch.isfinite(predicted).all()):
            raise UserError(f"--{weights.kind} {weights.folder} gives values that are not finite; {hint}")
        if weights.kind == "depth":
            return np.asarray(predicted[0, 0].double().cpu())
        normal = functional.normalize(predicted[0], dim=0)
        return np.asarray(normal.permute(1, 2, 0).double().cpu())

    return estimate


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars that transformers and diffusers show even for the smallest file."""
    libraries = [import_module(f"{name}.utils.logging") for name in ("transformers", "diffusers") if find_spec(name)]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _load(weights: Weights, device: str) -> Any:
    if weights.marigold:
        import diffusers

        names = {kind: name for name, kind in PIPELINES.items()}
        pipeline = getattr(diffusers, names[weights.kind]).from_pretrained(
            weights.folder, local_files_only=True, use_safetensors=True
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)
    from transformers import DepthAnythingForDepthEstimation

    model = DepthAnythingForDepthEstimation.from_pretrained(weights.folder, local_files_only=True, use_safetensors=True)
    return model.eval().to(device)


def _marigold(pipeline: Any, picture: Tensor, weights: Weights) -> Tensor:
    """[1, 1, H, W] affine depth, near 0 and far 1, or [1, 3, H, W] normals: right, up, towards the camera."""
    found: Tensor = pipeline(picture, output_type="pt", generator=torch.Generator().manual_seed(SEED)).prediction
    return found


def _depth_anything(model: Any, picture: Tensor, weights: Weights) -> Tensor:
    """[1, 1, H, W] depth: what the model gives, turned round where that is inverse depth.

    Inverse depth is known up to a scale and an offset, so it cannot be inverted; over an object whose extent in depth is small
    against its distance, minus it is depth, up to a scale and an offset.
    """
    height, width = picture.shape[-2:]
    scale = SHORT_SIDE / min(height, width)
    size = [max(round(side * scale / PATCH), 1) * PATCH for side in (height, width)]
    resized = functional.interpolate(picture, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(v, device=picture.device).reshape(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    found = model(pixel_values=(resized - mean) / deviation).predicted_depth[:, None]
    found = functional.interpolate(found, size=(height, width), mode="bilinear")
    return found if weights.metric else -found
