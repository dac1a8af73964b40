"""The appearance of pixels that training has not seen, found by optimisation: geometry and colour heads stay as they are.

N rays of one photograph, A numbers of a vector. NeRF in the Wild does so with the left half of a test photograph
(Martin-Brualla et al. 2021, sec. 5); an encoder needs none of it, and may be given it all the same.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nerf.core.streams import Random
from nerf.core.structs import AppearanceCodes, Rays, RenderOutput, RenderSettings
from nerf.renderer import NeRFRenderer
from nerf.training import losses

STEPS, RATE = 100, 0.05  # of Adam
MOST_RAYS = 8192  # evenly chosen of those that are given


def fit_appearance(
    model: NeRFRenderer,
    rays: Rays,
    colors: Tensor,
    settings: RenderSettings,
    steps: int = STEPS,
    lr: float = RATE,
    start: Tensor | None = None,
) -> Tensor:
    """The vector [A] in whose light a model shows given pixels best; nothing of the model changes.

    Samples and their weights do not depend on it, so they are computed once.

    Args:
        model: whose colours depend on an appearance.
        rays: N rays.
        colors: [N, 3] what they should show.
        settings: of evaluation, with the background of the photograph if it has alpha.
        steps: of Adam.
        lr: its learning rate.
        start: [A]; None: the mean of learned vectors, or the shown one.

    Raises:
        ValueError: the colours of the model depend on no appearance, or there are no rays.
    """
    appearance = model.appearance
    if appearance is None or len(rays) == 0:
        raise ValueError("fit_appearance: expected a model with an appearance and at least one ray")
    chosen = torch.linspace(0, len(rays) - 1, min(len(rays), MOST_RAYS), device=colors.device).round().long()
    rays, colors = replace(rays[chosen], image_index=None), colors[chosen]
    if settings.background is not None and settings.background.ndim == 2 and len(settings.background) == 1:
        settings = replace(settings, background=settings.background[0])
    first = appearance.first_guess() if start is None else start
    out = _traced(model, rays, replace(settings, appearance=first))
    settings = replace(settings, training=False)  # no ray shows its diffuse colour alone
    vector = first.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([vector], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            lit = replace(rays, appearance=AppearanceCodes(vector[None]))
            loss = losses.image_mse(model.recolored(lit, out, settings), colors)
            (vector.grad,) = torch.autograd.grad(loss, vector)
            optimizer.step()
    return vector.detach()


@torch.no_grad()
def _traced(model: NeRFRenderer, rays: Rays, settings: RenderSettings) -> RenderOutput:
    """A render with its samples; what the path remembers of its last part stays as it was."""
    state = {name: value.clone() for name, value in model.path.state_dict().items()}
    try:
        return model.render(rays, replace(settings, training=True, source="appearance", random=Random(0)))
    finally:
        model.path.load_state_dict(state)
