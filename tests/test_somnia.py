"""The Python interface: options from keywords, and runs that can be stopped, shown, resumed and exported."""

import signal

import numpy as np
import pytest
import torch

import main
import somnia
from nerf.config.config import parse
from nerf.core.errors import UserError
from nerf.run import checkpoint, lock
from tests.nerf import photo_folders

TINY = dict(
    seed=3,
    num_rays=64,
    iters=6,
    w=12,
    h=12,
    W=8,
    H=8,
    dataset_size_test=2,
    max_steps=48,
    grid_size=16,
    grid_levels=4,
    grid_log2=10,
    grid_finest=32,
    hidden=16,
    threads=1,
    mcubes_resolution=16,
    texture_size=64,
    decimate_target=500,
    density_bias=-2.0,
    blob_density=4.0,
    blob_radius=0.6,
    mesh_threshold=1.0,
    tet_grid_size=8,
    dmtet_iters=3,
)


@pytest.fixture
def flags(tmp_path):
    """Keywords of a tiny run on photographs."""
    folder, images = tmp_path / "photographs", np.zeros((6, 12, 12, 4), np.uint8)
    folder.mkdir()
    images[:, 4:8, 4:8] = (200, 60, 20, 255)
    before = torch.get_num_threads()
    yield {"data": photo_folders.write(folder, images), "workspace": tmp_path / "run"} | TINY
    torch.set_num_threads(before)


def saved(tmp_path):
    """Steps of the checkpoints in the workspace."""
    return [step for step, _ in checkpoint.steps(tmp_path / "run" / "checkpoints")]


# ---- options ----


def test_keywords_are_the_flags_of_the_command_line():
    given = somnia.configure(text="-a ball", workspace="run", O=True, save_mesh=False, fovy_range=(10, 30), lr=1e-5, seed=None)
    typed = parse(["--text=-a ball", *"--workspace run -O --no_save_mesh --fovy_range 10 30 --lr 1e-05".split()])
    assert given == typed and given.sources == typed.sources
    assert somnia.configure(text="a", workspace="w", guidance=["SD", "clip"]).guidance.guidance == ("SD", "clip")


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"itres": 5}, "unknown flag --itres; did you mean --iters?"),
        ({"iters": -1}, "--iters must be"),
        ({"fovy_range": 20}, "--fovy_range takes two numbers"),
        ({"iters": True}, "--iters needs"),
        ({"O": True, "O2": True}, "-O and -O2 are two presets"),
        ({"fovy_range": ()}, "--fovy_range needs at least one value, got an empty tuple"),
        ({"image": []}, "--image needs at least one value, got an empty list"),
    ],
)
def test_keywords_are_checked_as_flags_are(keywords, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        somnia.configure(text="a ball", workspace="run", **keywords)


def test_a_run_is_opened_with_options_or_with_keywords_and_not_with_both():
    asked = parse(["--text", "a"])
    for call in (lambda: somnia.open_run(), lambda: somnia.open_run(asked, iters=3), lambda: somnia.open_run("a ball")):
        with pytest.raises(UserError, match="either options .* or flags"):
            call()


# ---- runs ----


def test_a_run_trains_in_pieces_and_ends_as_that_of_the_command_line(flags, tmp_path):
    with somnia.open_run(**flags) as run:
        assert (run.stage, run.trainer.step, run.guidance, run.config.optim.iters) == ("nerf", 0, [], 6)
        assert run.train(steps=0) == {} and saved(tmp_path) == []
        terms = run.train(steps=2)
        assert "rgb" in terms and saved(tmp_path) == [2]
        assert [record.step for record in run.steps(2)] == [2, 3]
        assert saved(tmp_path) == [2]
        run.train()
        assert saved(tmp_path) == [2, 6] and run.train() == {}
        weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    other = {**flags, "workspace": tmp_path / "other"}
    with somnia.open_run(**other) as run:
        run.train()
        assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())


def test_a_run_goes_on_where_the_workspace_stopped_and_shows_without_training(flags, tmp_path):
    with somnia.open_run(**flags) as run:
        run.train(steps=3)
    with somnia.open_run(**flags) as run:
        assert run.trainer.step == 3
        for _ in run.steps():
            pass
    with somnia.open_run(workspace=tmp_path / "run", test=True, threads=1) as run:
        assert run.trainer.step == 6 and run.picture(size=8).shape == (8, 8, 3)
        with pytest.raises(UserError, match="only shows"):
            run.train()


def test_a_picture_is_of_the_camera_asked_for_and_training_does_not_notice(flags):
    with somnia.open_run(**flags) as run:
        run.train(steps=2)
        before = [p.detach().clone() for p in run.model.parameters()], torch.get_rng_state()
        front, side = run.picture(size=16), run.picture(azimuth=90, polar=40, size=16, shading="normal")
        assert front.dtype == np.uint8 and front.shape == side.shape == (16, 16, 3) and not np.array_equal(front, side)
        assert np.array_equal(front, run.picture(azimuth=0, polar=90, size=16))
        assert all(torch.equal(a, b) for a, b in zip(before[0], run.model.parameters(), strict=True))
        assert torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"size": 0}, "height and width must be at least 1"),
        ({"shading": "toon"}, "expected shading as one of albedo, .*got 'toon'"),
        ({"azimuth": float("nan")}, "finite numbers"),
        ({"polar": 300}, r"polar must lie in \[0, 180\]"),
        ({"radius": "far"}, "could not convert"),
    ],
)
def test_a_picture_that_cannot_be_is_refused_in_a_sentence(flags, keywords, sentence):
    with somnia.open_run(**flags) as run, pytest.raises(UserError, match=f"picture: .*{sentence}"):
        run.picture(**keywords)


@pytest.mark.parametrize("steps", ["3", 1.5, -1, True])
def test_a_number_of_steps_is_a_whole_number(flags, steps):
    with somnia.open_run(**flags) as run:
        with pytest.raises(UserError, match="expected a number of steps"):
            run.train(steps)
        assert run.trainer.step == 0 and run.train(0) == {}


def test_a_closed_run_does_not_train_or_write(flags, tmp_path):
    run = somnia.open_run(**flags)
    run.close()
    for call in (run.train, run.export, run.next_stage):
        with pytest.raises(UserError, match="is closed; open it again"):
            call()
    assert saved(tmp_path) == []


def test_the_mesh_is_exported_and_the_next_stage_starts_from_this_one(flags, tmp_path):
    for package in ("trimesh", "skimage"):
        pytest.importorskip(package)
    with somnia.open_run(**flags, stages=("nerf", "dmtet")) as run:
        run.train()
        mesh = run.export()
        assert mesh.faces > 0 and mesh.files["glb"].is_file()
        assert '"stage": "nerf"' in (tmp_path / "run" / "result.json").read_text()
        assert run.next_stage() and run.stage == "dmtet"
        assert run.train(steps=1) and not run.next_stage()


def test_an_open_workspace_is_refused_a_second_time_and_free_after_it_was_closed(flags, tmp_path):
    run = somnia.open_run(**flags)
    with pytest.raises(UserError, match="is open in this program already; close"):
        somnia.open_run(**flags)
    run.close()
    run.close()
    assert not lock.is_held(tmp_path / "run")
    somnia.open_run(**flags).close()


def test_a_viewer_is_for_the_command_line(flags, tmp_path):
    with pytest.raises(UserError, match="--viewer .* run.picture"):
        somnia.open_run(**flags, viewer="web")
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_made_leaves_nothing(flags, tmp_path):
    with pytest.raises(UserError, match="--device cuda|no CUDA|sees no CUDA"):
        somnia.open_run(**flags, device="cuda:7")
    assert not (tmp_path / "run").exists() and not lock.is_held(tmp_path / "run")


def test_an_interrupt_ends_training_after_its_step_with_a_checkpoint(flags, tmp_path):
    with somnia.open_run(**flags) as run:
        run.trainer.report.scalars, real = (
            lambda step, *rest, **more: signal.raise_signal(signal.SIGINT) if step == 2 else None,
            run.trainer.report.scalars,
        )
        with pytest.raises(KeyboardInterrupt):
            run.train()
        assert run.trainer.step == 2 and saved(tmp_path) == [2]
        run.trainer.report.scalars = real
        run.train()
        assert saved(tmp_path)[-1] == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_command_line_takes_the_same_way(flags, monkeypatch):
    seen = []
    monkeypatch.setattr(main, "ready", lambda asked: seen.append(asked) or (_ for _ in ()).throw(UserError("no")))
    words = ["--text", "a ball", "--workspace", "run"]
    assert main.main(words) == 2 and seen == [parse(words)]
