"""Checkpoints: one safetensors file each, with JSON in its header, never half written and never executed.

A checkpoint is a tree (nested dicts with text keys) whose leaves are tensors or plain JSON values, and a flat ``meta``.
Tensors lie in the file under their path ("model/field.encoder.embeddings"); everything else is JSON in the header.
"""

import _codecs
import collections
import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nerf.config.groups import STAGES
from nerf.core.errors import UserError
from nerf.core.files import write_atomically

FORMAT = 1
HEADER_KEY = "somnia"
SEPARATOR = "/"
_NAME = re.compile(r"df_(?:([a-z]+)_)?step_(\d{8,})\.safetensors")
FIRST_STAGE = STAGES[0]
PEER_SUFFIXES = (".pth", ".pt", ".ckpt")
BROKEN_PICKLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)  # what reading raises on bytes that are no pickle, or half of one


def run_name(step: int, stage: str = FIRST_STAGE) -> str:
    """``df_step_00001000`` for step 1000, ``df_dmtet_step_00001000`` in a stage after the first."""
    return f"df_{'' if stage == FIRST_STAGE else stage + '_'}step_{step:08d}"


def file_name(step: int, stage: str = FIRST_STAGE) -> str:
    """The checkpoint's name, :func:`run_name` and ``.safetensors``."""
    return f"{run_name(step, stage)}.safetensors"


def save(path: str | Path, tensors: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Write a checkpoint; until it is complete and on the disk, the name does not exist (or is still the old file).

    Args:
        path: the file.
        tensors: nested dicts with text keys; leaves are tensors (on any device), None, bool, int, float, str or lists
            of these.
        meta: plain JSON values; "stage" and "step" are expected by the trainer.

    Raises:
        UserError: it cannot be written (disk full, no permission); whatever was there before is untouched.
        TypeError: a key or a leaf is of another kind.
    """
    flat: dict[str, Tensor] = {}
    plain = _flatten(tensors, "", flat)
    header = {HEADER_KEY: json.dumps({"format": FORMAT, "meta": meta, "plain": plain})}
    try:
        return write_atomically(path, lambda temporary: save_file(flat, temporary, header), durable=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} could not be written: {error}; the checkpoints before it are whole. "
            "Make room (or choose another --workspace) and start again: the run goes on from the newest one"
        ) from error


def load(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint back as the ``(tensors, meta)`` given to :func:`save`, tensors on the CPU.

    A file of the peer (``.pth``, ``.pt``, ``.ckpt``) is read by :func:`read_peer_checkpoint`.

    Raises:
        UserError: there is no such file, it is truncated, corrupt, not a checkpoint, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; --ckpt latest takes the newest one, --ckpt scratch none")
    if path.suffix in PEER_SUFFIXES:
        return read_peer_checkpoint(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            # A copy each: the file is mapped into memory, and may be pruned while the tensors live.
            flat = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); {_way_out(path)}") from None
    if header is None:
        raise UserError(f"{path} is a safetensors file but no checkpoint of this program; give one from checkpoints/")
    stored = json.loads(header)
    if stored.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {stored.get('format')}, this version reads {FORMAT}; "
            "use the version that wrote it, or start over with --ckpt scratch"
        )
    return _unflatten(stored["plain"], flat), stored["meta"]


def read_meta(path: str | Path) -> dict[str, Any]:
    """The ``meta`` of a checkpoint of ours, without its tensors.

    Raises:
        UserError: it is missing, damaged, or no checkpoint of this program.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return json.loads((file.metadata() or {})[HEADER_KEY])["meta"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); {_way_out(Path(path))}") from None


def stage_of(path: str | Path) -> str | None:
    """The stage that a checkpoint's name tells, None if it is no checkpoint's name."""
    match = _NAME.fullmatch(Path(path).name)
    return (match[1] or FIRST_STAGE) if match else None


def steps(folder: str | Path, stage: str = FIRST_STAGE) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint of a stage in a folder, oldest first, ordered by step and not by name."""
    folder = Path(folder)
    names = [(p, _NAME.fullmatch(p.name)) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(match[2]), path) for path, match in names if match and (match[1] or FIRST_STAGE) == stage)


def latest(folder: str | Path, stage: str = FIRST_STAGE) -> Path | None:
    """A stage's checkpoint with the highest step, or None if the folder has none or does not exist."""
    found = steps(folder, stage)
    return found[-1][1] if found else None


def resolve(folder: str | Path, ckpt: str, stage: str = FIRST_STAGE) -> Path | None:
    """The file that ``--ckpt`` means for a stage in a checkpoints folder; None: start from nothing.

    ``best`` is the newest one too: the peer's best was always its last, and distillation has no score to rank by.

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


def prune(folder: str | Path, keep: int, stage: str = FIRST_STAGE) -> None:
    """Remove all but the newest ``keep`` checkpoints of a stage, and what an interrupted write left behind."""
    for _, path in steps(folder, stage)[: -keep or None]:
        path.unlink(missing_ok=True)
    for path in Path(folder).glob(".df_*step_*"):
        path.unlink(missing_ok=True)


def require_stage(meta: dict[str, Any], stage: str, path: str | Path) -> None:
    """Check that a checkpoint belongs to a stage of the run.

    Raises:
        UserError: it belongs to another.
    """
    theirs = meta.get("stage")
    if theirs != stage:
        other = f", or add --stages {theirs} for that one" if theirs in STAGES else ""
        other += "; --init_with starts a mesh from a NeRF" if (theirs, stage) == (FIRST_STAGE, "dmtet") else ""
        raise UserError(f"checkpoint {path} is of stage {theirs!r}; this is stage {stage!r}, give one of that{other}")


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


def read_peer_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a pickled checkpoint of stable-dreamfusion through an allow-list of harmless classes; nothing is executed.

    Returns:
        ``(tensors, meta)`` as :func:`load` does: "model", and "ema", "optimizer" and others if it has them;
        meta holds its "epoch" and "step", and stage "peer".

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
    except BROKEN_PICKLE as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({type(error).__name__}); nothing was loaded") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} and not a checkpoint; nothing was loaded")
    if "model" not in content:
        content = {"model": content.get("state_dict", content)}
    meta = {"stage": "peer", "step": int(content.get("global_step", 0)), "epoch": int(content.get("epoch", 0))}
    return {key: value for key, value in content.items() if isinstance(value, dict)}, meta


def _harmless() -> list:
    """What a peer's checkpoint may name beside tensors: small numpy arrays under both of their module names."""
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


def _unflatten(tree: dict[str, Any], flat: dict[str, Tensor]) -> dict[str, Any]:
    """Put tensors back into the tree of the plain values."""
    for path, tensor in flat.items():
        *folders, name = path.split(SEPARATOR)
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = tensor
    return tree


def _way_out(path: Path) -> str:
    """What to do about a damaged file: the checkpoint before it, if there is one."""
    stage = stage_of(path)
    if stage is None:
        return "give another file"
    others = [p for _, p in steps(path.parent, stage) if p != path]
    again = "start over with --ckpt scratch" if stage == FIRST_STAGE else f"start this stage over with --{stage} --ckpt scratch"
    return f"give --ckpt or --init_with the one before it, {others[-1]}" if others else again
