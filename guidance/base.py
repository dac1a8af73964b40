"""The interface between the trainer and a guidance model, and the records that pass between them. B views, C channels."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views


@dataclass(frozen=True)
class ImageCondition:
    """An image prompt and the camera it was taken with. Angles are degrees, lengths scene units."""

    image: Tensor  # [4, H, W] RGBA in [0, 1], colour not premultiplied by alpha
    polar: float = 90.0  # 0 = straight above, 90 = horizon
    azimuth: float = 0.0  # 0 = front (+Z), 90 = +X
    radius: float = 3.2  # distance of the camera from the origin
    fovy: float = 20.0  # vertical field of view
    weight: float = 1.0  # relative to the other image prompts

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] != 4:
            raise ValueError(f"ImageCondition: expected image [4, H, W] (RGBA), got {list(self.image.shape)}")
        if not self.weight >= 0:
            raise ValueError(f"ImageCondition: expected a weight of 0 or more, got {self.weight}")


@dataclass(frozen=True)
class Conditions:
    """The prompts of a run. A model uses those of its kind and ignores the others."""

    text: str | None = None
    negative: str = ""  # replaces the empty prompt as the unconditional input
    images: tuple[ImageCondition, ...] = ()


@dataclass(frozen=True)
class CameraRequirements:
    """The views that a guidance model was trained on. Sources of views keep to them."""

    square: bool = False  # height must equal width
    linked_views: int = 1  # groups of this many views share polar angle, radius and lens, at equal steps of azimuth
    radius_range: tuple[float, float] | None = None  # scene units
    fovy_range: tuple[float, float] | None = None  # degrees
    polar_range: tuple[float, float] | None = None  # degrees
    coloured_to: float = 180.0  # polar angle, degrees, to which views teach colours; those below may teach the shape alone


@dataclass(frozen=True)
class GuidanceOutput:
    """The result of one evaluation of a guidance model."""

    loss: Tensor  # scalar, unweighted
    stats: dict[str, Tensor] = field(default_factory=dict)  # for the log: scalars on any device, read when they are written
    debug: dict[str, Tensor] | None = None  # name -> [B, 3, H, W] in [0, 1], only if asked for
    finite: Tensor | None = None  # [2, B] bool: which images and which gradients are finite, to explain a loss that is not


@dataclass(frozen=True)
class GeometryEstimate:
    """What a guidance model takes B rendered images to show, at their size. Without gradients."""

    depth: Tensor  # [B, H, W] along the rays, scene units
    normal: Tensor  # [B, 3, H, W] unit, world axes
    coverage: Tensor  # [B, H, W] by the object, in [0, 1]


class Guidance(ABC):
    """A model, frozen or trained alongside the field, that gives a loss for rendered images.

    All random numbers are drawn from ``part.random``, so that a step can be repeated exactly.

    Attributes:
        name: unique within a run; names the loss term ``sds/<name>`` and the state in a checkpoint.
        spaces: accepted image spaces: ``"rgb"`` [B, 3, H, W] in [0, 1], ``"latent"`` [B, 4, H, W] in [0, 1]. Images may have
            any size; a model that works at one resolution resizes them.
        told_camera: it is told the camera of a view, rather than words for it.
        sampling_scale: of classifier-free guidance, for :meth:`sample`.
        knows_geometry: it can say what geometry an image shows, see :meth:`geometry`.
    """

    name: str
    spaces: tuple[str, ...] = ("rgb",)
    told_camera: bool = False
    sampling_scale: float = 7.5
    knows_geometry: bool = False

    @abstractmethod
    def prepare(self, conditions: Conditions) -> None:
        """Encode the prompts. Called once before training, and again if they change."""

    @abstractmethod
    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """The loss of B rendered images.

        Args:
            image: [B, C, H, W] in [0, 1], in ``part.settings.space``; differentiable once.
            views: the B cameras.
            part: the part of the step; the source of random numbers.
            control: what the schedule sets for this model at this step: timestep range, guidance scale, and ``options``,
                the record that :meth:`stage_options` made for the stage (None: the model's own defaults).
            debug: also return images of the model's input and prediction.

        Raises:
            ValueError: the images do not match the views or the space.
            DivergenceError: an input or the gradient is not finite. On a GPU, which is not waited for, the loss is then not
                finite either, and ``finite`` says which image was the first to be wrong.
        """

    def geometry(self, image: Tensor, views: Views, part: Part, control: Control) -> GeometryEstimate:
        """The geometry that B rendered images of the prompt should show, for ``--lambda_prior_depth`` and its like.

        Args:
            image, views, part, control: those of :meth:`loss`.

        Only for a model with :attr:`knows_geometry`.
        """
        raise NotImplementedError(f"guidance {self.name} knows no geometry")

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """Pictures that the model draws by itself; see ``scripts/guidance_2d.py``.

        Args:
            views: B cameras; None if they are unknown, where the model can do without.
            count: B.
            generator: on the CPU.
            steps: of denoising.
            scale: of classifier-free guidance.

        Returns:
            [B, 3, H, W] in [0, 1], of the model's own size.

        Raises:
            UserError: it only judges pictures.
        """
        raise UserError(f"guidance {self.name} judges pictures and draws none; add --optimise to see what it wants")

    def check_text(self, text: str) -> None:  # noqa: B027 (most models take any prompt)
        """Check a prompt that is to replace that of the run.

        Raises:
            UserError: it has a word that the model does not know.
        """

    def results(self) -> dict[str, Any]:
        """What ``result.json`` says of the prompts; by default nothing."""
        return {}

    def requirements(self) -> CameraRequirements:
        """The views this model was trained on; by default any."""
        return CameraRequirements()

    def denoisers(self) -> list[Any]:
        """The frozen networks that run at each step without gradients, for ``--compile_guidance``; by default none."""
        return []

    def stage_options(self, options: Any) -> Any:
        """Everything that a stage's flags and presets set for this model, as one frozen record.

        The record comes back as ``control.options`` at every step of the stage. What cannot change between stages (weights,
        device, memory options) belongs in the constructor.

        Args:
            options: the guidance group of the stage's flags.

        Raises:
            UserError: a flag that this model cannot serve.
        """
        return None

    def begin_stage(self) -> None:  # noqa: B027 (most models have nothing to do here)
        """Called before the first step of each stage, and before :meth:`load_state_dict` where one is resumed."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of parameters that are trained alongside the field; none for a frozen model."""
        return []

    def after_step(self) -> None:  # noqa: B027 (most models have nothing to do here)
        """Called after every optimiser step."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beyond the published weights; nothing for a frozen model."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the checkpoint holds a state and this model has none.
        """
        if state:
            raise ValueError(
                f"{self.name}: expected an empty state, got {sorted(state)}; the checkpoint is of a run with another --guidance"
            )
