"""Adan (Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm", arXiv 2208.06677, Algorithm 1) as a torch optimiser.

g is a gradient, k the 1-based step of a parameter. Betas are the shares that are *kept*, as in Adam (the paper's are
what is taken in: beta here = 1 - beta there).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Adan(Optimizer):
    """Adaptive Nesterov momentum with decoupled, proximal weight decay.

    With d_k = g_k - g_{k-1} (d_1 = 0)::

        m_k = b1 m_{k-1} + (1 - b1) g_k
        v_k = b2 v_{k-1} + (1 - b2) d_k
        n_k = b3 n_{k-1} + (1 - b3) (g_k + b2 d_k)^2
        s_k = (m_k / (1 - b1^k) + b2 v_k / (1 - b2^k)) / (sqrt(n_k / (1 - b3^k)) + eps)
        p  <- (p - lr s_k) / (1 + lr weight_decay)

    The divisions by ``1 - b^k`` undo the start at zero, which the paper does by starting m and n at the first gradient.
    No step reads a tensor back to the host, so CUDA never waits. State: four tensors a parameter.

    Args:
        params: parameters or groups of them; groups may carry their own lr, betas, eps, weight_decay, max_grad_norm.
        lr: learning rate, >= 0.
        betas: (b1, b2, b3), each in [0, 1).
        eps: added to the denominator.
        weight_decay: proximal decay.
        max_grad_norm: if positive, the gradients of all groups together are scaled down to at most this norm.
        foreach: update lists of tensors at once (the same rule, fewer launches); False goes tensor by tensor.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: at the step, a parameter is half precision or its gradient is sparse.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        foreach: bool = True,
    ):
        if lr < 0 or eps < 0 or weight_decay < 0 or max_grad_norm < 0:
            raise ValueError(
                "Adan: lr, eps, weight_decay and max_grad_norm must be at least 0, "
                f"got {lr}, {eps}, {weight_decay} and {max_grad_norm}"
            )
        if len(betas) != 3 or not all(0 <= b < 1 for b in betas):
            raise ValueError(f"Adan: betas must be three numbers in [0, 1), got {betas}")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"max_grad_norm": max_grad_norm, "foreach": foreach})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]  # as torch's own
        """Take one step; returns the closure's loss, if a closure is given to compute it with gradients on."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip = self._clip_factor()
        for group in self.param_groups:
            for step, rows in self._rows(group, clip).items():
                lists = [list(column) for column in zip(*rows, strict=True)]
                batches = [lists] if group["foreach"] else [[[t] for t in row] for row in rows]
                for batch in batches:
                    _update(batch, step, group)
        return loss

    def _clip_factor(self) -> Tensor | None:
        """min(1, max_grad_norm / norm) over every gradient of every group, as a 0-d tensor; None if no group clips."""
        limit = max(group["max_grad_norm"] for group in self.param_groups)
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if limit <= 0 or not grads:
            return None
        norms = torch.stack([n.to(grads[0].device, torch.float64) for n in torch._foreach_norm(grads)])
        return (limit / (torch.linalg.vector_norm(norms) + 1e-8)).clamp(max=1.0)

    def _rows(self, group: dict[str, Any], clip: Tensor | None) -> dict[int, list[tuple[Tensor, ...]]]:
        """(parameter, gradient, m, v, n, previous gradient) of each parameter with a gradient, by its step number."""
        rows: dict[int, list[tuple[Tensor, ...]]] = {}
        for p in (p for p in group["params"] if p.grad is not None):
            if p.grad.is_sparse or p.dtype in (torch.float16, torch.bfloat16):
                raise TypeError(
                    "Adan: expected dense gradients of float32 or float64 parameters, "
                    f"got {p.grad.layout} of {p.dtype}; keep the weights in float32 and use autocast"
                )
            grad = p.grad if clip is None else p.grad * clip.to(p.device, p.dtype)
            state = self.state[p]
            if not state:
                zeros = [torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(3)]
                names = ("exp_avg", "exp_avg_diff", "exp_avg_sq")
                state.update(step=0, **dict(zip(names, zeros, strict=True)), previous_grad=grad.clone())
            state["step"] += 1
            row = (p, grad, state["exp_avg"], state["exp_avg_diff"], state["exp_avg_sq"], state["previous_grad"])
            rows.setdefault(state["step"], []).append(row)
        return rows


def _update(columns: list[list[Tensor]], step: int, group: dict[str, Any]) -> None:
    """The rule above in place, for lists of parameters, gradients, m, v, n and previous gradients, which become the new."""
    params, grads, m, v, n, previous = columns
    (b1, b2, b3), lr = group["betas"], group["lr"]
    change = torch._foreach_sub(grads, previous)
    torch._foreach_copy_(previous, grads)
    torch._foreach_lerp_(m, grads, 1 - b1)
    torch._foreach_lerp_(v, change, 1 - b2)
    torch._foreach_mul_(change, b2)
    torch._foreach_add_(change, grads)
    torch._foreach_mul_(n, b3)
    torch._foreach_addcmul_(n, change, change, 1 - b3)
    denominator = torch._foreach_sqrt(n)
    torch._foreach_div_(denominator, (1 - b3**step) ** 0.5)
    torch._foreach_add_(denominator, group["eps"])
    torch._foreach_addcdiv_(params, m, denominator, -lr / (1 - b1**step))
    torch._foreach_addcdiv_(params, v, denominator, -lr * b2 / (1 - b2**step))
    if group["weight_decay"] > 0:
        torch._foreach_div_(params, 1 + lr * group["weight_decay"])
