"""Copies of a model in training, so that frames are rendered beside a step and not between two of them.

A step takes 0.1 s on a CPU, and a video or a mesh many seconds: a view that waited for them would not answer a click in 200 ms.
Rendering with the trained model itself would need the averaged weights in it, and change what the march remembers. A frame is
therefore rendered with a copy of the averaged weights and the buffers, on another thread; the trained model is only read,
between two steps, by the thread that trains. Copying takes milliseconds, and happens only while somebody looks.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from nerf.core.structs import RenderSettings
from nerf.renderer import NeRFRenderer, build_model
from nerf.utils import Trainer


@dataclass(frozen=True)
class Snapshot:
    """A state of the training that can be rendered; its model belongs to whoever has it from :meth:`Snapshots.use`."""

    number: int  # of the snapshot, counted from 1
    step: int
    model: NeRFRenderer
    settings: RenderSettings  # of evaluation


class Snapshots:
    """Two copies of the model in turn: one is shown while the other one is written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trainer: Trainer | None = None  # whose model the copies are of
        self._copies: list[NeRFRenderer] = []  # at most two
        self._current: Snapshot | None = None
        self._used: Snapshot | None = None

    @property
    def current(self) -> Snapshot | None:
        """The newest snapshot; None before the first one."""
        return self._current

    @contextmanager
    def use(self) -> Iterator[Snapshot | None]:
        """The newest snapshot, whose model does not change in this block; one thread may be in one at a time."""
        with self._lock:
            self._used = self._current
        try:
            yield self._used
        finally:
            with self._lock:
                self._used = None

    def take(self, trainer: Trainer) -> bool:
        """Copy the averaged weights of a trainer, between two of its steps, on the thread that trains.

        Returns:
            False if both copies are in use; the next step may try again.
        """
        if trainer is not self._trainer:
            self._trainer, self._copies = trainer, []
        with self._lock:
            shown = [snapshot.model for snapshot in (self._current, self._used) if snapshot is not None]
        target = next((model for model in self._copies if not any(model is other for other in shown)), None)
        if target is None:
            if len(self._copies) == 2:
                return False
            target = copied(trainer)
            self._copies.append(target)
        copy_averaged(trainer, target)
        number = 1 if self._current is None else self._current.number + 1
        with self._lock:
            self._current = Snapshot(number, trainer.step, target, trainer.evaluator.settings())
        return True


def copied(trainer: Trainer) -> NeRFRenderer:
    """A second model like that of a trainer. The random numbers of training are not touched."""
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        model = build_model(trainer.stage, trainer.info.scene).to(trainer.device)
    state = trainer.model.state_dict()
    model.path.make_room({name.removeprefix("path."): value for name, value in state.items() if name.startswith("path.")})
    model.load_state_dict(state)
    return model.requires_grad_(False)


@torch.no_grad()
def copy_averaged(trainer: Trainer, model: NeRFRenderer) -> None:
    """Copy the averaged weights and the buffers of a trainer's model into another one like it."""
    torch._foreach_copy_(list(model.parameters()), trainer.ema.average)
    for target, source in zip(model.buffers(), trainer.model.buffers(), strict=True):
        target.copy_(source)
