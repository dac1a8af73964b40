"""What a viewer shows of a scene: shading, mode, light, background, crop box, samples per pixel; one frozen record."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from nerf.core import cameras
from nerf.core.structs import SHADINGS, RenderSettings, Shading

Mode = Literal["image", "depth", "opacity"]
MODES: tuple[str, ...] = get_args(Mode)
MAX_SPP = 4096
Color = tuple[float, float, float]
Crop = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class ViewSettings:
    """How the scene is shown. Angles are degrees, lengths scene units, colours sRGB in [0, 1]."""

    mode: Mode = "image"
    shading: Shading = "albedo"  # of the image; photographs keep their view-dependent colours in "albedo"
    light_polar: float = 60.0  # where the light comes from: 0 = above
    light_azimuth: float = 0.0  # 0 = front (+Z), 90 = +X
    ambient: float = 0.2  # share of the light that comes from everywhere, in [0, 1]
    background: Color | None = None  # None: the scene's own
    crop: Crop | None = None  # the box that is shown: low x, y, z, then high x, y, z; None: all
    max_spp: int = 1  # samples per pixel that a still view accumulates

    def __post_init__(self) -> None:
        """Values are within their ranges.

        Raises:
            ValueError: one is not.
        """
        for name, word, known in (("mode", self.mode, MODES), ("shading", self.shading, SHADINGS)):
            if word not in known:
                raise ValueError(f"ViewSettings: expected {name} as one of {', '.join(known)}, got {word!r}")
        if not 0.0 <= self.ambient <= 1.0:
            raise ValueError(f"ViewSettings: expected ambient in [0, 1], got {self.ambient}")
        if self.background is not None and not all(0.0 <= channel <= 1.0 for channel in self.background):
            raise ValueError(f"ViewSettings: expected a background in [0, 1], got {self.background}")
        if not 1 <= self.max_spp <= MAX_SPP:
            raise ValueError(f"ViewSettings: expected max_spp from 1 to {MAX_SPP}, got {self.max_spp}")
        if self.crop is not None and not all(low < high for low, high in zip(self.crop[:3], self.crop[3:], strict=True)):
            raise ValueError(f"ViewSettings: expected a crop box whose low corner is below its high one, got {self.crop}")

    def render_settings(self, own: RenderSettings, device: torch.device | str = "cpu") -> RenderSettings:
        """What the renderer is asked for.

        Args:
            own: of the scene's evaluation, whose background and view-dependent colours are kept where these settings allow it.
            device: where lights, colours and boxes go.
        """
        polar, azimuth = torch.tensor([self.light_polar]), torch.tensor([self.light_azimuth])
        shading: Shading = self.shading if self.mode == "image" else "albedo"
        return replace(
            own,
            training=False,
            shading=shading,
            ambient=self.ambient,
            light=cameras.direction_of(polar, azimuth).to(device),
            background=own.background if self.background is None else torch.tensor(self.background, device=device),
            view_dependent=own.view_dependent and shading == "albedo",
            crop=None if self.crop is None else torch.tensor(self.crop, device=device),
        )
