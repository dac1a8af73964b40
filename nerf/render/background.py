"""Backgrounds: what stands behind the object, as a function of the ray direction. N rays, B views."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf.core.activation import at_least_single
from nerf.core.structs import Rays, RenderSettings
from nerf.fields.encoding import make_encoder


class Background(nn.Module, ABC):
    """What a ray sees that meets nothing."""

    @abstractmethod
    def color(self, rays: Rays, settings: RenderSettings) -> Tensor:
        """Colour [N, 3] in [0, 1] behind each ray."""

    def param_groups(self, lr: float) -> list[dict]:
        """Parameters with their learning rates; empty where nothing is learned."""
        params = list(self.parameters())
        return [{"params": params, "lr": lr, "name": "background"}] if params else []


class ConstantBackground(Background):
    """One colour everywhere, white unless told otherwise."""

    def __init__(self, colour: tuple[float, float, float] = (1.0, 1.0, 1.0)):
        super().__init__()
        self.register_buffer("value", torch.tensor(colour, dtype=torch.float32))

    def color(self, rays: Rays, settings: RenderSettings) -> Tensor:
        """The one colour, [N, 3]."""
        return self.value.to(rays.directions).expand(len(rays), 3)


class NetworkBackground(Background):
    """A small network on the frequency-encoded direction (DreamFusion, app. A.2).

    Args:
        degree: number of frequencies.
        hidden: width of the hidden layer.
    """

    def __init__(self, degree: int = 6, hidden: int = 32):
        super().__init__()
        self.encoder = make_encoder("frequency", input_dim=3, degree=degree)
        self.hidden = nn.Linear(self.encoder.output_dim, hidden)
        self.out = nn.Linear(hidden, 3)

    def color(self, rays: Rays, settings: RenderSettings) -> Tensor:
        """Colour [N, 3]; differentiable in the network's parameters."""
        return torch.sigmoid(at_least_single(self.out(functional.relu(self.hidden(self.encoder(rays.directions))))))


def chosen_color(background: Tensor, rays: Rays) -> Tensor:
    """The background that the settings prescribe, for every ray.

    Args:
        background: [3] one colour, [N, 3] one for each ray, or [B, 3] one for each view (where B == N, by ray).
        rays: N rays of B views.

    Returns:
        [N, 3] on the rays' device and of their dtype.

    Raises:
        ValueError: any other shape.
    """
    background = background.to(rays.directions)
    n = len(rays)
    if background.shape == (3,):
        return background.expand(n, 3)
    if background.shape == (n, 3):
        return background
    if background.ndim == 2 and background.shape[1] == 3:
        if n == 0 or background.shape[0] > int(rays.view_index.max()):
            return background[rays.view_index]
    raise ValueError(f"background: expected [3], [B, 3] for the views of these rays or [{n}, 3], got {list(background.shape)}")
