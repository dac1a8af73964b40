"""What a GPU has computed and the host has not seen yet: loss terms of the last steps, and how full the images are.

Looking at a number at once makes the host wait for everything before it. So the numbers of several steps are kept, sent to
the host in one copy, and looked at when that has arrived; before a checkpoint is written all of them are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from guidance.distillation import diagnosis
from nerf.core.errors import DivergenceError
from nerf.core.transfer import Download
from nerf.training.divergence import DivergenceMonitor, mean_and_fog, not_finite


@dataclass(frozen=True)
class _Step:
    """The numbers of one part of a step, end to end in ``values``."""

    number: int
    terms: tuple[str, ...]
    explained: tuple[tuple[str, int], ...]  # term -> B, of the flags [2, B] that say why it is not finite
    stands_for: int  # steps, of the mean opacity and the fog at the end; 0: there are none
    values: tuple[Tensor, ...]


class Unread:
    """Numbers of training steps that nobody has looked at.

    Args:
        monitor: is told how full the images are.
        advice: gives the end of the message about a term that is not finite: what is left, and what to try.
    """

    def __init__(self, monitor: DivergenceMonitor, advice: Callable[[], str]):
        self.monitor, self.advice = monitor, advice
        self._kept: list[_Step] = []
        self._sent: tuple[list[_Step], Download] | None = None

    def add(
        self,
        step: int,
        terms: Mapping[str, Tensor],
        finite: Mapping[str, Tensor] | None = None,
        opacity: Tensor | None = None,
        stands_for: int = 1,
    ) -> None:
        """Keep what one part of a step has computed.

        Args:
            step: 0-based.
            terms: name -> scalar.
            finite: term -> [2, B] bool, see ``GuidanceOutput.finite``.
            opacity: [N] of a render that frames the object, if the monitor is to see it.
            stands_for: how many steps that render stands for.
        """
        finite = finite or {}
        values = [value.detach() for value in (*terms.values(), *finite.values())]
        if opacity is not None:
            values.append(mean_and_fog(opacity.detach()))
        explained = tuple((name, flags.shape[1]) for name, flags in finite.items())
        self._kept.append(_Step(step, tuple(terms), explained, stands_for if opacity is not None else 0, tuple(values)))

    def send(self) -> None:
        """Look at what was sent before, which has been under way since, and start to copy what was kept to the host.

        Raises:
            DivergenceError: see :meth:`look`.
        """
        self._look_at_sent()
        if self._kept:
            flat = torch.cat([value.reshape(-1) for step in self._kept for value in step.values])  # flags become 0 and 1
            self._sent, self._kept = (self._kept, Download(flat)), []

    def look(self) -> None:
        """Look at what was sent, if it is known to have arrived.

        Raises:
            DivergenceError: a term was not finite; names those of the first such step.
        """
        if self._sent is not None and self._sent[1].arrived:
            self._look_at_sent()

    def settle(self) -> None:
        """Look at everything, and wait for it.

        Raises:
            DivergenceError: see :meth:`look`.
        """
        self.send()
        self._look_at_sent()

    def _look_at_sent(self) -> None:
        if self._sent is None:
            return
        (steps, download), self._sent = self._sent, None
        numbers = download.result().tolist()
        for step in steps:
            count = sum(value.numel() for value in step.values)
            self._look_at(step, numbers[:count])
            del numbers[:count]

    def _look_at(self, step: _Step, numbers: list[float]) -> None:
        """Check the terms of a step, and tell the monitor."""
        bad = [name for name, value in zip(step.terms, numbers, strict=False) if not math.isfinite(value)]
        at = len(step.terms)
        for name, count in step.explained:
            if name in bad:
                flags = [[bool(x) for x in numbers[at + i * count : at + (i + 1) * count]] for i in range(2)]
                raise DivergenceError(f"step {step.number}: {diagnosis(flags, on_gpu=True)}")
            at += 2 * count
        if bad:
            raise DivergenceError(f"{not_finite(bad, step.number)}; {self.advice()}")
        if step.stands_for:
            self.monitor.add(numbers[at], numbers[at + 1], step.stands_for)
