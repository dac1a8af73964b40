"""Building, saving and loading the embedded prior as a diffusers folder. B images."""

import copy
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidance.diffusion import Network, loader
from guidance.folders import RESTORE
from guidance.prior import GRID_SIZE, IMAGE_CHANNELS, IMAGE_SIZE, TEXT_DIM, TINY_TEXT_DIM, UNSHUFFLE, detail, geometry
from guidance.prior.camera import CONDITION_DIM, RAY_CHANNELS
from guidance.prior.captions import vocabulary
from guidance.prior.description import FILE
from nerf.core.errors import UserError
from nerf.core.files import reading

MAX_TOKENS = 16
TRAIN_STEPS = 1000
CHANNELS, HEADS = (96, 128), (3, 4)
SOMNIA = {
    "space": "pixels",
    "size": IMAGE_SIZE,
    "unshuffle": UNSHUFFLE,
    "camera": "vector8+rays",
    "camera_dim": CONDITION_DIM,
    "ray_channels": RAY_CHANNELS,
    "guidance_scale": 7.5,
}


@dataclass
class Prior:
    """The parts of the model, as diffusers and transformers objects."""

    unet: Network
    text_encoder: Network
    tokenizer: Any
    scheduler: Any
    detail: Network | None = None  # see guidance.prior.detail
    geometry: Network | None = None  # see guidance.prior.geometry

    def parameters(self) -> list[nn.Parameter]:
        """The parameters trained together: UNet first, then text encoder. Detail and geometry are trained afterwards."""
        return [*self.unet.parameters(), *self.text_encoder.parameters()]

    def to(self, device: torch.device | str) -> "Prior":
        """Move the networks to a device, in place; returns the prior."""
        for network in (self.unet, self.text_encoder, self.detail, self.geometry):
            if network is not None:
                network.to(device)
        return self

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Text embeddings [B, 16, 64] of the prompts; "" is the unconditional one. Differentiable."""
        tokens = self.tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        ids = tokens["input_ids"].to(self.text_encoder.device)
        embeddings: Tensor = self.text_encoder(ids).last_hidden_state
        return embeddings

    def predict(self, noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor, ray: Tensor) -> Tensor:
        """Predict x_0, packed; refined by the detail network, if there is one.

        Args:
            noisy: [B, 192, 8, 8] packed noisy images.
            t: [B] int64 in [0, 1000).
            text: [B, 16, 64] from :meth:`encode_text`.
            camera: [B, 8], zeros where unknown.
            ray: [B, 13, 8, 8], zeros where unknown.

        Returns:
            [B, 192, 8, 8]. Differentiable in everything but ``t``.
        """
        x0: Tensor = self.unet(torch.cat([noisy, ray], 1), t, encoder_hidden_states=text, class_labels=camera).sample
        return x0 if self.detail is None else detail.refine(self.detail, noisy, x0, t, text, camera)


def shifted_cosine_betas(steps: int = TRAIN_STEPS, size: int = IMAGE_SIZE) -> list[float]:
    """Cosine noise schedule whose log signal-to-noise ratio is lowered by ``2 log(size / 32)``.

    The same noise hides less of a larger image, because it averages out over neighbouring pixels (Hoogeboom et al. 2023,
    "simple diffusion", eq. 6). Returns ``steps`` betas in [1e-5, 0.999].
    """
    shift = 2 * math.log(size / 32)

    def signal(u: float) -> float:
        angle = math.pi / 2 * min(max((u + 0.008) / 1.008, 1e-4), 1 - 1e-4)
        return 1 / (1 + math.exp(2 * math.log(math.tan(angle)) + shift))

    level = [signal(i / steps) for i in range(steps + 1)]
    return [min(max(1 - level[i + 1] / level[i], 1e-5), 0.999) for i in range(steps)]


def _byte_pair_files(folder: Path) -> tuple[Path, Path]:
    """Write ``vocab.json`` and ``merges.txt`` in which every known word is one token (merged pair by pair)."""
    words = {word: (*word[:-1], word[-1] + "</w>") for word in vocabulary()}
    letters = sorted("abcdefghijklmnopqrstuvwxyz0123456789-',.!")
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = []
    while any(len(pieces) > 1 for pieces in words.values()):
        count: dict[tuple[str, str], int] = {}
        for pieces in words.values():
            for pair in zip(pieces, pieces[1:], strict=False):
                count[pair] = count.get(pair, 0) + 1
        best = max(sorted(count), key=count.__getitem__)
        merges.append(best)
        tokens.append("".join(best))
        words = {word: _merge(pieces, best) for word, pieces in words.items()}
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    vocab_file.write_text(json.dumps({token: i for i, token in enumerate(tokens)}, indent=0))
    merges_file.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return vocab_file, merges_file


def _merge(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """``pieces`` with every occurrence of ``pair`` joined."""
    merged, i = [], 0
    while i < len(pieces):
        if pieces[i : i + 2] == pair:
            merged.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return tuple(merged)


def _build_tokenizer() -> Any:
    """A CLIP tokenizer whose tokens are the words of the vocabulary."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as name:
        _byte_pair_files(Path(name))
        return CLIPTokenizer.from_pretrained(name, model_max_length=MAX_TOKENS, pad_token="<|endoftext|>")


def schedule() -> Any:
    """The noise schedule, as a diffusers scheduler that takes x_0 predictions."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        trained_betas=shifted_cosine_betas(),
        prediction_type="sample",
        clip_sample=True,
        clip_sample_range=1.0,
    )


def build(tiny: bool = False, seed: int = 0) -> Prior:
    """A prior with random weights: levels of 8x8 and 4x4 patches, text attention in both.

    Args:
        tiny: a few thousand parameters and the same interface, for tests.
        seed: of the weights.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = _build_tokenizer()
    width = TINY_TEXT_DIM if tiny else TEXT_DIM
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1 if tiny else 2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=width,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet: Network = UNet2DConditionModel(
        sample_size=GRID_SIZE,
        in_channels=IMAGE_CHANNELS + RAY_CHANNELS,
        out_channels=IMAGE_CHANNELS,
        block_out_channels=(16, 16) if tiny else CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2 if tiny else HEADS,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=CONDITION_DIM,
    )
    return Prior(unet.eval(), text_encoder.eval(), tokenizer, schedule())


def save(prior: Prior, folder: Path | str, recipe: dict[str, Any] | None = None, half: bool = True) -> None:
    """Write the diffusers folder: safetensors in fp16 (or in their own dtype), JSON beside them, ``recipe.json`` if given."""
    import diffusers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else next(prior.unet.parameters()).dtype
    copy.deepcopy(prior.text_encoder).to(device="cpu", dtype=dtype).save_pretrained(folder / "text_encoder")
    for name, network in (("unet", prior.unet), ("detail", prior.detail), ("geometry", prior.geometry)):
        if network is not None:
            written = copy.deepcopy(network).to(device="cpu", dtype=dtype)
            written.register_to_config(_name_or_path="")  # else diffusers writes the folder it was read from
            written.save_pretrained(folder / name)
    prior.tokenizer.save_pretrained(folder / "tokenizer")
    _byte_pair_files(folder / "tokenizer")
    prior.scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / FILE).write_text(json.dumps(SOMNIA, indent=2) + "\n")
    if recipe is not None:
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


def load(folder: Path | str) -> Prior:
    """Read a folder written by :func:`save`, in float32, in evaluation mode.

    Raises:
        UserError: a part is missing (transformers would silently create a tokenizer), damaged, or does not fit the others.
    """
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = Path(folder)
    for part in (
        "unet/config.json",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
        FILE,
    ):
        if not (folder / part).is_file():
            raise UserError(
                f"embedded prior: expected {folder / part}, which is missing; restore the folder "
                "from version control or run python -m guidance.prior.train"
            )
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    kinds |= {name: UNet2DConditionModel for name in ("detail", "geometry") if (folder / name).is_dir()}
    networks: dict[str, Network] = {
        name: loader.load_part(folder, name, kind, torch.device("cpu"), torch.float32).requires_grad_(True)
        for name, kind in kinds.items()
    }
    if "geometry" in networks:
        geometry.check_fit(networks["geometry"], networks["unet"], UNSHUFFLE, folder / "geometry")
    with reading(f"weights: {folder}", RESTORE):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    more = networks.get("detail"), networks.get("geometry")
    return Prior(networks["unet"], networks["text_encoder"], tokenizer, scheduler, *more)
