"""scripts/guidance_2d.py: pictures by sampling and by optimisation, with any family, and errors in one sentence."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from guidance.preview import Drawing, optimise, sample
from nerf.core.structs import Control
from tests.guidance.conftest import clip_folder, if_folder, prior_folder, sd_folder, sdxl_folder  # noqa: F401
from tests.guidance.models import embedded_prior
from tests.helpers.scripts import ROOT, load_script


@pytest.fixture
def draw(tmp_path, monkeypatch, capfd):
    """Run the script: words -> (exit code, the picture's size or None, what it printed)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def draw(*words, text="a red car"):
        path = tmp_path / "new" / "picture.png"
        prompt = () if text is None else ("--text", text)
        code = load_script("guidance_2d").main([*prompt, "--device", "cpu", "--out", str(path), *map(str, words)])
        return code, Image.open(path).size if path.is_file() else None, "".join(capfd.readouterr())

    return draw


@pytest.fixture
def keys(sd_folder, sdxl_folder, if_folder, clip_folder, prior_folder):  # noqa: F811
    """The words that name the tiny weights of each model."""
    return {
        "SD": ["--hf_key", sd_folder],
        "prior": ["--hf_key", prior_folder],
        "SDXL": ["--guidance", "SDXL", "--hf_key", sdxl_folder],
        "IF": ["--IF", "--hf_key", if_folder],
        "clip": ["--guidance", "clip", "--hf_keys", f"clip={clip_folder}"],
    }


@pytest.mark.parametrize(("name", "size"), [("SD", (64, 64)), ("SDXL", (64, 64)), ("IF", (8, 8)), ("prior", (256, 128))])
def test_each_family_draws_a_picture_and_one_that_is_told_the_camera_eight_views(draw, keys, name, size):
    code, found, printed = draw(*keys[name], "--steps", "1")
    assert code == 0 and found == size and "wrote" in printed


def test_views_of_a_model_with_view_words_differ(draw, keys):
    code, size, _ = draw(*keys["SD"], "--steps", "2", "--views", "4")
    assert code == 0 and size == (256, 64)


def test_clip_draws_by_optimisation_alone(draw, keys):
    code, size, printed = draw(*keys["clip"], "--steps", "2")
    assert code == 2 and size is None and "judges pictures and draws none; add --optimise" in printed
    code, size, printed = draw(*keys["clip"], "--steps", "3", "--optimise", "--count", "2", "--w", "32", "--h", "32")
    assert code == 0 and size == (64, 32) and "step 0 of 3" in printed


def test_two_models_draw_together_by_optimisation(draw, keys):
    words = ["--guidance", "SD", "clip", *keys["SD"], *keys["clip"][2:]]
    assert "several models cannot sample one picture" in draw(*words)[2]
    code, size, _ = draw(*words, "--optimise", "--steps", "2", "--w", "32", "--h", "32", "--guidance_scale", "7.5", "1")
    assert code == 0 and size == (32, 32)


class Grey:
    """A guidance that wants one grey."""

    name, device, told_camera = "grey", torch.device("cpu"), False

    def requirements(self):
        """Any view."""
        from guidance.base import CameraRequirements

        return CameraRequirements()

    def loss(self, image, views, part, control):
        """Squared distance to the grey that the schedule asks for."""
        from guidance.base import GuidanceOutput

        return GuidanceOutput((image - control.scale).square().sum())


def test_optimisation_finds_the_minimum_of_the_weighted_losses():
    low, high = Grey(), Grey()
    wanted = {id(low): 0.2, id(high): 0.6}
    pictures = optimise([low, high], [1.0, 3.0], lambda m, fraction: Control(scale=wanted[id(m)]), Drawing(steps=300), 8)
    torch.testing.assert_close(pictures, torch.full((1, 3, 8, 8), 0.5), atol=0.01, rtol=0)


def test_the_same_seed_draws_the_same_and_another_does_not(prior_folder):  # noqa: F811
    model = embedded_prior(prior_folder)
    first, again, other = (sample(model, Drawing(views=2, steps=1, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_cameras_keep_within_what_the_model_was_made_for(prior_folder):  # noqa: F811
    model = embedded_prior(prior_folder)
    views = Drawing(polar=5.0).cameras([model], 64)
    low, high = model.requirements().polar_range
    assert len(views) == 8 and (views.polar >= low).all() and (views.polar <= high).all()
    np.testing.assert_allclose(views.azimuth[:3], [0, 45, 90], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "picture.jpg"], "--out must name a .png file"),
        (["--hf_key", "/nowhere"], "/nowhere is not a folder"),
        (["--guidanc", "SD"], "unknown flag --guidanc"),
        (["--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_bad_input_is_one_sentence(draw, words, sentence):
    code, size, printed = draw(*words)
    assert code == 2 and size is None and sentence in printed and "Traceback" not in printed


@pytest.mark.parametrize("words", [[], ["--data", "photographs"], ["--test"]])
def test_nothing_to_draw_says_what_this_program_takes(words, capfd):
    assert load_script("guidance_2d").main(words) == 2
    assert capfd.readouterr().err == ('guidance_2d.py: nothing to draw: give --text "a hamburger", or --image X_rgba.png\n')


def test_a_folder_in_place_of_the_picture_is_refused_before_anything_is_drawn(draw, tmp_path, monkeypatch):
    (tmp_path / "a.png").mkdir()
    monkeypatch.setattr("guidance.choose_weights", None)  # nothing is looked for
    code, _, printed = draw("--out", str(tmp_path / "a.png"))
    assert code == 2 and "a.png is a folder; name a file in it" in printed
    code, _, printed = draw("--out", "/dev/null/a/b.png")
    assert code == 2 and "/dev/null is no folder" in printed


def test_a_number_that_cannot_work_is_refused(draw, capfd):
    with pytest.raises(SystemExit, match="2"):
        draw("--steps", "0")
    assert capfd.readouterr().err == "guidance_2d.py: --steps must be between 1 and 1000000, got 0\n"


def test_help_lists_the_flags():
    said = subprocess.run(
        [sys.executable, "scripts/guidance_2d.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--optimise" in said.stdout and "--views" in said.stdout
