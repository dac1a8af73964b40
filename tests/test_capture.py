"""Opaque photographs, contracted backgrounds, exposure and refined poses from the command line to files, on tiny pictures."""

import json

import pytest
import torch

import main
from nerf.config import config as options
from nerf.config.resolve import resolve
from nerf.run.logger import Report
from tests.nerf import photo_folders

TINY = (
    "--num_rays 128 --max_steps 64 --grid_size 16 --grid_levels 4 --grid_log2 10 --grid_finest 32 --hidden 16 --holdout 4 "
    "--seed 5 --dataset_size_test 2 --threads 1 --device cpu --preview_interval 1000 --eval_interval 1000 --ema_decay 0.9"
).split()
ALL = ["--exposure", "--refine_poses", "--background", "contracted"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return photo_folders.write(folder, [255 - photo_folders.pattern(i, 16, 12) for i in range(8)])


def run(folder, workspace, *flags):
    code = main.main(["--data", str(folder), "--workspace", str(workspace), *TINY, *flags])
    return code, json.loads((workspace / "result.json").read_text())


def trainer_of(folder, workspace, *flags):
    asked = options.parse(["--data", str(folder), "--workspace", str(workspace), *TINY, *flags])
    plan = resolve(asked, main.read_disk(asked), main.choose_weights)
    report = Report(str(workspace), [], hold=True)
    return main.make_trainer(plan.pending[0], main.make_inputs(plan, "cpu"), "cpu", report)


def tensors(trainer):
    """Everything that was learned, flat."""
    found = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    for learner in (*trainer.sources.values(), *trainer.objectives.values()):
        found |= {f"{type(learner).__name__}/{name}": value for name, value in learner.state_dict().items()}
    return {name: value.clone() for name, value in found.items()}


def test_a_run_with_all_of_it_writes_videos_of_the_photographs_shape_and_says_what_it_found(photographs, tmp_path):
    code, result = run(photographs, tmp_path, "--iters", "12", "--videos", "rgb", "normal", *ALL)
    assert code == 0 and 0 <= result["test_opacity"] <= 1 and result["test_psnr"] > 0
    assert result["pose_refinement"]["degrees"] > 0 and result["pose_refinement"]["shift"] > 0
    written = {path.name.rsplit("_", 1)[-1] for path in (tmp_path / "results").iterdir()}
    assert {"rgb.mp4", "normal.mp4"} <= written or {"rgb.gif", "normal.gif"} <= written
    assert not any("depth" in name for name in written)


def test_photographs_without_alpha_become_opaque(photographs, tmp_path):
    opacity = {}
    for colour in ("random", "white"):
        flags = ("--iters", "150", "--background", "constant", "--data_background", colour)
        _, result = run(photographs, tmp_path / colour, *flags)
        opacity[colour] = result["test_opacity"]
    assert opacity["random"] > 0.95 and opacity["white"] < opacity["random"] - 0.05


def test_a_resumed_run_has_the_bits_of_one_that_went_on(photographs, tmp_path):
    flags = ("--iters", "10", *ALL)
    straight = trainer_of(photographs, tmp_path / "straight", *flags)
    for _ in range(10):
        straight.train_step()
    first = trainer_of(photographs, tmp_path / "resumed", *flags)
    for _ in range(6):
        first.train_step()
    (tmp_path / "resumed" / "checkpoints").mkdir(parents=True, exist_ok=True)
    path = first.save()
    second = trainer_of(photographs, tmp_path / "other", *flags)
    second.load(path)
    for _ in range(4):
        second.train_step()
    one, two = tensors(straight), tensors(second)
    assert one.keys() == two.keys() and {"PhotographSource/poses.twist", "KnownView/log_gain"} <= one.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    assert one["PhotographSource/poses.twist"].abs().max() > 0 and one["KnownView/log_gain"].abs().max() > 0
