"""Exponential moving average of the weights.

Training works on the raw weights; everything that is rendered or exported (previews, validation, videos, meshes, metrics)
uses the averaged ones; a checkpoint holds both.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Average of a module's parameters, updated once per optimiser step.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the average of a short run is not
    dominated by its random start.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module = module
        self.decay = decay
        self.updates = 0
        self.average = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, list(self.module.parameters()), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run a block with the averaged weights in the module; the raw ones are restored afterwards, whatever happens."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.average, self.module.parameters(), strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, Tensor]:
        """The average of each parameter by name, and the number of updates as a 0-d tensor."""
        names = [name for name, _ in self.module.named_parameters()]
        return dict(zip(names, self.average, strict=True)) | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of :meth:`state_dict`.

        Raises:
            ValueError: a parameter is missing from the state.
        """
        self.updates = int(state["updates"])
        for (name, _), average in zip(self.module.named_parameters(), self.average, strict=True):
            if name not in state:
                raise ValueError(f"Ema: the state has no parameter {name}; it belongs to another model")
            average.copy_(state[name])
