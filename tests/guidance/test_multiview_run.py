"""MVDream and ImageDream in a run: their weights, recipes and linked views; the recipes of Zero123 too."""

import json

import pytest
import torch

import guidance
from guidance import text_weights
from guidance.base import Conditions
from guidance.mvdream_utils import ImageDream, MVDream
from nerf.config import presets
from nerf.config.config import OPTIONS, parse
from nerf.config.kept import StoredRun
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from tests.guidance.camera_models import picture, write_original
from tests.guidance.conftest import put_into_cache

pytestmark = pytest.mark.usefixtures("no_weights")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run main.py in this process with a prompt: words -> (exit code, result.json, what it printed)."""
    import main
    from tests.guidance.test_runs import TINY

    before = torch.get_num_threads()

    def run(*words):
        code = main.main(["--text", "a red car", *TINY, *map(str, words), "--workspace", str(tmp_path / "run")])
        result = tmp_path / "run" / "result.json"
        return code, json.loads(result.read_text()) if result.is_file() else None, "".join(capfd.readouterr())

    yield run
    torch.set_num_threads(before)


# ---- weights ----


def weights_of(name, *words):
    """The weights of one model of a command line."""
    return text_weights.resolve(parse([str(word) for word in words]), name)


def test_hf_key_names_a_multiview_model_unless_it_is_stable_diffusion_s(mvdream_folder):
    found = weights_of("MVDream", "--guidance", "MVDream", "--hf_key", mvdream_folder)
    assert (found.source, found.kind, found.title) == (str(mvdream_folder), "MVDream", "MVDream")
    with pytest.raises(UserError, match="--guidance MVDream: MVDream is not in the Hugging Face cache"):
        weights_of("MVDream", "--guidance", "SD", "MVDream", "--hf_key", mvdream_folder)
    keyed = weights_of("MVDream", "--guidance", "SD", "MVDream", "--hf_keys", f"MVDream={mvdream_folder}")
    assert keyed.source == str(mvdream_folder)


def test_the_original_file_is_taken_as_it_is_named(tmp_path):
    path = write_original(tmp_path, "mvdream")
    assert weights_of("MVDream", "--guidance", "MVDream", "--hf_key", path).source == str(path)
    with pytest.raises(UserError, match="is MVDream or ImageDream, which take four linked views"):
        weights_of("SDXL", "--guidance", "SDXL", "--hf_key", path)


@pytest.mark.parametrize(("name", "lacks"), [("ImageDream", "image_encoder/config.json"), ("MVDream", None)])
def test_a_folder_of_the_other_model_is_refused_before_anything_is_loaded(mvdream_folder, imagedream_folder, name, lacks):
    folder = mvdream_folder if name == "ImageDream" else imagedream_folder
    words = f"lacks {lacks}" if lacks else "is not MVDream: expected a UNet with camera_dim and no ip_dim, and it has 16 and 16"
    with pytest.raises(UserError, match=words):
        weights_of(name, "--guidance", name, "--hf_key", folder)


def test_a_multiview_model_is_found_in_the_cache(mvdream_folder, hub_cache):
    folder = put_into_cache(hub_cache, text_weights.MODELS["MVDream"].hub_ids[0], mvdream_folder)
    assert weights_of("MVDream", "--guidance", "MVDream").source == str(folder)
    with pytest.raises(UserError, match="ImageDream is not in the Hugging Face cache"):
        weights_of("ImageDream", "--guidance", "ImageDream")


# ---- a run ----


def plan(*words):
    """The plan of a new run."""
    return resolve(parse([str(word) for word in words]), StoredRun(), guidance.choose_weights)


def test_a_run_with_mvdream_has_its_recipe_and_four_linked_views(mvdream_folder):
    found = plan("--text", "a red car", "--guidance", "MVDream", "--hf_key", mvdream_folder)
    config = found.config
    assert config.presets == ("MVDream",) and config.camera.batch_size == 4
    own = config.guidance.of("MVDream")
    assert (own.guidance_scale, own.guidance_rescale, own.guidance_weighting) == (50.0, 0.5, "x0")
    (model,) = guidance.build(config, "cpu", found.weights)
    assert isinstance(model, MVDream) and model.stage_options(own) == model.recipe
    assert guidance.notes(found.weights)["guidance"] == "MVDream"


def test_what_the_user_types_is_not_replaced_by_a_recipe(mvdream_folder):
    config = plan(
        "--text", "x", "--guidance", "MVDream", "--hf_key", mvdream_folder, "--batch_size", 8, "--guidance_scale", 7
    ).config
    assert config.camera.batch_size == 8 and config.guidance.of("MVDream").guidance_scale == 7


def test_a_batch_that_holds_no_whole_group_is_one_sentence(mvdream_folder):
    from nerf.provider import RandomCameras

    found = plan("--text", "x", "--guidance", "MVDream", "--hf_key", mvdream_folder, "--batch_size", 6)
    models = guidance.build(found.config, "cpu", found.weights)
    with pytest.raises(UserError, match="--batch_size must be a multiple of 4"):
        RandomCameras(found.config, requirements=[model.requirements() for model in models])


def test_the_source_of_views_gives_views_that_the_model_accepts(mvdream_folder):
    from guidance.diffusion.multiview import check_linked
    from nerf.core.structs import ViewRequest
    from nerf.provider import RandomCameras

    found = plan("--text", "x", "--guidance", "MVDream", "--hf_key", mvdream_folder, "--batch_size", 8)
    (model,) = guidance.build(found.config, "cpu", found.weights)
    source = RandomCameras(found.config, requirements=[model.requirements()])
    for height in (64, 32):
        check_linked(source.views(ViewRequest("guided", num_views=8, height=height, width=height)), "MVDream")


@pytest.mark.parametrize(("name", "takes"), [("zero123", "--image"), ("ImageDream", "--image"), ("MVDream", "--text")])
def test_a_model_without_its_kind_of_prompt_is_refused_at_once(name, takes):
    words = ["--data", "x"] if name == "MVDream" else ["--text", "a car"]
    config = parse([*words, "--guidance", name])
    with pytest.raises(UserError, match=f"--guidance {name} needs a prompt of another kind: give {takes}"):
        guidance.check_prompts(config)


def test_the_builder_of_imagedream_makes_one(imagedream_folder):
    config = parse(["--guidance", "ImageDream", "--hf_key", str(imagedream_folder)])
    family = guidance.FAMILIES["ImageDream"]
    model = family.build(config, torch.device("cpu"), family.weights(config))
    assert isinstance(model, ImageDream)
    model.prepare(Conditions(images=(picture(),)))


@pytest.mark.parametrize("name", ["zero123", "stable zero123", "MVDream", "ImageDream"])
def test_every_recipe_belongs_to_a_model_and_holds_valid_values(name):
    from nerf.config.config import with_preset

    model = presets.GUIDANCE_OF[name]
    config = with_preset(parse(["--guidance", model]), name)
    own = config.guidance.of(model)
    assert own.guidance_scale == presets.PRESETS[name]["guidance_scale"] and name in presets.REASONS
    assert config.camera.batch_size % (4 if model in ("MVDream", "ImageDream") else 1) == 0


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("stable zero123", (0.7, 0.98), (0.3, 0.8)),
        ("MVDream", (0.98, 0.98), (0.02, 0.5)),
        ("ImageDream", (0.98, 0.98), (0.02, 0.5)),
    ],
)
def test_timesteps_of_the_recipes_start_and_end_where_the_authors_say(name, start, end):
    from nerf.config.config import with_preset
    from nerf.training.schedule import control_at

    model = presets.GUIDANCE_OF[name]
    options = with_preset(parse(["--guidance", model]), name).guidance.of(model)
    for fraction, expected in ((0.0, start), (options.anneal_span[1], end), (1.0, end)):
        assert control_at(fraction, options, None).t_range == pytest.approx(expected, abs=1e-3)


# ---- main.py ----


@pytest.mark.parametrize("vram", [(), ("--vram_O",)])
def test_mvdream_trains_from_a_prompt_alone_and_resumes(run, mvdream_folder, vram):
    code, result, printed = run("--guidance", "MVDream", "--hf_key", mvdream_folder, *vram)
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2 and "sds/MVDream" in printed
    assert "--batch_size 4" in printed and f"the weights of MVDream in {mvdream_folder}" in printed
    code, result, printed = run("--iters", "3")
    assert code == 0 and result["stages"]["nerf"]["steps"] == 3 and "going on from" in printed


def test_mvdream_and_stable_diffusion_guide_together(run, mvdream_folder, sd_folder):
    keys = ("--hf_key", sd_folder, "--hf_keys", f"MVDream={mvdream_folder}")
    code, result, printed = run("--guidance", "SD", "MVDream", *keys, "--guidance_weights", "1", "0.5")
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2
    assert "sds/SD" in printed and "sds/MVDream" in printed and "--guidance_scale 100 50" in printed


def test_the_original_file_of_mvdream_trains_too(run, tmp_path):
    from guidance.diffusion import multiview_parts

    path = write_original(tmp_path / "weights", "mvdream")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiview_parts, "GRID", 8)  # latents of 64 pixels, to be quick
        code, result, _ = run("--guidance", "MVDream", "--hf_key", path)
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2


def test_a_batch_of_six_views_is_refused_before_anything_is_written(run, mvdream_folder, tmp_path):
    code, _, printed = run("--guidance", "MVDream", "--hf_key", mvdream_folder, "--batch_size", "6")
    assert code == 2 and "--batch_size must be a multiple of 4" in printed and not (tmp_path / "run" / "config.json").exists()


def test_mvdream_guides_the_mesh_stage_without_the_falling_timesteps_of_its_recipe(run, mvdream_folder, tmp_path):
    words = "--dmtet --tet_grid_size 8 --dmtet_reso_scale 1"
    code, result, printed = run("--guidance", "MVDream", "--hf_key", mvdream_folder, *words.split())
    assert code == 0 and result["stages"]["dmtet"]["steps"] == 2, printed
    stage = plan("--text", "a", "--guidance", "MVDream", "--hf_key", mvdream_folder, "--dmtet").stages[0]
    own = stage.config.guidance.of("MVDream")
    assert (own.t_range, own.t_anneal, own.t_anneal_low) == ((0.02, 0.5), 0.0, 0.0) and stage.config.camera.w == 512


def test_imagedream_trains_from_a_picture(run, imagedream_folder, tmp_path):
    from nerf.core.images import write_png

    write_png(tmp_path / "x_rgba.png", picture().image.movedim(0, -1))
    words = ("--image", tmp_path / "x_rgba.png", "--guidance", "ImageDream", "--hf_key", imagedream_folder)
    code, result, printed = run(*words, "--known_view_interval", "100")
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2, printed
    assert "sds/ImageDream" in printed and "--batch_size 4" in printed


@pytest.mark.parametrize(("views", "way"), [(8, ()), (4, ("--optimise",))])
def test_mvdream_draws_whole_groups_of_linked_views(mvdream_folder, tmp_path, views, way):
    from scripts import guidance_2d

    words = ["--text", "a car", "--guidance", "MVDream", "--hf_key", str(mvdream_folder), "--device", "cpu", "--w", "32"]
    sheet = tmp_path / "sheet.png"
    assert guidance_2d.main([*words, "--h", "32", "--views", str(views), "--steps", "2", "--out", str(sheet), *way]) == 0
    assert sheet.stat().st_size > 1000


# ---- the multi-view prior that ships with the program ----

EMBEDDED = ("--guidance", "MVDream", "--mvdream", "embedded")


def test_the_embedded_multiview_prior_is_taken_where_it_is_asked_for_and_a_key_is_taken_before_it(mvdream_folder):
    found = weights_of("MVDream", "--text", "a red car", *EMBEDDED)
    assert (found.kind, found.title) == ("embedded multiview", "the embedded multi-view prior") and not found.remote
    keyed = weights_of("MVDream", "--text", "a red car", *EMBEDDED, "--hf_keys", f"MVDream={mvdream_folder}")
    assert keyed.source == str(mvdream_folder)
    with pytest.raises(UserError, match="--text 'a zebra': the embedded prior does not know 'zebra'; it knows kinds"):
        weights_of("MVDream", "--text", "a zebra", *EMBEDDED)
    with pytest.raises(UserError, match="or --mvdream embedded"):
        weights_of("MVDream", "--text", "a red car", "--guidance", "MVDream")


def test_missing_weights_of_the_embedded_multiview_prior_are_one_sentence(tmp_path, monkeypatch):
    from guidance import prior

    monkeypatch.setattr(prior, "MULTIVIEW_WEIGHTS", tmp_path / "none")
    with pytest.raises(UserError, match="train them with python -m guidance.prior.train_multiview"):
        weights_of("MVDream", "--text", "a red car", *EMBEDDED)


@pytest.mark.parametrize("further", [(), ("--distillation", "sjc"), ("--stages", "nerf,dmtet")])
def test_a_run_with_it_has_the_numbers_of_the_embedded_prior_and_none_of_mvdream(further):
    one = plan("--text", "a red car", "--seed", 1, *EMBEDDED, *further)
    other = plan("--text", "a red car", "--seed", 1, "--sd_version", "embedded", *further)
    assert "MVDream" not in one.config.presets and "embedded multiview" in one.config.presets
    own = {"guidance", "mvdream", "sd_version"}
    for mine, theirs in zip(one.stages, other.stages, strict=True):
        differ = {flag for flag in OPTIONS if mine.config.value(flag) != theirs.config.value(flag)}
        assert differ == own
        assert mine.config.camera.batch_size % 4 == 0


def test_a_run_with_the_embedded_multiview_prior_sees_linked_views(run):
    code, result, printed = run("-O", *EMBEDDED)
    assert code == 0 and "guidance: the embedded multi-view prior (--mvdream embedded)" in printed
    assert result["seconds"] > 0
    code, _, printed = run(*EMBEDDED, "--ckpt", "scratch", "--batch_size", "6")
    assert code == 2 and "--batch_size must be a multiple of 4" in printed


@pytest.mark.parametrize("words", [("--prior_views", "none"), ("--prior_views", "words", "--perpneg")])
def test_a_run_may_withhold_the_camera_from_the_embedded_prior(run, words):
    code, _, printed = run("-O", "--sd_version", "embedded", *words)
    assert code == 0, printed


def test_perp_neg_without_view_words_is_refused_before_anything_is_trained(run):
    code, result, printed = run("-O", "--sd_version", "embedded", "--perpneg")
    assert code == 2 and result is None and "give --prior_views words" in printed
