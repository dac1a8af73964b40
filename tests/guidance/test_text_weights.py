"""Which weights SDXL, DeepFloyd IF and CLIP use: keys, the cache, the network, and errors in one sentence."""

import pytest

from guidance import folders, text_weights
from guidance.text_weights import LAYOUTS, MODELS, fetch, keys, resolve
from nerf.config.config import parse
from nerf.core.errors import UserError
from tests.guidance.conftest import pretend_hub, put_into_cache

FOLDERS = {"IF": "if_folder", "SDXL": "sdxl_folder", "clip": "clip_folder"}


pytestmark = pytest.mark.usefixtures("hub_cache")


def config(*words):
    return parse(["--text", "a", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--guidance SD IF --hf_key a", {"SD": "a"}),
        ("--guidance IF SD --hf_key a", {"SD": "a"}),
        ("--guidance IF clip --hf_key a", {"IF": "a"}),
        ("--guidance clip SDXL --hf_key a", {"SDXL": "a"}),
        ("--guidance clip --hf_key a", {}),
        ("--guidance SDXL --hf_key a --hf_keys SDXL_vae=b clip=c", {"SDXL": "a", "SDXL_vae": "b", "clip": "c"}),
        ("--guidance IF --hf_key a --hf_keys IF=b", {"IF": "b"}),
        ("--guidance SD --hf_keys SD=c", {"SD": "c"}),
    ],
)
def test_a_key_belongs_to_stable_diffusion_or_to_the_first_diffusion_model(words, expected):
    assert keys(config(*words.split()).guidance) == expected


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_in_the_cache_is_taken_before_anything_is_downloaded(hub_cache, request, name):
    folder = request.getfixturevalue(FOLDERS[name])
    found = resolve(config(), name)
    assert found.remote and found.source == MODELS[name].hub_ids[0] and "GB, licence" in found.sentence
    for hub_id in (*MODELS[name].withdrawn, MODELS[name].hub_ids[0]):  # the first mirror last: it is preferred
        there = put_into_cache(hub_cache, hub_id, folder)
        found = resolve(config(), name)
        assert (found.kind, found.title, found.licence, found.remote) == (name, MODELS[name].name, MODELS[name].licence, False)
    assert fetch(found) == there


@pytest.mark.parametrize("name", FOLDERS)
def test_an_incomplete_snapshot_is_passed_over(hub_cache, request, name):
    put_into_cache(
        hub_cache, MODELS[name].hub_ids[0], request.getfixturevalue(FOLDERS[name]), "config.json" if name == "clip" else None
    )
    lost = {"IF": "unet/config.json", "SDXL": "text_encoder_2/config.json"}.get(name)
    if lost:
        (next(hub_cache.glob("*/snapshots/abc123")) / lost).unlink()
    assert resolve(config(), name).remote


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_or_a_cached_id_is_taken_by_its_key(hub_cache, request, name):
    folder = request.getfixturevalue(FOLDERS[name])
    assert fetch(resolve(config("--hf_keys", f"{name}={folder}"), name)) == folder
    there = put_into_cache(hub_cache, "someone/else", folder)
    found = resolve(config("--hf_keys", f"{name}=someone/else"), name)
    assert found.source == str(there) and "from the cache" in found.sentence


def test_offline_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="CLIP is not in the Hugging Face cache.*--hf_keys clip=FOLDER"):
        resolve(config(), "clip")
    with pytest.raises(UserError, match="someone/else: neither a folder nor complete"):
        resolve(config("--hf_keys", "clip=someone/else"), "clip")


def test_a_folder_of_another_model_is_refused_by_name(sd_folder, clip_folder, if_folder):
    with pytest.raises(UserError, match="lacks text_encoder_2/config.json; it is not a folder of SDXL"):
        resolve(config("--hf_keys", f"SDXL={sd_folder}"), "SDXL")
    with pytest.raises(UserError, match="lacks unet/config.json; it is not a folder of IF"):
        resolve(config("--hf_keys", f"IF={clip_folder}"), "IF")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_download_asks_for_the_parts_that_are_used(monkeypatch, request, name):
    folder = request.getfixturevalue(FOLDERS[name])
    asked = pretend_hub(monkeypatch, [*folders.files_of(folder), "extra.bin", "notes/readme.md"], folder)
    assert fetch(resolve(config("--hf_keys", f"{name}=a/b@v2"), name)) == folder
    ((hub_id, revision, patterns),) = asked
    assert (hub_id, revision) == ("a/b", "v2") and "extra.bin" not in patterns
    assert any(pattern.endswith(".safetensors") for pattern in patterns)


def test_a_repository_of_another_model_is_one_sentence(monkeypatch, tmp_path):
    pretend_hub(monkeypatch, ["README.md"], tmp_path)
    with pytest.raises(UserError, match="a/b: the repository lacks config.json.*or give --hf_keys clip=FOLDER"):
        fetch(resolve(config("--hf_keys", "clip=a/b"), "clip"))
    with pytest.raises(UserError, match="or give --clip FOLDER"):
        fetch(resolve(config("--hf_keys", "clip=a/b"), "clip"), "--clip")


def test_another_codec_is_found_by_its_key_and_none_without_one(taesdxl_folder):
    assert text_weights.codec(config("--hf_keys", f"SDXL_vae={taesdxl_folder}").guidance) == taesdxl_folder
    assert text_weights.codec(config().guidance) is None


@pytest.mark.parametrize("content", [b"", b"[", b'{"model_type": 3}', b"[" * 100_000, b"\xff\xfe"])
def test_a_damaged_config_is_one_sentence(clip_folder, tmp_path, content):
    import shutil

    folder = shutil.copytree(clip_folder, tmp_path / "damaged")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json"):
        text_weights.check_folder(folder, "clip")


def test_every_layout_names_what_is_lacking_in_an_empty_folder(tmp_path):
    for name in LAYOUTS:
        with pytest.raises(UserError, match="lacks"):
            text_weights.check_folder(tmp_path, name)
