"""Plans are pure functions of step, options and seed, and their weights follow the stated ramps."""

import math
from dataclasses import is_dataclass

import pytest
import torch

from nerf.config.config import Config, parse, with_values
from nerf.config.kept import StoredRun
from nerf.config.resolve import resolve
from nerf.config.stages import NERF, Stage
from nerf.core.streams import Random
from nerf.training import schedule
from nerf.training.sources import GuidanceInfo, RunInfo, Source


def options(**changes):
    """The options of a small run, by flag."""
    small = {"seed": 0, "iters": 100, "batch_size": 4, "w": 48, "latent_iter_ratio": 0.0, "bg_radius": -1.0, "num_rays": 512}
    return with_values(Config(), small | changes, "typed")


def same(a, b):
    """Whether two records, and those in them, hold the same values."""
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else same(x, y) if is_dataclass(x) else x == y
        for x, y in zip(a.__dict__.values(), b.__dict__.values(), strict=True)
    )


class Guided(Source):
    """A source of guided views that is only planned with."""

    name = "guided"

    def plan_part(self, step, run, random):
        """As random cameras do."""
        return schedule.guided_part(self.name, step, run, random)

    def batch(self, part):
        """Nothing is rendered here."""


class Photos(Guided):
    """A source of photographs that is only planned with."""

    name = "photos"

    def plan_part(self, step, run, random):
        """As photographs do."""
        return schedule.photo_part(self.name, step, run, random)


def run_of(config, spaces=("rgb",)):
    return RunInfo(Stage(NERF, config), guidances=(GuidanceInfo("SD", spaces),))


def plan(step, config, spaces=("rgb",), sources=None):
    sources = (Guided(),) if sources is None else sources
    return schedule.plan(step, run_of(config, spaces), {source.name: source for source in sources})


def guided(step, config, spaces=("rgb",)):
    return plan(step, config, spaces).parts[0]


def settings(step, config, spaces=("rgb",)):
    return guided(step, config, spaces).settings


def scale(step, config):
    return plan(step, config).controls["SD"].scale


def test_the_same_step_has_the_same_plan():
    assert same(guided(7, options()), guided(7, options()))


def test_another_step_or_seed_draws_otherwise():
    assert guided(7, options()).random != guided(8, options()).random
    assert guided(7, options()).random != guided(7, options(seed=1)).random


def test_two_sources_make_two_parts_with_seeds_of_their_own():
    parts = plan(0, options(), sources=(Guided(), Photos())).parts
    assert [p.source for p in parts] == ["guided", "photos"] and parts[0].random != parts[1].random


def test_latent_warm_up_happens_only_where_guidance_accepts_latents():
    config = options(latent_iter_ratio=0.2)
    assert settings(5, config, ("rgb", "latent")).space == "latent"
    assert settings(5, config, ("rgb",)).space == "rgb"
    assert settings(50, config, ("rgb", "latent")).space == "rgb"


def test_no_latent_step_is_planned_when_the_ratio_is_zero():
    assert settings(0, options(), ("rgb", "latent")).space == "rgb"


def test_shading_rates_are_those_asked_for():
    config = options(iters=4000)
    shadings = [settings(step, config).shading for step in range(1000)]
    assert shadings.count("textureless") / 1000 == pytest.approx(0.2, abs=0.04)
    assert shadings.count("lambertian") / 1000 == pytest.approx(0.8, abs=0.04)


def test_ambient_stays_above_its_lower_bound():
    config = options(min_ambient_ratio=0.4)
    assert all(0.4 <= settings(step, config).ambient <= 1.0 for step in range(200))


def test_ambient_fills_the_range_between_its_bounds():
    found = [settings(step, options(min_ambient_ratio=0.35, max_ambient_ratio=0.6, textureless_ratio=0.0)).ambient
             for step in range(200)]  # fmt: skip
    assert 0.35 <= min(found) < 0.38 and 0.57 < max(found) <= 0.6


def test_backgrounds_are_per_view_where_there_is_no_background_network():
    backgrounds = [settings(step, options()).background for step in range(50)]
    assert all(b.shape == (4, 3) for b in backgrounds)
    white = torch.cat(backgrounds).eq(1.0).all(-1).float().mean()
    assert 0.15 < white < 0.45


def test_the_upper_end_of_the_time_range_is_annealed_linearly():
    config = options(t_anneal=0.5)
    assert plan(0, config).controls["SD"].t_range == (0.02, 0.98)
    assert plan(50, config).controls["SD"].t_range == pytest.approx((0.02, 0.98 - 0.25 * 0.96))


def test_the_guidance_scale_stays_as_it_is_unless_it_is_annealed():
    assert [scale(step, options()) for step in (0, 50, 99)] == [100.0, 100.0, 100.0]


def test_the_guidance_scale_is_annealed_linearly_towards_one():
    config = options(guidance_scale=9.0, guidance_anneal=0.5)
    assert scale(0, config) == 9.0
    assert scale(50, config) == pytest.approx(7.0)
    assert scale(100, config) == pytest.approx(5.0)


def test_both_ends_of_the_time_range_are_annealed_within_their_span():
    config = options(t_range=(0.02, 0.98), t_anneal=0.5, t_anneal_low=1.0, anneal_span=(0.2, 0.8))
    ranges = [plan(step, config).controls["SD"].t_range for step in (0, 20, 50, 80, 100)]
    expected = [(0.98, 0.98), (0.98, 0.98), (0.5, 0.74), (0.02, 0.5), (0.02, 0.5)]
    assert all(found == pytest.approx(wanted) for found, wanted in zip(ranges, expected, strict=True))


def test_a_span_without_length_is_a_step():
    config = options(guidance_scale=9.0, guidance_anneal=1.0, anneal_span=(0.5, 0.5))
    assert [scale(step, config) for step in (49, 50, 51)] == [9.0, 1.0, 1.0]


def test_each_guidance_has_its_own_scale_times_annealing_and_weight():
    config = options(
        guidance=("SD", "clip"),
        guidance_weights=(1.0, 0.25),
        guidance_scale=(100.0, 3.0),
        guidance_anneal=(0.0, 1.0),
        t_range=(0.02, 0.98, 0.2, 0.6),
        t_anneal=(0.5, 0.0),
        lambda_guidance=2.0,
    )
    run = RunInfo(Stage(NERF, config), guidances=(GuidanceInfo("SD"), GuidanceInfo("clip", options="own")))
    made = schedule.plan(100, run, {"guided": Guided()})
    assert (made.controls["SD"].scale, made.controls["clip"].scale) == (100.0, 1.0)
    assert made.controls["SD"].t_range == pytest.approx((0.02, 0.5)) and made.controls["clip"].t_range == (0.2, 0.6)
    assert (made.controls["SD"].options, made.controls["clip"].options) == (None, "own")
    assert (made.weights["sds/SD"], made.weights["sds/clip"]) == (2.0, 0.5)


def test_the_learning_rate_decays_geometrically_to_its_last_factor():
    config = options(lr_decay=0.01, iters=101)
    assert [plan(step, config).lr_scale for step in (0, 101)] == [1.0, pytest.approx(0.01)]
    assert plan(202, options(lr_decay=0.01, iters=404)).lr_scale == pytest.approx(0.1)


def test_half_size_renders_come_first():
    config = options(half_size_ratio=0.5)
    assert (guided(10, config).request.height, guided(10, config).request.width) == (32, 24)
    assert (guided(60, config).request.height, guided(60, config).request.width) == (64, 48)


def test_progress_is_clamped_outside_its_window():
    config = options(exp_start_iter=40, exp_end_iter=60)
    assert [run_of(config).fraction(s) for s in (0, 40, 50, 60, 99)] == [0, 0, 0.5, 1, 1]


def test_entropy_comes_in_over_the_first_half():
    weights = [schedule.term_weights(step, run_of(options()))["entropy"] for step in (0, 25, 50, 100)]
    assert weights == pytest.approx([0.0, 5e-4, 1e-3, 1e-3])


def test_levels_come_in_progressively_on_request():
    config = options(progressive_level=True)
    assert settings(0, config).max_level == 0.25 and settings(50, config).max_level == 1.0
    assert settings(0, options()).max_level == 1.0


def test_normals_are_asked_for_when_a_weight_needs_them():
    assert settings(0, options(lambda_orient=0.1)).need_normals
    assert not settings(0, options(lambda_orient=0.0)).need_normals


def test_photographs_draw_rays_and_see_the_view_dependent_colour():
    part = plan(0, options(data="folder"), sources=(Photos(),)).parts[0]
    assert (part.request.layout, part.request.num_rays) == ("rays", 512) and part.settings.view_dependent


class Resting(Guided):
    """A source that sits out every other step."""

    def plan_part(self, step, run, random):
        """Nothing on odd steps."""
        return super().plan_part(step, run, random) if step % 2 == 0 else None


def test_a_source_may_sit_a_step_out():
    assert [len(plan(step, options(), sources=(Resting(),)).parts) for step in range(4)] == [1, 0, 1, 0]


def test_smoothness_of_normals_in_space_asks_for_normals():
    quiet = {"lambda_orient": 0.0, "albedo_iter_ratio": 1.0}
    assert settings(0, options(**quiet, lambda_3d_normal_smooth=1.0)).need_normals
    assert not settings(0, options(**quiet)).need_normals


def test_parts_of_photographs_in_the_wild_are_patches_with_a_share_of_diffuse_rays():
    words = "--data x --wild --num_rays 1000 --patch_grid 8 --patch_scale 0.3 --patch_scale_decay 0.01 --diffuse_share 0.4"
    (stage,) = resolve(parse(words.split()), StoredRun()).stages
    run = RunInfo(stage)
    parts = [schedule.photo_part("photos", step, run, Random()) for step in (0, 50, 1000)]
    assert {(part.request.layout, part.request.patch_size, part.request.num_rays) for part in parts} == {("patches", 8, 1000)}
    assert [part.request.patch_scale for part in parts] == pytest.approx([0.9, math.exp(-0.5), 0.3])
    assert {part.settings.diffuse_share for part in parts} == {0.4}


def test_weights_of_masks_fall_and_are_relative_to_the_colour_loss():
    (stage,) = resolve(parse("--data x --wild --lambda_rgb 3".split()), StoredRun()).stages
    early, later, late = (schedule.term_weights(step, RunInfo(stage)) for step in (0, 1000, 2900))
    assert early["mask_size"] == pytest.approx(6 * 5e-2) and late["mask_size"] == pytest.approx(6 * 6e-3)
    assert later["mask_size"] == pytest.approx(6 * 5e-2 * math.exp(-1))
    assert early["appearance_norm"] == pytest.approx(6e-5) and early["mode_seeking"] == pytest.approx(6e-6)
