"""Checkpoints: one safetensors file each, with JSON in its header, written atomically and never executed.

A checkpoint is a tree (nested dicts with text keys) whose leaves are tensors or plain JSON values, and a flat ``meta``.
Tensors are stored under their path ("model/field.encoder.embeddings"); everything else is JSON in the header, with a checksum
of each tensor and of the JSON itself.

Checkpoints of a stage are ordered by age. A run that goes back to an earlier step starts a new branch (:class:`Lineage`):
its checkpoints are newer than those of higher steps on the branch that it left.
"""

import _codecs
import collections
import json
import os
import pickle
import re
import shutil
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nerf.config.stages import FIRST, STAGE_KINDS, parse_run_name
from nerf.core.checksums import checksum
from nerf.core.errors import UserError
from nerf.core.files import write_atomically
from nerf.run.distributed import is_main

FORMAT = 2  # of what a checkpoint holds; raised when names or meanings in it change
HEADER_KEY = "somnia"
HEADER_SUM_KEY = "somnia_crc32"  # of the text under HEADER_KEY
SEPARATOR = "/"
SUFFIX = ".safetensors"
LATEST_WORDS = ("latest", "latest_model", "best")  # values of --ckpt; in stable-dreamfusion the best was the newest one, too
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt")  # of checkpoints of stable-dreamfusion
PICKLE_STAGE = "stable-dreamfusion"  # "stage" in the meta of such a checkpoint
# What files of this format did not have from the beginning: name in the model, a name that such a model has, and the value that
# does what the version did that had no such state.
ADDED_STATE = (("path.ray_share", "path.log2_step_scale", torch.ones((), dtype=torch.float64)),)


def file_name(step: int, stage: str = FIRST.name) -> str:
    """The checkpoint's name: ``df_step_00001000.safetensors`` for step 1000 of the first stage."""
    return STAGE_KINDS[stage].run_name(step) + SUFFIX


class DamagedError(UserError):
    """A file that is no whole checkpoint: truncated, changed, or of another kind."""


@dataclass(frozen=True)
class Lineage:
    """Where a checkpoint stands among those of its stage in a folder."""

    branch: int = 0  # raised when a run goes back to an earlier step, so that a higher branch is newer
    ancestors: tuple[tuple[int, int], ...] = ()  # (branch, last step on it) of the checkpoints that it goes back to

    def holds(self, branch: int, step: int) -> bool:
        """Whether the weights of this branch come from that step of a branch."""
        return branch == self.branch or any(branch == b and step <= last for b, last in self.ancestors)


class Stored(NamedTuple):
    """A checkpoint in a folder; the order of these is that of their age, and what cannot be read counts as the newest."""

    unreadable: bool
    branch: int
    step: int
    path: Path
    lineage: Lineage


class Loaded(NamedTuple):
    """A checkpoint that was read."""

    path: Path
    tensors: dict[str, Any]
    meta: dict[str, Any]
    skipped: tuple[str, ...]  # what is wrong with newer files, where the newest was asked for


def save(path: str | Path, tensors: dict[str, Any], meta: dict[str, Any], lineage: Lineage = Lineage()) -> Path:  # noqa: B008
    """Write a checkpoint atomically: its name appears once it is complete and synced. Other ranks than 0 write nothing.

    Args:
        path: the file.
        tensors: nested dicts with text keys; leaves are tensors (on any device), None, bool, int, float, str or lists
            of these.
        meta: plain JSON values; "stage" and "step" are expected by the trainer.
        lineage: as :func:`lineage_after` returned it when the run began.

    Raises:
        UserError: it cannot be written (disk full, no permission); a file of that name is unchanged.
        TypeError: a key or a leaf is of another kind.
    """
    if not is_main():
        return Path(path)
    flat: dict[str, Tensor] = {}
    content = {"format": FORMAT, "meta": meta, "plain": _flatten(tensors, "", flat)}
    content |= {"branch": lineage.branch, "ancestors": lineage.ancestors}
    text = json.dumps(content | {"sums": {name: checksum(tensor) for name, tensor in flat.items()}})
    header = {HEADER_KEY: text, HEADER_SUM_KEY: str(zlib.crc32(text.encode()))}
    try:
        return write_atomically(path, lambda temporary: _save_file(flat, temporary, header), durable=True)
    except (OSError, SafetensorError) as error:
        earlier = latest(Path(path).parent, meta.get("stage", FIRST.name))
        again = "there is no earlier one, so the run begins anew" if earlier is None else f"the run goes on from {earlier.name}"
        raise UserError(
            f"checkpoint {path} could not be written: {error}; what was there before is intact. Free some space, make the "
            f"folder writable, or choose another --workspace, and start again: {again}"
        ) from error


def _save_file(flat: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """``save_file`` in a folder of its own, as it makes temporary files of other names; a killed process leaves the folder."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    try:
        save_file(flat, folder / path.name, header)
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint back as the ``(tensors, meta)`` given to :func:`save`, tensors on the CPU, and check its checksums.

    A file of stable-dreamfusion (``.pth``, ``.pt``, ``.ckpt``) is read by :func:`read_pickle`.

    Raises:
        UserError: there is no such file, or it is of another format.
        DamagedError: it is truncated, changed since it was written, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; --ckpt latest takes the newest one, --ckpt scratch none")
    if path.suffix in PICKLE_SUFFIXES:
        return read_pickle(path)
    try:
        return _read(path)
    except DamagedError as error:
        raise DamagedError(f"{error}; {_way_out(path)}") from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """:func:`load` of a file of ours; what it says of a damaged one names no way out."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            stored = _parse_header(path, file.metadata() or {})
            # A copy each: the file is mapped into memory, and may be pruned while the tensors live.
            flat = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"checkpoint {path} is damaged, or no checkpoint ({error})") from None
    for name in sorted(flat.keys() | stored["sums"].keys()):
        if name not in flat or stored["sums"].get(name) != checksum(flat[name]):
            raise DamagedError(f"checkpoint {path} is damaged ({name} is not as it was written)")
    tensors = _unflatten(stored["plain"], flat, path)
    _add_missing(tensors)
    return tensors, stored["meta"]


def _add_missing(tensors: dict[str, Any]) -> None:
    """Add the state of :data:`ADDED_STATE` to the tree of a file that was written before there was such state."""
    model = tensors.get("model")
    if not isinstance(model, dict):
        return
    for name, beside, value in ADDED_STATE:
        if beside in model:
            model.setdefault(name, value.clone())


def _parse_header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The JSON in a checkpoint's header, with the keys that :func:`save` writes and values of their types.

    Raises:
        UserError: it is of another format.
        DamagedError: it is not as :func:`save` wrote it.
    """
    text = metadata.get(HEADER_KEY)
    if text is None:
        raise DamagedError(f"{path} is a safetensors file but no checkpoint of this program")
    try:
        stored = json.loads(text)
        found = stored["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedError(f"checkpoint {path} is damaged (its header is not as it was written)") from None
    if found != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {found}, this version reads {FORMAT}; "
            "use the version that wrote it, or start over with --ckpt scratch"
        )
    kinds = {"meta": dict, "plain": dict, "sums": dict, "branch": int, "ancestors": list}
    whole = metadata.get(HEADER_SUM_KEY) == str(zlib.crc32(text.encode("utf-8", "surrogatepass")))
    pairs = stored.get("ancestors") if whole and isinstance(stored, dict) else None
    if (
        not isinstance(pairs, list)
        or any(not isinstance(stored.get(key), kind) for key, kind in kinds.items())
        or any(not isinstance(pair, list) or [type(number) for number in pair] != [int, int] for pair in pairs)
    ):
        raise DamagedError(f"checkpoint {path} is damaged (its header is not as it was written)")
    return dict(stored)


def _header(path: Path) -> dict[str, Any]:
    """:func:`_parse_header` of a file, whose tensors are not read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return _parse_header(path, file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"checkpoint {path} is damaged, or no checkpoint ({error})") from None


def read_meta(path: str | Path) -> dict[str, Any]:
    """The ``meta`` of a checkpoint of ours, without its tensors.

    Raises:
        UserError: it is missing, damaged, of another format, or no checkpoint of this program.
    """
    try:
        meta: dict[str, Any] = _header(Path(path))["meta"]
        return meta
    except DamagedError as error:
        raise DamagedError(f"{error}; {_way_out(Path(path))}") from None


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
    names = [(path, _parse_name(path)) for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sorted((found[1], path) for path, found in names if found is not None and found[0] == stage)


def by_age(folder: str | Path, stage: str = FIRST.name) -> list[Stored]:
    """The checkpoints of a stage in a folder, oldest first; their headers are read."""
    found = []
    for step, path in steps(folder, stage):
        try:
            header = _header(path)
            lineage = Lineage(header["branch"], tuple((branch, last) for branch, last in header["ancestors"]))
            inside = header["meta"].get("step")  # a file that was renamed is as old as before
            known = isinstance(inside, int) and not isinstance(inside, bool)
            found.append(Stored(False, lineage.branch, inside if known else step, path, lineage))
        except UserError:
            found.append(Stored(True, 0, step, path, Lineage()))
    return sorted(found)


def latest(folder: str | Path, stage: str = FIRST.name) -> Path | None:
    """A stage's newest checkpoint, whole or not; None if the folder has none or does not exist."""
    found = by_age(folder, stage)
    return found[-1].path if found else None


def load_latest(folder: str | Path, stage: str = FIRST.name) -> Loaded | None:
    """Load the newest whole checkpoint of a stage, or one before it that it goes back to; None if the folder has none.

    Raises:
        DamagedError: none is whole; it is about the newest.
        UserError: the newest that can be read is of another format.
    """
    found = by_age(folder, stage)
    skipped: list[str] = []
    readable = [one for one in found if not one.unreadable]
    for one in reversed(found):
        if readable and not one.unreadable and not readable[-1].lineage.holds(one.branch, one.step):
            continue
        try:
            return Loaded(one.path, *_read(one.path), tuple(skipped))
        except DamagedError as error:
            skipped.append(str(error))
    if skipped:
        raise DamagedError(f"{skipped[0]}; {_way_out(found[-1].path)}")
    return None


def load_selected(folder: str | Path, ckpt: str, stage: str = FIRST.name) -> Loaded | None:
    """Load what ``--ckpt`` selects for a stage in a checkpoints folder; None: there is none, or ``scratch``.

    ``best`` is also the newest one: in stable-dreamfusion it always was, and distillation has no metric to rank by.

    Raises:
        UserError: ``ckpt`` is a path and there is no such file; or see :func:`load_latest` and :func:`load`.
    """
    if ckpt == "scratch":
        return None
    if ckpt in LATEST_WORDS:
        return load_latest(folder, stage)
    if not Path(ckpt).is_file():
        raise UserError(f"--ckpt {ckpt}: no such file; give latest, best, latest_model, scratch or the path of a checkpoint")
    return Loaded(Path(ckpt), *load(ckpt), ())


def lineage_after(folder: str | Path, stage: str = FIRST.name, path: Path | None = None) -> Lineage:
    """The lineage of the checkpoints that a run writes to a folder.

    Args:
        folder: that it writes to.
        stage: of the run.
        path: the checkpoint that its steps go on from; None if they begin at 0.
    """
    if not (readable := [one for one in by_age(folder, stage) if not one.unreadable]):
        return Lineage()
    start = next((one for one in readable if path is not None and one.path.resolve() == path.resolve()), None)
    if start is readable[-1]:
        return start.lineage
    ancestors = () if start is None else (*start.lineage.ancestors, (start.branch, start.step))
    return Lineage(readable[-1].branch + 1, ancestors)


def prune(
    folder: str | Path, keep: int, stage: str = FIRST.name, in_use: Collection[Path] = (), whole: Path | None = None
) -> None:
    """Remove all but the newest ``keep`` checkpoints that the newest one goes back to (on rank 0).

    Those of a branch that the run has left, and damaged ones, go once the branch of the newest has ``keep`` of its own. The
    last whole checkpoint is never removed.

    Args:
        folder: of checkpoints.
        keep: how many, at least 1.
        stage: whose checkpoints.
        in_use: files that stay in any case, such as the one that the user named.
        whole: a file that is known to be whole, because this process has written it.
    """
    if not is_main():
        return
    found = by_age(folder, stage)
    newest = next((one for one in reversed(found) if not one.unreadable), None)
    if newest is None:
        return
    line = [one for one in found if not one.unreadable and newest.lineage.holds(one.branch, one.step)]
    kept = {one.path for one in line[-max(keep, 1) :]}
    if sum(one.branch == newest.branch for one in line) < keep:
        kept |= {one.path for one in found if one not in line}
    if whole not in kept and not any(is_whole(path) for path in kept):
        kept |= {next((one.path for one in reversed(found) if is_whole(one.path)), newest.path)}
    protected = {path.resolve() for path in (*kept, *in_use)}
    for one in found:
        if one.path.resolve() not in protected:
            one.path.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read and its checksums are right."""
    try:
        _read(path)
    except UserError:
        return False
    return True


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
        raise UserError(f"{path} holds no checkpoint; nothing was loaded")
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
    """Put the tensors of a file back into the tree of the plain values.

    Raises:
        DamagedError: there is a plain value where tensors should be.
    """
    for place, tensor in flat.items():
        *folders, name = place.split(SEPARATOR)
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise DamagedError(f"checkpoint {path} is damaged (its header has a value in the place of {place})")
        node[name] = tensor
    return tree


def _way_out(path: Path) -> str:
    """What to do about a damaged file: use the newest whole one of its stage instead, if there is one."""
    stage = stage_of(path)
    if stage is None:
        return "give another file"
    others = [one.path for one in by_age(path.parent, stage) if one.path != path]
    whole = next((other for other in reversed(others) if is_whole(other)), None)
    if whole is not None:
        return f"give --ckpt or --init_with the one before it, {whole}"
    kind = STAGE_KINDS[stage]
    without = "--test and --six_views" if kind.triangles else "--dmtet, --test and --six_views"
    return f"train this {kind.noun} anew with {kind.restart}, and leave out {without}"


def what_is_left(folder: Path, stage: str, ckpt: str) -> str:
    """What the command of a run does after a failure, in words.

    Args:
        folder: of the checkpoints.
        stage: name of the stage that failed.
        ckpt: the value of ``--ckpt``.
    """
    found = latest(folder, stage)
    if found is None:
        return "no checkpoint was written yet, so the run begins anew"
    return f"{same_command(ckpt)} goes on from {found.name}"


def same_command(ckpt: str) -> str:
    """The command that goes on from the newest checkpoint, in words, for the value of ``--ckpt`` in this run."""
    return "the same command" + ("" if ckpt == "latest" else " without --ckpt")
