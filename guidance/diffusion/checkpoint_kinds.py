"""What a checkpoint file in the original layout is, by the names and shapes of its tensors: which model, or what else.

The marks are names of tensors in public code: CompVis/stable-diffusion, Stability-AI/stablediffusion and generative-models,
black-forest-labs/flux, lllyasviel/ControlNet, kohya-ss/sd-scripts (LoRA), and the marks of finetunes that ComfyUI reads.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from guidance.diffusion import ldm
from guidance.diffusion.single_file import TensorFile
from nerf.core.errors import UserError

FIRST = f"{ldm.UNET}input_blocks.0.0.weight"  # of the UNet, whose second dimension is its input channels
WHOLE = "give a whole checkpoint of Stable Diffusion 1.x, 2.x or SDXL: UNet, VAE and text encoder in one file"
# Where the text encoders are: prefixes before the names of transformers, or of OpenCLIP.
CLIP_L = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")  # the second one in files of 2022
OPEN_CLIP_H = "cond_stage_model.model."
SDXL_L, SDXL_G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Version:
    """What the tensors of one of the models that are read do not say."""

    name: str
    family: str  # of --guidance
    grids: dict[str, int]  # prediction type -> side of the latents
    heads: Callable[[int], int]  # channels of a level of the UNet -> its attention heads
    scaling_factor: float = ldm.SCALING_FACTOR  # of the latents
    certain: bool = True  # whether it predicts the noise unless the file says otherwise


def _by_width(width: int) -> int:
    """Attention heads of so many channels."""
    return max(width // _HEAD_WIDTH, 1)


SD1 = Version("Stable Diffusion 1.x", "SD", {"epsilon": 64, "v_prediction": 64}, lambda _: 8)
SD2 = Version("Stable Diffusion 2.x", "SD", {"epsilon": 64, "v_prediction": 96}, _by_width, certain=False)
SDXL = Version("SDXL", "SDXL", {"epsilon": 128, "v_prediction": 128}, _by_width, 0.13025)
FAMILIES = {version.family for version in (SD1, SD2, SDXL)}  # models of --guidance that take such a file


@dataclass(frozen=True)
class _Other:
    """Something that is not read."""

    mark: str  # regular expression that the name of one of its tensors matches from the start
    what: str
    way_out: str = WHOLE


_OTHERS = (
    _Other(
        r"(.*\.)?lora_(down|up|A|B|unet|te|te1|te2)\b|lora_(unet|te|te1|te2)_|.*\.(hada_w1|lokr_w1)|.*\.lora\.",
        "a LoRA, which changes another model",
        "merge it into the model that it was made for, and give the merged checkpoint",
    ),
    _Other(r"(emb_params|clip_l|clip_g)$", "a textual inversion, which is one word for another model"),
    _Other(r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet, which steers another model"),
    _Other(r".*motion_modules\.", "a motion module of AnimateDiff, which is for videos"),
    _Other(r"(.*\.)?joint_blocks\.", "Stable Diffusion 3, whose transformer cannot guide here"),
    _Other(r"(.*\.)?double_blocks\.", "Flux or a relative of it, whose transformer cannot guide here"),
    _Other(r"cc_projection\.", "Zero123, which takes a picture", "give it to --guidance zero123 with --zero123 FILE"),
    _Other(
        rf"{re.escape(ldm.UNET)}(camera_embed|image_embed)\.",
        "MVDream or ImageDream, which take four linked views",
        "give it as --hf_keys MVDream=FILE with --guidance MVDream, or as ImageDream's",
    ),
    _Other(
        r"conditioner\.embedders\.0\.model\.",
        "the refiner of SDXL, which only finishes pictures",
        "give the base model, or a finetune of it",
    ),
    _Other(r"edm_mean$|edm_vpred\.", "trained with the noise levels of EDM (Playground 2.5, CosXL), which are not read"),
    _Other(r"embedder\.model\.|noise_augmentor\.", "Stable unCLIP, which takes a picture"),
)
# Of files without the UNet of a whole checkpoint.
_PARTS = (
    _Other(rf"({re.escape(ldm.UNET)}|diffusion_model\.)", "a diffusion model of another kind than Stable Diffusion's"),
    _Other(r"input_blocks\.0\.0\.", "a UNet alone"),
    _Other(
        r"((encoder|decoder)\.)?(down_blocks|up_blocks|mid_block)\.",
        "one network of a folder in diffusers layout",
        "give that folder, with unet/, vae/, text_encoder/, tokenizer/ and scheduler/",
    ),
    _Other(r"(first_stage_model\.)?(encoder|decoder)\.(conv_in|conv_out|down|up|mid)\b", "a VAE alone"),
    _Other(r"(.*\.)?(text_model|transformer\.resblocks)\.", "a text encoder alone"),
)
_CHANNELS = {
    5: "a model that takes depth beside the prompt",
    7: "an upscaler",
    8: "a model that edits a picture (InstructPix2Pix)",
    9: "an inpainting model, which takes a picture and a mask",
}


def _refusal(file: TensorFile, what: str, way_out: str = WHOLE) -> UserError:
    return UserError(f"weights: {file.path} is {what}; {way_out}")


def _first_of(file: TensorFile, others: tuple[_Other, ...]) -> _Other | None:
    """The first of some things that the file is."""
    for other in others:
        mark = re.compile(other.mark)
        if any(mark.match(name) for name in file):
            return other
    return None


def clip_prefix(file: TensorFile) -> str | None:
    """The prefix of the text encoder of Stable Diffusion 1.x, if the file has it."""
    return next((prefix for prefix in CLIP_L if f"{prefix}embeddings.token_embedding.weight" in file), None)


def version_of(file: TensorFile, family: str) -> Version:
    """Which model a file holds; no tensor is read.

    Args:
        file: the tensors.
        family: of --guidance, which the file was given to.

    Raises:
        UserError: something else, or a part of it; the sentence names what, and what to give.
    """
    other = _first_of(file, _OTHERS)
    if other is None and FIRST not in file:
        other = _first_of(file, _PARTS) or _Other("", "no checkpoint of a model that is known")
    if other is not None:
        raise _refusal(file, other.what, other.way_out)
    version, channels = _version(file), file.shape(FIRST)[1]
    if channels != 4:
        raise _refusal(file, _CHANNELS.get(channels, f"a model whose UNet takes {channels} channels and not 4"))
    if version is None:
        raise UserError(f"weights: {file.path} lacks its text encoder (cond_stage_model or conditioner); {WHOLE}")
    if f"{ldm.VAE}decoder.conv_in.weight" not in file:
        raise UserError(f"weights: {file.path} lacks its VAE (first_stage_model); {WHOLE}")
    if version is not SDXL and f"{ldm.UNET}label_emb.0.0.weight" in file:
        raise _refusal(file, "a model that takes more than a prompt (label_emb)")
    _check_width(file, version)
    if version.family != family:
        raise _refusal(file, version.name, f"give it with --guidance {version.family} --hf_keys {version.family}={file.path}")
    return version


def _version(file: TensorFile) -> Version | None:
    """Which model, by the text encoder; None if it has none that is known."""
    if f"{SDXL_G}token_embedding.weight" in file and f"{SDXL_L}embeddings.token_embedding.weight" in file:
        return SDXL
    if f"{OPEN_CLIP_H}token_embedding.weight" in file:
        return SD2
    return None if clip_prefix(file) is None else SD1


def _check_width(file: TensorFile, version: Version) -> None:
    """Refuse a UNet that takes text of another width than its text encoder gives."""
    names = {
        SD1.name: (f"{clip_prefix(file)}embeddings.token_embedding.weight",),
        SD2.name: (f"{OPEN_CLIP_H}token_embedding.weight",),
        SDXL.name: (f"{SDXL_L}embeddings.token_embedding.weight", f"{SDXL_G}token_embedding.weight"),
    }
    given = sum(file.shape(name)[1] for name in names[version.name])
    taken = file.shape(f"{ldm.UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1]
    if given != taken:
        raise UserError(
            f"weights: {file.path} has a UNet that takes text of {taken} channels, and text encoders that give {given}; {WHOLE}"
        )


def prediction_of(file: TensorFile, version: Version) -> tuple[str, str] | None:
    """(prediction type, what says so) of a file as far as the file says it; None if it does not.

    Read are the metadata ``modelspec.prediction_type`` and ``modelspec.architecture`` of Stability AI's ModelSpec and the
    tensor ``v_pred`` that finetunes of SDXL carry.
    """
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction", "v-prediction", "velocity"):
        return "v_prediction", "modelspec.prediction_type"
    if said in ("epsilon", "eps"):
        return "epsilon", "modelspec.prediction_type"
    if "v_pred" in file:
        return "v_prediction", "the tensor v_pred"
    if "v2-768-v" in file.metadata.get("modelspec.architecture", "").lower():
        return "v_prediction", "modelspec.architecture"
    return ("epsilon", f"all of {version.name} does unless the file says otherwise") if version.certain else None


def side_of(file: TensorFile, version: Version, prediction: str) -> int:
    """Side of the latents: of the pictures in ``modelspec.resolution`` (WxH), else what the published model has."""
    sides = re.fullmatch(r"(\d{3,4})x(\d{3,4})", file.metadata.get("modelspec.resolution", "").strip())
    if sides is not None and sides[1] == sides[2] and int(sides[1]) % 64 == 0:
        return int(sides[1]) // 8
    return version.grids[prediction]


def skipped_layers(file: TensorFile, layers: int) -> int:
    """How many of the last layers of CLIP a finetune of Stable Diffusion 1.x does without ("clip skip", less one).

    Read from ``modelspec.encoder_layer``, which counts the used layer from the end; 0 where the file does not say it.
    """
    said = file.metadata.get("modelspec.encoder_layer", "").strip()
    return int(said) - 1 if re.fullmatch(r"\d{1,2}", said) and 1 <= int(said) < layers else 0
