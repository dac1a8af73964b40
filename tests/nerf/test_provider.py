"""Random cameras stay in their ranges, differ within a batch and say where they really stand."""

from types import SimpleNamespace

import pytest
import torch

from guidance.base import CameraRequirements
from nerf.core.cameras import angles_of, project, wrap_degrees
from nerf.core.errors import UserError
from nerf.provider import RandomCameras, evenly, random_lights, six_views
from tests.helpers.parts import part_of


def options(**camera):
    """The camera group with the defaults of stable-dreamfusion and some changes."""
    defaults = {
        "radius_range": (3.0, 3.5),
        "theta_range": (45.0, 105.0),
        "phi_range": (-180.0, 180.0),
        "fovy_range": (10.0, 30.0),
        "default_radius": 3.2,
        "default_polar": 90.0,
        "default_azimuth": 0.0,
        "default_fovy": 20.0,
        "batch_size": 1,
        "jitter_pose": False,
        "jitter_center": 0.2,
        "jitter_target": 0.2,
        "jitter_up": 0.02,
        "uniform_sphere_rate": 0.0,
        "progressive_view": False,
        "progressive_view_init_ratio": 0.2,
    }
    return SimpleNamespace(camera=SimpleNamespace(**(defaults | camera)))


def part(count=1, seed=3, height=6, width=9, fraction=1.0):
    return part_of("guided", num_views=count, height=height, width=width, seed=seed, fraction=fraction)


def request(*args, **kwargs):
    return part(*args, **kwargs).request


def between(values, low, high):
    return bool(((values >= low) & (values <= high)).all())


def test_random_views_lie_in_their_ranges():
    views = RandomCameras(options(phi_range=(-30.0, 60.0))).views(request(500))
    assert between(views.radius, 3.0, 3.5) and between(views.polar, 45.0, 105.0)
    assert between(views.azimuth, -30.0, 60.0) and between(views.fovy, 10.0, 30.0)
    assert (views.height, views.width) == (6, 9)


def test_random_views_fill_their_ranges_evenly():
    views = RandomCameras(options()).views(request(4000))
    assert abs(views.polar.mean() - 75) < 1.0 and abs(views.radius.mean() - 3.25) < 0.01  # 3.6 standard errors each
    assert views.polar.min() < 45.5 and views.polar.max() > 104.5


def test_every_view_of_a_batch_draws_its_own_numbers():
    views = RandomCameras(options()).views(request(8))
    for values in (views.radius, views.polar, views.azimuth, views.fovy):
        assert len(values.unique()) == 8


def test_same_part_gives_the_same_views_and_another_seed_others():
    source = RandomCameras(options(jitter_pose=True))
    assert torch.equal(source.views(request(4)).pose, source.views(request(4)).pose)
    assert not torch.equal(source.views(request(4)).pose, source.views(request(4, seed=4)).pose)


@pytest.mark.parametrize("seed", range(5))
def test_four_stratified_views_see_four_sides(seed):
    views = RandomCameras(options()).views(request(4, seed))
    assert torch.equal(((views.azimuth + 180) // 90).long(), torch.arange(4))


def test_views_that_are_not_stratified_sometimes_share_a_side():
    source = RandomCameras(options(), stratified=False)
    sides = [((source.views(request(4, seed)).azimuth + 180) // 90).unique().numel() for seed in range(20)]
    assert min(sides) < 4


def test_one_stratified_view_is_uniform_over_the_whole_range():
    source = RandomCameras(options())
    azimuth = torch.cat([source.views(request(1, seed)).azimuth for seed in range(400)])
    assert abs(azimuth.mean()) < 20 and azimuth.min() < -170 and azimuth.max() > 170  # standard error 5.2


def test_sphere_views_cover_both_hemispheres_evenly_in_area():
    views = RandomCameras(options(uniform_sphere_rate=1.0)).views(request(4000))
    height = torch.cos(torch.deg2rad(views.polar))
    assert abs(height.mean()) < 0.04 and abs(height.square().mean() - 1 / 3) < 0.02  # moments of U(-1, 1)


def test_sphere_rate_is_the_share_of_views():
    views = RandomCameras(options(uniform_sphere_rate=0.5, theta_range=(90.0, 90.0))).views(request(4000))
    assert abs((views.polar != 90.0).float().mean() - 0.5) < 0.03


def test_angles_are_those_after_the_jitter():
    views = RandomCameras(options(jitter_pose=True, jitter_center=1.0)).views(request(50))
    polar, azimuth, radius = angles_of(views.pose)
    assert torch.equal(polar, views.polar) and torch.equal(azimuth, views.azimuth) and torch.equal(radius, views.radius)
    assert not between(views.radius, 3.0, 3.5)


def test_jittered_poses_are_rotations_without_a_mirror_even_at_the_poles():
    views = RandomCameras(options(jitter_pose=True, theta_range=(0.0, 0.0))).views(request(50))
    torch.testing.assert_close(torch.linalg.det(views.pose[:, :3, :3]), torch.ones(50))


def test_jitter_moves_the_target_off_the_middle_by_its_size():
    source = RandomCameras(options(jitter_pose=True, jitter_center=0.0, jitter_up=0.0, jitter_target=0.1))
    views = source.views(request(500))
    offset = project(views, torch.zeros(3))[0] - torch.tensor([4.5, 3.0])
    in_units = offset / views.fx[:, None] * views.radius[:, None]
    assert abs(in_units.std() - 0.1) < 0.01


def test_progressive_view_starts_at_its_share_of_the_ranges_and_is_whole_by_half_time():
    source = RandomCameras(options(progressive_view=True))
    start, half = source.views(request(500, fraction=0.0)), source.views(request(500, fraction=0.5))
    assert between(start.azimuth, -36, 36) and between(start.polar, 81, 93) and between(start.radius, 3.16, 3.26)
    assert torch.equal(half.pose, RandomCameras(options()).views(request(500)).pose)


def test_azimuth_is_wrapped_whatever_the_range():
    views = RandomCameras(options(phi_range=(170.0, 350.0))).views(request(200))
    assert between(views.azimuth, -180, 180) and views.azimuth.min() < 0


def test_batch_is_whole_images_with_a_light_per_view(device):
    batch = RandomCameras(options(), device).batch(part(3))
    assert batch.rays.shape == (3, 6, 9) and len(batch.rays) == 3 * 6 * 9
    assert batch.light.shape == (3, 3) and batch.light.device.type == device.type
    assert len(batch.views) == 3


def test_lights_are_unit_vectors_on_the_side_of_the_camera():
    views = RandomCameras(options()).views(request(500))
    lights = random_lights(views, torch.Generator().manual_seed(0))
    torch.testing.assert_close(lights.norm(dim=-1), torch.ones(500))
    facing = (lights * torch.nn.functional.normalize(views.pose[:, :3, 3], dim=-1)).sum(-1)
    assert facing.mean() > 0.8 and len(facing.unique()) == 500


def test_six_views_stand_on_the_six_axes():
    position = six_views(options(), 6, 6).pose[:, :3, 3] / 3.2
    axes = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]).float()
    torch.testing.assert_close(position, axes)


def test_linked_views_share_all_but_the_azimuth_which_turns_by_equal_steps():
    needs = CameraRequirements(linked_views=4)
    views = RandomCameras(options(batch_size=8), requirements=[needs]).views(request(8))
    for values in (views.radius, views.polar, views.fovy):
        groups = values.reshape(2, 4)
        assert (groups == groups[:, :1]).all() and groups[0, 0] != groups[1, 0]
    step = wrap_degrees(views.azimuth.reshape(2, 4).diff(dim=-1))
    torch.testing.assert_close(step, torch.full((2, 3), 90.0), atol=1e-4, rtol=0)


def test_a_batch_that_splits_a_group_of_linked_views_is_refused():
    with pytest.raises(UserError, match="--batch_size must be a multiple of 4.*got 6"):
        RandomCameras(options(batch_size=6), requirements=[CameraRequirements(linked_views=4)])


def test_jitter_of_linked_views_is_refused():
    with pytest.raises(UserError, match="--jitter_pose"):
        RandomCameras(options(batch_size=4, jitter_pose=True), requirements=[CameraRequirements(linked_views=4)])


def test_views_keep_within_what_every_guidance_requires():
    needs = [CameraRequirements(polar_range=(80.0, 120.0)), CameraRequirements(polar_range=(60.0, 95.0), fovy_range=(0, 15))]
    views = RandomCameras(options(), requirements=needs).views(request(500))
    assert between(views.polar, 80.0, 95.0) and between(views.fovy, 10.0, 15.0) and between(views.radius, 3.0, 3.5)


def test_ranges_without_anything_in_common_with_the_guidance_are_refused():
    with pytest.raises(UserError, match="--radius_range 3 3.5 has nothing in common with 1 to 2"):
        RandomCameras(options(), requirements=[CameraRequirements(radius_range=(1.0, 2.0))])


def test_a_range_in_which_no_view_teaches_colours_is_refused():
    needs = [CameraRequirements(polar_range=(15.0, 165.0), coloured_to=112.0)]
    RandomCameras(options(theta_range=(111.0, 130.0)), requirements=needs)
    RandomCameras(options(theta_range=(115.0, 130.0)), requirements=[*needs, CameraRequirements()])
    RandomCameras(options(theta_range=(115.0, 130.0), uniform_sphere_rate=0.5), requirements=needs)
    for low in (112.0, 115.0):
        with pytest.raises(UserError, match=f"--theta_range {low:g} 170: this .* 112 degrees; begin .* as with 102 170"):
            RandomCameras(options(theta_range=(low, 170.0)), requirements=needs)


@pytest.mark.parametrize(
    ("count", "most", "chosen"),
    [(5, 0, [0, 1, 2, 3, 4]), (3, 8, [0, 1, 2]), (9, 3, [0, 4, 8]), (200, 4, [0, 66, 133, 199]), (7, 1, [0])],
)
def test_photographs_are_evenly_chosen(count, most, chosen):
    assert evenly(count, most) == chosen
