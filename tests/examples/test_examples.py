"""The examples do what they say."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import guidance
import main
import somnia
from examples import custom_guidance, drive_trainer, render_field
from nerf.run import checkpoint, lock

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


TINY = dict(
    seed=1,
    w=16,
    h=16,
    batch_size=1,
    grid_levels=4,
    grid_log2=10,
    grid_finest=32,
    hidden=16,
    max_steps=64,
    grid_size=16,
    threads=1,
    mesh_threshold=0.5,
    mcubes_resolution=16,
    texture_size=64,
    decimate_target=500,
)


@pytest.mark.slow
def test_a_run_is_driven_from_python(tmp_path):
    path = drive_trainer.main(str(tmp_path), iters=50, **TINY)
    assert path.is_file() and path.parent == tmp_path / "trial" / "mesh"
    assert [step for step, _ in checkpoint.steps(tmp_path / "trial" / "checkpoints")] == [50]
    assert np.asarray(Image.open(tmp_path / "ball_00050.png")).shape == (256, 256, 3)


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_one_after_the_other(tmp_path, monkeypatch):
    notebook = json.loads((Path(drive_trainer.__file__).parent / "train.ipynb").read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    monkeypatch.chdir(tmp_path)
    configure, small = somnia.configure, TINY | {"iters": 6}
    monkeypatch.setattr(somnia, "configure", lambda **flags: configure(**flags | small))
    names, values = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":  # as a notebook does: the value of a last expression is shown
            tree = ast.parse("".join(cell["source"]))
            last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "cell", "exec"), names)
            values.append(None if last is None else eval(compile(last, "cell", "eval"), names))
    assert values[2][:3] == ("nerf", 0, ["SD"]) and "sds/SD" in values[3]
    assert all(value.size == (256, 256) for value in values if isinstance(value, Image.Image))
    assert sum(isinstance(value, Image.Image) for value in values) == 2
    assert (tmp_path / "trial" / "mesh" / "mesh.glb").is_file()
    assert not lock.is_held(tmp_path / "trial")
