"""Stable Diffusion 1.x, 2.x and SDXL from one file in the original layout, as most finetunes are given away.

Nothing is written: each network is filled from the file when it is needed (``ldm.py``). A file does not hold CLIP's tokenizer,
which comes from elsewhere (``tokenizers.py``). The averages of training (``model_ema``) are not used, as in the programs that
most finetunes are made and judged with: files that were merged or finetuned often carry those of the model before. The
published files were not at hand: names and shapes are those of ``tests/guidance/layouts``. B views.
"""

import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance import tokenizers
from guidance.diffusion import Network, ldm
from guidance.diffusion.checkpoint_kinds import (
    OPEN_CLIP_H,
    SD1,
    SD2,
    SDXL,
    SDXL_G,
    SDXL_L,
    Version,
    clip_prefix,
    prediction_of,
    side_of,
    skipped_layers,
    version_of,
)
from guidance.diffusion.single_file import TensorFile
from guidance.diffusion.text import Checkpoint, TextEncoder
from guidance.distillation import NoiseSchedule

log = logging.getLogger("somnia.guidance")

SIZES = 6  # numbers that SDXL is told of the picture: its size, crop and target size
WHOLE_ENCODER = 23  # blocks of OpenCLIP's ViT-H in files that leave out the last one, which Stable Diffusion 2 does not use
PROBE_SIDE = 32  # of the noise that tells what a UNet predicts
UNSURE = (0.2, 0.8)  # slopes between which the answer of the probe is doubtful
OPEN_CLIP_PAD = 0  # token with which OpenCLIP fills up a short prompt; CLIP repeats the token of the end


class Original:
    """The parts of a model in one file.

    Args:
        path: the file.
        family: of --guidance, which it was given to: "SD" or "SDXL".
        tokenizer: folder or hub id of CLIP's tokenizer, see :func:`guidance.tokenizers.find`.
        prediction: "epsilon" or "v_prediction"; "auto" asks the file, and of Stable Diffusion 2 the UNet.

    Raises:
        UserError: it is missing, damaged or another kind of file.
    """

    def __init__(self, path: Path, family: str, tokenizer: str | None = None, prediction: str = "auto"):
        self.file = TensorFile(path)
        self.version: Version = version_of(self.file, family)
        self.tokenizer_key = tokenizer
        said = (prediction, "--prediction_type") if prediction != "auto" else prediction_of(self.file, self.version)
        self.prediction, self.reason = said or ("", "")

    def unet(self, device: torch.device, dtype: torch.dtype) -> Network:
        """The UNet, frozen, on its device; what it predicts is known after this."""
        further: dict[str, Any] = {}
        if self.version is SDXL:
            pooled = self._text_config(SDXL_G)["projection_dim"]
            width = (self.file.shape(f"{ldm.UNET}label_emb.0.0.weight")[1] - pooled) // SIZES
            further = {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": width,
                "projection_class_embeddings_input_dim": pooled + SIZES * width,
            }
        size = side_of(self.file, self.version, self.prediction or "epsilon")
        unet = ldm.load_unet(self.file, self.version.heads, size, dtype, averages=False, further=further).to(device)
        if not self.prediction:
            self.prediction = self._probed(unet, device, dtype)
            unet.register_to_config(sample_size=side_of(self.file, self.version, self.prediction))
        log.info(
            "guidance: %s is %s with %s and latents of %d x %d (%s)",
            self.file.path.name,
            self.version.name,
            self.prediction,
            unet.config.sample_size,
            unet.config.sample_size,
            self.reason,
        )
        return unet

    def _probed(self, unet: Network, device: torch.device, dtype: torch.dtype) -> str:
        """What a UNet predicts, as :func:`probe` finds it."""
        tokens = torch.zeros(1, 77, unet.config.cross_attention_dim, device=device, dtype=dtype)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            out: Tensor = unet(noisy.to(dtype), t, encoder_hidden_states=tokens, return_dict=False)[0]
            return out.float()

        found, slope = probe(predict, (1, unet.config.in_channels, PROBE_SIDE, PROBE_SIDE), device)
        self.reason = f"it answers pure noise with {slope:.2f} times it; 1 is epsilon, 0 is v_prediction"
        if UNSURE[0] < slope < UNSURE[1]:
            log.warning("guidance: what %s predicts is doubtful (%s); give --prediction_type", self.file.path, self.reason)
        return found

    def vae(self, device: torch.device, dtype: torch.dtype) -> Network:
        """The VAE, frozen, on its device."""
        return ldm.load_vae(self.file, dtype, scaling_factor=self.version.scaling_factor).to(device)

    def schedule(self, device: torch.device) -> NoiseSchedule:
        """The noise schedule: that of all of these models, or the one without signal at its end that ``ztsnr`` stands for.

        The latter is that of Lin et al. 2023 (Common Diffusion Noise Schedules and Sample Steps are Flawed), algorithm 1.
        """
        alphas = ldm.noise_schedule(device).alphas_cumprod
        if "ztsnr" in self.file:
            root = alphas.double().sqrt()
            alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square().to(alphas)
        return NoiseSchedule(alphas, self.prediction or "epsilon")

    # ---- text -------------------------------------------------------------------------------------------------------

    @cached_property
    def _tokenizer(self) -> tuple[Path, str]:
        return tokenizers.fetch(self.file.path, self.tokenizer_key)

    def text_encoders(self, dtype: torch.dtype) -> list[TextEncoder]:
        """The text encoders, in the order in which their tokens lie side by side."""
        if self.version is SD1:
            prefix = clip_prefix(self.file)
            assert prefix is not None  # version_of() looked
            return [self._encoder("clip", prefix, None, dtype)]
        if self.version is SD2:
            return [self._encoder("clip", OPEN_CLIP_H, OPEN_CLIP_PAD, dtype)]
        return [self._encoder("sdxl", SDXL_L, None, dtype), self._encoder("sdxl 2", SDXL_G, OPEN_CLIP_PAD, dtype)]

    def _encoder(self, kind: str, prefix: str, pad: int | None, dtype: torch.dtype) -> TextEncoder:
        """One of the text encoders; it is read when a prompt is new."""
        folder, inside = self._tokenizer
        config = self._text_config(prefix)
        load = _load_open_clip if prefix in (OPEN_CLIP_H, SDXL_G) else _load_clip
        checkpoint = Checkpoint(
            self.file.path,
            config["max_position_embeddings"],
            partial(load, self.file, prefix, config, prefix == SDXL_G, dtype),
            config["eos_token_id"] if pad is None else pad,
            self._fingerprint(prefix, config["num_hidden_layers"]),
        )
        return TextEncoder(folder, kind, tokenizer=inside, checkpoint=checkpoint)

    def _fingerprint(self, prefix: str, layers: int) -> Callable[[], str]:
        """The hash of a text encoder and of how many layers of it are used; it is read from the file once."""
        hashes = self._hashes

        def content() -> str:
            if prefix not in hashes:
                hashes[prefix] = f"{self.file.fingerprint(prefix)} {layers} "
            return hashes[prefix]

        return content

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {}

    def _text_config(self, prefix: str) -> dict[str, Any]:
        """The arguments of CLIPTextConfig of the text encoder under a prefix."""
        if prefix == SDXL_G:
            return ldm.clip_text_config(self.file, prefix, skipped=0)
        if prefix != OPEN_CLIP_H:
            config = ldm.transformers_text_config(self.file, prefix)
            if self.version is SD1:
                config["num_hidden_layers"] -= skipped_layers(self.file, config["num_hidden_layers"])
            return config
        return ldm.clip_text_config(self.file, prefix, int(ldm.open_clip_layers(self.file, prefix) != WHOLE_ENCODER))


def _load_clip(file: TensorFile, prefix: str, config: dict[str, Any], _: bool, dtype: torch.dtype) -> Network:
    """CLIP's text encoder, whose tensors have the names of transformers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    network = CLIPTextModel(CLIPTextConfig(**config))
    return ldm.fill(network, file, lambda name, _: file[prefix + name.removeprefix("text_model.")], dtype)


def _load_open_clip(file: TensorFile, prefix: str, config: dict[str, Any], projects: bool, dtype: torch.dtype) -> Network:
    """OpenCLIP's text encoder, with the layer that gives the pooled embedding or without."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projects else CLIPTextModel
    return ldm.load_clip(kind, CLIPTextConfig(**config), file, prefix, dtype)


def probe(predict: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], device: torch.device) -> tuple[str, float]:
    """What a denoiser predicts, by its answer to pure noise at the last timestep, where hardly any signal is left.

    There x_t is nearly the noise itself, so one that predicts the noise repeats its input: regressed on the input, its output
    has a slope of nearly 1. One that predicts ``v = alpha noise - sigma x_0`` (Salimans & Ho 2022, eq. 11) has a slope of at
    most alpha, which is 0.07.

    Args:
        predict: (x_t [B, ...], t [B]) -> the raw prediction [B, ...].
        shape: of x_t.
        device: of the denoiser.

    Returns:
        "epsilon" or "v_prediction", and the slope.
    """
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        out = predict(noise, torch.full((shape[0],), ldm.STEPS - 1, device=device))
    centred = noise - noise.mean()
    slope = float((out * centred).sum() / centred.square().sum())
    return ("epsilon" if slope > sum(UNSURE) / 2 else "v_prediction"), slope
