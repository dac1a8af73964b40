"""Prompt debiasing: which words are left out for which view, and what is read."""

import pytest
import torch

from guidance.base import Conditions
from guidance.debias import debias, debiased_prompts, masked_language_model
from guidance.prompts import VIEW_WORDS
from guidance.sd_utils import StableDiffusion
from nerf.core.errors import UserError

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VIEW_WORDS, "a", "smiling", "red", "cat", "view", "image", "is"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT with random weights, in the files of the published one."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


def smiles_are_in_front(prompt):
    """A language model that knows one thing: what smiles is seen from the front."""
    return torch.tensor([0.8, 0.1, 0.1] if "smiling" in prompt else [0.4, 0.3, 0.3])


def test_a_word_is_left_out_of_the_prompts_of_the_views_that_it_contradicts():
    assert debiased_prompts("a smiling cat", smiles_are_in_front) == ["a smiling cat", "a cat", "a cat"]


def test_a_prompt_is_not_emptied():
    assert debiased_prompts("smiling", smiles_are_in_front) == ["smiling"] * 3


def test_the_likelihood_of_the_view_words_is_a_distribution_that_the_prompt_changes(bert):
    likelihood = masked_language_model(bert, VIEW_WORDS)
    one, other = likelihood("a smiling cat"), likelihood("a red cat")
    assert one.shape == (5,) and one.sum().item() == pytest.approx(1) and not torch.equal(one, other)
    assert torch.equal(one, likelihood("a smiling cat"))


def test_each_view_is_encoded_with_its_own_prompt(bert, sd_folder, monkeypatch):
    monkeypatch.setattr("guidance.sd_utils.debias", lambda *args: ["a cat", "a red cat", "a cat", "a cat", "a cat"])
    model = StableDiffusion(sd_folder)
    model.debias_prompt = bert
    model.prepare(Conditions("a red cat"))
    for text, at in (("a cat", 0), ("a red cat", 1)):
        plain = StableDiffusion(sd_folder)
        plain.prepare(Conditions(text))
        torch.testing.assert_close(model.positive[at], plain.positive[at])


def test_a_folder_of_bert_gives_a_prompt_for_every_view(bert):
    prompts = debias("a smiling red cat", bert, VIEW_WORDS)
    assert len(prompts) == 5 and all(set(p.split()) <= {"a", "smiling", "red", "cat"} for p in prompts)


def test_a_view_word_that_the_model_does_not_know_is_refused(bert):
    with pytest.raises(UserError, match="lacks sideways"):
        masked_language_model(bert, ["front", "sideways"])


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_that_is_not_of_bert_is_the_users_error(tmp_path, name):
    with pytest.raises(UserError, match="--debias_prompt"):
        masked_language_model(tmp_path / name, VIEW_WORDS)
