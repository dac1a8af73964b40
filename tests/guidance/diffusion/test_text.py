"""Text embeddings: one per suffix, truncated before the suffix, and no text encoder is left behind."""

import logging
import weakref

import pytest
import torch

from guidance.diffusion import text
from nerf.core.errors import UserError

CPU = torch.device("cpu")
SUFFIXES = (", front view", ", back view")


def encode(folder, prompt="a red car", negative=""):
    return text.encode_prompts(folder, prompt, SUFFIXES, negative, CPU, torch.float32)


def test_there_is_an_embedding_for_each_suffix_and_one_for_the_negative_prompt(sd_folder):
    embeddings = encode(sd_folder)
    assert embeddings.shape == (3, 77, 16)
    assert not torch.allclose(embeddings[0], embeddings[1])
    other = encode(sd_folder, negative="blurry")
    assert torch.equal(other[:2], embeddings[:2]) and not torch.allclose(other[2], embeddings[2])


def test_a_prompt_that_is_too_long_is_cut_before_its_suffix(sd_folder, caplog):
    with caplog.at_level(logging.WARNING, "somnia.guidance"):
        front, back, _ = encode(sd_folder, "a " * 70 + "zebra")
    (record,) = [r for r in caplog.records if r.name == "somnia.guidance"]
    assert "left out" in record.getMessage() and "zebra" in record.getMessage()
    assert front.shape == (77, 16) and not torch.allclose(front, back)


def test_the_text_encoder_is_freed(sd_folder, monkeypatch):
    seen, load = [], text.load_part

    def watch(*args):
        network = load(*args)
        seen.append(weakref.ref(network))
        return network

    monkeypatch.setattr(text, "load_part", watch)
    encode(sd_folder)
    assert len(seen) == 1 and seen[0]() is None


def test_a_tokenizer_of_another_model_is_refused(broken_folder):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=1
    )
    CLIPTextModel(config).save_pretrained(broken_folder / "text_encoder")
    with pytest.raises(UserError, match=r"more tokens than its text encoder \(10\)"):
        encode(broken_folder)


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"[", b"3", b"\xff\xfe", b'{"a": []}', b"[" * 100_000])
def test_a_damaged_tokenizer_is_one_sentence_or_read(broken_folder, file, content):
    (broken_folder / "tokenizer" / file).write_bytes(content)
    try:
        text.encode_prompts(broken_folder, "a red car", [""], "", torch.device("cpu"), torch.float32)
    except UserError as error:
        assert "tokenizer" in str(error)
