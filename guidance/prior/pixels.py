"""What the embedded priors share as guidance: packed pixels, their range of cameras, and score distillation. B views."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from guidance import weights
from guidance.base import CameraRequirements, Guidance, GuidanceOutput
from guidance.diffusion import Network, loader
from guidance.diffusion.codecs import PixelCodec
from guidance.diffusion.distiller import DiffusionOptions, Distiller
from guidance.distillation import Conditioned, Denoiser, Mixer, classifier_free, paired, rescale_cfg
from guidance.prior import camera
from guidance.prior.description import read
from nerf.core.errors import UserError
from nerf.core.structs import Control, Part, Views


@dataclass(frozen=True)
class Options(DiffusionOptions):
    """What a stage may set for an embedded prior."""

    detail: bool = True  # refine its predictions by the detail network, where there is one


class PixelPrior(Guidance):
    """Score distillation from a prior of packed pixels; what it is conditioned on is up to a subclass.

    Args:
        folder: unet and scheduler in diffusers layout, ``somnia.json``, and what the subclass needs.
        device: where the networks run.
        dtype: of their weights; gradients are computed in float32.
        options: used where a step has none of its stage.

    Raises:
        UserError: the folder is incomplete or damaged, or its parts do not fit each other.
    """

    reads_references = False  # whether the UNet has input channels for reference images
    linked = 1  # views that are denoised together
    recipe: type[Options] = Options

    def __init__(self, folder: Path | str, device: torch.device | str, dtype: torch.dtype, options: Options | None):
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        weights.check_folder(self.folder)
        description = read(self.folder)
        if description is None:
            raise UserError(f"weights: {self.folder} has no somnia.json; it is not an embedded prior")
        if bool(description.reference_channels) != self.reads_references:
            kinds = ("text", "reference images")
            raise UserError(
                f"weights: {self.folder} is an embedded prior conditioned on {kinds[not self.reads_references]}; expected one "
                f"conditioned on {kinds[self.reads_references]}"
            )
        self.description = description
        self.sampling_scale = description.guidance_scale
        self.options = options or self.recipe(guidance_scale=description.guidance_scale)
        loader.require_diffusers()
        self.unet = self.load_unet()
        self.codec = PixelCodec(description.size, description.unshuffle)
        schedule = loader.load_schedule(self.folder, self.device, clamp=1.0)
        self.distiller = Distiller(self.codec, schedule, self.device, linked=self.linked)
        self.spaces = self.distiller.spaces
        expected = self.codec.shape[0] + description.ray_channels + description.reference_channels
        if self.unet.config.in_channels != expected:
            raise UserError(
                f"weights: expected a UNet of {expected} input channels, and {self.folder / 'unet'} takes "
                f"{self.unet.config.in_channels}; restore the folder from version control"
            )
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)

    def load_unet(self) -> Network:
        """The UNet, frozen, on its device."""
        from diffusers import UNet2DConditionModel

        return loader.load_part(self.folder, "unet", UNet2DConditionModel, self.device, self.dtype)

    def denoisers(self) -> list[Network]:
        """See :meth:`Guidance.denoisers`."""
        return [self.unet]

    def requirements(self) -> CameraRequirements:
        """The cameras it was trained with."""
        return CameraRequirements(
            square=True,
            radius_range=camera.RADIUS_RANGE,
            fovy_range=camera.FOVY_RANGE,
            polar_range=camera.POLAR_RANGE,
            linked_views=self.linked,
        )

    @abstractmethod
    def denoiser(self, views: Views | None, count: int, refine: bool = True, conditional_only: bool = False) -> Denoiser:
        """The UNet under the conditions of ``count`` = B views: unconditional and conditional, or conditional alone.

        Args:
            views: B cameras; None if they are unknown.
            count: B.
            refine: refine the predictions by the detail network, if there is one.
            conditional_only: leave out the unconditional prediction.
        """

    def mixer(self, scale: float, options: Options) -> Mixer:
        """How the predictions are combined: classifier-free guidance."""
        # At scale 1 the result is the conditional prediction, whose standard deviation it has already.
        return rescale_cfg(classifier_free(scale), 0 if scale == 1 else options.rescale)

    def conditioned(self, views: Views, count: int, options: Options) -> Conditioned:
        """The denoiser of ``count`` = B views as the methods of distillation ask for it."""
        return paired(
            lambda alone: self.denoiser(views, count, options.detail, conditional_only=alone),
            lambda scale: self.mixer(scale, options),
        )

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Score distillation of B square views; see :meth:`Guidance.loss` and :meth:`Distiller.distill`."""
        options: Options = control.options or self.options
        self.distiller.check(image, views, part, square_for="the embedded prior")
        with self.distiller.full_precision():
            model = self.conditioned(views, len(image), options)
            return self.distiller.distill(image, part, control, options, model, debug)

    def sample(self, views: Views | None, count: int, generator: torch.Generator, steps: int, scale: float) -> Tensor:
        """Images [B, 3, size, size] in [0, 1] of the prompt, for ``count`` = B views or none; see :meth:`Distiller.sample`."""
        with torch.no_grad():
            predict, mix = self.denoiser(views, count, self.options.detail), self.mixer(scale, self.options)
            return self.distiller.sample(predict, mix, count, generator, steps)
