"""The course of the losses, for a plot: bounded, so that a long training takes no more memory than a short one."""

from collections.abc import Mapping

from torch import Tensor

MOST_POINTS = 1024  # of each loss; when there are as many, every second one is dropped


class History:
    """Named losses at steps. One thread adds; any thread reads.

    Args:
        most: points kept of each loss.
    """

    def __init__(self, most: int = MOST_POINTS):
        self.most = most
        self._every = 1  # steps between two points
        self._points: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {}
        self._new: dict[str, tuple[list[int], list[float]]] = {}

    def wants(self, step: int) -> bool:
        """Whether the values of this step would be kept; reading them from a GPU waits for it."""
        return step % self._every == 0

    def add(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Add the values of a step, unless it is one of those that are left out."""
        if not self.wants(step):
            return
        for name, value in values.items():
            steps, kept = self._new.setdefault(name, ([], []))
            steps.append(step)
            kept.append(float(value.detach()) if isinstance(value, Tensor) else float(value))
        if any(len(steps) >= self.most for steps, _ in self._new.values()):
            self._every *= 2
            for steps, kept in self._new.values():
                chosen = [i for i, at in enumerate(steps) if at % self._every == 0]
                steps[:], kept[:] = [steps[i] for i in chosen], [kept[i] for i in chosen]
        self._points = {name: (tuple(steps), tuple(kept)) for name, (steps, kept) in self._new.items()}

    def clear(self) -> None:
        """Forget everything: the training begins anew."""
        self._every, self._points, self._new = 1, {}, {}

    @property
    def points(self) -> Mapping[str, tuple[tuple[int, ...], tuple[float, ...]]]:
        """Name of a loss -> its steps and its values; it is not changed afterwards."""
        return self._points
