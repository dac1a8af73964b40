"""The number of random rays of a step that keeps the number of its samples, and so its cost, the same. N rays, M samples."""

import torch
from torch import Tensor

from nerf.core.structs import Samples
from nerf.core.transfer import Download

LEAST, MOST = 1.0 / 4.0, 16.0  # times the number of rays at the start
FEWEST = 64  # rays, whatever the start
KEPT = 0.9  # share of the last number in the next (instant-nsr-pl)


class RayCount:
    """Rays of the next step, from the samples of those before: empty space becomes known, and a ray then costs less.

    ``n' = 0.9 n + 0.1 n target / samples``, between 1/4 and 16 times the start. Steps in which nothing was sampled count as one
    sample a ray. On a GPU the number of samples is read back in the step after, without waiting for it.

    Args:
        start: rays of the first step.
        target: samples of a step.
    """

    def __init__(self, start: int, target: int):
        self.target = target
        self.low, self.high = max(min(FEWEST, start), int(start * LEAST)), int(start * MOST)
        self.rays = float(start)
        self._pending: tuple[int, Download] | None = None

    def next(self) -> int:
        """How many rays the next step has."""
        if self._pending is not None:
            (rays, samples), self._pending = self._pending, None
            self._adapt(rays, int(samples.result()))
        return int(self.rays)

    def observe(self, rays: int, samples: Samples) -> None:
        """Remember the M samples that a step of so many rays had."""
        if samples.t.device.type == "cuda":
            self._pending = rays, Download(samples.count.sum())
        else:
            self._adapt(rays, len(samples))

    def _adapt(self, rays: int, samples: int) -> None:
        wanted = rays * self.target / max(samples, rays, 1)
        self.rays = min(max(KEPT * self.rays + (1.0 - KEPT) * wanted, float(self.low)), float(self.high))

    def state_dict(self) -> dict[str, Tensor]:
        """The number of rays, [] float64, which a resumed run goes on with."""
        self.next()
        return {"rays": torch.tensor(self.rays, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state_dict`; an empty one leaves the start."""
        if "rays" in state:
            self.rays = min(max(float(state["rays"]), float(self.low)), float(self.high))
        self._pending = None
