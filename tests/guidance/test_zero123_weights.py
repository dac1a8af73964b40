"""Where the weights of Zero123 are found, and what a run does with them."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import guidance
from guidance import zero123_weights
from guidance.zero123_utils import Zero123
from guidance.zero123_weights import MODELS, kind_of
from nerf.config.config import parse
from nerf.core.errors import UserError
from tests.guidance.camera_models import picture, write_zero123_folder
from tests.guidance.conftest import pretend_hub, put_into_cache

pytestmark = pytest.mark.usefixtures("no_weights")


def options(**changed):
    """The guidance options that choose weights."""
    return SimpleNamespace(**{"zero123": "auto", "zero123_ckpt": "default.ckpt"} | changed)


def zero123(**changed):
    return zero123_weights.resolve(options(**changed), "default.ckpt")


# ---- zero123 ----


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("zero123-xl.ckpt", "zero123"),
        ("load/stable_zero123.ckpt", "stable zero123"),
        ("ashawkey/stable-zero123-diffusers", "stable zero123"),
        ("stable-diffusion/zero123-xl", "zero123"),
        ("hub/models--ashawkey--stable-zero123-diffusers/snapshots/abc", "stable zero123"),
        ("hub/models--kxic--zero123-xl/snapshots/abc", "zero123"),
    ],
)
def test_the_name_of_file_or_folder_says_whether_it_is_stable_zero123(source, kind):
    assert kind_of(source) == kind


def test_a_file_is_taken_as_it_is_named(zero123_file):
    found = zero123(zero123=str(zero123_file))
    assert (found.source, found.kind, found.remote) == (str(zero123_file), "zero123", False)
    assert str(zero123_file) in found.sentence


def test_auto_takes_the_checkpoint_of_the_peer_s_flag_first(zero123_file, tmp_path):
    assert zero123(zero123_ckpt=str(zero123_file)).source == str(zero123_file)
    with pytest.raises(UserError, match="--zero123_ckpt nothing.ckpt: no such folder or file"):
        zero123(zero123_ckpt="nothing.ckpt")
    shutil.copy(zero123_file, tmp_path / "default.ckpt")  # at the place where the peer expects it
    assert zero123().source == "default.ckpt"


def test_auto_takes_what_is_in_the_cache_and_remembers_its_name(zero123_file, tmp_path, hub_cache):
    write_zero123_folder(tmp_path / "made", "zero123 (b)", Zero123(zero123_file).parts, grid=8)
    folder = put_into_cache(hub_cache, "kxic/zero123-xl", tmp_path / "made")
    found = zero123()
    assert (found.source, found.kind, found.version) == (str(folder), "zero123", "zero123-xl")
    assert zero123(zero123=found.version) == found and found.licence == MODELS["zero123-xl"].licence
    assert zero123(zero123="kxic/zero123-xl").source == str(folder)
    stable = put_into_cache(hub_cache, "kxic/stable-zero123", tmp_path / "made")
    assert (zero123().source, zero123().kind) == (str(stable), "stable zero123")


def test_without_weights_auto_is_the_embedded_prior_or_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(zero123_weights, "EMBEDDED", tmp_path / "none")
    with pytest.raises(
        UserError, match=r"no weights of Zero123 on this machine, and there is no embedded .* give --zero123 FOLDER"
    ):
        zero123()
    monkeypatch.setattr(zero123_weights, "EMBEDDED", tmp_path)
    assert (zero123().kind, zero123().version) == ("embedded view", "embedded")
    assert zero123(zero123="embedded").source == str(tmp_path)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("nowhere/at/all.ckpt", "no such folder or file"),
        ("./folder", "no such folder or file"),
        ("zero124", "no such folder or file, and no name among stable-zero123, zero123-xl, zero123"),
        ("zero123-xl", "not complete in the Hugging Face cache, and the environment says offline"),
        ("someone/zero123", "not complete in the Hugging Face cache, and the environment says offline"),
    ],
)
def test_what_is_not_there_is_one_sentence(key, words):
    with pytest.raises(UserError, match=words):
        zero123(zero123=key)


def test_a_folder_of_something_else_is_refused_before_anything_is_loaded(sd_folder):
    with pytest.raises(UserError, match="lacks image_encoder/config.json; it is not one of Zero123"):
        zero123(zero123=str(sd_folder))


def test_online_a_name_is_downloaded_from_its_mirrors(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = zero123(zero123="Stable-Zero123")
    assert found.remote and found.kind == "stable zero123" and found.source == MODELS["stable-zero123"].hub_ids[0]
    assert "Non-Commercial" in found.sentence


def test_only_what_is_used_is_downloaded(monkeypatch, tmp_path):
    from tests.guidance.camera_models import FOLDERS

    monkeypatch.delenv("HF_HUB_OFFLINE")
    files = FOLDERS["zero123 (b)"]["files"]
    asked = pretend_hub(monkeypatch, [*files, "unet/diffusion_pytorch_model.safetensors"], tmp_path)
    assert zero123_weights.fetch(zero123(zero123="kxic/zero123-xl@abc")) == tmp_path
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("kxic/zero123-xl", "abc")
    wanted = [pattern for pattern in patterns if "*" not in pattern]
    assert "unet/diffusion_pytorch_model.safetensors" in wanted and "cc_projection/diffusion_pytorch_model.bin" in wanted
    assert "unet/diffusion_pytorch_model.bin" not in wanted and not any("safety_checker" in pattern for pattern in wanted)


# ---- a run ----


@pytest.mark.parametrize(("file", "kind"), [("zero123-xl.ckpt", "zero123"), ("stable_zero123.ckpt", "stable zero123")])
def test_the_builder_of_zero123_takes_what_the_flag_names(zero123_file, tmp_path, file, kind):
    path = tmp_path / file
    shutil.copy(zero123_file, path)
    config = parse(["--text", "x", "--guidance", "zero123", "--zero123", str(path), "--zero123_grad_scale", "None"])
    family = guidance.FAMILIES["zero123"]
    resolved = family.weights(config)
    model = family.build(config, torch.device("cpu"), resolved)
    assert isinstance(model, Zero123) and resolved.kind == kind and model.absolute == (kind == "stable zero123")
    assert model.stage_options(config.guidance.of("zero123")).grad_scale == "None"


@pytest.fixture(scope="module")
def small_folder(zero123_file, tmp_path_factory):
    """A tiny folder for 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("weights") / "zero123-xl"
    write_zero123_folder(folder, "zero123 (a)", Zero123(zero123_file).parts, grid=8)
    return folder


@pytest.fixture
def run(tmp_path, capfd):
    """Run main.py in this process with pictures: words -> (exit code, result.json, options, what it printed)."""
    import main
    from nerf.core.images import write_png
    from tests.guidance.test_runs import TINY

    before = torch.get_num_threads()
    for index in range(2):
        write_png(tmp_path / f"{index}_rgba.png", picture(seed=index).image.movedim(0, -1))

    def run(*words):
        code = main.main([*TINY, *map(str, words), "--workspace", str(tmp_path / "run")])
        found = [tmp_path / "run" / name for name in ("result.json", "config.json")]
        return code, *(json.loads(p.read_text()) if p.is_file() else None for p in found), "".join(capfd.readouterr())

    yield run
    torch.set_num_threads(before)


@pytest.mark.parametrize("vram", [(), ("--vram_O",)])
def test_a_picture_alone_is_guided_by_zero123_and_the_run_resumes(run, small_folder, vram):
    code, result, options, printed = run(
        "--image", "0_rgba.png", "--zero123", small_folder, "--known_view_interval", 100, *vram
    )
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2, printed
    assert "sds/zero123" in printed and options["options"]["guidance_scale"]["value"] == [5.0]
    code, result, options, printed = run("--iters", "3")
    assert code == 0 and result["stages"]["nerf"]["steps"] == 3 and "going on from" in printed


def test_several_pictures_with_weights_guide_together(run, small_folder):
    words = ("--image", "0_rgba.png", "1_rgba.png", "--ref_azimuths", 0, 180, "--zero123_ws", 1, 0.5)
    code, result, _, printed = run(*words, "--zero123", small_folder, "--known_view_interval", 100)
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2, printed


def test_zero123_and_stable_diffusion_guide_together(run, small_folder, sd_folder):
    words = ("--image", "0_rgba.png", "--text", "a red car", "--guidance", "SD", "zero123", "--hf_key", sd_folder)
    code, result, options, printed = run(*words, "--zero123", small_folder, "--known_view_interval", 100)
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2, printed
    assert "sds/SD" in printed and "sds/zero123" in printed
    assert options["options"]["guidance_scale"]["value"][1] == 5.0


def test_stable_zero123_has_its_recipe(run, small_folder, tmp_path):
    folder = shutil.copytree(small_folder, tmp_path / "stable-zero123")
    code, _, options, printed = run(
        "--image", "0_rgba.png", "--zero123", folder, "--known_view_interval", 100, "--batch_size", 1
    )
    values = {flag: entry["value"] for flag, entry in options["options"].items()}
    assert code == 0 and "preset (" in printed and "Stable Zero123" in printed
    assert values["guidance_scale"] == [3.0] and values["guidance_weights"] == [0.1] and values["default_radius"] == 3.8


def test_no_weights_are_one_sentence_before_anything_is_written(run, monkeypatch, tmp_path):
    monkeypatch.setattr(zero123_weights, "EMBEDDED", tmp_path / "none")
    code, result, options, printed = run("--image", "0_rgba.png")
    assert code == 2 and "no weights of Zero123 on this machine" in printed and result is None and options is None
    assert "Traceback" not in printed


def test_zero123_draws_a_picture_from_other_sides(small_folder, tmp_path):
    from nerf.core.images import write_png
    from scripts import guidance_2d

    write_png(tmp_path / "x_rgba.png", picture().image.movedim(0, -1))
    words = ["--image", str(tmp_path / "x_rgba.png"), "--zero123", str(small_folder), "--device", "cpu", "--views", "3"]
    assert guidance_2d.main([*words, "--steps", "2", "--out", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000
