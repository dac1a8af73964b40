"""Checkpoints: one safetensors file each, with JSON in its header, written atomically and never executed.

A checkpoint is a tree (nested dicts with text keys) whose leaves are tensors or plain JSON values, and a flat ``meta``.
Tensors are stored under their path ("model/field.encoder.embeddings"); everything else is JSON in the header.
"""

import _codecs
import collections
import json
import pickle
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nerf.config.stages import FIRST, STAGE_KINDS, parse_run_name
from nerf.core.errors import UserError
from nerf.core.files import as_shape, parse_json, reading, write_atomically
from nerf.run.distributed import is_main

FORMAT = 2  # of what a checkpoint holds; raised when names or meanings in it change
HEADER_KEY = "somnia"
SEPARATOR = "/"
SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt")  # of checkpoints of stable-dreamfusion
PICKLE_STAGE = "stable-dreamfusion"  # "stage" in the meta of such a checkpoint


class Header(msgspec.Struct):
    """The JSON in a checkpoint's header; what a run does with the values, it checks where it does it."""

    format: int
    meta: dict[str, Any] = {}
    plain: dict[str, Any] = {}


def read_header(text: str | None, path: Path) -> Header:
    """The header of a checkpoint of ours.

    Args:
        text: the header's entry :data:`HEADER_KEY`, None if there is none.
        path: the file.

    Raises:
        UserError: there is none, it is damaged, or of another format.
    """
    if text is None:
        raise UserError(f"{path} is a safetensors file but no checkpoint of this program; give one from checkpoints/")
    what = f"the header of checkpoint {path}"
    header = as_shape(parse_json(text, what, _way_out(path)), what, _way_out(path), Header)
    if header.format != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {header.format}, this version reads {FORMAT}; "
            "use the version that wrote it, or start over with --ckpt scratch"
        )
    return header


def run_name(step: int, stage: str = FIRST.name) -> str:
    """``df_step_00001000`` for step 1000, ``df_dmtet_step_00001000`` in the mesh stage."""
    return STAGE_KINDS[stage].run_name(step)


def file_name(step: int, stage: str = FIRST.name) -> str:
    """The checkpoint's name, :func:`run_name` and ``.safetensors``."""
    return run_name(step, stage) + SUFFIX


def save(path: str | Path, tensors: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Write a checkpoint atomically: its name appears once it is complete and synced. Other ranks than 0 write nothing.

    Args:
        path: the file.
        tensors: nested dicts with text keys; leaves are tensors (on any device), None, bool, int, float, str or lists
            of these.
        meta: plain JSON values; "stage" and "step" are expected by the trainer.

    Raises:
        UserError: it cannot be written (disk full, no permission); a file of that name is unchanged.
        TypeError: a key or a leaf is of another kind.
    """
    if not is_main():
        return Path(path)
    flat: dict[str, Tensor] = {}
    plain = _flatten(tensors, "", flat)
    header = {HEADER_KEY: json.dumps({"format": FORMAT, "meta": meta, "plain": plain})}
    try:
        return write_atomically(path, lambda temporary: save_file(flat, temporary, header), durable=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} could not be written: {error}; earlier checkpoints are intact. "
            "Free some space (or choose another --workspace) and start again: the run resumes from the newest one"
        ) from error


def load(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint back as the ``(tensors, meta)`` given to :func:`save`, tensors on the CPU.

    A file of stable-dreamfusion (``.pth``, ``.pt``, ``.ckpt``) is read by :func:`read_pickle`.

    Raises:
        UserError: there is no such file, it is truncated, corrupt, not a checkpoint, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; --ckpt latest takes the newest one, --ckpt scratch none")
    if path.suffix in PICKLE_SUFFIXES:
        return read_pickle(path)
    with (
        reading(f"checkpoint {path}", _way_out(path), problem="is damaged"),
        safe_open(path, framework="pt", device="cpu") as file,
    ):
        header = read_header((file.metadata() or {}).get(HEADER_KEY), path)
        # A copy each: the file is mapped into memory, and may be pruned while the tensors live.
        flat = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return _unflatten(header.plain, flat, path), header.meta


def read_meta(path: str | Path) -> dict[str, Any]:
    """The ``meta`` of a checkpoint of ours, without its tensors.

    Raises:
        UserError: it is missing, damaged, or no checkpoint of this program.
    """
    path = Path(path)
    with (
        reading(f"checkpoint {path}", _way_out(path), problem="is damaged"),
        safe_open(path, framework="pt", device="cpu") as file,
    ):
        return read_header((file.metadata() or {}).get(HEADER_KEY), path).meta


def stage_of(path: str | Path) -> str | None:
    """The stage in a checkpoint's name, None if it is no checkpoint's name."""
    found = _parse_name(Path(path))
    return None if found is None else found[0]


def _parse_name(path: Path) -> tuple[str, int] | None:
    """Stage and step in a checkpoint's name."""
    found = parse_run_name(path) if path.suffix == SUFFIX else None
    return None if found is None else (found[0].name, found[1])


def steps(folder: str | Path, stage: str = FIRST.name) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint of a stage in a folder, oldest first, ordered by step and not by name."""
    folder = Path(folder)
    names = [(path, _parse_name(path)) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((found[1], path) for path, found in names if found is not None and found[0] == stage)


def latest(folder: str | Path, stage: str = FIRST.name) -> Path | None:
    """A stage's checkpoint with the highest step, or None if the folder has none or does not exist."""
    found = steps(folder, stage)
    return found[-1][1] if found else None


def resolve(folder: str | Path, ckpt: str, stage: str = FIRST.name) -> Path | None:
    """The file that ``--ckpt`` selects for a stage in a checkpoints folder; None: there is none, or ``scratch``.

    ``best`` is also the newest one: in stable-dreamfusion it always was, and distillation has no metric to rank by.

    Raises:
        UserError: ``ckpt`` is a path and there is no such file.
    """
    if ckpt == "scratch":
        return None
    if ckpt in ("latest", "latest_model", "best"):
        return latest(folder, stage)
    if not Path(ckpt).is_file():
        raise UserError(f"--ckpt {ckpt}: no such file; give latest, latest_model, scratch or the path of a checkpoint")
    return Path(ckpt)


def prune(folder: str | Path, keep: int, stage: str = FIRST.name) -> None:
    """Remove all but the newest ``keep`` checkpoints of a stage and the leftovers of interrupted writes (on rank 0)."""
    if not is_main():
        return
    for _, path in steps(folder, stage)[: -keep or None]:
        path.unlink(missing_ok=True)
    for path in Path(folder).glob(".df_*step_*"):
        path.unlink(missing_ok=True)


def require_stage(meta: dict[str, Any], stage: str, path: str | Path) -> None:
    """Check that a checkpoint belongs to a stage of the run.

    Raises:
        UserError: it belongs to another.
    """
    theirs, kind = meta.get("stage"), STAGE_KINDS[stage]
    if theirs != stage:
        other = f", or add --stages {theirs} to use this one" if theirs in STAGE_KINDS else ""
        other += f"; --init_with starts a {kind.noun} from it" if theirs is not None and theirs == kind.starts_from else ""
        raise UserError(f"checkpoint {path} is of stage {theirs!r}, this is stage {stage!r}; give one of this stage{other}")


def load_module(module: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load a module's state, all of it.

    Raises:
        UserError: a tensor is missing, has no place, or has another shape, with the first one's name and what to do.
    """
    wanted = module.state_dict()
    way_out = "give the options it was trained with (config.json lists them), or start over with --ckpt scratch"
    for name in sorted(set(wanted) ^ set(state)):
        verb = "lacks" if name in wanted else "has an extra"
        raise UserError(f"checkpoint {path} {verb} {name}; it is of another kind of model: {way_out}")
    for name, tensor in wanted.items():
        if tensor.shape != state[name].shape:
            raise UserError(
                f"checkpoint {path} has {name} of shape {list(state[name].shape)}, this run asks for "
                f"{list(tensor.shape)}: {way_out}"
            )
    module.load_state_dict(state)


def read_pickle(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a pickled checkpoint of stable-dreamfusion through an allow-list of harmless classes; nothing is executed.

    Returns:
        ``(tensors, meta)`` as :func:`load` does: "model", and "ema", "optimizer" and others if it has them;
        meta holds its "epoch" and "step", and :data:`PICKLE_STAGE` as its stage.

    Raises:
        UserError: the file names anything that is not on the list, is damaged, or holds no model.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        reason = f"it would run {named[1]}" if named else "it is damaged or not a checkpoint"
        raise UserError(f"{path} was not read: {reason}; only tensors and numbers are taken from a pickle") from None
    except Exception as error:  # on bytes that are no pickle, torch.load raises whatever comes
        raise UserError(f"{path} is damaged or not a checkpoint ({type(error).__name__}); nothing was loaded") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} and not a checkpoint; nothing was loaded")
    if "model" not in content:
        content = {"model": content.get("state_dict", content)}
    if not isinstance(content["model"], dict) or not all(isinstance(name, str) for name in content["model"]):
        raise UserError(f"{path} holds no model: expected tensors by name; nothing was loaded")
    counts = {key: content.get(name, 0) for key, name in (("step", "global_step"), ("epoch", "epoch"))}
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise UserError(f"{path} gives {count!r:.40} as its {name}; expected a whole number; nothing was loaded")
    meta = {"stage": PICKLE_STAGE} | counts
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, dict)}, meta


def _harmless() -> list[Any]:
    """What a pickled checkpoint may name beside tensors: small numpy arrays under both of their module names."""
    names, modules = ("_reconstruct", "scalar"), ("core", "_core")
    pairs = [(getattr(multiarray, name), f"numpy.{module}.multiarray.{name}") for name in names for module in modules]
    kinds = [np.float32, np.float64, np.int64, np.int32, np.bool_, np.uint8]
    dtypes = [type(np.dtype(kind)) for kind in kinds]
    return [*pairs, np.ndarray, np.dtype, *dtypes, _codecs.encode, collections.defaultdict]


def _flatten(node: dict[str, Any], path: str, flat: dict[str, Tensor]) -> dict[str, Any]:
    """Move the tensors of a tree into ``flat`` under their paths; return the tree of what is left."""
    left: dict[str, Any] = {}
    for key, value in node.items():
        if not isinstance(key, str) or SEPARATOR in key:
            raise TypeError(f"checkpoint: keys must be text without {SEPARATOR!r}, got {path}{key!r}")
        if isinstance(value, Tensor):
            flat[path + key] = value.detach().to("cpu", copy=True).contiguous()
        elif isinstance(value, dict):
            left[key] = _flatten(value, path + key + SEPARATOR, flat)
        elif value is None or isinstance(value, bool | int | float | str | list | tuple):
            left[key] = value
        else:
            raise TypeError(f"checkpoint: expected tensors and JSON values, got a {type(value).__name__} at {path}{key}")
    return left


def _unflatten(tree: dict[str, Any], flat: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Put the tensors of a file back into the tree of the plain values."""
    for place, tensor in flat.items():
        *folders, name = place.split(SEPARATOR)
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise UserError(f"checkpoint {path} is damaged (it has {place} inside of a value); {_way_out(path)}")
        node[name] = tensor
    return tree


def _way_out(path: Path) -> str:
    """What to do about a damaged file: use the checkpoint before it, if there is one."""
    stage = stage_of(path)
    if stage is None:
        return "give another file"
    others = [p for _, p in steps(path.parent, stage) if p != path]
    if others:
        return f"give --ckpt or --init_with the one before it, {others[-1]}"
    return f"start this stage over with {STAGE_KINDS[stage].restart}"
