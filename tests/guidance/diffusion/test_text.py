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


# ---- embeddings on disk ----


def loads(monkeypatch):
    """The parts that are loaded from here on."""
    seen, load = [], text.load_part
    monkeypatch.setattr(text, "load_part", lambda folder, part, *args: seen.append(part) or load(folder, part, *args))
    return seen


def test_a_prompt_is_encoded_once_and_then_read(sd_folder, monkeypatch, text_cache_folder):
    seen, first = loads(monkeypatch), encode(sd_folder)
    assert seen == ["text_encoder"] and len(list(text_cache_folder.glob("*.safetensors"))) == 3
    assert torch.equal(encode(sd_folder), first) and seen == ["text_encoder"]


def test_room_for_an_encoder_is_made_only_where_it_must_run(sd_folder):
    import contextlib

    entered = []

    @contextlib.contextmanager
    def room():
        entered.append(True)
        yield

    for _ in range(2):
        text.embed(text.TextEncoder(sd_folder), [("a", "")], CPU, torch.float32, around=room())
    assert entered == [True]


def test_only_the_prompts_that_are_new_are_encoded(sd_folder, monkeypatch, text_cache_folder):
    encode(sd_folder)
    seen = loads(monkeypatch)
    encode(sd_folder, negative="blurry")
    assert seen == ["text_encoder"] and len(list(text_cache_folder.glob("*.safetensors"))) == 4


@pytest.mark.parametrize(
    "part", ["text_encoder/model.safetensors", "text_encoder/config.json", "tokenizer/tokenizer_config.json"]
)
def test_embeddings_of_other_weights_are_not_used(broken_folder, monkeypatch, part):
    from safetensors.torch import load_file, save_file

    encode(broken_folder)
    path = broken_folder / part
    if path.suffix == ".safetensors":
        save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    else:
        path.write_text(path.read_text() + "\n")
    seen = loads(monkeypatch)
    encode(broken_folder)
    assert seen == ["text_encoder"]


def test_embeddings_of_another_dtype_are_not_used(sd_folder, monkeypatch):
    encode(sd_folder)
    seen = loads(monkeypatch)
    halves = text.encode_prompts(sd_folder, "a red car", SUFFIXES, "", CPU, torch.bfloat16)
    assert seen == ["text_encoder"] and halves.dtype == torch.bfloat16


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, None, "one bit"])
def test_a_damaged_file_of_the_cache_is_replaced(sd_folder, text_cache_folder, content):
    from safetensors.torch import save_file

    first = encode(sd_folder)
    for path in text_cache_folder.glob("*.safetensors"):
        if content is None:
            save_file({"tokens": torch.full((77, 16), torch.nan)}, path)
        elif content == "one bit":
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        else:
            path.write_bytes(content)
    assert torch.equal(encode(sd_folder), first) and torch.equal(encode(sd_folder), first)


def test_a_cache_that_cannot_be_written_is_a_warning(sd_folder, monkeypatch, tmp_path, caplog):
    first = encode(sd_folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOMNIA_TEXT_CACHE", str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING, "somnia.guidance"):
        assert torch.equal(encode(sd_folder), first)
    assert "cannot be stored" in caplog.text


def test_a_large_file_is_told_from_one_that_differs_in_its_samples_alone(tmp_path):
    from guidance.diffusion import text_cache

    path = tmp_path / "large"
    path.write_bytes(bytes(text_cache.LARGEST_WHOLE + 1))
    first = text_cache.identity([path])
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert text_cache.identity([path]) != first
