"""The optimiser of a stage, with the settings that each kind is run with."""

from collections.abc import Callable
from typing import Any

import torch

from nerf.config.groups import OptimConfig
from optimizer import Adan

# Adan as stable-dreamfusion runs it: five times the learning rate of Adam, the norm of the gradient of all parameters
# limited to 5, and a weight decay of 2e-5.
ADAN_RATE, ADAN_MAX_NORM, ADAN_WEIGHT_DECAY = 5.0, 5.0, 2e-5
# Adam as Instant-NGP runs it (Mueller et al. 2022, sec. 4): with so small an epsilon, entries of the hash table that few
# samples reach take steps as large as the others.
ADAM_BETAS, ADAM_EPS = (0.9, 0.99), 1e-15

ParamGroups = list[dict[str, Any]]


def build_optimizer(
    options: OptimConfig, model_groups: Callable[[float], ParamGroups], other_groups: ParamGroups
) -> torch.optim.Optimizer:
    """The optimiser that ``--optim`` names; each group remembers its ``initial_lr``, which the schedule scales.

    Args:
        options: the optimisation group of the options.
        model_groups: learning rate -> parameter groups of the model.
        other_groups: of guidance that learns and of objectives with parameters, with their own learning rates.
    """
    if options.optim == "adan":
        rate = ADAN_RATE * options.lr
        groups = model_groups(rate)
        made: torch.optim.Optimizer = Adan(
            groups, lr=rate, eps=1e-8, weight_decay=ADAN_WEIGHT_DECAY, max_grad_norm=ADAN_MAX_NORM
        )
    else:
        groups = model_groups(options.lr)
        made = torch.optim.Adam(groups, lr=options.lr, betas=ADAM_BETAS, eps=ADAM_EPS, fused=True)
    for group in other_groups:
        made.add_param_group(group)
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return made


def amp_dtype(options: OptimConfig, device: str) -> torch.dtype | None:
    """Autocast is for CUDA; on a CPU everything stays float32, which is faster here and exact on resuming."""
    if device != "cuda" or not (options.fp16 or options.bf16):
        return None
    return torch.bfloat16 if options.bf16 else torch.float16
