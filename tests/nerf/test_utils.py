"""The trainer: every configuration takes steps, a resumed run is the run it resumes, and trouble is reported."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guidance.base import CameraRequirements, Guidance, GuidanceOutput
from nerf.config.config import with_values
from nerf.config.stages import DMTET, Stage
from nerf.core.errors import DivergenceError, UserError
from nerf.provider import RandomCameras
from nerf.renderer import build_model
from nerf.run import checkpoint, evaluation
from nerf.run.evaluation import Evaluator
from nerf.run.logger import Report
from nerf.training.sources import GuidanceInfo, RunInfo
from nerf.utils import Trainer
from tests.helpers.plans import opened
from tests.helpers.tasks import listening

TINY = (
    "--text something --guidance colour "
    "--seed 3 --iters 6 --w 8 --h 8 --batch_size 2 --W 8 --H 8 --optim adam --max_steps 32 --grid_size 16 "
    "--grid_levels 4 --grid_log2 8 --grid_finest 32 --num_steps 8 --upsample_steps 4 --dataset_size_valid 2 "
    "--dataset_size_test 2 --preview_interval 1000 --latent_iter_ratio 0 --update_extra_interval 2 --hidden 16"
).split()


class Colour(Guidance):
    """Wants every pixel to be one colour; draws noise as a diffusion model would."""

    name = "colour"
    spaces = ("rgb", "latent")

    def prepare(self, conditions):
        """Nothing to prepare."""

    def loss(self, image, views, part, control, *, debug=False):
        """Mean squared distance to a noisy grey."""
        noise = torch.rand(image.shape, generator=part.random.generator(9)).to(image.device)
        pictures = {"image": image.detach()[:, :3]} if debug else None
        return GuidanceOutput((image - 0.5 - 0.1 * noise).square().mean(), debug=pictures)

    def requirements(self):
        """Made for views near the horizon."""
        return CameraRequirements(polar_range=(80.0, 100.0))


class Greedy(Colour):
    """Asks for more memory than there is."""

    def loss(self, image, views, part, control, *, debug=False):
        """Raise what torch raises on CUDA."""
        raise torch.OutOfMemoryError("CUDA out of memory")


class Broken(Colour):
    """Answers with NaN from the third call on."""

    calls = 0

    def loss(self, image, views, part, control, *, debug=False):
        """NaN, sooner or later."""
        self.calls += 1
        answer = super().loss(image, views, part, control)
        return answer if self.calls < 3 else GuidanceOutput(answer.loss * float("nan"))


def make(folder, *flags, guidance=None, device="cpu", shards=RunInfo.shards):
    stage = opened(*TINY, "--workspace", folder, *flags).pending[0]
    options = stage.config
    report = Report(folder, terminal=False)
    torch.manual_seed(options.runtime.seed)
    guidance = guidance or Colour()
    run = RunInfo(stage, guidances=(GuidanceInfo(guidance.name, guidance.spaces),), shards=shards)
    model = build_model(stage, run.scene).to(device)
    sources = {"guided": RandomCameras(options, device, requirements=[guidance.requirements()])}
    trainer = Trainer(run, model, sources, [guidance], Evaluator(stage, model, report), report)
    trainer.restore()
    return trainer


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


CONFIGURATIONS = {
    "accelerated grid": "--cuda_ray",
    "plain grid": "--no_cuda_ray",
    "vanilla": "--backbone vanilla --no_cuda_ray --progressive_level",
    "vanilla accelerated": "--backbone vanilla --cuda_ray",
    "background network": "--cuda_ray --bg_radius 1.4",
    "plain background": "--cuda_ray --bg_radius -1",
    "softplus": "--cuda_ray --density_activation softplus",
    "finite normals": "--cuda_ray --normals finite --lambda_orient 0.1",
    "every regulariser": "--cuda_ray --lambda_entropy 0.1 --lambda_opacity 0.1 --lambda_orient 0.1 --lambda_tv 0.1 "
    "--lambda_wd 0.1 --lambda_2d_normal_smooth 0.1 --lambda_3d_normal_smooth 0.1",
    "adan": "--cuda_ray --optim adan",
    "latent": "--cuda_ray --latent_iter_ratio 1",
    "textureless": "--cuda_ray --textureless_ratio 1",
    "clipped": "--cuda_ray --grad_clip 1e-3 --grad_clip_rgb 1e-4",
    "jittered progressive": "--cuda_ray --jitter_pose --progressive_view --uniform_sphere_rate 0.5",
    "half size": "--cuda_ray --half_size_ratio 0.5",
    "wide": "--cuda_ray --bound 2 --dt_gamma 0.01",
    "signed distance": "--cuda_ray --backbone sdf --level_start 2 --lambda_curvature 0.1 --lambda_sparsity 0.1 "
    "--lambda_off_surface 0.1 --lambda_distortion 0.1 --lambda_orient 0.1",
    "signed distance with taps": "--no_cuda_ray --backbone sdf --sdf_gradient taps4 --lambda_curvature 0:0.1:2 "
    "--curvature laplacian --cos_anneal 0.5 --sharpness scheduled",
    "the network of NeuS": "--cuda_ray --backbone sdf_vanilla",
}


@pytest.mark.parametrize("flags", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_every_configuration_takes_steps_and_moves_its_weights(tmp_path, flags, device):
    trainer = make(tmp_path, *flags.split(), device=device)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for _ in range(2):
        terms = trainer.train_step()
    assert all(torch.isfinite(value) for value in terms.values())
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("flags", ["--cuda_ray", "--no_cuda_ray", "--no_cuda_ray --backbone vanilla"])
def test_in_half_precision_every_weight_of_the_field_learns(tmp_path, flags, dtype, device):
    trainer = make(tmp_path, *flags.split(), device=device)
    trainer.amp_dtype = dtype  # the options keep it for CUDA
    trainer.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16, init_scale=256.0)
    before = {name: p.detach().clone() for name, p in trainer.model.field.named_parameters()}
    for _ in range(3):
        terms = trainer.train_step()
    assert all(torch.isfinite(value) for value in terms.values())
    still = [name for name, p in trainer.model.field.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in still if not name.startswith("view_colour")] == []


@pytest.mark.parametrize(("wrote", "reads"), [(False, True), (True, False), (True, True)])
def test_a_run_goes_on_from_a_checkpoint_of_another_precision(tmp_path, wrote, reads):
    first, second = make(tmp_path, "--cuda_ray"), make(tmp_path, "--cuda_ray")
    first.scaler, second.scaler = (torch.amp.GradScaler("cpu", enabled=on, init_scale=8.0) for on in (wrote, reads))
    first.train_step()
    path = first.save()
    second.scaler.scale(torch.ones(()))
    second.load(path)
    second.train_step()
    assert second.step == 2 and second.scaler.get_scale() == (8.0 if reads else 1.0)


def test_every_regulariser_is_logged_by_name(tmp_path):
    trainer = make(tmp_path, *CONFIGURATIONS["every regulariser"].split())
    trainer.train_step()
    terms = trainer.train_step()
    expected = {"sds/colour", "opacity", "entropy", "orient", "normal_smooth_2d", "normal_smooth_3d", "tv", "weight_decay"}
    assert set(terms) == expected


@pytest.mark.parametrize(
    "flags",
    [
        "--cuda_ray",
        "--no_cuda_ray --optim adan",
        "--cuda_ray --lambda_orient 1",
        "--cuda_ray --backbone sdf --level_start 1",
        "--no_cuda_ray --backbone sdf --sharpness scheduled",
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, flags):
    straight = make(tmp_path / "a", *flags.split())
    straight.train()
    first = make(tmp_path / "b", *flags.split())
    for _, record in zip(range(3), first.run(), strict=False):
        assert record.step < 3
    first.save()
    second = make(tmp_path / "b", *flags.split())
    assert second.step == 3
    second.train()
    assert equal(weights(straight), weights(second))
    assert equal(straight.ema.state_dict(), second.ema.state_dict())


def test_the_loop_can_be_left_and_entered_again_without_a_trace(tmp_path):
    straight = make(tmp_path / "a", "--cuda_ray")
    straight.train()
    broken = make(tmp_path / "b", "--cuda_ray")
    for _ in zip(range(2), broken.run(), strict=False):
        pass
    for _ in broken.run():
        pass
    assert equal(weights(straight), weights(broken))


def test_looking_does_not_change_training(tmp_path):
    straight = make(tmp_path / "a", "--cuda_ray")
    straight.train()
    looked = make(tmp_path / "b", "--cuda_ray")
    for _ in looked.run():
        looked.preview()
        looked.evaluate()
    assert equal(weights(straight), weights(looked))


def test_weights_alone_start_counting_anew(tmp_path):
    trainer = make(tmp_path, "--cuda_ray")
    trainer.train()
    again = make(tmp_path, "--cuda_ray", "--ckpt", "latest_model")
    assert again.step == 0 and equal(weights(trainer), weights(again))


def test_weights_alone_keep_the_way_to_the_data_s_world(tmp_path):
    trainer = make(tmp_path, "--cuda_ray")
    trainer.info = replace(trainer.info, transform=np.diag([2.0, 2.0, 2.0, 1.0]))
    trainer.save()
    again = make(tmp_path, "--cuda_ray", "--ckpt", "latest_model")
    assert np.array_equal(again.info.transform, trainer.info.transform)


def test_what_an_exported_file_says_is_said_again_by_a_run_that_only_shows(tmp_path):
    trainer = make(tmp_path, "--cuda_ray")
    trainer.info = replace(trainer.info, notes={"licence of the weights": "theirs"})
    trainer.save()
    assert make(tmp_path, "--cuda_ray", "--test").info.notes == {"licence of the weights": "theirs"}


BALL = "--cuda_ray --mcubes_resolution 16 --mesh_threshold 2 --texture_size 32 --blob_density 4 --blob_radius 0.6".split()


def test_files_that_another_export_left_are_of_the_same_mesh_or_gone(tmp_path):
    trainer = make(tmp_path, *BALL, "--mesh_ply", "--normal_map")
    trainer.save_mesh()
    assert {"mesh.ply", "normal.png"} < {path.name for path in (tmp_path / "mesh").iterdir()}
    make(tmp_path, *BALL).save_mesh()
    assert {path.name for path in (tmp_path / "mesh").iterdir()} == {"mesh.glb", "mesh.obj", "mesh.mtl", "albedo.png"}


def test_a_stage_that_is_shown_again_does_not_write_over_the_mesh_of_a_later_one(tmp_path):
    trainer = make(tmp_path, *BALL)
    checkpoint.save(tmp_path / "checkpoints" / checkpoint.file_name(5, "dmtet"), {}, {"stage": "dmtet", "step": 5})
    written = trainer.save_mesh().files["glb"]
    assert written.parent == tmp_path / "mesh_nerf" and not (tmp_path / "mesh").exists()


def test_a_stage_that_begins_anew_forgets_its_old_average(tmp_path):
    trainer = make(tmp_path, "--cuda_ray")

    def fill():
        torch.nn.init.ones_(next(trainer.model.parameters()))
        return "filled", None

    trainer.begin(fill)
    assert torch.equal(trainer.ema.average[0], next(trainer.model.parameters()))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--keep_checkpoints", "2")
    for _ in trainer.run():
        trainer.save()
    assert [step for step, _ in checkpoint.steps(tmp_path / "checkpoints")] == [5, 6]


def test_a_loss_that_is_not_finite_stops_before_any_weight_is_touched(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", guidance=Broken())
    trainer.train_step()
    trainer.train_step()
    before = weights(trainer)
    with pytest.raises(DivergenceError, match="step 2.*sds"):
        trainer.train_step()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_where_losses_are_seldom_read_none_that_is_not_finite_gets_into_a_checkpoint(tmp_path, monkeypatch):
    trainer = make(tmp_path, "--cuda_ray", guidance=Broken())
    monkeypatch.setattr(trainer, "_looks_at_once", lambda: False)  # as on a GPU
    trainer.train_step()
    trainer.train_step()
    good = trainer.save()
    trainer.train_step()
    with pytest.raises(DivergenceError, match="step 2.*sds"):
        trainer.save()
    assert checkpoint.latest(tmp_path / "checkpoints") == good


def test_showing_a_workspace_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        make(tmp_path, "--test")


def test_another_prompt_in_a_used_workspace_is_refused_and_scratch_starts_over(tmp_path):
    make(tmp_path, "--cuda_ray").train()
    with pytest.raises(UserError, match="--text"):
        make(tmp_path, "--cuda_ray", "--text", "another thing")
    fresh = make(tmp_path, "--cuda_ray", "--text", "another thing", "--ckpt", "scratch")
    assert fresh.step == 0


def test_videos_views_and_metrics_are_written_where_users_look(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--iters", "10")
    trainer.train()
    trainer.evaluate()
    trainer.test()
    assert list((tmp_path / "results").glob("df_step_*_rgb.*"))
    assert list((tmp_path / "validation").glob("*_rgb.png"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows and "train/sds/colour" in rows[-1]


def test_objects_are_shown_lit_unless_they_should_not_be_and_the_unlit_sheet_is_there_too(tmp_path):
    trainer = make(tmp_path / "lit", "--cuda_ray", "--iters", "10", "--videos", "rgb", "albedo", "--W", "16", "--H", "16")
    trainer.train()
    trainer.test()
    assert {"rgb", "albedo"} <= {file.stem.rpartition("_")[2] for file in (tmp_path / "lit" / "results").iterdir()}
    sheets = {name: read_sheet(tmp_path / "lit", name) for name in ("sheet", "sheet_unlit")}
    assert sheets["sheet"].shape == (2 * 18 + 2, 4 * 18 + 2, 3) and (sheets["sheet"] <= sheets["sheet_unlit"]).all()
    assert (sheets["sheet"].astype(int) < sheets["sheet_unlit"].astype(int) - 10).mean() > 0.05
    plain = make(tmp_path / "lit", "--cuda_ray", "--iters", "10", "--test", "--unlit", "--W", "16", "--H", "16")
    plain.test()
    assert (read_sheet(tmp_path / "lit", "sheet") == sheets["sheet_unlit"]).all()


def read_sheet(folder, name):
    """The newest contact sheet of a run, [H, W, 3]."""
    from PIL import Image

    return np.asarray(Image.open(next((folder / "results").glob(f"*_{name}.png"))))


def test_six_views_are_written_as_stills(tmp_path):
    make(tmp_path, "--cuda_ray").train()
    trainer = make(tmp_path, "--cuda_ray", "--six_views")
    trainer.test()
    assert len(list((tmp_path / "results").glob("*_rgb.png"))) == 6


def test_a_time_budget_ends_training_early_and_saves(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--iters", "100000", "--minutes", "0.01")
    trainer.train()
    assert 0 < trainer.step < 100000
    assert checkpoint.latest(tmp_path / "checkpoints") is not None


def test_a_second_guidance_space_is_only_used_if_all_guidance_accepts_it(tmp_path):
    class RgbOnly(Colour):
        """Takes no latents."""

        spaces = ("rgb",)

    trainer = make(tmp_path, "--cuda_ray", "--latent_iter_ratio", "1", guidance=RgbOnly())
    assert trainer.plan(0).parts[0].settings.space == "rgb"


def test_a_stage_of_another_kind_is_refused(tmp_path):
    trainer = make(tmp_path, "--cuda_ray")
    path = trainer.save()
    trainer.stage = Stage(DMTET, trainer.config)
    with pytest.raises(UserError, match="stage"):
        trainer.load(path)


def test_learning_rates_fall_by_the_factor_asked_for(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--lr_decay", "0.01", "--iters", "10")
    trainer.train()
    group = trainer.optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(group["initial_lr"] * 0.01**0.9)
    assert SimpleNamespace(**group).name


def test_what_guidance_sees_is_written_on_the_steps_asked_for(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--save_guidance", "--save_guidance_interval", "3")
    trainer.train()
    assert sorted(p.name for p in (tmp_path / "guidance").iterdir()) == ["step_0000000.png", "step_0000003.png"]


def test_running_out_of_memory_says_what_to_lower(tmp_path):
    with pytest.raises(MemoryError, match="--batch_size.*--max_steps"):
        make(tmp_path, "--cuda_ray", guidance=Greedy()).train()


def test_running_out_of_memory_in_the_mesh_stage_names_what_that_stage_has(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--stages", "nerf,dmtet", guidance=Greedy())
    trainer.stage = Stage(DMTET, trainer.config)
    with pytest.raises(MemoryError, match="--dmtet_reso_scale") as caught:
        trainer.train()
    assert "--max_steps" not in str(caught.value)


def test_the_time_after_training_is_known_once_a_view_was_rendered(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--save_mesh", "--dataset_size_test", "50")
    assert trainer.evaluator.after_training() is None
    random = torch.get_rng_state()
    trainer.preview()
    trainer.evaluator._pixel_seconds = 1.0
    after = trainer.evaluator.after_training()
    assert 50 * 8 * 8 < after.seconds < 50 * 8 * 8 + 600 and after.complete
    assert torch.equal(torch.get_rng_state(), random)
    trainer.evaluator._pictures = [Path("a.png"), Path("b.png")]  # as many videos more, and the walk between them
    again = trainer.evaluator.after_training()
    assert again.seconds - after.seconds == pytest.approx(2 * (50 + 30) * 8 * 8, abs=1)
    trainer.evaluator.config = with_values(trainer.config, {"stages": ("nerf", "dmtet")}, "typed")
    assert not trainer.evaluator.after_training().complete


def test_training_from_python_holds_the_lock_of_the_workspace(tmp_path):
    trainer = make(tmp_path, "--cuda_ray")
    loop = trainer.run()
    next(loop)
    command = [sys.executable, "-c", "import sys\nfrom nerf.run import lock\nwith lock.hold(sys.argv[1]): pass", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"in use by process {os.getpid()}" in done.stderr
    loop.close()
    assert subprocess.run(command, check=False).returncode == 0


def test_videos_and_views_show_their_progress(tmp_path):
    trainer = make(tmp_path, "--cuda_ray")
    with listening() as tasks:
        trainer.test()
        trainer.evaluate()
    assert {"rendering the video", "rendering validation views"} <= {task.doing for task in tasks}


def test_running_out_of_memory_in_a_view_or_a_video_says_what_to_lower(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    trainer = make(tmp_path, "--cuda_ray")
    monkeypatch.setattr(evaluation.images, "write_video", fail)
    with pytest.raises(MemoryError, match="making the video; lower --dataset_size_test"):
        trainer.test()
    monkeypatch.setattr(trainer.model, "render", fail)
    with pytest.raises(MemoryError, match="rendering a view; lower --max_ray_batch, or --W and --H"):
        trainer.preview()


def test_guidance_is_told_that_a_stage_begins_before_its_parameters_are_taken(tmp_path):
    told = []

    class Learns(Colour):
        def begin_stage(self):
            told.append("begin")

        def param_groups(self, lr):
            told.append("parameters")
            return []

    make(tmp_path, "--cuda_ray", guidance=Learns())
    assert told == ["begin", "parameters"]


def test_cameras_beyond_what_the_guidance_was_made_for_are_told(tmp_path):
    make(tmp_path / "a", "--cuda_ray")
    assert "--theta_range" in (tmp_path / "a" / "log_df.txt").read_text()
    make(tmp_path / "b", "--cuda_ray", "--theta_range", "85", "95")
    assert "--theta_range" not in (tmp_path / "b" / "log_df.txt").read_text()


def test_clipping_at_the_image_means_the_same_under_a_scaled_loss(tmp_path):
    trainer = make(tmp_path, "--cuda_ray", "--grad_clip_rgb", "1e-4")
    guided = trainer.objectives["guided"]
    guided.loss_scale = 8.0
    image = torch.zeros(4, 3, requires_grad=True)
    (8.0 * guided._clipped(image)).sum().backward()
    torch.testing.assert_close(image.grad, torch.full((4, 3), 8e-4))


def test_a_field_without_a_table_cannot_be_regularised_as_one(tmp_path):
    with pytest.raises(UserError, match="lambda_tv|lambda_wd"):
        make(tmp_path, *"--backbone vanilla --no_cuda_ray --lambda_tv 1".split())
