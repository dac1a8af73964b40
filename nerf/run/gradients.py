"""Gradients of several processes, added up: each has its share of the loss, and all take the same step. T rows of F numbers."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from nerf.core import torchrun
from nerf.run.distributed import exchanging, world_size

PACKED = 1 << 16  # numbers: smaller gradients travel together in one message
TABLE_ROWS = 1 << 14  # of a table, such as that of a hash grid, of which a step may touch a small part
SPARSE = 0.5  # share of the rows below which those alone are sent


class GradientSum:
    """Adds up gradients, and the loss terms for the log, over all processes; does nothing where there is one.

    Between machines, and on CPUs, only those rows of a table travel that some process has touched: first which they are, a byte
    a row, then their sums. That is exact. Between GPUs of one machine the whole table is faster than asking.

    Attributes:
        sent: bytes that this process handed over in the last step, by what they were.
    """

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.sparse = torchrun.world_size() > torchrun.local_world_size()

    @torch.no_grad()
    def __call__(
        self, parameters: Sequence[nn.Parameter], terms: Mapping[str, Tensor], names: Iterable[str]
    ) -> dict[str, Tensor]:
        """Put the sum of the gradients of all processes into ``grad``.

        Args:
            parameters: the same in all processes; where none of them has a gradient, there is none afterwards.
            terms: scalars, each times the share of this process.
            names: of all terms that some process may have, the same in all of them.

        Returns:
            The terms, summed over the processes.

        Raises:
            PeerError: another process is gone; no gradient is to be used.
        """
        if world_size() == 1:
            return dict(terms)
        self.sent = dict.fromkeys(("flags", "small", "rows", "tables"), 0)
        with exchanging():
            flags = self._sum("flags", torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8), largest=True)
            used = [p for p, flag in zip(parameters, flags.tolist(), strict=True) if flag]
            for parameter in used:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            for parameter in (p for p in used if p.numel() > PACKED):
                self._sum_large(_gradient(parameter))
            there = [p for p in used if p.numel() <= PACKED]
            device = parameters[0].device if parameters else torch.device("cpu")
            return self._sum_small(there, terms, sorted(names), device)

    def _sum(self, what: str, tensor: Tensor, largest: bool = False) -> Tensor:
        """Add up a tensor over the processes, in place."""
        self.sent[what] += tensor.numel() * tensor.element_size()
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM)
        return tensor

    def _sum_large(self, gradient: Tensor) -> None:
        """Add up a large gradient: the rows that are not 0 everywhere, if it is a table and they are few."""
        table = gradient.ndim == 2 and len(gradient) >= TABLE_ROWS
        if table and (self.sparse or gradient.device.type == "cpu"):
            touched = self._sum("flags", (gradient != 0).any(1).to(torch.uint8), largest=True)
            rows = touched.nonzero()[:, 0]
            if len(rows) <= SPARSE * len(gradient):
                gradient[rows] = self._sum("rows", gradient[rows])
                return
        whole = self._sum("tables", gradient.contiguous())
        if whole.data_ptr() != gradient.data_ptr():
            gradient.copy_(whole)

    def _sum_small(
        self, parameters: Sequence[nn.Parameter], terms: Mapping[str, Tensor], names: list[str], device: torch.device
    ) -> dict[str, Tensor]:
        """Add up small gradients and terms, in one message for each kind of number; returns the terms of this process."""
        values = {name: torch.zeros((), device=device) for name in names}
        values |= {name: value.detach().to(device, torch.float32) for name, value in terms.items()}
        together = [*(_gradient(parameter) for parameter in parameters), *(values[name] for name in names)]
        for dtype in sorted({tensor.dtype for tensor in together}, key=str):
            alike = [tensor for tensor in together if tensor.dtype == dtype]
            flat = self._sum("small", torch.cat([tensor.reshape(-1).to(device) for tensor in alike]))
            for tensor, summed in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(summed.view_as(tensor))
        return {name: values[name] for name in terms}


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None, "set where another process has one"
    return parameter.grad


def state_before(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what a step changes before the gradients are there, occupancy for instance; empty in a single process."""
    if world_size() == 1:
        return {}
    learned = {name for name, _ in model.named_parameters()}
    return {name: value.clone() for name, value in model.state_dict().items() if name not in learned}
