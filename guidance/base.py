"""What every guidance model offers to the trainer, and the records that pass between them. B views, C channels."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nerf.core.structs import Control, Part, Views


@dataclass(frozen=True)
class Conditions:
    """What the user asked for, given to a guidance model once before training."""

    text: str | None = None
    negative: str = ""  # what the picture should not show; takes the place of the empty prompt
    images: tuple[Tensor, ...] = ()  # [4, H, W] RGBA in [0, 1], for models that take image prompts


@dataclass(frozen=True)
class CameraRequirements:
    """The views that a guidance model was made for. A source of views keeps within them."""

    square: bool = False  # height must equal width
    linked_views: int = 1  # so many views of a batch share polar angle, radius and lens, at equal steps of azimuth
    radius_range: tuple[float, float] | None = None  # scene units
    fovy_range: tuple[float, float] | None = None  # degrees
    polar_range: tuple[float, float] | None = None  # degrees

    def violations(self, camera: Any) -> list[str]:
        """Which of the requirements the camera group of the options goes against, a sentence each."""
        said = []
        for flag, wanted in (
            ("radius_range", self.radius_range),
            ("fovy_range", self.fovy_range),
            ("theta_range", self.polar_range),
        ):
            low, high = getattr(camera, flag)
            if wanted is not None and (low < wanted[0] or high > wanted[1]):
                said.append(
                    f"--{flag} {low:g} {high:g} goes beyond {wanted[0]:g} to {wanted[1]:g}, which the guidance was made for"
                )
        if self.square and camera.h != camera.w:
            said.append(f"--w {camera.w} --h {camera.h}: the guidance was made for square images and will stretch these")
        return said


@dataclass(frozen=True)
class GuidanceOutput:
    """One answer of a guidance model."""

    loss: Tensor  # scalar, unweighted
    stats: dict[str, Tensor] = field(default_factory=dict)  # for the log: scalars on any device, read when they are written
    debug: dict[str, Tensor] | None = None  # name -> [B, 3, H, W] in [0, 1], only when asked for


class Guidance(ABC):
    """A frozen (or, for some, learning) model that judges rendered images.

    A model declares the ``spaces`` of image it accepts (``"rgb"`` [B, 3, H, W] in [0, 1], ``"latent"`` [B, 4, H, W] in
    [0, 1]) and draws every random number from ``part.random``, so that a step can be repeated exactly.
    """

    name: str
    spaces: tuple[str, ...] = ("rgb",)
    image_size: int | None = None  # side in pixels the model works at; images of another size are resized inside

    @abstractmethod
    def prepare(self, conditions: Conditions) -> None:
        """Take the user's conditions, once before training (or again after they changed)."""

    @abstractmethod
    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Judge B rendered images.

        Args:
            image: [B, C, H, W] in [0, 1], in ``part.settings.space``; differentiable once.
            views: the B cameras.
            part: the part of the step; the source of randomness.
            control: what the schedule asks of this model: diffusion times, scale, its own options.
            debug: also return pictures of what the model sees and wants.

        Raises:
            ValueError: the images do not fit the views or the space.
            DivergenceError: an input or the gradient is not finite.
        """

    def requirements(self) -> CameraRequirements:
        """The views this model was made for; by default any."""
        return CameraRequirements()

    def stage_options(self, options: Any) -> Any:
        """The record of this family's own options for one stage, which comes back as ``control.options``.

        Args:
            options: the guidance group of the stage's flags.
        """
        return None

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of parameters that learn beside the field; none for a frozen model."""
        return []

    def after_step(self) -> None:  # noqa: B027 (most models have nothing to do here)
        """Called once after every optimiser step."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beyond the published weights; nothing for a frozen model."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            ValueError: the checkpoint holds a state and this model has none.
        """
        if state:
            raise ValueError(
                f"{self.name}: expected an empty state, got {sorted(state)}; the checkpoint is of a run with another --guidance"
            )
