"""Backgrounds: the colour behind the object along each ray. N rays, B views."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf.config.groups import FieldConfig
from nerf.core.activation import at_least_single
from nerf.core.coverage import Coverage
from nerf.core.structs import Rays, RenderSettings, SceneInfo, Trace
from nerf.fields.appearance import HEARD, HeardAppearance
from nerf.fields.encoding import make_encoder


@dataclass(frozen=True, kw_only=True)
class Behind:
    """What stands behind the scene on N rays."""

    color: Tensor  # [N, 3]
    opacity: Tensor | None = None  # [N] how much of it is a scene too; None: it is a colour without a place
    depth: Tensor | None = None  # [N] sum of weight * t of that scene
    trace: Trace | None = None  # training only: its samples


class Background(nn.Module, ABC):
    """The colour of rays that the object does not stop."""

    @abstractmethod
    def render(self, rays: Rays, near: Tensor, settings: RenderSettings) -> Tensor:
        """Render the background of N rays.

        Args:
            rays: N rays; unit directions.
            near: [N] distance along the ray at which the background begins: where the ray leaves the object's box, 0
                where it misses the box.
            settings: of the render.

        Returns:
            [N, 3] in [0, 1]; differentiable in the background's parameters.
        """

    def behind(self, rays: Rays, near: Tensor, settings: RenderSettings, front: Tensor) -> Behind:
        """:meth:`render`, with what a background that has depth knows beside its colour.

        Args:
            rays, near, settings: see :meth:`render`.
            front: [N] opacity of the scene before it; what nothing is left of need not be rendered.
        """
        return Behind(color=self.render(rays, near, settings))

    def recolored(self, rays: Rays, trace: Trace | None, settings: RenderSettings) -> Tensor:
        """Colour [N, 3] of the background in another appearance, that of the rays; differentiable in what colours depend on.

        Args:
            rays: N rays.
            trace: the samples of a background that is a scene, as it was rendered.
            settings: of that render.
        """
        return self.render(rays, torch.zeros_like(rays.directions[:, 0]), settings)

    def cull(self, coverage: Coverage | None) -> None:
        """Leave out, from now on, what no photograph or one alone sees. By default nothing."""

    def update(self, generator: torch.Generator) -> None:
        """Refresh what the background remembers about itself, such as its empty cells. By default nothing."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups (params, lr, name); empty for a background without parameters."""
        params = list(self.parameters())
        return [{"params": params, "lr": lr, "name": "background"}] if params else []


class ConstantBackground(Background):
    """One colour everywhere, white by default.

    Args:
        colour: RGB in [0, 1].

    Buffers: ``value`` [3].
    """

    value: Tensor

    def __init__(self, colour: tuple[float, float, float] = (1.0, 1.0, 1.0)):
        super().__init__()
        self.register_buffer("value", torch.tensor(colour, dtype=torch.float32))

    def render(self, rays: Rays, near: Tensor, settings: RenderSettings) -> Tensor:
        """The colour, expanded to [N, 3]; see :meth:`Background.render`."""
        return self.value.to(rays.directions).expand(len(rays), 3)


class NetworkBackground(Background):
    """A small network on the frequency-encoded direction, infinitely far away (DreamFusion, app. A.2).

    Args:
        degree: number of frequencies.
        hidden: width of the hidden layer.
        appearance: numbers of an appearance vector, which the colour depends on as well; 0: there is none.
    """

    def __init__(self, degree: int = 6, hidden: int = 32, appearance: int = 0):
        super().__init__()
        self.encoder = make_encoder("frequency", input_dim=3, degree=degree)
        self.heard = HeardAppearance(appearance) if appearance else None
        self.hidden = nn.Linear(self.encoder.output_dim + (HEARD if appearance else 0), hidden)
        self.out = nn.Linear(hidden, 3)

    def render(self, rays: Rays, near: Tensor, settings: RenderSettings) -> Tensor:
        """Colour [N, 3] by direction, and by appearance where there are some; see :meth:`Background.render`."""
        inputs = self.encoder(rays.directions)
        if self.heard is not None:
            inputs = torch.cat([inputs, self.heard(rays.appearance, inputs)], -1)
        return torch.sigmoid(at_least_single(self.out(functional.relu(self.hidden(inputs)))))


def background_kind(config: FieldConfig, scene: SceneInfo) -> str:
    """Name of the background model: ``--background``, where auto is resolved by ``--bg_radius`` and what the box leaves out."""
    if config.background != "auto":
        return config.background
    if scene.unbounded:
        return "contracted"
    return "network" if config.bg_radius > 0 else "constant"


def chosen_color(background: Tensor, rays: Rays) -> Tensor:
    """Expand the background colour of the render settings to every ray.

    Args:
        background: [3] one colour, [N, 3] one for each ray, or [B, 3] one for each view (if B == N, one for each ray).
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
    if background.ndim == 2 and background.shape[1] == 3 and len(background) >= _views_of(rays):
        return background[rays.view_index]
    raise ValueError(f"background: expected [3], [B, 3] for the views of these rays or [{n}, 3], got {list(background.shape)}")


def _views_of(rays: Rays) -> int:
    """How many views N rays belong to; at least 0 where only a GPU knows, which is not asked."""
    if rays.views is not None:
        return len(rays.views)
    known = len(rays) > 0 and rays.view_index.device.type == "cpu"
    return int(rays.view_index.max()) + 1 if known else 0
