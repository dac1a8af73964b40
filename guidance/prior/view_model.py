"""The view-conditioned prior: a reference image and a relative pose in, that view of the object out. B images.

The UNet is that of the text-conditioned prior, whose weights it starts from: it knows the shapes by their own azimuth. A small
encoder reads the reference. It estimates from which azimuth of the object the reference was taken, so that the UNet is given
the target's camera in the object's own frame; and it gives tokens in place of the text's, which start as what the text would
say (kind and colours) and learn to say what the image shows beyond that. The reference also enters as extra input channels,
which help where the target is near to it.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidance.diffusion import Network
from guidance.prior import GRID_SIZE, TEXT_DIM, TINY_TEXT_DIM, UNSHUFFLE, WEIGHTS, detail
from guidance.prior import model as prior_model
from guidance.prior.camera import CONDITION_DIM, condition, look_at, ray_map
from guidance.prior.description import FILE
from guidance.prior.model import MAX_TOKENS
from nerf.core.errors import UserError
from nerf.core.files import read_json

REFERENCE_CHANNELS = 4 * UNSHUFFLE**2  # colour over white and coverage, packed
HEADINGS = 36  # bins of the azimuth of the reference
PATCHES = GRID_SIZE**2
SOMNIA = {**prior_model.SOMNIA, "reference_channels": REFERENCE_CHANNELS, "guidance_scale": 3.0}


@dataclass(frozen=True)
class EncoderConfig:
    """The size of the encoder of the reference, ``encoder/config.json``."""

    width: int = 96
    depth: int = 4
    heads: int = 4
    tokens: int = TEXT_DIM  # channels of the tokens


@dataclass
class Reading:
    """What the encoder sees in B references."""

    caption: Tensor  # [B, 16, D] tokens in place of the text's
    heading: Tensor  # [B, 36] logits of the azimuth that the reference was taken from, in the object's own frame


class Block(nn.Module):
    """A transformer block with the normalisation first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] to [B, L, W]."""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: the fused attention of the CPU is slower at this size.
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        added: Tensor = self.mlp(self.norm2(x))
        return x + added


class ReferenceEncoder(nn.Module):
    """Reads references of 64x64 pixels; see the module."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, tokens = config.width, config.tokens
        self.stem = nn.Sequential(
            *(nn.Conv2d(4, width // 3, 3, 2, 1), nn.GroupNorm(4, width // 3), nn.SiLU()),
            *(nn.Conv2d(width // 3, 2 * width // 3, 3, 2, 1), nn.GroupNorm(4, 2 * width // 3), nn.SiLU()),
            nn.Conv2d(2 * width // 3, width, 3, 2, 1),
        )
        self.position = nn.Parameter(0.02 * torch.randn(PATCHES, width))
        self.query = nn.Parameter(0.02 * torch.randn(MAX_TOKENS + 1, width))
        self.camera = nn.Linear(CONDITION_DIM, width)
        self.blocks = nn.Sequential(*(Block(width, config.heads) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(width)
        self.caption, self.heading = nn.Linear(width, tokens), nn.Linear(width, HEADINGS)
        self.null = nn.Parameter(torch.zeros(MAX_TOKENS, tokens))  # the tokens of no reference

    def forward(self, reference: Tensor, camera: Tensor) -> Reading:
        """Read references [B, 4, 64, 64] in [-1, 1], taken by cameras [B, 8] whose azimuth counts as 0."""
        patches = self.stem(reference).flatten(2).mT + self.position
        given = self.camera(camera)[:, None]
        x = torch.cat([self.query.expand(len(reference), -1, -1), patches], 1) + given
        x = self.norm(self.blocks(x)[:, : MAX_TOKENS + 1])
        return Reading(self.caption(x[:, 1:]), self.heading(x[:, 0]))


def azimuth_of(heading: Tensor) -> Tensor:
    """The most likely azimuth [B] in degrees: the best bin, refined by the mean over its neighbours. Not differentiable."""
    chance = heading.detach().float().softmax(-1)
    smooth = chance + (chance.roll(1, -1) + chance.roll(-1, -1)) / 2
    best = smooth.argmax(-1, keepdim=True)
    offset = torch.arange(-2, 3, device=heading.device)
    near = chance.gather(-1, (best + offset) % HEADINGS)
    return ((best[:, 0] + (near * offset).sum(-1) / near.sum(-1).clamp(min=1e-9)) * (360 / HEADINGS)) % 360


def heading_target(azimuth: Tensor) -> Tensor:
    """Probabilities [B, 36] of the bins for azimuths [B] in degrees, linear between the two nearest bins."""
    place = azimuth / (360 / HEADINGS)
    low = place.floor()
    part = (place - low)[:, None]
    first = torch.nn.functional.one_hot(low.long() % HEADINGS, HEADINGS)
    return first * (1 - part) + first.roll(1, -1) * part


@dataclass
class Seen:
    """What the UNet is given of B references; made once, it serves every view."""

    offset: Tensor  # [B] degrees: azimuth in the object's own frame less azimuth in the world
    tokens: Tensor  # [B, 16, D] in place of the text's
    packed: Tensor  # [B, 256, 8, 8] the references as input channels

    def __getitem__(self, rows: Tensor) -> "Seen":
        """Some of the references, for int64 indices [M]."""
        return Seen(self.offset[rows], self.tokens[rows], self.packed[rows])


@dataclass
class ViewPrior:
    """The parts of the model."""

    unet: Network
    encoder: ReferenceEncoder
    scheduler: Any
    detail: Network | None = None  # the text-conditioned prior's, see guidance.prior.detail; it takes these tokens as they are

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters: UNet first, then encoder."""
        return [*self.unet.parameters(), *self.encoder.parameters()]

    def read(self, reference: Tensor, source: dict[str, Tensor]) -> Reading:
        """What the encoder sees in references [B, 4, 64, 64] in [-1, 1] (colour over white, coverage).

        Args:
            reference: [B, 4, 64, 64].
            source: their cameras: ``polar``, ``azimuth``, ``radius``, ``fovy``, each [B]; the azimuth is not used.
        """
        camera = condition(source["polar"], 0.0, source["radius"], source["fovy"])
        reading: Reading = self.encoder(reference, camera.to(reference))
        return reading

    def see(
        self, reference: Tensor, source: dict[str, Tensor], reading: Reading | None = None, own: Tensor | None = None
    ) -> Seen:
        """What the UNet is given of references; arguments as of :meth:`read`, whose result may be given.

        ``own`` [B] replaces the estimated azimuths of the references in the object's own frame, in degrees.
        """
        reading = reading or self.read(reference, source)
        offset = (azimuth_of(reading.heading) if own is None else own) - source["azimuth"]
        return Seen(offset, reading.caption, torch.nn.functional.pixel_unshuffle(reference, UNSHUFFLE))

    def predict(self, noisy: Tensor, t: Tensor, seen: Seen, camera: Tensor, ray: Tensor, keep: Tensor | None = None) -> Tensor:
        """Predict x_0, packed; refined by the detail network, if there is one.

        Args:
            noisy: [B, 192, 8, 8] packed noisy images.
            t: [B] int64 in [0, 1000).
            seen: of B references.
            camera: [B, 8] camera vectors of the wanted views in the object's own frame, ``seen.offset`` from the world's.
            ray: [B, 13, 8, 8] ray maps in the same frame.
            keep: [B] 1 where the reference is given, 0 where it is dropped (the camera stays); None: given.

        Returns:
            [B, 192, 8, 8]. Differentiable in all but ``t`` and ``keep``.
        """
        tokens, packed = seen.tokens, seen.packed
        if keep is not None:
            tokens = torch.where(keep[:, None, None] > 0, tokens, self.encoder.null.to(tokens.dtype))
            packed = packed * keep[:, None, None, None].to(packed)
        given = torch.cat([noisy, ray.to(noisy), packed.to(noisy)], 1)
        x0: Tensor = self.unet(given, t, encoder_hidden_states=tokens, class_labels=camera.to(noisy)).sample
        return x0 if self.detail is None else detail.refine(self.detail, noisy, x0, t, tokens, camera)


def cameras_of(target: dict[str, Tensor], offset: Tensor) -> tuple[Tensor, Tensor]:
    """Camera vectors [B, 8] and ray maps [B, 13, 8, 8] of views that look at the origin, in the object's own frame.

    Args:
        target: ``polar``, ``azimuth``, ``radius``, ``fovy``, each [B], in the world.
        offset: [B] degrees, :attr:`Seen.offset`.
    """
    azimuth = target["azimuth"] + offset
    pose = look_at(target["polar"], azimuth, target["radius"])
    vector = condition(target["polar"], azimuth, target["radius"], target["fovy"])
    return vector, ray_map(pose, target["fovy"], GRID_SIZE)


def _unet(tiny: bool) -> Network:
    """The UNet of the text-conditioned prior with extra input channels for the reference, zero at first."""
    text = prior_model.build(tiny=True) if tiny else prior_model.load(WEIGHTS)
    network, old = text.unet, text.unet.conv_in
    wide = nn.Conv2d(old.in_channels + REFERENCE_CHANNELS, old.out_channels, 3, padding=1)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : old.in_channels] = old.weight
        wide.bias.copy_(old.bias)  # type: ignore[union-attr]
    network.conv_in = wide
    network.register_to_config(in_channels=wide.in_channels, _name_or_path="")
    return network


def build(tiny: bool = False, seed: int = 0) -> ViewPrior:
    """A view-conditioned prior that starts from the shipped text-conditioned one, with a random encoder.

    Args:
        tiny: a few thousand random parameters and the same interface, for tests.
        seed: of the random weights.
    """
    scheduler = prior_model.schedule()
    unet = _unet(tiny)
    torch.manual_seed(seed)
    config = EncoderConfig(12, 1, 2, TINY_TEXT_DIM) if tiny else EncoderConfig()
    return ViewPrior(unet.eval(), ReferenceEncoder(config).eval(), scheduler)


def save(prior: ViewPrior, folder: Path | str, recipe: dict[str, Any] | None = None, half: bool = True) -> None:
    """Write the folder: safetensors in fp16 (or in their own dtype), JSON beside them, ``recipe.json`` if given."""
    from safetensors.torch import save_file

    folder = Path(folder)
    (folder / "encoder").mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    copy.deepcopy(prior.unet).to(dtype).save_pretrained(folder / "unet")
    tensors = {name: value.to(dtype).contiguous() for name, value in prior.encoder.state_dict().items()}
    save_file(tensors, folder / "encoder" / "model.safetensors")
    prior.scheduler.save_pretrained(folder / "scheduler")
    for name, content in (("encoder/config.json", asdict(prior.encoder.config)), (FILE, SOMNIA), ("recipe.json", recipe)):
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def load_encoder(folder: Path) -> ReferenceEncoder:
    """The encoder in ``folder``, in float32 on the CPU.

    Raises:
        UserError: a file is missing or does not fit the other.
    """
    from safetensors.torch import load_file

    again = "restore the folder from version control or run python -m guidance.prior.train_view"
    content = read_json(folder / "config.json", again)
    try:
        encoder = ReferenceEncoder(EncoderConfig(**content))
        encoder.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    except Exception as error:
        raise UserError(f"weights: {folder} is damaged ({str(error).splitlines()[0]:.120}); {again}") from None
    return encoder.eval()


def load(folder: Path | str) -> ViewPrior:
    """Read a folder written by :func:`save`, in float32, in evaluation mode."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    folder = Path(folder)
    unet: Network = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    return ViewPrior(unet.eval(), load_encoder(folder / "encoder"), DDPMScheduler.from_pretrained(folder / "scheduler"))
