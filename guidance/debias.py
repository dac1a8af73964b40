"""Prompt debiasing of D-SDS: words that contradict a view are left out of its prompt. V view words.

"A smiling cat, back view" draws a face on the back. A masked language model knows that smiling things are seen from the
front; words that make a view word less likely are removed (Hong et al. 2023, arXiv 2303.15413, sec. 4.2).
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nerf.core.errors import UserError
from nerf.core.files import reading

log = logging.getLogger("somnia.guidance")

TEMPLATE = "This image is depicting a {mask} view of {prompt}"
LEAST_INFORMATION = 0.95  # of a word about a view, as a ratio of probabilities; below, the word contradicts the view
_WAY_OUT = "give a folder of BERT weights in safetensors, such as bert-base-uncased, or leave --debias_prompt out"

Likelihood = Callable[[str], Tensor]
"""A prompt -> probability [V] of each view word in :data:`TEMPLATE`; they sum to 1."""


def debiased_prompts(prompt: str, likelihood: Likelihood) -> list[str]:
    """The prompt for each view.

    A word w is left out for the view v where ``p(v | prompt) / ((p(v | prompt) + p(v | prompt without w)) / 2)`` is below
    :data:`LEAST_INFORMATION`. A prompt that would lose all its words is kept.

    Args:
        prompt: of one or more words.
        likelihood: of the view words.

    Returns:
        V prompts.
    """
    words = prompt.split()
    whole = likelihood(prompt)
    without = [likelihood(" ".join(words[:i] + words[i + 1 :])) for i in range(len(words))]
    information = torch.stack([whole / ((whole + part) / 2) for part in without])  # [words, V]
    kept = (information >= LEAST_INFORMATION).T.tolist()
    return [" ".join(w for w, keep in zip(words, row, strict=True) if keep) or prompt for row in kept]


def masked_language_model(folder: Path, view_words: Sequence[str]) -> Likelihood:
    """The likelihood of view words according to BERT, read from a folder. Nothing is downloaded.

    Args:
        folder: with ``config.json``, weights and the tokenizer.
        view_words: each one token of the model.

    Raises:
        UserError: the folder is not BERT's, or a view word is not in its vocabulary.
    """
    from transformers import BertForMaskedLM, BertTokenizer

    if not folder.is_dir():
        raise UserError(f"--debias_prompt {folder}: no such folder; {_WAY_OUT}")
    with reading(f"--debias_prompt {folder}", _WAY_OUT):
        model = BertForMaskedLM.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        columns = tokenizer.convert_tokens_to_ids(list(view_words))
    unknown = [word for word, column in zip(view_words, columns, strict=True) if column == tokenizer.unk_token_id]
    if unknown:
        raise UserError(f"--debias_prompt {folder}: its vocabulary lacks {', '.join(unknown)}; {_WAY_OUT}")

    @torch.no_grad()
    def likelihood(prompt: str) -> Tensor:
        text = TEMPLATE.format(mask=tokenizer.mask_token, prompt=prompt)
        tokens = tokenizer(text, truncation=True, max_length=model.config.max_position_embeddings, return_tensors="pt")
        place = (tokens["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        return torch.softmax(model(**tokens).logits[0, place, columns].double(), 0)

    return likelihood


def debias(prompt: str, folder: Path, view_words: Sequence[str]) -> list[str]:
    """The prompt for each view word, by the language model in a folder; the log shows those that differ.

    Raises:
        UserError: see :func:`masked_language_model`.
    """
    prompts = debiased_prompts(prompt, masked_language_model(folder, view_words))
    for word, one in zip(view_words, prompts, strict=True):
        if one != prompt:
            log.info("guidance: the prompt of the %s view is %r (--debias_prompt)", word, one)
    return prompts
