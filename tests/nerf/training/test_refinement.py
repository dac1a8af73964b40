"""Corrections of poses and exposures: what they do to rays and colours, that training finds them, and that they are kept."""

from dataclasses import replace

import pytest
import torch

from nerf.core.cameras import orbit, view_rays
from nerf.core.streams import Random
from nerf.core.structs import Part, Rays, RenderSettings, ViewRequest
from nerf.provider import PhotographSource
from nerf.render.base import points_at
from nerf.render.plain import PlainPath
from nerf.training.objectives import KnownView
from nerf.training.refinement import POSE_START, Exposure, PoseRefinement
from tests.nerf import photo_folders
from tests.nerf.analytic import Ball, image_rays


def rays_of(count=6, images=3):
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    origins = torch.randn(count, 3, generator=generator)
    return Rays(origins, directions, torch.zeros(count).long(), image_index=torch.arange(count) % images)


def test_a_twist_turns_the_rays_of_its_camera_about_it_and_moves_them():
    poses, rays = PoseRefinement(3), rays_of()
    with torch.no_grad():
        poses.twist[1] = torch.tensor([0.0, 0.0, torch.pi / 2, 0.0, 0.0, 0.3])  # a quarter turn about z, along z
    moved = poses(rays, 1.0)
    own = rays.image_index == 1
    x, y, z = rays.directions[own].unbind(-1)
    torch.testing.assert_close(moved.directions[own], torch.stack([-y, x, z], -1))
    torch.testing.assert_close(moved.origins[own], rays.origins[own] + torch.tensor([0.0, 0.0, 0.3]))
    torch.testing.assert_close(moved.directions[~own], rays.directions[~own])
    torch.testing.assert_close(moved.directions.norm(dim=-1), torch.ones(6))
    assert poses.size()["degrees"] == pytest.approx(30) and poses.size()["shift"] == pytest.approx(0.1)


def test_a_corrected_pose_is_that_of_the_rays_of_its_camera():
    poses, views = PoseRefinement(3), orbit(70.0, 30.0, 2.0, 40.0, 8, 8)
    with torch.no_grad():
        poses.twist[1] = torch.tensor([0.1, -0.2, 0.3, 0.05, 0.1, -0.2])
    rays = view_rays(views)
    moved = poses(replace(rays, image_index=torch.ones(len(rays)).long()), 1.0)
    again = view_rays(replace(views, pose=poses.corrected(views.pose, 1)))
    torch.testing.assert_close(again.directions, moved.directions)
    torch.testing.assert_close(again.origins, moved.origins)


def test_poses_stay_as_they_are_at_first():
    poses = PoseRefinement(3)
    assert not poses(rays_of(), 0.5 * POSE_START).directions.requires_grad
    assert poses(rays_of(), POSE_START).directions.requires_grad


def test_rays_without_a_photograph_are_not_moved():
    rays = Rays(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1).long())
    assert PoseRefinement(2)(rays, 1.0) is rays


def test_positions_of_samples_follow_the_rays_in_value_and_gradient():
    rays = Rays(torch.tensor([[0.0, 0.0, 2.5]]), torch.tensor([[0.0, 0.0, -1.0]]), torch.zeros(1).long())
    rays.origins.requires_grad_(True)
    samples = PlainPath(8, 0, 0.01).render(Ball(0.5), rays, RenderSettings(random=Random(1))).trace.samples
    points = points_at(samples, rays)
    torch.testing.assert_close(points.positions, samples.positions)
    points.positions.sum().backward()
    assert torch.equal(rays.origins.grad, torch.full((1, 3), 8.0))


def test_exposures_scale_and_shift_about_their_mean():
    exposure, colours = Exposure(2), torch.tensor([[0.2, 0.4, 0.6], [0.2, 0.4, 0.6]])
    torch.testing.assert_close(exposure(colours, torch.tensor([0, 1])), colours)
    with torch.no_grad():
        exposure.log_gain[0] = 2 * torch.log(torch.tensor(1.5))
        exposure.offset[1] = 0.2
    out = exposure(colours, torch.tensor([0, 1]))
    torch.testing.assert_close(out, torch.stack([1.5 * colours[0] - 0.1, colours[1] / 1.5 + 0.1]))


def test_exposure_gradcheck():
    exposure = Exposure(3).double()
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (3, 3), (3, 3))]
    index = torch.tensor([0, 1, 2, 1, 0])

    def recorded(colours, gain, offset):
        return torch.func.functional_call(exposure, {"log_gain": gain, "offset": offset}, (colours, index))

    assert torch.autograd.gradcheck(recorded, tuple(x.requires_grad_(True) for x in parts))


def test_training_finds_the_exposures_of_photographs():
    truth = torch.tensor([[0.9, 1.0, 1.1], [1.2, 1.0, 0.8], [1.0, 0.8, 1.2]])
    truth = truth / truth.log().mean(0).exp()
    exposure, generator = Exposure(3), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(exposure.parameters(), lr=0.02)
    for _ in range(300):
        colours, index = torch.rand(64, 3, generator=generator), torch.randint(3, (64,), generator=generator)
        loss = (exposure(colours, index) - colours * truth[index]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gain = (exposure.log_gain - exposure.log_gain.mean(0)).exp()
    torch.testing.assert_close(gain.detach(), truth, atol=0.01, rtol=0)


@pytest.fixture
def photographs(tmp_path):
    return photo_folders.load(photo_folders.write(tmp_path, [photo_folders.pattern(i, 12, 10) for i in range(4)]))


def part(fraction=1.0, layout="rays", **request):
    random = Random(1)
    return Part(
        ViewRequest("photos", layout=layout, fraction=fraction, random=random, **request),
        RenderSettings("photos", random=random),
    )


def test_a_source_refines_random_rays_and_leaves_whole_photographs_alone(photographs):
    source, plain = PhotographSource(photographs, refine=True), PhotographSource(photographs)
    with torch.no_grad():
        source.poses.twist[:] = 0.01
    assert not torch.equal(source.batch(part(num_rays=8)).rays.origins, plain.batch(part(num_rays=8)).rays.origins)
    whole = part(layout="image", num_views=1, height=4, width=4)
    assert torch.equal(source.batch(whole).rays.origins, plain.batch(whole).rays.origins)


def test_what_a_source_and_an_objective_learned_is_kept_and_comes_back(photographs):
    source, objective = PhotographSource(photographs, refine=True), KnownView(exposure=Exposure(4))
    for learner in (source, objective):
        (group,) = learner.param_groups(1e-2)
        assert 0 < group["lr"] < 1e-2
        with torch.no_grad():
            for value in group["params"]:
                value.normal_()
    again = PhotographSource(photographs, refine=True), KnownView(exposure=Exposure(4))
    for learner, other in zip((source, objective), again, strict=True):
        other.load_state_dict({name: value.clone() for name, value in learner.state_dict().items()})
        assert all(torch.equal(other.state_dict()[name], value) for name, value in learner.state_dict().items())
    assert source.results()["pose_refinement"]["degrees"] > 0
    for learner in (PhotographSource(photographs), KnownView()):
        assert learner.param_groups(1.0) == [] and learner.state_dict() == {}


class SoftBall(Ball):
    """A ball whose density falls smoothly at its border, so that a render is differentiable in the rays."""

    def _within(self, positions, radius):
        return self.inside * torch.sigmoid((radius - positions.norm(dim=-1)) / 0.06)


def test_refinement_finds_the_pose_of_a_camera_from_its_picture():
    """The ball's albedo tells the position of every point, so one picture fixes all but what turns the ball about itself."""
    torch.manual_seed(0)
    field, path, true = SoftBall(0.8, density=20.0), PlainPath(64, 0, 0.01), image_rays(12, 12, distance=1.5, fovy=70.0)
    true = Rays(true.origins, true.directions, true.view_index, image_index=torch.zeros(144).long())
    settings = RenderSettings(training=False, random=Random(1))
    with torch.no_grad():
        target = path.render(field, true, settings).color
    wrong = PoseRefinement(1)
    with torch.no_grad():
        wrong.twist[0] = torch.tensor([0.02, -0.015, 0.01, 0.03, -0.02, 0.02])
        start = wrong(true, 1.0)
    poses = PoseRefinement(1)

    def errors():
        rays = poses(start, 1.0)
        return (rays.directions - true.directions).norm(dim=-1).mean(), (rays.origins - true.origins).norm(dim=-1).mean()

    before = errors()
    optimizer = torch.optim.Adam(poses.parameters(), lr=4e-3)
    for step in range(250):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * 0.05 ** (step / 250)
        loss = (path.render(field, poses(start, 1.0), settings).color - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = errors()
    assert after[0] < 0.35 * before[0] and after[1] < 0.35 * before[1]
