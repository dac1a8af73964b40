"""The views of image prompts: which steps look at them, what their batches hold, and that a scene comes to look like them."""

from dataclasses import replace

import pytest
import torch

import main
from guidance.base import CameraRequirements, ImageCondition
from nerf.config.config import Config, with_values
from nerf.config.stages import DMTET, NERF, Stage
from nerf.core.cameras import pixel_rays
from nerf.core.streams import Random
from nerf.data.image_prompt import ImagePrompt, KnownViews, image_prompts
from nerf.provider import ImagePrompts, RandomCameras
from nerf.run.logger import Report
from nerf.training import schedule
from nerf.training.sources import GuidanceInfo, RunInfo
from tests.helpers.plans import opened

SIDE = 16


def prompt(azimuth=0.0, polar=90.0, side=SIDE, **known):
    """A half transparent red square with a green corner at the top right, opaque."""
    image = torch.zeros(4, side, side)
    image[0], image[3] = 1.0, 0.5
    image[:, : side // 4, -(side // 4) :] = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None, None]
    return ImagePrompt(ImageCondition(image, polar, azimuth, 2.0, 40.0), **known)


def known(*azimuths, **others):
    return KnownViews([prompt(azimuth, **others) for azimuth in azimuths or (0.0,)])


def config_of(**changes):
    small = {"image": ("x_rgba.png",), "seed": 0, "iters": 100, "h": 8, "w": 8, "batch_size": 2, "bg_radius": -1.0}
    return with_values(Config(), small | changes, "typed")


def plans(config, views, steps=8, guidances=("SD",), kind=NERF):
    """Which sources each step has a part of, and the parts of image prompts."""
    run = RunInfo(Stage(kind, config), guidances=tuple(GuidanceInfo(name) for name in guidances))
    sources = {"guided": RandomCameras(config, requirements=[CameraRequirements()]), "image": ImagePrompts(config, views)}
    made = [schedule.plan(step, run, sources if guidances else {"image": sources["image"]}) for step in range(steps)]
    parts = [part for plan in made for part in plan.parts]
    return [[part.source for part in plan.parts] for plan in made], [part for part in parts if part.source == "image"]


# ---- when ----


@pytest.mark.parametrize(("interval", "steps"), [(4, [3, 7]), (2, [1, 3, 5, 7]), (1, list(range(8)))])
def test_every_nth_step_looks_at_the_pictures_instead_of_random_views(interval, steps):
    sources, parts = plans(config_of(known_view_interval=interval), known())
    assert [i for i, names in enumerate(sources) if names == ["image"]] == steps
    assert [i for i, names in enumerate(sources) if names == ["guided"]] == [i for i in range(8) if i not in steps]
    assert all(part.has_targets and part.known_view and not part.guided for part in parts)


def test_without_guidance_every_step_looks_at_the_pictures():
    sources, _ = plans(config_of(), known(), guidances=())
    assert sources == [["image"]] * 8


def test_a_run_without_pictures_has_random_views_in_every_step():
    config = with_values(config_of(), {"image": ()}, "typed")
    run = RunInfo(Stage(NERF, config), guidances=(GuidanceInfo("SD"),))
    cameras = RandomCameras(config, requirements=[CameraRequirements()])
    assert all(cameras.plan_part(step, run, Random(0)) is not None for step in range(8))


def test_the_size_is_that_of_the_flags_whatever_the_size_of_random_views_and_of_the_picture():
    config = config_of(known_view_scale=2.5, half_size_ratio=1.0, known_view_interval=1)
    (_, parts) = plans(config, known(side=33), steps=1)
    assert (parts[0].request.height, parts[0].request.width) == (20, 20)


def test_at_most_a_batch_of_pictures_is_seen_at_once_and_in_time_all_of_them():
    views = known(0.0, 90.0, 180.0, 270.0, 45.0)
    config = config_of(batch_size=2, known_view_interval=1)
    source = ImagePrompts(config, views)
    _, parts = plans(config, views, steps=24)
    seen = [sorted(source.batch(part).views.azimuth.tolist()) for part in parts]
    assert all(len(set(azimuths)) == 2 for azimuths in seen)
    assert {azimuth for azimuths in seen for azimuth in azimuths} == {0.0, 90.0, 180.0, -90.0, 45.0}


@pytest.mark.parametrize(("kind", "weights", "wanted"), [
    (NERF, {"lambda_orient": 0.1}, True),
    (NERF, {"lambda_orient": 0.0}, False),
    (NERF, {"lambda_orient": 0.0, "lambda_normal": 1.0}, True),
    (DMTET, {"lambda_orient": 0.0, "lambda_normal": 1.0}, True),
])  # fmt: skip
def test_normals_are_rendered_where_a_loss_looks_at_them(kind, weights, wanted):
    _, parts = plans(config_of(**weights), known(), kind=kind)
    assert parts[-1].settings.need_normals == wanted and parts[-1].settings.shading == "albedo"


def test_normal_and_depth_losses_grow_in_with_the_run():
    config = config_of(lambda_normal=2.0, lambda_depth=8.0)
    end = config.optim.iters
    weights = [schedule.term_weights(step, RunInfo(Stage(NERF, config))) for step in (0, end // 2, end)]
    assert [w["normal"] for w in weights] == [0, 1, 2] and [w["depth"] for w in weights] == [0, 4, 8]
    assert {w["rgb"] for w in weights} == {1000} and {w["mask"] for w in weights} == {500}


# ---- what ----


@pytest.mark.parametrize(("azimuth", "right"), [(0.0, [1, 0, 0]), (90.0, [0, 0, -1]), (180.0, [-1, 0, 0])])
def test_the_right_side_of_the_picture_is_to_the_right_of_its_camera(azimuth, right):
    """Azimuth 90 is seen from +X, where the front (+Z) is at the left."""
    batch = known(azimuth).eval_batch(0, SIDE)
    corner = batch.rgb.argmax(0)[1]  # the green one
    direction = batch.rays.directions[corner]
    assert direction @ torch.tensor(right, dtype=torch.float32) > 0 and direction[1] > 0
    position = batch.views.pose[0, :3, 3]
    assert abs(position.norm() - 2) < 1e-5 and batch.views.azimuth.item() == azimuth


def test_each_target_is_at_the_pixel_of_its_ray():
    batch = known().eval_batch(0, SIDE)
    at = torch.tensor([[SIDE - 0.5, 0.5], [0.5, SIDE - 0.5]])
    rays = pixel_rays(batch.views, torch.zeros(2, dtype=torch.long), at)
    index = torch.tensor([SIDE - 1, SIDE * (SIDE - 1)])
    torch.testing.assert_close(batch.rays.directions[index], rays.directions)
    torch.testing.assert_close(batch.rgb[index], torch.tensor([[0.0, 1, 0], [1, 0.5, 0.5]]))
    torch.testing.assert_close(batch.mask[index], torch.tensor([1.0, 0.5]))


def test_colours_are_composited_with_true_alpha_over_what_the_render_gets_too():
    batch = known(0.0, 90.0).batch([0, 1], SIDE, 0.0, Random(3))
    image = prompt().condition.image.permute(1, 2, 0).reshape(-1, 4).repeat(2, 1)
    expected = image[:, :3] * image[:, 3:] + (1 - image[:, 3:]) * batch.background
    torch.testing.assert_close(batch.rgb, expected)
    assert batch.settings(plans(config_of(), known())[1][0].settings).background is batch.background


def test_the_background_is_noise_in_most_views_and_white_in_some():
    batches = [known().batch([0], 4, 0.0, Random(seed)) for seed in range(200)]
    white = sum(bool((batch.background == 1).all()) for batch in batches)
    assert 35 <= white <= 85  # 0.3 of 200, four standard deviations
    noise = torch.cat([batch.background for batch in batches if not (batch.background == 1).all()])
    assert abs(float(noise.mean()) - 0.5) < 0.02 and abs(float(noise.std()) - 12**-0.5) < 0.02


def test_noise_moves_the_camera_by_as_much_as_the_flag_says():
    views = known()
    clean = views.views([0], 8)
    moved = torch.cat([views.views([0], 8, 0.01, torch.Generator().manual_seed(i)).pose for i in range(400)])
    offset = moved[:, :3, 3] - clean.pose[0, :3, 3]
    assert (offset.std(dim=0) - 0.01).abs().max() < 0.0015 and offset.mean(dim=0).abs().max() < 0.0025
    turned = (moved[:, :3, 2] - clean.pose[0, :3, 2]).norm(dim=-1)
    assert 0 < turned.mean() < 0.02  # the point it looks at moves too: 0.01 of 2 units, and the position


def test_the_same_part_gives_the_same_batch():
    config, views = config_of(known_view_interval=1), known(0.0, 30.0, 60.0)
    source = ImagePrompts(config, views)
    _, parts = plans(config, views, steps=2)
    one, two = source.batch(parts[0]), source.batch(parts[0])
    assert torch.equal(one.rgb, two.rgb) and torch.equal(one.views.pose, two.views.pose)
    assert not torch.equal(one.background, source.batch(parts[1]).background)


def test_normals_are_turned_into_the_world_and_depth_is_kept():
    to_the_right = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, SIDE, SIDE)
    depth = torch.linspace(0, 1, SIDE).expand(SIDE, SIDE)
    batch = KnownViews([prompt(90.0, normal=to_the_right, depth=depth)]).eval_batch(0, SIDE)
    torch.testing.assert_close(batch.normal, torch.tensor([0.0, 0, -1]).expand(SIDE**2, 3))
    torch.testing.assert_close(batch.depth.reshape(SIDE, SIDE), depth)


def test_what_one_of_several_pictures_does_not_know_is_left_open():
    depth = torch.rand(SIDE, SIDE, generator=torch.manual_seed(0))
    views = KnownViews([prompt(0.0, depth=depth), prompt(90.0)])
    batch = views.batch([0, 1], SIDE, 0.0, Random(0))
    assert batch.normal is None and (batch.depth[SIDE**2 :] == 0).all() and batch.depth[: SIDE**2].std() > 0.1


# ---- that it works ----

FIELD = (
    "--bound 0.6 --cuda_ray --max_steps 128 --grid_size 32 --grid_levels 6 --grid_coarsest 8 --grid_finest 64 --grid_log2 15 "
    "--density_bias -2.5 --blob_density 4.5 --optim adam --lr 1e-2 --lr_decay 0.05 --ema_decay 0.95 --seed 0 --W 16 --H 16 "
    "--dataset_size_test 2 --dataset_size_valid 1 --preview_interval 10000 --tet_grid_size 32 --dmtet_reso_scale 1"
).split()


def trained(folder, *words):
    """How each stage of a run without guidance shows its picture after its last step: PSNR over the object."""
    plan = opened(*words, "--workspace", folder, *FIELD)
    inputs = main.Inputs(known=KnownViews(image_prompts(plan.references)))
    with Report(folder, terminal=False) as report:
        for stage in plan.pending:
            trainer = main.make_trainer(stage, inputs, "cpu", report)
            trainer.train()
            yield trainer.test()["image_psnr"]


@pytest.mark.slow
@pytest.mark.timeout(600)  # twenty seconds on an idle processor
def test_a_scene_comes_to_look_like_its_picture_in_both_stages(tmp_path, test_data):
    image = test_data / "image_prompts" / "hamburger_rgba.png"
    words = "--w 24 --h 24 --known_view_scale 1 --iters 120 --dmtet_iters 60 --stages nerf,dmtet".split()
    nerf, mesh = trained(tmp_path, "--image", image, *words)
    assert nerf > 25
    assert mesh > 17  # a mesh of 32 cells has no stem and no half transparent shadow
    assert (tmp_path / "validation" / "df_step_00000120_image_0000.png").is_file()


def final_terms(folder, image, *words, known=("depth", "normal")):
    """The unweighted terms of the last steps of a short run that sees only some of what is known beside the picture."""
    small = "--w 24 --h 24 --known_view_scale 1 --iters 50 --lambda_3d_normal_smooth 0".split()
    plan = opened("--image", image, "--workspace", folder, *small, *words, *FIELD)
    prompts = [
        replace(one, **{name: None for name in ("depth", "normal") if name not in known})
        for one in image_prompts(plan.references)
    ]
    with Report(folder, terminal=False) as report:
        trainer = main.make_trainer(plan.pending[0], main.Inputs(known=KnownViews(prompts)), "cpu", report)
        terms = [record.terms for record in trainer.run()][-7:]
    return {name: torch.stack([t[name] for t in terms]).mean().item() for name in terms[0]}


@pytest.mark.parametrize(("term", "low", "high"), [("depth", "1", "300"), ("normal", "1", "100")])
def test_a_larger_weight_brings_depth_and_normals_closer_to_the_files(tmp_path, test_data, term, low, high):
    image = test_data / "image_prompts" / "teddy_rgba.png"
    weak, strong = (final_terms(tmp_path / w, image, f"--lambda_{term}", w)[term] for w in (low, high))
    assert strong < 0.8 * weak


def test_without_the_files_their_losses_are_off(tmp_path, test_data):
    image = test_data / "image_prompts" / "teddy_rgba.png"
    terms = final_terms(tmp_path, image, "--lambda_normal", "1", "--iters", "8", known=())
    assert {"rgb", "mask"} <= set(terms) and not {"depth", "normal"} & set(terms)
