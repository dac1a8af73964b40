"""Text embeddings of prompts by the text encoders of diffusion models and of CLIP. P prompts, L tokens, D channels.

An encoder is loaded when a prompt is new, and freed at once; embeddings are kept on disk (``text_cache.py``).
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance import folders, weights
from guidance.diffusion import Network, text_cache
from guidance.diffusion.loader import load_part, offload, release
from nerf.core.errors import UserError
from nerf.core.files import reading

log = logging.getLogger("somnia.guidance")

T5_LENGTH = 77  # tokens that DeepFloyd IF was trained with


@dataclass(frozen=True)
class Kind:
    """How prompts are embedded by one kind of encoder."""

    model: str  # class of transformers
    tokenizer: str  # class of transformers
    special: int  # tokens that the tokenizer adds
    outputs: tuple[str, ...]  # "tokens" [P, L, D], "pooled" [P, D]
    run: Callable[[Network, Tensor, Tensor], dict[str, Tensor]]  # (encoder, ids [P, L], attention mask [P, L]) -> outputs
    length: int | None = None  # tokens; None: what tokenizer and encoder allow


def _last(encoder: Network, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"tokens": encoder(input_ids=ids).last_hidden_state}


def _penultimate(encoder: Network, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"tokens": encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]}


def _penultimate_and_pooled(encoder: Network, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    out = encoder(input_ids=ids, output_hidden_states=True)
    return {"tokens": out.hidden_states[-2], "pooled": out.text_embeds}


def _masked(encoder: Network, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"tokens": encoder(input_ids=ids, attention_mask=mask).last_hidden_state}


def _features(encoder: Network, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"pooled": encoder(input_ids=ids, attention_mask=mask).text_embeds}


KINDS: dict[str, Kind] = {
    "clip": Kind("CLIPTextModel", "CLIPTokenizer", 2, ("tokens",), _last),
    "sdxl": Kind("CLIPTextModel", "CLIPTokenizer", 2, ("tokens",), _penultimate),
    "sdxl 2": Kind("CLIPTextModelWithProjection", "CLIPTokenizer", 2, ("tokens", "pooled"), _penultimate_and_pooled),
    "t5": Kind("T5EncoderModel", "T5Tokenizer", 1, ("tokens",), _masked, T5_LENGTH),
    "features": Kind("CLIPTextModelWithProjection", "CLIPTokenizer", 2, ("pooled",), _features),
}


@dataclass(frozen=True)
class Checkpoint:
    """An encoder in a single file that holds a whole model."""

    file: Path
    length: int  # tokens that the encoder takes
    load: Callable[[], Network]
    pad: int | None = None  # token that fills up a short prompt; None: that of the tokenizer
    content: Callable[[], str] | None = None  # a hash of the encoder's tensors; None: that of the whole file's samples


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder on disk.

    Attributes:
        folder: of the whole model.
        kind: one of :data:`KINDS`.
        part: subfolder of the encoder; "." if it lies in ``folder`` itself.
        tokenizer: subfolder of the tokenizer, likewise.
        checkpoint: an encoder that is in a single file, and not in a subfolder.
    """

    folder: Path
    kind: str = "clip"
    part: str = "text_encoder"
    tokenizer: str = "tokenizer"
    checkpoint: Checkpoint | None = None

    def identity(self) -> str:
        """What embeddings depend on beside the prompt: the files of the encoder and the tokenizer, and how they are read."""
        names = folders.files_of(self.folder)
        inside = "" if self.tokenizer == "." else f"{self.tokenizer}/"
        # The files of a tokenizer are small; weights that lie beside them are not its own.
        texts = [
            n for n in names if n.startswith(inside) and "/" not in n[len(inside) :] and n.endswith((".json", ".txt", ".model"))
        ]
        if self.checkpoint is not None:
            content, pad, kept = self.checkpoint.content, self.checkpoint.pad, [self.folder / name for name in texts]
            if content is not None:
                return f"{text_cache.identity(kept)}{content()}{self.kind} {pad}"
            return text_cache.identity([self.checkpoint.file, *kept]) + self.kind
        used = [*folders.weight_files(names, self.part), "config.json" if self.part == "." else f"{self.part}/config.json"]
        return text_cache.identity(self.folder / name for name in {*used, *texts}) + self.kind


def embed(
    encoder: TextEncoder,
    prompts: Sequence[tuple[str, str]],
    device: torch.device,
    dtype: torch.dtype,
    vram_O: bool = False,
    around: AbstractContextManager[Any] | None = None,
) -> dict[str, Tensor]:
    """Embeddings of prompts, of disk where they are there.

    Args:
        encoder: which.
        prompts: P pairs (text, suffix); a text that is too long is cut before its suffix, and a warning says what was left
            out.
        device: where the encoder runs and the embeddings go.
        dtype: of both.
        vram_O: keep the encoder's weights in main memory while it runs on a GPU.
        around: entered while the encoder is loaded and runs, if it must; what makes room for it.

    Returns:
        The outputs of its kind, P rows each: "tokens" [P, L, D], "pooled" [P, D].

    Raises:
        UserError: tokenizer or text encoder cannot be read, or do not belong together.
    """
    kind = KINDS[encoder.kind]
    tokenizer, length = _tokenizer(encoder, kind)
    with reading(f"weights: the tokenizer in {encoder.folder}", folders.RESTORE):
        texts = _cut(tokenizer, prompts, length - kind.special)
    identity = encoder.identity()
    keys = [text_cache.key(identity, dtype, text) for text in texts]
    found = {name: text_cache.load(name, kind.outputs) for name in dict.fromkeys(keys)}
    new = [i for i, name in enumerate(keys) if found[name] is None and name not in keys[:i]]
    if new:
        with around or nullcontext():
            rows = _encode(encoder, kind, tokenizer, length, [texts[i] for i in new], device, dtype, vram_O)
        for row, i in enumerate(new):
            one = {name: value[row] for name, value in rows.items()}
            text_cache.store(keys[i], one)
            found[keys[i]] = one
    whole = [one for one in (found[name] for name in keys) if one is not None]
    return {name: torch.stack([one[name].to(device, dtype) for one in whole]) for name in kind.outputs}


def _tokenizer(encoder: TextEncoder, kind: Kind) -> tuple[Any, int]:
    """The tokenizer of an encoder, and the tokens that both of them take.

    Raises:
        UserError: one of them cannot be read.
    """
    import transformers

    folder = encoder.folder
    pieces = folder / encoder.tokenizer / "spiece.model"
    alone = pieces.is_file() and not pieces.with_name("tokenizer.json").is_file()
    if alone and not (_installed("sentencepiece") and _installed("google.protobuf")):
        raise UserError(f"the tokenizer in {folder} needs two more packages; pip install sentencepiece protobuf")
    with reading(f"weights: the tokenizer in {folder}", folders.RESTORE):
        tokenizer = getattr(transformers, kind.tokenizer).from_pretrained(folder / encoder.tokenizer, local_files_only=True)
        longest = int(tokenizer.model_max_length)
    if kind.length is not None:
        return tokenizer, kind.length
    if encoder.checkpoint is not None:
        return tokenizer, min(longest, encoder.checkpoint.length)
    with reading(f"weights: {folder / encoder.part}", folders.RESTORE, problem=f"cannot be read as {kind.model}"):
        config = getattr(transformers, kind.model).config_class.from_pretrained(folder / encoder.part, local_files_only=True)
        return tokenizer, min(longest, int(config.max_position_embeddings))


def _installed(module: str) -> bool:
    """Whether a module, or one inside a package, can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _cut(tokenizer: Any, prompts: Sequence[tuple[str, str]], limit: int) -> list[str]:
    """The prompts, cut before their suffixes to ``limit`` tokens; each text is cut for the longest suffix that it has."""
    longest: dict[str, int] = {}
    for text, suffix in prompts:
        tokens = len(tokenizer(suffix, add_special_tokens=False)["input_ids"]) if suffix else 0
        longest[text] = max(longest.get(text, 0), tokens)
    short = {text: _truncated(tokenizer, text, limit - tokens) for text, tokens in longest.items()}
    return [short[text] + suffix for text, suffix in prompts]


def _truncated(tokenizer: Any, text: str, limit: int) -> str:
    """``text`` cut to ``limit`` tokens; a warning names what was left out."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) <= limit:
        return text
    log.warning(
        "guidance: the prompt has %d tokens and the model reads %d; left out: %r",
        len(ids),
        limit,
        tokenizer.decode(ids[limit:]),
    )
    return str(tokenizer.decode(ids[:limit]))


def _encode(
    encoder: TextEncoder,
    kind: Kind,
    tokenizer: Any,
    length: int,
    texts: list[str],
    device: torch.device,
    dtype: torch.dtype,
    vram_O: bool,
) -> dict[str, Tensor]:
    """Embed texts by the encoder, which is loaded for this call alone and freed after it.

    Raises:
        UserError: it cannot be read, or does not fit the tokenizer.
    """
    import transformers

    folder, in_main_memory = encoder.folder, vram_O and device.type == "cuda"
    there = torch.device("cpu") if in_main_memory else device
    if encoder.checkpoint is None:
        network = load_part(folder, encoder.part, getattr(transformers, kind.model), there, dtype)
    else:
        network = encoder.checkpoint.load().to(there, dtype)
    with reading(f"weights: the tokenizer in {folder}", folders.RESTORE):
        words = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids, mask = words["input_ids"], words["attention_mask"]
    if encoder.checkpoint is not None and encoder.checkpoint.pad is not None:
        ids = ids.masked_fill(mask == 0, encoder.checkpoint.pad)
    if int(ids.max()) >= network.config.vocab_size:
        raise UserError(
            f"weights: the tokenizer in {folder} has more tokens than its text encoder "
            f"({network.config.vocab_size}); they are not of one model"
        )
    if int(ids.min()) < 0:
        raise UserError(f"weights: the tokenizer in {folder} gives token {int(ids.min())}; {folders.RESTORE}")
    if in_main_memory:
        offload(network, device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        out = {name: value.to(dtype).clone() for name, value in kind.run(network, ids.to(device), mask.to(device)).items()}
    del network
    release(device)
    return out


def encode_prompts(
    folder: Path,
    text: str,
    suffixes: Sequence[str],
    negative: str,
    device: torch.device,
    dtype: torch.dtype,
    vram_O: bool = False,
    others: Sequence[str] = (),
) -> Tensor:
    """Text embeddings [len(suffixes) + 1 + len(others), L, D] of a prompt and those beside it; see :func:`embed`.

    In the order of the text with each suffix, the negative prompt, the others.

    Args:
        folder: in diffusers layout, with ``tokenizer`` and ``text_encoder`` (CLIP).
        text: the prompt.
        suffixes: appended to the prompt, one for each embedding.
        negative: the prompt of the unconditional input.
        device: where the encoder runs and the embeddings go.
        dtype: of both.
        vram_O: keep the encoder's weights in main memory.
        others: further prompts.

    Raises:
        UserError: tokenizer or text encoder cannot be read, or do not belong together.
    """
    weights.check_folder(folder)
    return embed(
        TextEncoder(folder), [*prompts_of(text, suffixes, negative), *((one, "") for one in others)], device, dtype, vram_O
    )["tokens"]


def prompts_of(text: str, suffixes: Sequence[str], negative: str) -> list[tuple[str, str]]:
    """The pairs (text, suffix) of a prompt with each suffix, and of the negative prompt."""
    return [*((text, suffix) for suffix in suffixes), (negative, "")]
