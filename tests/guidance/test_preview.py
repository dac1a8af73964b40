"""``python -m guidance.sd_utils``: a sheet of views or one image, and errors in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from guidance.preview import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "size"), [("prior_folder", (256, 128)), ("sd_folder", (64, 64))])
def test_the_embedded_prior_draws_eight_views_and_stable_diffusion_one_image(request, tmp_path, name, size):
    folder, path = request.getfixturevalue(name), tmp_path / "new" / "sheet.png"
    assert main(["a red car", "--hf_key", str(folder), "--steps", "1", "--output", str(path)]) == 0
    assert Image.open(path).size == size


def test_bad_input_is_one_sentence(tmp_path, capsys):
    assert main(["a red car", "--hf_key", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_documented_command_runs(prior_folder, tmp_path):
    path = tmp_path / "sheet.png"
    words = ["a red car", "--hf_key", str(prior_folder), "--steps", "1", "--output", str(path)]
    subprocess.run([sys.executable, "-m", "guidance.sd_utils", *words], cwd=ROOT, check=True, capture_output=True)
    assert path.is_file()
