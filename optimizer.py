"""Adan (Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm", arXiv 2208.06677, Algorithm 1) as a torch optimiser.

g is a gradient, k the 1-based step of a parameter. Betas are the shares that are *kept*, as in Adam (the paper's are
what is taken in: beta here = 1 - beta there).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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

    A ``torch.amp.GradScaler`` leaves its gradients and the flag ``found_inf`` to the optimiser. A step with the flag changes
    nothing and does not count; as only the device knows the flag, the number of such steps is kept there until the state is
    asked for.

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

    _step_supports_amp_scaling = True  # a gradient scaler sets grad_scale and found_inf for the step, and reads neither

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
        # Of each parameter, how many of its steps were cancelled, 0-d on the device; one tensor for all with the same history.
        self._cancelled: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]  # as torch's own
        """Take one step; returns the closure's loss, if a closure is given to compute it with gradients on."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)  # of a gradient scaler
        factor = self._factor(getattr(self, "grad_scale", None))
        earlier = self._count_cancelled(found_inf)
        known: dict[tuple[Any, ...], _Factors] = {}
        for group in self.param_groups:
            for (step, history), rows in self._rows(group, factor).items():
                lists = [list(column) for column in zip(*rows, strict=True)]
                batches = [lists] if group["foreach"] else [[[t] for t in row] for row in rows]
                for batch in batches:
                    if found_inf is None:
                        _update(batch, step, group)
                    else:
                        key = (step, history, group["betas"], rows[0][0].dtype, rows[0][0].device)
                        if key not in known:
                            known[key] = _Factors.of(found_inf > 0, step - earlier[rows[0][0]], group["betas"], rows[0][0])
                        _update_unless(known[key], batch, group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's; ``step`` counts the steps that were taken. Waits for CUDA where steps may have been cancelled."""
        self._forget_cancelled()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's."""
        super().load_state_dict(state_dict)
        self._cancelled.clear()

    def __getstate__(self) -> dict[str, Any]:
        self._forget_cancelled()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._cancelled = {}

    def _with_gradient(self) -> list[Tensor]:
        """The parameters that have a gradient."""
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _count_cancelled(self, found_inf: Tensor | None) -> dict[Tensor, Tensor]:
        """Count this step as cancelled where ``found_inf``; returns the numbers before, of the parameters with a gradient."""
        if found_inf is None:
            self._forget_cancelled()
            return {}
        none = torch.zeros((), dtype=torch.float64, device=found_inf.device)
        before = {p: self._cancelled.get(p, none) for p in self._with_gradient()}
        # Those that shared a tensor share the next one; those that sit this step out keep the old one.
        after = {id(count): count + (found_inf > 0) for count in before.values()}
        self._cancelled |= {p: after[id(count)] for p, count in before.items()}
        return before

    def _forget_cancelled(self) -> None:
        """Take the cancelled steps out of the numbers of steps, for which CUDA is waited."""
        if self._cancelled:
            for p, count in zip(self._cancelled, torch.stack([*self._cancelled.values()]).tolist(), strict=True):
                self.state[p]["step"] -= int(count)
            self._cancelled.clear()

    def _factor(self, grad_scale: Tensor | None) -> Tensor | None:
        """What gradients are multiplied by: ``1 / grad_scale`` and min(1, max_grad_norm / norm), with the norm of all of them.

        0-d, or None where nothing scales and no group clips.
        """
        limit = max(group["max_grad_norm"] for group in self.param_groups)
        grads = [p.grad for p in self._with_gradient() if p.grad is not None]
        inverse = None if grad_scale is None else grad_scale.double().reciprocal()
        if limit <= 0 or not grads:
            return inverse
        norms = torch.stack([n.to(grads[0].device, torch.float64) for n in torch._foreach_norm(grads)])
        norm = torch.linalg.vector_norm(norms)
        clip = (limit / ((norm if inverse is None else norm * inverse) + 1e-8)).clamp(max=1.0)
        return clip if inverse is None else clip * inverse

    def _rows(self, group: dict[str, Any], factor: Tensor | None) -> dict[tuple[int, int], list[tuple[Tensor, ...]]]:
        """(parameter, gradient, m, v, n, previous gradient) of each parameter with a gradient, by its history.

        That is its number of steps, those that were cancelled included, and which count of those it shares.
        """
        rows: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}
        for p in (p for p in group["params"] if p.grad is not None):
            if p.grad.is_sparse or p.dtype in (torch.float16, torch.bfloat16):
                raise TypeError(
                    "Adan: expected dense gradients of float32 or float64 parameters, "
                    f"got {p.grad.layout} of {p.dtype}; keep the weights in float32 and use autocast"
                )
            grad = p.grad if factor is None else p.grad * factor.to(p.device, p.dtype)
            state, count = self.state[p], self._cancelled.get(p)
            if not state:
                zeros = [torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(4)]
                names = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")
                state.update(step=0, **dict(zip(names, zeros, strict=True)))
            if state["step"] == 0 and count is None:
                state["previous_grad"].copy_(grad)
            state["step"] += 1
            row = (p, grad, state["exp_avg"], state["exp_avg_diff"], state["exp_avg_sq"], state["previous_grad"])
            rows.setdefault((state["step"], id(count)), []).append(row)
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


@dataclass(frozen=True)
class _Factors:
    """What :func:`_update_unless` multiplies by and adds: 0-d tensors on the device, in the dtype of the parameters."""

    cancelled: Tensor  # bool
    kept: Tensor  # 0 where the step is cancelled, else 1
    began: Tensor  # 0 in the first step that is taken, where d_1 = 0, else 1
    take: tuple[Tensor, ...]  # 1 - b1, 1 - b2 and 1 - b3; 0 where the step is cancelled
    keep_n: Tensor  # b3; 1 where the step is cancelled
    corrections: tuple[Tensor, ...]  # 1 - b1^k, (1 - b2^k) / b2 and sqrt(1 - b3^k)

    @classmethod
    def of(cls, cancelled: Tensor, step: Tensor, betas: tuple[float, float, float], like: Tensor) -> "_Factors":
        """Those of a step, of which ``step`` [] were taken, this one included."""
        kept, (b1, b2, b3) = (~cancelled).double(), betas
        powers = [1 - torch.pow(beta, step) for beta in betas]
        second = powers[1] / b2 if b2 > 0 else powers[1] * math.inf
        numbers = [kept, (step > 1).double(), kept * (1 - b1), kept * (1 - b2), kept * (1 - b3), 1 - kept * (1 - b3)]
        cast = torch.stack([*numbers, powers[0], second, powers[2].sqrt()]).to(like.device, like.dtype).unbind()
        return cls(cancelled.to(like.device), cast[0], cast[1], cast[2:5], cast[5], cast[6:])


def _update_unless(factors: _Factors, columns: list[list[Tensor]], group: dict[str, Any]) -> None:
    """The same rule, unless the step is cancelled, which only the device knows: then everything keeps its value to the bit.

    What the rule multiplies by is 0 where it is cancelled, so nothing may be NaN there: gradients become the previous ones.
    """
    params, grads, m, v, n, previous = columns
    lr, (first, second, root) = group["lr"], factors.corrections
    grads = [torch.where(factors.cancelled, old, grad) for old, grad in zip(previous, grads, strict=True)]
    change = torch._foreach_sub(grads, previous)
    torch._foreach_mul_(change, factors.began)
    torch._foreach_copy_(previous, grads)
    for average, new, take in ((m, grads, factors.take[0]), (v, change, factors.take[1])):
        towards = torch._foreach_sub(new, average)
        torch._foreach_mul_(towards, take)
        torch._foreach_add_(average, towards)
    torch._foreach_mul_(change, group["betas"][1])
    torch._foreach_add_(change, grads)
    torch._foreach_mul_(change, change)
    torch._foreach_mul_(change, factors.take[2])
    torch._foreach_mul_(n, factors.keep_n)
    torch._foreach_add_(n, change)
    denominator = torch._foreach_sqrt(n)
    torch._foreach_div_(denominator, root)
    torch._foreach_add_(denominator, group["eps"])
    move = torch._foreach_div(m, first)
    torch._foreach_add_(move, torch._foreach_div(v, second))
    torch._foreach_mul_(move, factors.kept)
    torch._foreach_div_(move, denominator)
    torch._foreach_add_(params, move, alpha=-lr)
    if group["weight_decay"] > 0:
        torch._foreach_div_(params, 1 + factors.kept * (lr * group["weight_decay"]))
