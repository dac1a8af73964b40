"""Stable Diffusion as guidance: any diffusers folder of it, and the embedded prior. B views, V view words, K branches.

Two kinds of folder are served. Stable Diffusion (1.5, 2.x and finetunes) works on latents of a VAE and knows views by
words only. The embedded prior (a folder with ``somnia.json``, see ``guidance/prior``) works on pixels and is told the
camera itself. What differs is the codec between pictures and the space of the denoiser, and the conditions of the UNet.
"""

import argparse
import gc
import logging
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidance import weights
from guidance.base import CameraRequirements, Conditions, Guidance, GuidanceOutput
from guidance.distillation import Denoiser, Distillation, Mixer, classifier_free, draw_times, inject, keeping_spread
from guidance.perpneg_utils import NEGATIVE_WORDS, PerpNeg, negative_weights, perpneg_mixer
from guidance.prior import camera, captions, detail
from guidance.prompts import VIEW_ENDINGS, VIEW_WORDS, blend, view_weights
from nerf.core.cameras import orbit
from nerf.core.errors import UserError
from nerf.core.streams import Stream
from nerf.core.structs import Control, Part, Views

log = logging.getLogger("somnia.guidance")


@dataclass(frozen=True)
class Settings:
    """How the model is used; the rest is in its folder."""

    guidance_scale: float = 100.0
    rescale: float = 0.0  # share in [0, 1], see ``distillation.keeping_spread``
    weighting: str = "sds"
    max_norm: float | None = None  # longest gradient of one view
    perpneg: PerpNeg | None = None
    keep_camera: bool = True  # embedded prior: the branch without the prompt keeps the camera
    vram_O: bool = False


@dataclass(frozen=True)
class StageOptions:
    """What a stage of a run may choose for itself."""

    detail: bool = True  # embedded prior: refine its estimates pixel by pixel


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws a bar even for the smallest file."""
    from transformers.utils import logging as transformers_logging

    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()


def load_part(folder: Path, part: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """One network of a diffusers folder, frozen, on ``device``. Nothing is fetched, and no pickled code is run.

    Raises:
        UserError: the files are damaged, of another architecture, or lack tensors; the part is named.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors import SafetensorError
    from transformers import CLIPTextModel

    kind = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel}.get(part, UNet2DConditionModel)
    file = weights.weight_file(weights.files_of(folder), part) or ""
    how = {"variant": "fp16" if ".fp16." in file else None, "use_safetensors": not file.endswith(".bin")}
    try:
        with _without_progress_bar():
            network, info = kind.from_pretrained(
                folder / part, dtype=dtype, output_loading_info=True, local_files_only=True, **how
            )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"weights: {folder / part} cannot be read as {kind.__name__} ({first}); restore or download it again"
        ) from error
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise UserError(
            f"weights: {folder / file} lacks {len(lacking)} tensors of {part}, first {lacking[0]}; restore or download it again"
        )
    return network.requires_grad_(False).eval().to(device)


def offload(network: nn.Module, device: torch.device) -> None:
    """Keep the weights in main memory; each layer's visit ``device`` while it runs. Gradients of the input are kept.

    Raises:
        UserError: accelerate is not installed.
    """
    try:
        from accelerate import cpu_offload
    except ImportError:
        raise UserError("--vram_O needs accelerate; pip install accelerate, or leave the flag out") from None
    cpu_offload(network.to("cpu"), device)


def load_scheduler(folder: Path) -> tuple[Tensor, str]:
    """Noise levels abar [T] float32 and what the UNet predicts (epsilon, v_prediction or sample).

    Raises:
        UserError: the scheduler's config cannot be read.
    """
    from diffusers import DDPMScheduler

    try:
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"weights: {folder / 'scheduler'} cannot be read ({error}); restore or download it again") from error
    return scheduler.alphas_cumprod.float(), scheduler.config.prediction_type


def _shortened(tokenizer: Any, text: str, room: int) -> str:
    """``text`` cut to ``room`` tokens; a warning says what was left out."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) <= room:
        return text
    log.warning(
        "guidance: the prompt has %d tokens and the model reads %d; left out: %r", len(ids), room, tokenizer.decode(ids[room:])
    )
    return tokenizer.decode(ids[:room])


def encode_prompts(
    folder: Path, text: str, endings: Sequence[str], negative: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Text embeddings [len(endings) + 1, L, D]: the text with each ending, then the negative prompt.

    The text encoder is loaded for this call alone and freed after it. A text that is too long is cut before its ending,
    and a warning says what was left out.

    Raises:
        UserError: tokenizer or text encoder cannot be read, or do not belong together.
    """
    from transformers import CLIPTokenizer

    weights.check_folder(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = load_part(folder, "text_encoder", device, dtype)
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    longest = max(len(tokenizer(e, add_special_tokens=False)["input_ids"]) for e in endings)
    text, negative = _shortened(tokenizer, text, length - 2 - longest), _shortened(tokenizer, negative, length - 2)
    prompts = [*(text + ending for ending in endings), negative]
    ids = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
    if int(ids.max()) >= encoder.config.vocab_size:
        raise UserError(
            f"weights: the tokenizer in {folder} has more words than its text encoder knows "
            f"({encoder.config.vocab_size}); they are not of one model"
        )
    with torch.no_grad():
        embeddings = encoder(input_ids=ids.to(device)).last_hidden_state.clone()
    del encoder
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return embeddings


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """``image`` [B, C, H, W] at another size, bilinear, antialiased when it shrinks. Differentiable."""
    if image.shape[-2:] == (height, width):
        return image
    shrinks = image.shape[-2] > height or image.shape[-1] > width
    return F.interpolate(image, (height, width), mode="bilinear", align_corners=False, antialias=shrinks)


class LatentCodec:
    """Pictures [B, 3, H, W] in [0, 1] to the scaled latents [B, 4, h, w] of a VAE, and back."""

    def __init__(self, vae: nn.Module, grid: int):
        self.vae, self.grid = vae, grid
        self.size = grid * 2 ** (len(vae.config.block_out_channels) - 1)
        self.shape = (vae.config.latent_channels, grid, grid)

    def encode(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the posterior, float32. Differentiable in the image."""
        pixels = 2 * resized(image, self.size, self.size) - 1
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean.device)
        return (posterior.mean.float() + posterior.std.float() * noise) * self.vae.config.scaling_factor

    def encode_latent(self, image: Tensor) -> Tensor:
        """A picture [B, 4, H, W] in [0, 1] taken for a latent as it is (warm-up). Differentiable."""
        return 2 * resized(image, self.grid, self.grid).float() - 1

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latents as pictures [B, 3, size, size] float32 in [0, 1]."""
        pixels = self.vae.decode((latent / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)


class PixelCodec:
    """Pictures [B, 3, H, W] in [0, 1] to packed pixels [B, 3 n^2, size / n, size / n] in [-1, 1], and back."""

    def __init__(self, size: int, unshuffle: int):
        self.size, self.unshuffle, self.grid = size, unshuffle, size // unshuffle
        self.shape = (3 * unshuffle**2, self.grid, self.grid)

    def encode(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Packed pixels, float32; the generator is not needed. Differentiable."""
        return F.pixel_unshuffle(2 * resized(image.float(), self.size, self.size) - 1, self.unshuffle)

    @torch.no_grad()
    def decode(self, packed: Tensor) -> Tensor:
        """Packed pixels as pictures [B, 3, size, size] in [0, 1]."""
        return (F.pixel_shuffle(packed.float(), self.unshuffle) / 2 + 0.5).clamp(0, 1)


class StableDiffusion(Guidance):
    """Score distillation from a Stable Diffusion folder or the embedded prior."""

    name = "SD"

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        settings: Settings | None = None,
    ):
        """Load the networks, except for the text encoder.

        Args:
            folder: diffusers layout: unet, scheduler, tokenizer, text_encoder, and a vae or ``somnia.json``.
            device: where the networks run.
            dtype: of their weights; gradients are computed in float32.
            settings: guidance scale and the like.

        Raises:
            UserError: the folder is incomplete or damaged, or the settings do not fit the model.
        """
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        self.settings = settings or Settings()
        weights.check_folder(self.folder)
        if find_spec("diffusers") is None or find_spec("transformers") is None:
            raise UserError("guidance SD needs diffusers and transformers; pip install diffusers transformers")
        self.somnia = weights.somnia_of(self.folder)
        self.unet = load_part(self.folder, "unet", self.device, dtype)
        self.detail: nn.Module | None = None
        if self.somnia:
            if (self.folder / "detail").is_dir():
                self.detail = load_part(self.folder, "detail", self.device, dtype)
            self.codec = PixelCodec(self.somnia["size"], self.somnia["unshuffle"])
            self.spaces = ("rgb",)
        else:
            grid = self.unet.config.sample_size
            if not isinstance(grid, int):
                raise UserError(
                    f"weights: {self.folder / 'unet' / 'config.json'} must give sample_size, the side "
                    f"of the latents, as a number, and gives {grid}"
                )
            self.codec = LatentCodec(load_part(self.folder, "vae", self.device, dtype), grid)
            self.spaces = ("rgb", "latent")
        self.image_size = self.codec.size
        self._check_fit()
        levels, parameterisation = load_scheduler(self.folder)
        self.distillation = Distillation(
            levels.to(self.device),
            parameterisation,
            self.settings.weighting,
            clamp=1.0 if self.somnia else None,
            max_norm=self.settings.max_norm,
        )
        self.positive: Tensor | None = None  # [V, L, D], one row if the model is told the camera instead of words
        self.negative: Tensor | None = None  # [1, L, D]
        self._save_memory()

    def _check_fit(self) -> None:
        """Refuse a UNet that does not fit its codec, and settings the model cannot follow."""
        extra = self.somnia["ray_channels"] if self.somnia else 0
        expected = self.codec.shape[0] + extra
        if self.unet.config.in_channels != expected:
            raise UserError(
                f"weights: expected a UNet of {expected} input channels, and {self.folder / 'unet'} takes "
                f"{self.unet.config.in_channels}; inpainting and depth models cannot guide"
            )
        told = (self.unet.config.cross_attention_dim, self.somnia["camera_dim"]) if self.somnia else (0, 0)
        if self.detail is not None and not detail.fits(self.detail, self.codec.size, *told):
            raise UserError(
                f"weights: {self.folder / 'detail'} does not fit the UNet; expected 6 n^2 channels in and 3 n^2 "
                f"out, n a divisor of {self.codec.size}, words of {told[0]} numbers and cameras of {told[1]}"
            )
        if self.somnia and self.settings.perpneg is not None:
            raise UserError("--perpneg needs view words, and the embedded prior is told the camera; leave it out")

    def _save_memory(self) -> None:
        """``--vram_O``: weights wait in main memory and visit the GPU layer by layer; the VAE takes one picture."""
        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        if not self.settings.vram_O:
            return
        networks = [network for network in (self.unet, self.detail) if network is not None]
        if not self.somnia:
            self.codec.vae.enable_slicing()
            networks.append(self.codec.vae)
        if self.device.type != "cuda":
            log.info("guidance: --vram_O has no weights to move on %s; the VAE works picture by picture", self.device)
            return
        for network in networks:
            offload(network, self.device)
        torch.cuda.empty_cache()

    def prepare(self, conditions: Conditions) -> None:
        """Embed the prompt once, with each view word (not for the embedded prior), and the negative prompt.

        Raises:
            UserError: there is no prompt.
        """
        text = conditions.text
        if text is None or not text.strip():
            raise UserError('guidance SD needs words; give --text "a hamburger"')
        if self.somnia:
            told = weights.unknown_words(text, vocabulary=True)
            if told:
                log.warning("guidance: %s; these words are ignored", told)
            text, negative, endings = captions.parse(text).text, captions.parse(conditions.negative).text, [""]
        else:
            negative, endings = conditions.negative, VIEW_ENDINGS
        embeddings = encode_prompts(self.folder, text, endings, negative, self.device, self.dtype)
        self.positive, self.negative = embeddings[:-1], embeddings[-1:]

    def requirements(self) -> CameraRequirements:
        """What the embedded prior was trained on; Stable Diffusion takes any view."""
        if not self.somnia:
            return CameraRequirements()
        return CameraRequirements(
            square=True,
            radius_range=camera.RADIUS_RANGE,
            fovy_range=camera.FOVY_RANGE,
            polar_range=camera.POLAR_RANGE,
        )

    def stage_options(self, options: Any) -> StageOptions:
        """See :meth:`Guidance.stage_options`."""
        return StageOptions(detail=options.prior_detail)

    def branches(self, views: Views | None, count: int) -> Tensor:
        """Text embeddings of the K branches, [K, B, L, D]: without the prompt, with it, and Perp-Neg's wrong views.

        Without ``views`` the prompt goes with its front word.
        """
        if self.positive is None or self.negative is None:
            raise RuntimeError("StableDiffusion: prepare(conditions) must come before loss or sample")
        empty = self.negative.expand(count, -1, -1)
        if len(self.positive) == 1 or views is None:
            return torch.stack([empty, self.positive[:1].expand(count, -1, -1)])
        shares = view_weights(views.azimuth, views.polar).to(self.device)
        rows = [empty, blend(self.positive, shares)]
        if self.settings.perpneg is not None:
            rows += [self.positive[VIEW_WORDS.index(word)].expand(count, -1, -1) for word in NEGATIVE_WORDS]
        return torch.stack(rows)

    def mixer(self, views: Views | None, scale: float | None = None) -> Mixer:
        """How the branches are combined: Perp-Neg if asked for, else classifier-free guidance; see also :meth:`plain`."""
        scale = self.settings.guidance_scale if scale is None else scale
        if self.settings.perpneg is not None and views is not None:
            push = negative_weights(views.azimuth, views.polar, self.settings.perpneg).to(self.device)
            return keeping_spread(perpneg_mixer(scale, push), self.settings.rescale)
        return keeping_spread(classifier_free(scale), 0 if self.plain(scale) else self.settings.rescale)

    def plain(self, scale: float) -> bool:
        """Whether guidance of this scale is the branch with the prompt itself, so that no other is needed."""
        return scale == 1 and self.settings.perpneg is None

    def denoiser(self, views: Views | None, count: int, sharp: bool = True, plain: bool = False) -> Denoiser:
        """The UNet under K conditions at once (one if ``plain``), and the details if ``sharp``: a :data:`Denoiser`."""
        text = self.branches(views, count)[1:2] if plain else self.branches(views, count)
        num = len(text)
        extra, vector = self._camera(views, count, num) if self.somnia else (None, None)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            x = noisy.to(self.dtype).repeat(num, 1, 1, 1)
            if extra is not None:
                x = torch.cat([x, extra], 1)
            times = t.to(self.device).repeat(num)
            words = text.flatten(0, 1)
            out = self.unet(x, times, encoder_hidden_states=words, class_labels=vector, return_dict=False)[0].to(noisy.dtype)
            if sharp and self.detail is not None:
                again = noisy.repeat(num, 1, 1, 1)
                out = detail.sharpen(self.detail, again, out, times, words, vector, self.codec.unshuffle)
            return out.unflatten(0, (num, count))

        return predict

    def _camera(self, views: Views | None, count: int, num: int) -> tuple[Tensor, Tensor]:
        """Ray maps [K B, C, h, w] and camera vectors [K B, D] of the branches; zeros where the camera is unknown."""
        grid = self.codec.grid
        if views is None:
            rays = torch.zeros(count, self.somnia["ray_channels"], grid, grid)
            vector = torch.zeros(count, self.somnia["camera_dim"])
        else:
            rays = camera.ray_map(views.pose.float(), views.fovy.float(), grid)
            vector = camera.condition(views.polar, views.azimuth, views.radius, views.fovy)
        known = torch.ones(num, 1)
        if num > 1:
            known[0] = float(self.settings.keep_camera)
        known = known.repeat_interleave(count, 0).to(self.device, self.dtype)
        rays, vector = (v.to(self.device, self.dtype).repeat(num, *(1,) * (v.ndim - 1)) for v in (rays, vector))
        return rays * known[:, :, None, None], vector * known

    def loss(self, image: Tensor, views: Views, part: Part, control: Control, *, debug: bool = False) -> GuidanceOutput:
        """Score distillation of B views; see :meth:`Guidance.loss` and :func:`guidance.distillation.inject`.

        The gradient is that of the picture at the model's own size, summed over its elements and averaged over views.
        ``control.scale``, where it is given, takes the place of the settings'.
        """
        self._check(image, views, part)
        with torch.autocast(self.device.type, enabled=False):
            if part.settings.space == "latent":
                x = self.codec.encode_latent(image)
            else:
                x = self.codec.encode(image, part.random.generator(Stream.VAE_POSTERIOR))
            times = part.random.generator(Stream.DIFFUSION_TIME)
            t = draw_times(len(x), control.t_range, self.distillation.num_times, times).to(x.device)
            noise = torch.randn(x.shape, generator=part.random.generator(Stream.DIFFUSION_NOISE)).to(x.device)
            scale = self.settings.guidance_scale if control.scale is None else control.scale
            options = control.options or StageOptions()
            predict = self.denoiser(views, len(x), options.detail, self.plain(scale))
            out = self.distillation.gradient(x, predict, self.mixer(views, scale), t, noise)
            loss = inject(x, out.gradient, image)
            pictures = None
            if debug:
                pictures = {"image": x.detach(), "noisy": out.noisy, "x0": out.x0}
                pictures = {name: self.codec.decode(value) for name, value in pictures.items()}
        share = t.float().mean() / self.distillation.num_times
        return GuidanceOutput(loss, {"t": share, "gradient_norm": out.norm.mean()}, pictures)

    def _check(self, image: Tensor, views: Views, part: Part) -> None:
        """Refuse images that do not fit the views, the space or the model."""
        if part.settings.space not in self.spaces:
            raise ValueError(f"StableDiffusion.loss: expected a space among {self.spaces}, got {part.settings.space!r}")
        channels = 3 if part.settings.space == "rgb" else self.codec.shape[0]
        if image.ndim != 4 or image.shape[:2] != (len(views), channels):
            raise ValueError(f"StableDiffusion.loss: expected image [{len(views)}, {channels}, H, W], got {list(image.shape)}")
        if image.device.type != self.device.type:
            raise ValueError(f"StableDiffusion.loss: the image is on {image.device} and the model on {self.device}")
        if self.somnia and image.shape[2] != image.shape[3]:
            raise ValueError(
                f"StableDiffusion.loss: the embedded prior sees square pictures, got {list(image.shape)}; "
                "set --w and --h to one value"
            )

    @torch.no_grad()
    def sample(
        self, views: Views | None, count: int, generator: torch.Generator, steps: int = 50, scale: float | None = None
    ) -> Tensor:
        """Pictures drawn from the model with deterministic DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12, eta = 0).

        Args:
            views: B cameras; None if they are unknown.
            count: B.
            generator: on the CPU; one noise serves all pictures, so that views of one object resemble each other.
            steps: denoising steps.
            scale: classifier-free guidance scale, None for the settings' own.

        Returns:
            [B, 3, size, size] in [0, 1].
        """
        d = self.distillation
        predict, mix = self.denoiser(views, count), self.mixer(views, scale)
        x = torch.randn((1, *self.codec.shape), generator=generator).expand(count, -1, -1, -1).to(self.device)
        times = torch.linspace(d.num_times - 1, 0, steps + 1).round().long()
        x0 = x
        for now, following in zip(times[:-1], times[1:], strict=True):
            t = now.expand(count)
            alpha, sigma = d.levels(t, x)
            x0 = d.denoise(x, t, predict, mix)
            alpha_next, sigma_next = d.levels(following.expand(count), x)
            x = alpha_next * x0 + sigma_next * (x - alpha * x0) / sigma
        return self.codec.decode(x0)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m guidance.sd_utils "a red car"``: draw the prompt in two dimensions, to see what a model knows.

    The embedded prior draws eight azimuths of one object, Stable Diffusion one picture. Returns the exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m guidance.sd_utils", description="draw a prompt in two dimensions")
    parser.add_argument("text")
    parser.add_argument("--negative", default="")
    parser.add_argument("--sd_version", default="auto")
    parser.add_argument("--hf_key")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=7.5)
    parser.add_argument("--polar", type=float, default=75.0, help="degrees from above, for the embedded prior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="sample.png")
    options = parser.parse_args(argv)
    from nerf.core.images import contact_sheet, write_png

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = weights.resolve(options.sd_version, options.hf_key, options.text)
        log.info(resolved.sentence)
        dtype = torch.float16 if device.type == "cuda" and resolved.kind == "sd" else torch.float32
        model = StableDiffusion(weights.fetch(resolved), device, dtype, Settings(options.guidance_scale))
        model.prepare(Conditions(options.text, options.negative))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    views, count = None, 1
    if model.somnia:
        azimuth = torch.arange(8) * 45.0
        views, count = orbit(options.polar, azimuth, 3.2, 20.0, model.image_size, model.image_size), 8
    generator = torch.Generator().manual_seed(options.seed)
    pictures = model.sample(views, count, generator, options.steps).movedim(1, -1)
    write_png(options.output, contact_sheet(list(pictures), min(4, count), gap=0))
    log.info("wrote %s (azimuth 0, 45, ... 315 degrees)" if views else "wrote %s", options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
