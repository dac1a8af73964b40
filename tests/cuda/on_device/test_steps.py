"""What a training step waits for, as a fixed list: a wait that is added fails here until it is listed with its reason.

A wait stalls the queue of the GPU: while the host waits, nothing new is launched. The lists name functions, not lines.
"""

from collections import Counter

import pytest
import torch

import extension
from guidance import build, choose_weights
from guidance.base import Conditions, Guidance, GuidanceOutput
from guidance.prior.guidance import EmbeddedPrior
from nerf.config.config import parse
from nerf.core.structs import SceneInfo
from nerf.provider import SourceInputs, build_sources
from nerf.render.occupancy import FULL_UPDATES
from nerf.renderer import build_model
from nerf.run.evaluation import Evaluator
from nerf.run.logger import Report
from nerf.training.sources import GuidanceInfo, RunInfo
from nerf.utils import CUDA_CHECK_INTERVAL, Trainer
from tests.guidance.conftest import knowing_folder, prior_folder, sd_folder  # noqa: F401  # fixtures
from tests.helpers.fake_cuda import device, waits
from tests.helpers.plans import opened
from tests.nerf import photo_folders

TINY = (
    "--seed 3 --iters 100 --dmtet_iters 100 --w 8 --h 8 --batch_size 2 --W 8 --H 8 --optim adam --max_steps 32 --grid_size 16 "
    "--grid_levels 4 --grid_log2 8 --grid_finest 32 --num_steps 8 --upsample_steps 4 --dataset_size_valid 2 --hidden 16 "
    "--dataset_size_test 2 --preview_interval 1000 --latent_iter_ratio 0 --update_extra_interval 2 --tet_grid_size 8 "
    "--bg_radius -1"  # every step draws the colour of its background
).split()

# ---- The lists: (function, what it waits for) -> how often in a step ----
#
# Everything that a step draws on the host goes to the device in pinned memory, and nobody waits for it. Losses, the opacity
# of the images and the size of the occupancy grid come back the same way, and are looked at when a later copy has arrived.

# What the last part of a step needed in its buffers: a copy that was started one step ago, before most of that step's work,
# so that the host is never more than a step ahead. All other copies that it has to see were started earlier.
ACCELERATED = {("Download.result", "event"): 1}
FIRST_ACCELERATED = {("count_samples", "item"): 1}  # the first part of a source is counted before it is marched
PLAIN = {("PlainPath.render", "nonzero"): 1}  # the rays that hit the box: M, which all tensors behind it have as a size
PLAIN_LOOK = {("Download.result", "event"): 1}  # once in CUDA_CHECK_INTERVAL steps: terms that were sent so many steps ago
MESH = {
    ("counts", "tolist"): 2,  # sizes of the surface: tetrahedra, triangles and vertices; then edges, pairs and inner vertices
    ("TrianglePath._rasterised", "nonzero"): 1,  # the pixels that are covered: M, the points where the field is asked
}
MESH_LOOK = {("Download.result", "event"): 1}  # as PLAIN_LOOK
FIRST_MESH = {("TetGrid.to", "copy to the device"): 5}  # the grid
MOST_GUIDED, MOST_MESH = 2, 4  # what a step may cost


class Grey(Guidance):
    """Wants every pixel to be grey; waits for nothing."""

    name, spaces = "SD", ("rgb", "latent")

    def prepare(self, conditions):
        """Nothing to prepare."""

    def loss(self, image, views, part, control, *, debug=False):
        """Mean squared distance."""
        return GuidanceOutput((image - 0.5).square().mean())


@pytest.fixture(autouse=True)
def known_backend():
    """The backend is chosen, which launches a kernel and waits for it once in a process."""
    extension.backend("cuda")


def trainer_of(folder, words, guidance=None, stage=0, photos=None):
    """The trainer of a stage on the fake device: guided, or on photographs."""
    prompt = [] if photos is not None else ["--text", "something"]
    made = opened(*prompt, *TINY, "--workspace", folder, *words.split()).pending[stage]
    report, models = Report(folder, terminal=False), [guidance or Grey()] if photos is None else []
    torch.manual_seed(3)
    known = tuple(
        GuidanceInfo(each.name, each.spaces, each.stage_options(made.config.guidance.of(each.name))) for each in models
    )
    run = RunInfo(made, SceneInfo() if photos is None else photos.scene(1.0), guidances=known)
    model = build_model(made, run.scene).to("cuda")
    sources = build_sources(SourceInputs(made.config, "cuda", tuple(each.requirements() for each in models), photos))
    return Trainer(run, model, sources, models, Evaluator(made, model, report), report)


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


@pytest.mark.parametrize("words", ["--no_fp16", "--fp16", "--bf16", "--fp16 --optim adan", "--fp16 --grad_clip_rgb 0.1"])
def test_a_guided_step_waits_for_what_is_listed(tmp_path, words):
    trainer = trainer_of(tmp_path, f"--cuda_ray {words}")
    assert trainer.scaler.is_enabled() == ("--fp16" in words) and CUDA_CHECK_INTERVAL == 16
    require(step(trainer), FIRST_ACCELERATED)
    for number in range(1, 2 * CUDA_CHECK_INTERVAL + 3):  # the occupancy grid is updated in every second step
        launches = device.kernel_launches()
        seen = step(trainer)
        require(seen, ACCELERATED)
        assert 0 < device.kernel_launches() - launches <= 20 and sum(seen.operations.values()) < 600, number
    assert sum(ACCELERATED.values()) <= MOST_GUIDED
    assert trainer.monitor.updates == 3 and int(trainer.model.path.grid.updates) > FULL_UPDATES


def test_a_step_without_an_occupancy_grid_waits_for_what_is_listed(tmp_path):
    trainer = trainer_of(tmp_path, "--no_cuda_ray --fp16")
    for number in range(2 * CUDA_CHECK_INTERVAL):
        require(step(trainer), PLAIN, PLAIN_LOOK if number == CUDA_CHECK_INTERVAL else {})
    assert sum(PLAIN.values()) + sum(PLAIN_LOOK.values()) <= MOST_GUIDED


@pytest.mark.parametrize("laplacian", ["uniform", "cotangent"])
def test_a_step_of_the_mesh_stage_waits_for_what_is_listed(tmp_path, laplacian):
    trainer = trainer_of(tmp_path, f"--stages nerf,dmtet --fp16 --mesh_laplacian {laplacian}", stage=1)
    require(step(trainer), MESH, FIRST_MESH)
    for number in range(1, CUDA_CHECK_INTERVAL + 1):
        seen = step(trainer)
        require(seen, MESH, MESH_LOOK if number == CUDA_CHECK_INTERVAL else {})
    assert {"rasterize", "interpolate", "antialias", "antialias_backward"} <= set(seen.kernels)
    assert sum(MESH.values()) + sum(MESH_LOOK.values()) <= MOST_MESH


@pytest.mark.parametrize(
    ("channels", "words"), [(3, ""), (4, ""), (3, "--background constant"), (3, "--exposure --refine_poses")]
)
def test_a_step_on_photographs_waits_for_what_is_listed(tmp_path, channels, words):
    images = [photo_folders.pattern(i, 20, 14, channels) for i in range(3)]
    photos = photo_folders.load(photo_folders.write(tmp_path, images), device="cuda")
    trainer = trainer_of(tmp_path / "run", f"--cuda_ray --num_rays 64 --data {tmp_path} {words}", photos=photos)
    assert trainer.plan(0).parts[0].source == "photos"
    require(step(trainer), FIRST_ACCELERATED)
    for _ in range(CUDA_CHECK_INTERVAL + 1):
        require(step(trainer), ACCELERATED)


@pytest.mark.parametrize("less_memory", ["", "--vram_O"])
def test_a_step_under_stable_diffusion_waits_for_what_is_listed(tmp_path, sd_folder, less_memory):  # noqa: F811
    words = f"--cuda_ray --fp16 --hf_key {sd_folder} {less_memory}"
    asked = parse(["--text", "something", *TINY, "--workspace", str(tmp_path), *words.split()])
    (guidance,) = build(asked, "cuda", choose_weights(asked))
    trainer = trainer_of(tmp_path, "--cuda_ray --fp16", guidance)
    step(trainer)
    seen = step(trainer)
    require(seen, ACCELERATED)
    assert (seen.operations["copy to the device"] > 100) == bool(less_memory)  # the weights visit the device


def test_a_step_under_the_embedded_prior_waits_for_what_is_listed(tmp_path, knowing_folder):  # noqa: F811
    words = "--cuda_ray --fp16 --theta_range 100 125 --lambda_prior_depth 10 --lambda_prior_normal 1"
    guidance = EmbeddedPrior(knowing_folder, "cuda", torch.float16)
    guidance.prepare(Conditions("a red car"))
    trainer = trainer_of(tmp_path, words, guidance)
    step(trainer)
    require(step(trainer), ACCELERATED)
    assert {"prior_geometry", "guided"} <= trainer.objectives.keys()


def test_a_wait_that_is_not_listed_fails_by_name():
    x = torch.ones(2, device="cuda")
    with waits.record() as seen:
        x.sum().item()
    require(seen, {("test_a_wait_that_is_not_listed_fails_by_name", "item"): 1})
    with pytest.raises(AssertionError, match="not in the list: .*test_a_wait_that_is_not_listed_fails_by_name', 'item'"):
        require(seen)
    with pytest.raises(AssertionError, match="in the list and gone: .*PlainPath.render"):
        require(seen, {("test_a_wait_that_is_not_listed_fails_by_name", "item"): 1}, PLAIN)
