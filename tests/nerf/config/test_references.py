"""Image prompts in the options: which pictures and cameras they name, their presets, and what a workspace keeps of them."""

import os
from types import SimpleNamespace

import pytest

from nerf.config.config import parse
from nerf.config.kept import StoredRun
from nerf.config.references import references
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from tests.helpers.plans import EMBEDDED, opened, planned


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with the files a_rgba.png, a_depth.png, b, c_rgba.png; their content is not looked at."""
    for name in ("a_rgba.png", "a_depth.png", "b, c_rgba.png"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*words):
    """The image prompts of a command line."""
    return references(parse([str(word) for word in words]))


def refusal(*words):
    """The sentence with which a command line is refused."""
    with pytest.raises(UserError) as caught:
        resolve(parse([str(word) for word in words]), StoredRun())
    return str(caught.value)


def csv(folder, text, name="views.csv"):
    (folder / name).write_text(text)
    return name


def test_one_picture_has_the_camera_of_the_default_view_and_the_files_beside_it(pictures):
    (one,) = found("--image", "a_rgba.png", "--default_azimuth", "30", "--default_polar", "80")
    assert (one.polar, one.azimuth, one.radius, one.fovy, one.weight) == (80, 30, 3.2, 20, 1)
    assert str(one.depth) == "a_depth.png" and one.normal is None


def test_several_pictures_have_cameras_each(pictures):
    words = "--ref_azimuths -90 90 --ref_polars 60 --ref_radii 2 3 --zero123_ws 1 0.5".split()
    first, second = found("--image", "a_rgba.png", "b, c_rgba.png", *words)
    assert (first.polar, first.azimuth, first.radius, first.weight) == (60, -90, 2, 1)
    assert (second.polar, second.azimuth, second.radius, second.weight) == (60, 90, 3, 0.5)
    assert second.path.name == "b, c_rgba.png"  # a comma in a path does not separate two


def test_a_csv_of_stable_dreamfusion_is_read(pictures):
    name = csv(
        pictures, 'zero123_weight, radius, polar, azimuth, image\n1,3.2,90,0,a_rgba.png\n\n0.5,3,60,-30,"b, c_rgba.png"\n'
    )
    first, second = found("--image_config", name)
    assert (first.weight, first.radius, first.polar, first.azimuth, first.fovy) == (1, 3.2, 90, 0, 20)
    assert (second.weight, second.radius, second.polar, second.azimuth) == (0.5, 3, 60, -30)


def test_the_paths_of_a_csv_are_relative_to_it(pictures, monkeypatch):
    csv(pictures, "image\na_rgba.png\n")
    (pictures / "elsewhere").mkdir()
    monkeypatch.chdir(pictures / "elsewhere")
    (one,) = found("--image_config", "../views.csv")
    assert os.path.samefile(one.path, pictures / "a_rgba.png")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("image\n", "between 1 and 1000 lines below its header, got 0"),
        ("polar\n90\n", "has no column 'image'"),
        ("image,azimut\na_rgba.png,0\n", "column 'azimut' is not known; did you mean azimuth?"),
        ("image,polar,polar\na_rgba.png,0,0\n", "column 'polar' twice"),
        ("image,polar\na_rgba.png\n", "line 2 has 1 values for 2 columns"),
        ("image,polar\na_rgba.png,up\n", "line 2: polar must be a number between 0 and 180, got 'up'"),
        ("image,polar\na_rgba.png,181\n", "line 2: polar must be between 0 and 180, got 181"),
        ("image,azimuth\na_rgba.png,nan\n", "line 2: azimuth must be a number"),
        ("image,radius\na_rgba.png,0\n", "line 2: radius must be above 0 and at most 10000, got 0"),
        ("image,fovy\na_rgba.png,180\n", "line 2: fovy must be between 0.1 and 170"),
        ("image,zero123_weight\na_rgba.png,-1\n", "line 2: zero123_weight must be between 0 and 1e9, got -1"),
        ("image,zero123_weight\na_rgba.png,0\n", "zero123_weight is 0 everywhere"),
        ("image,azimuth\na_rgba.png,0\na_rgba.png,\n", "line 3 gives no azimuth"),
        ("image,azimuth\n,0\n", "line 2 names no picture"),
        ("image\nnone.png\n", "line 2: none.png does not exist"),
        ('image\n"a_rgba.png\n', "is not a CSV"),
    ],
)
def test_a_wrong_csv_is_refused_by_line_and_column(pictures, text, sentence):
    assert sentence in refusal("--image_config", csv(pictures, text))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--image none.png", "--image: none.png does not exist"),
        ("--image .", " is not a file; give the picture"),
        ("--image a_rgba.png a_rgba.png", "give as many --ref_azimuths"),
        ("--image a_rgba.png a_rgba.png --ref_azimuths 0", "give as many --ref_azimuths"),
        (
            "--image a_rgba.png --ref_polars 0 1",
            "--ref_polars must have one value for each --image, of which there are 1, got 2",
        ),
        ("--image a_rgba.png --ref_polars 181", "--ref_polars must be between 0 and 180 each, got 181"),
        ("--image a_rgba.png --zero123_ws 0", "--zero123_ws are all 0"),
        ("--text x --ref_azimuths 0", "--ref_azimuths belongs to --image, which is missing"),
        ("--image a_rgba.png --data x", "--image and --data are two ways"),
        ("--image_config none.csv", "none.csv cannot be read: No such file"),
    ],
)
def test_wrong_flags_are_refused(pictures, words, sentence):
    assert sentence in refusal(*words.split())


def test_an_empty_name_is_refused(pictures):
    assert "is empty" in refusal("--image", "") and "is empty" in refusal("--image_config", " ")


# ---- presets ----


def test_a_picture_alone_asks_for_zero123_and_with_words_for_sd_and_clip(pictures):
    alone, both = planned("--image", "a_rgba.png"), planned("--image", "a_rgba.png", "--text", "a cactus")
    assert alone.config.guidance.guidance == ("zero123",) and both.config.guidance.guidance == ("SD", "clip")
    assert alone.config.guidance.guidance_scale == (5,) and both.config.guidance.guidance_scale == (10,)
    assert alone.config.camera.fovy_range == (20, 20) and both.config.camera.fovy_range == (10, 30)
    assert both.config.guidance.t_range == (0.2, 0.6) and both.config.prompt.known_view_interval == 2
    for plan in (alone, both):
        assert plan.config.camera.progressive_view and plan.config.field.progressive_level
        assert (plan.config.loss.lambda_entropy, plan.config.schedule.latent_iter_ratio) == (1, 0)


def test_what_the_user_types_beats_the_presets_of_a_picture(pictures):
    words = "--guidance SD --guidance_scale 7 --fovy_range 15 25 --default_azimuth 10 --lambda_entropy 0 --no_progressive_view"
    config = planned("--image", "a_rgba.png", "--ref_azimuths", "45", *words.split()).config
    assert config.guidance.guidance == ("SD",) and config.guidance.guidance_scale == (7,)
    assert config.camera.fovy_range == (15, 25) and config.camera.default_azimuth == 10
    assert config.loss.lambda_entropy == 0 and not config.camera.progressive_view


def test_the_first_picture_is_the_default_view(pictures):
    name = csv(pictures, "image,polar,azimuth,radius,fovy\na_rgba.png,70,40,2,35\na_rgba.png,80,-40,2.5,35\n")
    camera = planned("--image_config", name).config.camera
    assert (camera.default_polar, camera.default_azimuth, camera.default_radius, camera.default_fovy) == (70, 40, 2, 35)
    assert camera.fovy_range == (35, 35)


def test_the_embedded_prior_leaves_a_picture_its_weight(pictures):
    words = ["--image", "a_rgba.png", "--text", "a hamburger", "--guidance", "SD"]
    found = {"SD": EMBEDDED}
    with_picture, words_alone = (resolve(parse(w), StoredRun(), lambda _: found).config for w in (words, words[2:]))
    assert (with_picture.loss.lambda_rgb, words_alone.loss.lambda_rgb) == (20000, 1000)
    assert resolve(parse([*words, "--lambda_rgb", "5"]), StoredRun(), lambda _: found).config.loss.lambda_rgb == 5


STABLE = SimpleNamespace(kind="stable zero123", version="stable", sentence="", title="", licence="")


@pytest.mark.parametrize(("words", "polar", "radius"), [("", 85, 3.8), ("--ref_polars 60 --ref_radii 2", 60, 2)])
def test_a_preset_of_the_guidance_moves_the_default_view_unless_the_camera_is_given(pictures, words, polar, radius):
    asked = parse(["--image", "a_rgba.png", *words.split()])
    plan = resolve(asked, StoredRun(), lambda _: {"zero123": STABLE})
    camera, (reference,) = plan.config.camera, plan.references
    assert (camera.default_polar, camera.default_radius) == (reference.polar, reference.radius) == (polar, radius)


def test_the_mesh_stage_looks_at_the_picture_without_its_depth_and_at_low_noise_levels(pictures):
    plan = planned("--image", "a_rgba.png", "--text", "a cactus", "--stages", "nerf,dmtet")
    nerf, mesh = (stage.config for stage in plan.stages)
    assert (nerf.loss.lambda_depth, nerf.prompt.known_view_scale, nerf.guidance.t_range) == (10, 1.5, (0.2, 0.6))
    assert (mesh.loss.lambda_depth, mesh.prompt.known_view_scale, mesh.guidance.t_range) == (0, 1, (0.2, 0.5))
    assert not mesh.camera.progressive_view


def test_weights_are_asked_for_with_the_guidance_of_the_presets(pictures):
    asked = []
    config = parse(["--image", "a_rgba.png"])
    resolve(config, StoredRun(), lambda config: asked.append(config.guidance.guidance) or {})
    assert asked == [("zero123",)]


# ---- what a workspace keeps ----


@pytest.fixture
def workspace(pictures):
    """A workspace that was trained on a_rgba.png."""
    opened("--image", "a_rgba.png", "--workspace", "w", "--seed", "1")
    (pictures / "w" / "checkpoints").mkdir()
    (pictures / "w" / "checkpoints" / "df_step_00000001.safetensors").write_bytes(b"")
    return pictures


def test_a_workspace_keeps_its_picture_by_content(workspace):
    plan = planned("--workspace", "w")
    assert plan.config.prompt.image == (str(workspace / "a_rgba.png"),) and plan.config.guidance.guidance == ("zero123",)
    (workspace / "moved_rgba.png").write_bytes((workspace / "a_rgba.png").read_bytes())
    (workspace / "moved_depth.png").write_bytes((workspace / "a_depth.png").read_bytes())
    plan = planned("--workspace", "w", "--image", "moved_rgba.png")
    assert plan.config.prompt.image == (str(workspace / "moved_rgba.png"),)


@pytest.mark.parametrize("change", ["a_rgba.png", "a_depth.png", "--default_azimuth", "--image"])
def test_another_picture_or_camera_in_a_used_workspace_is_refused(workspace, change):
    words = ["--workspace", "w"]
    if change.startswith("--"):
        words += [change, "10" if change == "--default_azimuth" else "b, c_rgba.png"]
    else:
        (workspace / change).write_bytes(b"other")
    with pytest.raises(UserError, match="holds a run from other pictures or cameras .* --ckpt scratch"):
        planned(*words)
    image = [] if change == "--image" else ["--image", "a_rgba.png"]
    assert planned(*words, *image, "--ckpt", "scratch").images is not None


def test_words_cannot_be_added_to_a_picture_in_a_used_workspace(workspace):
    with pytest.raises(UserError, match="holds a run with no --text, this run asks for --text x"):
        planned("--workspace", "w", "--text", "x")


def test_a_finished_run_is_shown_without_its_picture(workspace):
    (workspace / "a_rgba.png").unlink()
    assert planned("--workspace", "w", "--test").config.prompt.image == (str(workspace / "a_rgba.png"),)
    with pytest.raises(UserError, match="a_rgba.png does not exist"):
        planned("--workspace", "w")
