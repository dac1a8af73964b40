"""Plans are pure functions of step, options and seed, and their weights follow the stated ramps."""

import pytest
import torch

from nerf.config.config import Config, with_values
from nerf.training import schedule


def options(**changes):
    """The options of a small run, by flag."""
    small = {"seed": 0, "iters": 100, "batch_size": 4, "w": 48, "latent_iter_ratio": 0.0, "bg_radius": -1.0, "num_rays": 512}
    return with_values(Config(), small | changes, "typed")


def same(a, b):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(a.__dict__.values(), b.__dict__.values(), strict=True)
    )


def guided(step, config, spaces=("rgb",)):
    return schedule.plan(step, config, ("guided",), spaces).parts[0]


def test_the_same_step_has_the_same_plan():
    assert same(guided(7, options()), guided(7, options()))


def test_another_step_or_seed_draws_otherwise():
    assert guided(7, options()).seed != guided(8, options()).seed
    assert guided(7, options()).seed != guided(7, options(seed=1)).seed


def test_two_sources_make_two_parts_with_seeds_of_their_own():
    parts = schedule.plan(0, options(), ("guided", "photos")).parts
    assert [p.source for p in parts] == ["guided", "photos"] and parts[0].seed != parts[1].seed


def test_latent_warm_up_happens_only_where_guidance_accepts_latents():
    config = options(latent_iter_ratio=0.2)
    assert guided(5, config, ("rgb", "latent")).space == "latent"
    assert guided(5, config, ("rgb",)).space == "rgb"
    assert guided(50, config, ("rgb", "latent")).space == "rgb"


def test_no_latent_step_is_planned_when_the_ratio_is_zero():
    assert guided(0, options(), ("rgb", "latent")).space == "rgb"


def test_shading_rates_are_those_asked_for():
    config = options(iters=4000)
    shadings = [guided(step, config).shading for step in range(1000)]
    assert shadings.count("textureless") / 1000 == pytest.approx(0.2, abs=0.04)
    assert shadings.count("lambertian") / 1000 == pytest.approx(0.8, abs=0.04)


def test_ambient_stays_above_its_lower_bound():
    config = options(min_ambient_ratio=0.4)
    assert all(0.4 <= guided(step, config).ambient <= 1.0 for step in range(200))


def test_backgrounds_are_per_view_where_there_is_no_background_network():
    backgrounds = [guided(step, options()).background for step in range(50)]
    assert all(b.shape == (4, 3) for b in backgrounds)
    white = torch.cat(backgrounds).eq(1.0).all(-1).float().mean()
    assert 0.15 < white < 0.45


def test_the_upper_end_of_the_time_range_is_annealed_linearly():
    config = options(t_anneal=0.5)
    assert schedule.plan(0, config, ("guided",)).t_range == (0.02, 0.98)
    assert schedule.plan(50, config, ("guided",)).t_range == pytest.approx((0.02, 0.98 - 0.25 * 0.96))


def test_the_guidance_scale_stays_as_it_is_unless_it_is_annealed():
    assert [guided(step, options()).guidance_scale for step in (0, 50, 99)] == [100.0, 100.0, 100.0]


def test_the_guidance_scale_is_annealed_linearly_towards_one():
    config = options(guidance_scale=9.0, guidance_anneal=0.5)
    assert guided(0, config).guidance_scale == 9.0
    assert guided(50, config).guidance_scale == pytest.approx(7.0)
    assert guided(100, config).guidance_scale == pytest.approx(5.0)


def test_the_learning_rate_decays_geometrically_to_its_last_factor():
    config = options(lr_decay=0.01, iters=101)
    assert [schedule.plan(step, config, ("guided",)).lr_scale for step in (0, 101)] == [1.0, pytest.approx(0.01)]
    assert schedule.plan(202, options(lr_decay=0.01, iters=404), ("guided",)).lr_scale == pytest.approx(0.1)


def test_half_size_renders_come_first():
    config = options(half_size_ratio=0.5)
    assert (guided(10, config).height, guided(10, config).width) == (32, 24)
    assert (guided(60, config).height, guided(60, config).width) == (64, 48)


def test_progress_is_clamped_outside_its_window():
    config = options(exp_start_iter=40, exp_end_iter=60)
    assert [schedule.progress(s, config) for s in (0, 40, 50, 60, 99)] == [0, 0, 0.5, 1, 1]


def test_entropy_comes_in_over_the_first_half():
    weights = [schedule.term_weights(f, options())["entropy"] for f in (0.0, 0.25, 0.5, 1.0)]
    assert weights == pytest.approx([0.0, 5e-4, 1e-3, 1e-3])


def test_levels_come_in_progressively_on_request():
    config = options(progressive_level=True)
    assert guided(0, config).max_level == 0.25 and guided(50, config).max_level == 1.0
    assert guided(0, options()).max_level == 1.0


def test_normals_are_asked_for_when_a_weight_needs_them():
    assert guided(0, options(lambda_orient=0.1)).need_normals
    assert not guided(0, options(lambda_orient=0.0)).need_normals


def test_photographs_draw_rays_and_see_the_view_dependent_colour():
    part = schedule.plan(0, options(data="folder"), ("photos",)).parts[0]
    assert part.num_rays == 512 and part.view_dependent


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="unknown source"):
        schedule.plan(0, options(), ("elsewhere",))
