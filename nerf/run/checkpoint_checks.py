"""Checks of what a checkpoint holds against what the run expects, made before any of it is used."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from nerf.config.stages import STAGE_KINDS
from nerf.core.errors import DivergenceError, UserError
from nerf.training.divergence import DivergenceMonitor

WAY_OUT = "give the options it was trained with (config.json lists them), another --ckpt, or start over with --ckpt scratch"
SCALER_KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


def check_finite_state(tensors: Mapping[str, Any], step: int, advice: Callable[[], str]) -> None:
    """Refuse to save weights, averages or moments of an optimiser that are not finite. Each device is waited for once.

    Args:
        tensors: nested dicts, as for ``checkpoint.save``.
        step: number of steps taken.
        advice: gives the end of the message: what is left, and what to try.

    Raises:
        DivergenceError: names the first such tensor.
    """
    found = {name: value for name, value in _leaves(tensors) if _is_float(value) and value.numel()}
    if not found:
        return
    bad: list[str] = []
    for device in {value.device for value in found.values()}:
        names = [name for name, value in found.items() if value.device == device]
        finite = torch.stack([found[name].detach().isfinite().all() for name in names]).tolist()
        bad += [name for name, good in zip(names, finite, strict=True) if not good]
    if bad:
        raise DivergenceError(f"after step {step - 1}: {bad[0]} is not finite, so no checkpoint was written; {advice()}")


def require_parts(tensors: Mapping[str, Any], names: Iterable[str], path: object) -> None:
    """Check that a checkpoint has parts, such as "model" and "ema".

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if not isinstance(tensors.get(name), dict):
            raise UserError(f"checkpoint {path} has no {name}: another program changed it; give another file")


def check_meta(meta: Mapping[str, Any], path: object) -> None:
    """Check the ``meta`` that a trainer wrote: step, seconds, and what else it restores from there.

    Raises:
        UserError: a value is missing, of another type or out of its range.
    """
    counters = [field.name for field in fields(DivergenceMonitor)]
    monitor, scaler, transform = meta.get("monitor"), meta.get("scaler"), meta.get("transform")
    good = {
        "stage": meta.get("stage") in STAGE_KINDS,
        "step": _is_count(meta.get("step")),
        "seconds": _is_number(meta.get("seconds")) and 0 <= meta["seconds"] < math.inf,
        "monitor": isinstance(monitor, dict)
        and sorted(monitor) == sorted(counters)
        and all(_is_number(monitor[name]) for name in ("opacity", "fog"))
        and all(_is_count(monitor[name]) for name in ("updates", "steps")),
        "scaler": isinstance(scaler, dict)
        and (not scaler or sorted(scaler) == sorted(SCALER_KEYS))
        and all(_is_number(value) and 0 <= value < math.inf for value in scaler.values()),
        "transform": transform is None or _is_matrix(transform),
        "notes": isinstance(meta.get("notes", {}), dict),
    }
    for name, is_good in good.items():
        if not is_good:
            shown = str(meta.get(name))[:60]
            raise UserError(f"checkpoint {path} has no valid {name}, got {shown}: another program changed it; {WAY_OUT}")


def require_stage(meta: Mapping[str, Any], stage: str, path: object) -> None:
    """Check that a checkpoint belongs to a stage of the run.

    Raises:
        UserError: it belongs to another.
    """
    theirs, kind = meta.get("stage"), STAGE_KINDS[stage]
    if theirs != stage:
        other = f", or use this one with --stages {theirs} in place of --stages or --dmtet" if theirs in STAGE_KINDS else ""
        other += f"; --init_with starts a {kind.noun} from it" if theirs is not None and theirs == kind.starts_from else ""
        raise UserError(f"checkpoint {path} is of stage {theirs!r}, this is stage {stage!r}; give one of this stage{other}")


def load_module(module: nn.Module, state: Mapping[str, Any], path: object) -> None:
    """Load a module's state, all of it.

    Raises:
        UserError: see :func:`check_like`.
    """
    check_like(module.state_dict(), state, path)
    module.load_state_dict(state)


def check_learners(kind: str, learners: Mapping[str, Any], tensors: Mapping[str, Any], path: object) -> None:
    """Check what a checkpoint holds of what learns beside the model, as :func:`check_like`.

    Args:
        kind: "guidance", "objectives" or "sources".
        learners: name -> what has a ``state_dict``.
        tensors: of the checkpoint.
        path: of it, for the message.

    Raises:
        UserError: names the first difference.
    """
    for name, learner in learners.items():
        check_like(learner.state_dict(), tensors.get(kind, {}).get(name, {}), path, f"{kind}/{name}")


def check_like(expected: Mapping[str, Any], found: Any, path: object, name: str = "") -> None:
    """Check that a tree of tensors has the names, shapes and types of another, and that its numbers are finite.

    Args:
        expected: nested dicts of tensors, as the run would save them now.
        found: the same, from the checkpoint.
        path: of the checkpoint, for the message.
        name: of the tree, for the message; empty for that of a single module.

    Raises:
        UserError: names the first difference.
    """
    inside = f"{name}/" if name else ""
    if not isinstance(found, dict):
        raise UserError(f"checkpoint {path} has no {name}: {WAY_OUT}")
    for key in sorted(set(expected) ^ set(found)):
        verb = "lacks" if key in expected else "has an extra"
        raise UserError(f"checkpoint {path} {verb} {inside}{key}; it is of another kind of model: {WAY_OUT}")
    for key, value in expected.items():
        if isinstance(value, Mapping):
            check_like(value, found[key], path, f"{inside}{key}")
        else:
            _check_tensor(value, found[key], path, f"{inside}{key}")


def check_optimizer(optimizer: torch.optim.Optimizer, state: Any, count: Any, path: object) -> dict[int, dict[str, Any]]:
    """Check the state of an optimiser, and return it under the numbers of the parameters.

    Args:
        optimizer: of the run.
        state: number of a parameter as text -> name -> tensor or number; parameters that never had a gradient have none.
        count: of parameters with a state when the checkpoint was written.
        path: of the checkpoint, for the message.

    Raises:
        UserError: names the first thing that does not fit.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(state, dict) or len(state) != count:
        raise UserError(f"checkpoint {path} lacks the state of its optimiser: {WAY_OUT}")
    pattern = _state_of_one(optimizer)
    numbers = {str(i): p for i, p in enumerate(params)}
    for key, values in state.items():
        name = f"optimizer/{key}"
        if key not in numbers or not isinstance(values, dict) or sorted(values) != sorted(pattern):
            raise UserError(f"checkpoint {path} has another {name} than --optim makes here: {WAY_OUT}")
        for part, example in pattern.items():
            if not isinstance(example, Tensor):
                if not _is_count(values[part]):
                    raise UserError(
                        f"checkpoint {path} has {name}/{part} {values[part]!r}, expected a number of steps: {WAY_OUT}"
                    )
            else:
                expected = numbers[key] if example.dim() else example
                _check_tensor(expected, values[part], path, f"{name}/{part}")
    return {int(key): values for key, values in state.items()}


def check_random(state: Any, path: object) -> Tensor:
    """The state of torch's random numbers in a checkpoint, checked by a generator that nobody uses.

    Raises:
        UserError: it is not one.
    """
    found = state.get("torch") if isinstance(state, dict) else None
    try:
        torch.Generator().set_state(found)  # type: ignore[arg-type]  # a TypeError says what it is
    except (TypeError, RuntimeError):
        raise UserError(f"checkpoint {path} has no valid state of the random numbers: {WAY_OUT}") from None
    assert isinstance(found, Tensor), "set_state takes nothing else"
    return found


def check_model(module: nn.Module, tensors: Mapping[str, Any], average: Mapping[str, Tensor], path: object) -> None:
    """Check the weights of a model and their average.

    Args:
        module: the model of the run.
        tensors: of the checkpoint.
        average: state of the average in the run.
        path: of the checkpoint, for the message.

    Raises:
        UserError: names the first thing that does not fit.
    """
    check_like(module.state_dict(), tensors.get("model"), path, "model")
    check_like(average, tensors.get("ema"), path, "ema")
    if int(tensors["ema"]["updates"]) < 0:
        raise UserError(f"checkpoint {path} has an average of {int(tensors['ema']['updates'])} updates: {WAY_OUT}")


def _check_tensor(expected: Tensor, found: Any, path: object, name: str) -> None:
    if not isinstance(found, Tensor):
        raise UserError(f"checkpoint {path} has another thing than a tensor as {name}: {WAY_OUT}")
    if found.shape != expected.shape:
        raise UserError(
            f"checkpoint {path} has {name} of shape {list(found.shape)}, this run asks for {list(expected.shape)}: {WAY_OUT}"
        )
    if found.dtype != expected.dtype:
        raise UserError(
            f"checkpoint {path} has {name} of type {_plain(found)}, this run asks for {_plain(expected)}: {WAY_OUT}"
        )
    if _is_float(found) and not bool(found.isfinite().all()):
        raise UserError(f"checkpoint {path} has numbers in {name} that are not finite: give an earlier one with --ckpt")


def _state_of_one(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state that an optimiser of this kind and these settings keeps of one parameter, by name."""
    example = nn.Parameter(torch.zeros(2))
    example.grad = torch.zeros(2)
    probe = type(optimizer)([example], **optimizer.defaults)
    probe.step()
    return dict(probe.state[example])


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(path, leaf) of a tree of nested dicts."""
    found = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _plain(tensor: Tensor) -> str:
    """The type of a tensor's numbers, such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_matrix(value: Any) -> bool:
    """Whether a value is a list of 4 lists of 4 finite numbers."""
    if not isinstance(value, list) or len(value) != 4 or any(not isinstance(row, list) or len(row) != 4 for row in value):
        return False
    return all(_is_number(number) and math.isfinite(number) for row in value for number in row)
