"""Text embeddings of prompts by a CLIP text encoder. L tokens, D channels."""

import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance import weights
from guidance.diffusion.loader import load_part
from nerf.core.errors import UserError
from nerf.core.files import reading

log = logging.getLogger("somnia.guidance")


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


def encode_prompts(
    folder: Path,
    text: str | Sequence[str],
    suffixes: Sequence[str],
    negative: str,
    device: torch.device,
    dtype: torch.dtype,
    others: Sequence[str] = (),
) -> Tensor:
    """Text embeddings [len(suffixes) + 1 + len(others), L, D]: the text with each suffix, the negative prompt, the others.

    The text encoder is loaded for this call alone and freed after it. A text that is too long is cut before its suffix, and
    a warning names what was left out.

    Args:
        folder: in diffusers layout, with ``tokenizer`` and ``text_encoder``.
        text: the prompt, or one for each suffix.
        suffixes: appended to the prompt, one for each embedding.
        negative: the prompt of the unconditional input.
        device: where the encoder runs and the embeddings go.
        dtype: of both.
        others: further prompts; what is too long of them is cut.

    Raises:
        UserError: tokenizer or text encoder cannot be read, or do not belong together.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    weights.check_folder(folder)
    encoder = load_part(folder, "text_encoder", CLIPTextModel, device, dtype)
    with reading(f"weights: the tokenizer in {folder}", "restore or download it again"):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        longest = max(len(tokenizer(suffix, add_special_tokens=False)["input_ids"]) for suffix in suffixes)
        cut = {one: _truncated(tokenizer, one, length - 2 - longest) for one in ([text] if isinstance(text, str) else text)}
        texts = [text] * len(suffixes) if isinstance(text, str) else text
        prompts = [cut[one] + suffix for one, suffix in zip(texts, suffixes, strict=True)]
        prompts.append(_truncated(tokenizer, negative, length - 2))
        # In a batch of their own: the others must not change the last bits of the first.
        batches = [
            tokenizer(batch, padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
            for batch in (prompts, list(others))
            if batch
        ]
    for ids in batches:
        if int(ids.max()) >= encoder.config.vocab_size:
            raise UserError(
                f"weights: the tokenizer in {folder} has more tokens than its text encoder "
                f"({encoder.config.vocab_size}); they are not of one model"
            )
        if int(ids.min()) < 0:
            raise UserError(f"weights: the tokenizer in {folder} gives token {int(ids.min())}; restore or download it again")
    with torch.no_grad():
        embeddings = torch.cat([encoder(input_ids=ids.to(device)).last_hidden_state for ids in batches])
    del encoder
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return embeddings
