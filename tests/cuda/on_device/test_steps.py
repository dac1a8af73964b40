"""What a training step waits for, as a fixed list: a wait that is added fails here until it is listed with its reason.

A wait stalls the queue of the GPU: while the host waits, nothing new is launched. The lists name functions, not lines.
"""

from collections import Counter

import pytest
import torch

import extension
from guidance import build, weights
from guidance.base import Guidance, GuidanceOutput
from nerf.config.config import parse
from nerf.provider import RandomCameras
from nerf.renderer import build_model
from nerf.run.evaluation import Evaluator
from nerf.run.logger import Report
from nerf.training.sources import GuidanceInfo, RunInfo
from nerf.utils import CUDA_CHECK_INTERVAL, Trainer
from tests.guidance.conftest import sd_folder  # noqa: F401  # a fixture
from tests.helpers.fake_cuda import device, waits
from tests.helpers.plans import opened

TINY = (
    "--text something --seed 3 --iters 6 --w 8 --h 8 --batch_size 2 --W 8 --H 8 --optim adam --max_steps 32 --grid_size 16 "
    "--grid_levels 4 --grid_log2 8 --grid_finest 32 --num_steps 8 --upsample_steps 4 --dataset_size_valid 2 --hidden 16 "
    "--dataset_size_test 2 --preview_interval 1000 --latent_iter_ratio 0 --update_extra_interval 2 --tet_grid_size 8 "
    "--bg_radius -1"  # every step draws the colour of its background
).split()

# ---- The lists: (function, what it waits for) -> how often in a step ----

VIEWS = {
    ("Views.to", "copy to the device"): 9,  # the cameras, drawn on the host, one copy for each tensor
    ("random_lights", "copy to the device"): 1,  # drawn on the host
    ("chosen_color", "copy to the device"): 1,  # a background colour for each view, drawn on the host
    ("chosen_color", "item"): 1,  # whether there is a colour for every view
}
# Every second step here (--update_extra_interval): how full the grid is, and its threshold.
OCCUPANCY = {("OccupancyGrid.update", "item"): 1, ("OccupancyGrid.threshold", "item"): 1}
# One step in CUDA_CHECK_INTERVAL: is every term finite, and is the picture empty or full?
READ_BACK = {("check_finite", "item"): 2, ("DivergenceMonitor.update", "item"): 2}
ACCELERATED = {("AcceleratedPath._read_pending", "event"): 1}  # what the last step needed, which is there by now
# The first part of a source is counted before it is marched.
FIRST_ACCELERATED = {("AcceleratedPath._read_step_scale", "item"): 1, ("count_samples", "item"): 1}
PLAIN = {("PlainPath.render", "nonzero"): 1}  # the rays that hit the box
MESH = {
    ("marching_tetrahedra", "nonzero"): 2,  # how many tetrahedra the surface crosses, and how many vertices it has
    ("marching_tetrahedra", "index by a mask"): 2,
    ("marching_tetrahedra", "copy to the device"): 1,  # the table of cases
    ("DMTetPath._rasterised", "nonzero"): 1,  # the pixels that are covered
    ("edge_adjacency", "copy to the device of an index or a value"): 1,
    ("edge_adjacency", "item"): 1,
    ("edge_adjacency", "unique"): 1,
    ("normal_consistency", "index by a mask"): 2,
    ("sdf_sign_entropy", "index by a mask"): 2,
    ("Trainer._backward", "index by a mask"): 1,  # the gradient of one of those
    ("_edges", "unique"): 2,
    ("_inner_vertices", "index by a mask"): 1,
    ("_inner_vertices", "nonzero"): 1,
}
FIRST_MESH = {("TetGrid.to", "copy to the device"): 5, ("check_finite", "item"): 2}  # the grid, and two more terms
DISTILLATION = {
    ("Distiller.draw", "copy to the device"): 2,  # time and noise, drawn on the host
    ("LatentCodec.encode", "copy to the device"): 1,  # noise of the posterior
    ("inject", "item"): 1,  # whether the gradient is finite
}
# With --vram_O the weights visit the device, one copy for each tensor of a layer.
VISITS = (("StableDiffusion.denoiser", "copy to the device"), ("LatentCodec.encode", "copy to the device"))
ADAN_SCALED = {("Trainer._apply_gradients", "item"): 1}  # a gradient scaler asks before it steps an optimiser that is not fused


class Grey(Guidance):
    """Wants every pixel to be grey; waits for nothing."""

    name, spaces = "grey", ("rgb", "latent")

    def prepare(self, conditions):
        """Nothing to prepare."""

    def loss(self, image, views, part, control, *, debug=False):
        """Mean squared distance."""
        return GuidanceOutput((image - 0.5).square().mean())


@pytest.fixture(autouse=True)
def known_backend():
    """The backend is chosen, which launches a kernel and waits for it once in a process."""
    extension.backend("cuda")


def trainer_of(folder, words, guidance=None, stage=0):
    """The trainer of a stage on the fake device."""
    made = opened(*TINY, "--workspace", folder, *words.split()).pending[stage]
    report, guidance = Report(folder, terminal=False), guidance or Grey()
    torch.manual_seed(3)
    run = RunInfo(made, guidances=(GuidanceInfo(guidance.name, guidance.spaces, guidance.stage_options(made.config.guidance)),))
    model = build_model(made, run.scene).to("cuda")
    sources = {"guided": RandomCameras(made.config, "cuda", requirements=[guidance.requirements()])}
    return Trainer(run, model, sources, [guidance], Evaluator(made, model, report), report)


def step(trainer):
    """Take a step; returns what was waited for, and the terms."""
    with waits.record() as seen:
        terms = trainer.train_step()
    assert all(torch.isfinite(value) for value in terms.values())
    return seen


def require(seen, *lists):
    """The waits of a step are those of the lists, neither more nor less."""
    expected = sum(map(Counter, lists), Counter())
    found = Counter(seen.by_function())
    new, gone = found - expected, expected - found
    assert not new and not gone, f"not in the list: {dict(new)}; in the list and gone: {dict(gone)}; " + "\n".join(seen.lines())


@pytest.mark.parametrize("precision", ["--no_fp16", "--fp16", "--bf16"])
def test_a_guided_step_waits_for_what_is_listed(tmp_path, precision):
    trainer = trainer_of(tmp_path, f"--cuda_ray {precision}")
    assert trainer.scaler.is_enabled() == (precision == "--fp16") and CUDA_CHECK_INTERVAL > 4
    require(step(trainer), VIEWS, OCCUPANCY, READ_BACK, FIRST_ACCELERATED)
    launches = device.kernel_launches()
    seen = step(trainer)
    require(seen, VIEWS, ACCELERATED)
    assert 0 < device.kernel_launches() - launches <= 20 and sum(seen.operations.values()) < 500
    require(step(trainer), VIEWS, OCCUPANCY, ACCELERATED)
    require(step(trainer), VIEWS, ACCELERATED)


def test_a_step_without_an_occupancy_grid_waits_for_what_is_listed(tmp_path):
    trainer = trainer_of(tmp_path, "--no_cuda_ray --fp16")
    require(step(trainer), VIEWS, PLAIN, READ_BACK)
    require(step(trainer), VIEWS, PLAIN)


def test_adan_under_a_gradient_scaler_costs_one_wait_more(tmp_path):
    trainer = trainer_of(tmp_path, "--cuda_ray --fp16 --optim adan")
    step(trainer)
    require(step(trainer), VIEWS, ACCELERATED, ADAN_SCALED)


def test_a_step_of_the_mesh_stage_waits_for_what_is_listed(tmp_path):
    trainer = trainer_of(tmp_path, "--stages nerf,dmtet --dmtet_iters 6 --fp16", stage=1)
    require(step(trainer), VIEWS, MESH, READ_BACK, FIRST_MESH)
    seen = step(trainer)
    require(seen, VIEWS, MESH)
    assert {"rasterize", "interpolate", "antialias", "antialias_backward"} <= set(seen.kernels)


@pytest.mark.parametrize("less_memory", ["", "--vram_O"])
def test_a_step_under_stable_diffusion_waits_for_what_is_listed(tmp_path, sd_folder, less_memory):  # noqa: F811
    words = f"--cuda_ray --fp16 --hf_key {sd_folder} {less_memory}"
    asked = parse([*TINY, "--workspace", str(tmp_path), *words.split()])
    (guidance,) = build(asked, "cuda", weights.resolve(asked.guidance.sd_version, asked.guidance.hf_key, "something"))
    trainer = trainer_of(tmp_path, "--cuda_ray --fp16", guidance)
    step(trainer)
    seen = step(trainer)
    copied = seen.by_function()
    visits = {key: copied.get(key, 0) - DISTILLATION.get(key, 0) for key in VISITS}
    require(seen, VIEWS, ACCELERATED, DISTILLATION, visits)
    assert all(times > 100 if less_memory else times == 0 for times in visits.values())


def test_a_wait_that_is_not_listed_fails_by_name():
    x = torch.ones(2, device="cuda")
    with waits.record() as seen:
        x.sum().item()
    require(seen, {("test_a_wait_that_is_not_listed_fails_by_name", "item"): 1})
    with pytest.raises(AssertionError, match="not in the list: .*test_a_wait_that_is_not_listed_fails_by_name', 'item'"):
        require(seen)
    with pytest.raises(AssertionError, match="in the list and gone: .*Views.to"):
        require(seen, {("test_a_wait_that_is_not_listed_fails_by_name", "item"): 1}, VIEWS)
