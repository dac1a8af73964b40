"""Options that belong to each guidance model: one value for all or one for each, and presets of one model."""

import json
from types import SimpleNamespace

import pytest

from nerf.config import config as config_module
from nerf.config.config import from_json, parse, to_json, with_values
from nerf.config.kept import StoredRun
from nerf.config.presets import PRESETS, REASONS
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from tests.helpers.plans import EMBEDDED


def planned(*words, models=("SD", "clip"), weights=None):
    """The plan of a command line with these models in a new workspace."""
    asked = with_values(parse(["--text", "a", *words]), {"guidance": models}, "typed")
    return resolve(asked, StoredRun(), weights)


def options(*words, models=("SD", "clip")):
    """The run-wide options."""
    return planned(*words, models=models).config


def test_a_value_of_several_models_holds_for_all_or_one_for_each():
    config = options("--guidance_scale", "7", "--t_range", "0.02", "0.98", "0.2", "0.6")
    sd, clip = (config.guidance.of(name) for name in ("SD", "clip"))
    assert (sd.guidance_scale, clip.guidance_scale) == (7.0, 7.0)
    assert (sd.t_range, clip.t_range) == ((0.02, 0.98), (0.2, 0.6))
    assert clip.guidance_weighting == "sds" and clip.lambda_guidance == 1.0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--guidance_scale", "1", "2", "3"],
            "--guidance_scale gives 3 values, and --guidance SD clip names 2; give one for all of them, or one for each in",
        ),
        (["--t_range", *"0 1 0 1 0 1".split()], "--t_range gives 3 groups of 2 values, and --guidance SD clip names 2"),
        (["--t_range", "0", "1", "0.5"], "--t_range takes 2 values for all guidance models or for each of them, got 3"),
        (["--t_range", "0", "1", "0.5", "0.4"], "--t_range must be two fractions with 0 <= low <= high <= 1, got 0.5 0.4"),
        (["--guidance_weights", "1", "-1"], "--guidance_weights must be between 0 and 1e9, got -1"),
        (["--guidance_weighting", "sds", "best"], "--guidance_weighting must be sds, uniform, fantasia or x0, got 'best'"),
    ],
)
def test_a_wrong_number_of_values_for_the_models_is_one_sentence(words, expected):
    with pytest.raises(UserError) as caught:
        options(*words)
    assert str(caught.value).startswith(expected)


def test_a_preset_of_one_model_leaves_the_options_of_the_others():
    plan = planned(models=("clip", "SD"), weights=lambda _: {"SD": EMBEDDED})
    assert plan.config.guidance.guidance_scale == (100.0, PRESETS["embedded"]["guidance_scale"])
    assert plan.config.guidance.of("clip").t_range == (0.02, 0.98)
    assert any("--guidance_scale 100 8" in line for line in plan.lines)


@pytest.mark.parametrize("told", ["camera", "words", "none"])
def test_depth_is_expected_of_the_embedded_prior_where_it_is_told_the_camera(told):
    config = planned("--prior_views", told, models=("SD",), weights=lambda _: {"SD": EMBEDDED}).config
    preset = PRESETS["embedded"] | ({} if told == "camera" else PRESETS["embedded untold"])
    assert (config.loss.lambda_prior_depth, config.camera.theta_range) == (preset["lambda_prior_depth"], preset["theta_range"])
    assert (config.loss.lambda_prior_depth == 0.0) == (told != "camera")


def test_a_preset_of_the_run_sets_the_options_of_all_models():
    mesh = planned("--stages", "nerf,dmtet").stages[1].config.guidance
    assert mesh.of("SD").t_range == mesh.of("clip").t_range == PRESETS["dmtet"]["t_range"]


def test_a_preset_named_after_a_model_applies_where_it_guides(monkeypatch):
    monkeypatch.setitem(PRESETS, "clip", {"guidance_scale": 5.0, "batch_size": 4})
    monkeypatch.setitem(REASONS, "clip", "CLIP")
    monkeypatch.setitem(config_module.GUIDANCE_OF, "clip", "clip")
    both = options()
    assert (both.guidance.guidance_scale, both.camera.batch_size) == ((100.0, 5.0), 4)
    assert options(models=("SD",)).camera.batch_size == 1
    typed = options("--guidance_scale", "9")
    assert typed.guidance.of("clip").guidance_scale == 9.0


def test_options_of_several_models_survive_a_file_and_a_single_old_value_is_read():
    config = options("--guidance_scale", "7", "5")
    stored = json.loads(json.dumps(to_json(config)))
    assert from_json(stored) == config
    stored["options"]["guidance_scale"]["value"] = 3.0
    assert from_json(stored).guidance.of("clip").guidance_scale == 3.0


def test_a_model_that_is_given_to_the_trainer_by_hand_sees_the_options_of_the_first():
    assert options("--guidance_scale", "7", "5").guidance.of("mine").guidance_scale == 7.0


def test_every_preset_of_a_model_names_a_preset():
    assert set(config_module.GUIDANCE_OF) <= set(PRESETS)


def test_the_embedded_view_prior_brings_the_numbers_of_a_small_model_for_a_picture(tmp_path):
    from PIL import Image

    path = tmp_path / "chair_rgba.png"
    Image.new("RGBA", (8, 8), (200, 100, 0, 255)).save(path)
    weights = {"zero123": SimpleNamespace(kind="embedded view", version="embedded")}
    plan = resolve(parse(["--image", str(path), "--stages", "nerf,dmtet"]), StoredRun(), lambda _: weights)
    config, mesh = plan.config, {stage.name: stage.config for stage in plan.stages}["dmtet"]
    preset = PRESETS["embedded view"]
    assert config.guidance.guidance == ("zero123",)
    assert config.guidance.guidance_scale == (preset["guidance_scale"],) and config.field.bound == preset["bound"]
    assert config.camera.progressive_view is False and config.camera.fovy_range == preset["fovy_range"]
    assert mesh.dmtet.coarse_sdf_grids == PRESETS["dmtet embedded view"]["coarse_sdf_grids"]
    assert mesh.prompt.known_view_scale == PRESETS["dmtet image"]["known_view_scale"]
