"""Plans are pure functions of step, options and seed, and their weights follow the stated ramps."""

from types import SimpleNamespace as Space

import pytest
import torch

from nerf import schedule


def options(**changes):
    groups = dict(
        runtime=Space(seed=0),
        optim=Space(iters=100),
        schedule=Space(
            latent_iter_ratio=0.0,
            albedo_iter_ratio=0.0,
            albedo_rate=0.0,
            min_ambient_ratio=0.1,
            textureless_ratio=0.2,
        ),
        camera=Space(batch_size=4, h=64, w=48, half_size_ratio=0.0),
        field=Space(bg_radius=-1.0, progressive_level=False),
        guidance=Space(
            guidance_scale=100.0, guidance_anneal=0.0, t_range=[0.02, 0.98], t_anneal=0.0, lambda_guidance=1.0
        ),
        data=Space(data=None, num_rays=512),
        dmtet=Space(dmtet=False),
        loss=Space(
            lambda_rgb=1000.0,
            lambda_mask=500.0,
            lambda_depth=10.0,
            lambda_normal=0.0,
            lambda_mesh_normal=0.5,
            lambda_mesh_laplacian=0.5,
            lambda_mesh_sign=0.01,
            lambda_opacity=0.0,
            lambda_entropy=1e-3,
            lambda_orient=0.0,
            lambda_2d_normal_smooth=0.0,
            lambda_3d_normal_smooth=0.0,
            lambda_tv=0.0,
            lambda_wd=0.0,
        ),
    )
    if "span" in changes:
        groups["span"] = changes.pop("span")
    for name, value in changes.items():
        group, _, key = name.partition("__")
        setattr(groups[group], key, value)
    groups.setdefault("span", (0, groups["optim"].iters))
    return Space(**groups)


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
    assert guided(7, options()).seed != guided(7, options(runtime__seed=1)).seed


def test_two_sources_make_two_parts_with_seeds_of_their_own():
    parts = schedule.plan(0, options(), ("guided", "photos")).parts
    assert [p.source for p in parts] == ["guided", "photos"] and parts[0].seed != parts[1].seed


def test_latent_warm_up_happens_only_where_guidance_accepts_latents():
    config = options(schedule__latent_iter_ratio=0.2)
    assert guided(5, config, ("rgb", "latent")).space == "latent"
    assert guided(5, config, ("rgb",)).space == "rgb"
    assert guided(50, config, ("rgb", "latent")).space == "rgb"


def test_no_latent_step_is_planned_when_the_ratio_is_zero():
    assert guided(0, options(), ("rgb", "latent")).space == "rgb"


def test_shading_rates_are_those_asked_for():
    config = options(optim__iters=4000)
    shadings = [guided(step, config).shading for step in range(1000)]
    assert shadings.count("textureless") / 1000 == pytest.approx(0.2, abs=0.04)
    assert shadings.count("lambertian") / 1000 == pytest.approx(0.8, abs=0.04)


def test_ambient_stays_above_its_lower_bound():
    config = options(schedule__min_ambient_ratio=0.4)
    assert all(0.4 <= guided(step, config).ambient <= 1.0 for step in range(200))


def test_backgrounds_are_per_view_where_there_is_no_background_network():
    backgrounds = [guided(step, options()).background for step in range(50)]
    assert all(b.shape == (4, 3) for b in backgrounds)
    white = torch.cat(backgrounds).eq(1.0).all(-1).float().mean()
    assert 0.15 < white < 0.45


def test_the_upper_end_of_the_time_range_is_annealed_linearly():
    config = options(guidance__t_anneal=0.5)
    assert schedule.plan(0, config, ("guided",)).t_range == (0.02, 0.98)
    assert schedule.plan(50, config, ("guided",)).t_range == pytest.approx((0.02, 0.98 - 0.25 * 0.96))


def test_the_guidance_scale_stays_as_it_is_unless_it_is_annealed():
    assert [guided(step, options()).guidance_scale for step in (0, 50, 99)] == [100.0, 100.0, 100.0]


def test_the_guidance_scale_is_annealed_linearly_towards_one():
    config = options(guidance__guidance_scale=9.0, guidance__guidance_anneal=0.5)
    assert guided(0, config).guidance_scale == 9.0
    assert guided(50, config).guidance_scale == pytest.approx(7.0)
    assert guided(100, config).guidance_scale == pytest.approx(5.0)


def test_half_size_renders_come_first():
    config = options(camera__half_size_ratio=0.5)
    assert (guided(10, config).height, guided(10, config).width) == (32, 24)
    assert (guided(60, config).height, guided(60, config).width) == (64, 48)


def test_progress_is_clamped_outside_its_window():
    config = options(span=(40, 60))
    assert [schedule.progress(s, config) for s in (0, 40, 50, 60, 99)] == [0, 0, 0.5, 1, 1]


def test_entropy_comes_in_over_the_first_half():
    weights = [schedule.term_weights(f, options())["entropy"] for f in (0.0, 0.25, 0.5, 1.0)]
    assert weights == pytest.approx([0.0, 5e-4, 1e-3, 1e-3])


def test_levels_come_in_progressively_on_request():
    config = options(field__progressive_level=True)
    assert guided(0, config).max_level == 0.25 and guided(50, config).max_level == 1.0
    assert guided(0, options()).max_level == 1.0


def test_normals_are_asked_for_when_a_weight_needs_them():
    assert guided(0, options(loss__lambda_orient=0.1)).need_normals
    assert not guided(0, options()).need_normals


def test_photographs_draw_rays_and_see_the_view_dependent_colour():
    part = schedule.plan(0, options(data__data="folder"), ("photos",)).parts[0]
    assert part.num_rays == 512 and part.view_dependent


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="unknown source"):
        schedule.plan(0, options(), ("elsewhere",))
