"""The examples do what they say."""

import numpy as np
import pytest
from PIL import Image

import guidance
import main
from examples import custom_guidance, drive_trainer, render_field
from nerf.run import checkpoint

SMALL = (
    "--seed 1 --w 16 --h 16 --batch_size 1 --grid_levels 4 --grid_log2 10 --grid_finest 32 --hidden 16 --max_steps 64".split()
)
SMALL += "--grid_size 16 --optim adam --W 16 --H 16 --dataset_size_test 2 --no_save_mesh --cuda_ray --threads 1".split()


def test_a_field_is_rendered(tmp_path):
    render_field.main(str(tmp_path / "ball.png"))
    picture = np.asarray(Image.open(tmp_path / "ball.png"))
    assert picture.shape == (128, 128, 3) and picture[0, 0].min() == 255 and picture[64, 64].min() < 200


def test_a_guidance_of_ones_own_trains_from_the_command_line(tmp_path):
    assert custom_guidance.Hill.name in guidance.FAMILIES
    words = ["--guidance", "hill", "--text", "a hill", "--workspace", str(tmp_path), "--iters", "3", *SMALL]
    assert main.main(words) == 0
    assert checkpoint.latest(tmp_path / "checkpoints") is not None
    assert "sds/hill" in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_the_trainer_is_driven_step_by_step(tmp_path):
    terms = drive_trainer.train("--text", "a blue ball", "--workspace", str(tmp_path), "-O", *SMALL, steps=2)
    assert "sds/SD" in terms and [step for step, _ in checkpoint.steps(tmp_path / "checkpoints")] == [2]
