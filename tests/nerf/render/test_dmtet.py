"""The mesh path: a ball in closed form, gradients that move it, and offsets that never invert a tetrahedron."""

from dataclasses import replace

import pytest
import torch

from nerf.core.cameras import clip_space, orbit, project, view_rays
from nerf.core.errors import DivergenceError
from nerf.core.structs import FieldOutput, RenderSettings
from nerf.fields.base import DensityField
from nerf.mesh.mesh import Mesh, is_watertight
from nerf.render.background import ConstantBackground
from nerf.render.dmtet import DMTetPath, vertex_normals
from nerf.render.triangles import SurfacePath
from nerf.renderer import NeRFRenderer

RADIUS = 0.5


class Painted(DensityField):
    """Red for x > 0, else blue; no density."""

    bound = 1.0

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def density(self, positions, max_level=1.0):
        """Zero everywhere."""
        return positions.new_zeros(len(positions))

    def query(self, points, settings):
        """Colours by the sign of x."""
        red = (points.positions[:, :1] > 0).float()
        colour = torch.cat([red, torch.zeros_like(red), 1 - red], -1) * self.gain
        uncertainty = points.positions[:, 2:].square()
        return FieldOutput(density=self.density(points.positions), albedo=colour, extras={"uncertainty": uncertainty})


RATES = {"distance": 0.02, "offset": 0.02, "coarse_sdf": 0.02}


def make(resolution=24, locked=False, coarse_grids=0):
    path = DMTetPath(1.0, resolution, 0.01, RATES, locked, coarse_grids)
    return NeRFRenderer(Painted(), ConstantBackground(), path)


def views(height=48, width=64, azimuth=(0.0, 90.0)):
    return orbit(torch.full((len(azimuth),), 90.0), torch.tensor(azimuth), 3.0, 30.0, height, width)


def settings(**changes):
    return RenderSettings(**{"source": "guided", "training": False, **changes})


def test_the_ball_covers_its_disc_on_pictures_that_are_not_square():
    out = make(40).render(view_rays(views()), settings())
    focal = float(views().fy[0])
    disc = torch.pi * (focal * RADIUS / (9 - RADIUS**2) ** 0.5) ** 2
    for covered in out.as_images(out.opacity).sum((1, 2, 3)):
        torch.testing.assert_close(float(covered), disc, rtol=0.01, atol=0.0)


def test_mesh_of_the_surface_renders_as_the_surface_does():
    model = make()
    surface = model.surface()
    mesh = Mesh(surface.vertices.double().numpy(), surface.faces.numpy(), vertex_normals(surface).double().numpy())
    given = model.with_path(SurfacePath(model.path.bound, model.path.min_near, mesh, torch.device("cpu")))
    rays, seen = view_rays(views()), settings(need_normals=True)
    for a, b in ((getattr(one.render(rays, seen), name) for one in (model, given)) for name in ("image", "depth", "normal")):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_depth_is_the_distance_along_the_ray():
    out = make(40).render(view_rays(views(49, 65)), settings())
    middle = out.as_images(out.depth)[:, 0, 24, 32]
    torch.testing.assert_close(middle, torch.full((2,), 3.0 - RADIUS), atol=4e-3, rtol=0)


def test_normals_point_outwards():
    rays = view_rays(views())
    out = make(40).render(rays, settings(need_normals=True))
    solid = out.opacity > 0.999
    hit = rays.origins + out.depth[:, None] * rays.directions
    cosine = (torch.nn.functional.normalize(hit, dim=-1) * out.normal).sum(-1)[solid]
    assert solid.sum() > 300 and cosine.min() > 0.9 and cosine.mean() > 0.995


def test_the_field_colours_the_side_that_is_seen():
    out = make().render(view_rays(views(azimuth=(0.0, 90.0))), settings())
    picture = out.as_images(out.image)
    torch.testing.assert_close(picture[0, :, 24, 24], torch.tensor([0.0, 0.0, 1.0]))  # -x is left of the front view
    torch.testing.assert_close(picture[0, :, 24, 40], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(picture[1, :, 24, 32], torch.tensor([1.0, 0.0, 0.0]))


def test_each_view_has_its_own_light():
    light = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    out = make().render(view_rays(views()), settings(shading="textureless", ambient=0.0, light=light))
    middle = out.as_images(out.image)[:, 0, 24, 32]
    assert middle[0] > 0.95 and middle[1] < 0.05


def test_clip_space_and_projection_put_points_on_the_same_pixel():
    points, cameras = 0.8 * torch.rand(20, 3) - 0.4, views(48, 64, (10.0, 200.0))
    clip = clip_space(cameras, points, 0.01, 1.0)
    pixel = torch.stack([(clip[..., 0] / clip[..., 3] + 1) * 32, (1 - clip[..., 1] / clip[..., 3]) * 24], -1)
    torch.testing.assert_close(pixel, project(cameras, points)[0], atol=1e-3, rtol=1e-4)
    assert (clip[..., 2].abs() <= clip[..., 3]).all()


def test_coverage_grows_with_its_gradient():
    model = make(40)
    rays, seen = view_rays(views()), settings(training=True)
    model.render(rays, seen).opacity.sum().backward()
    slope = model.path.distance.grad.clone()
    with torch.no_grad():
        before = float(model.render(rays, seen).opacity.sum())
        model.path.distance.sub_(0.1)
        after = float(model.render(rays, seen).opacity.sum())
    torch.testing.assert_close(after - before, float(-0.1 * slope.sum()), rtol=0.05, atol=0.0)


def test_no_offset_inverts_a_tetrahedron():
    path = DMTetPath(1.0, 8, 0.01, RATES)
    path.start(torch.zeros(3), torch.tensor([1.0, 0.5, 0.8]))
    for seed in range(20):
        with torch.no_grad():
            path.offset.copy_(1e3 * torch.randn(path.offset.shape, generator=torch.Generator().manual_seed(seed)).sign())
        corner = path.positions()[path.grid.tets.long()]
        volume = torch.linalg.det(corner[:, 1:] - corner[:, :1])
        assert volume.min() > 0


def test_the_surface_is_closed_even_at_the_walls():
    path = DMTetPath(1.0, 8, 0.01, RATES)
    with torch.no_grad():
        path.distance.copy_(path.points()[:, 0])  # half the box is inside
    surface = path.surface()
    assert is_watertight(Mesh(surface.vertices.detach().double().numpy(), surface.faces.numpy()))


def test_a_surface_that_vanished_ends_training_with_a_sentence_and_shows_the_background():
    model = make(8)
    with torch.no_grad():
        model.path.distance.fill_(1.0)
    out = model.render(view_rays(views()), settings())
    assert out.opacity.max() == 0 and out.image.min() == 1
    with pytest.raises(DivergenceError, match="vanished"):
        model.render(view_rays(views()), settings(training=True))


def test_random_rays_are_refused():
    with pytest.raises(ValueError, match="whole images"):
        make(8).render(view_rays(views())[:10], settings())


def test_a_lens_with_distortion_is_refused():
    bent = replace(views(), distortion=torch.full((2, 6), 0.1))
    with pytest.raises(ValueError, match="distortion"):
        clip_space(bent, torch.zeros(1, 3), 0.01, 1.0)


def test_a_locked_shape_has_no_parameters_to_train():
    assert make(8, locked=True, coarse_grids=2).path.param_groups() == []
    assert [g["name"] for g in make(8).path.param_groups()] == ["distance", "offset"]
    assert [g["name"] for g in make(8, coarse_grids=2).path.param_groups()] == ["distance", "offset", "coarse_sdf"]


def radii(path):
    return path.surface().vertices.detach().norm(dim=-1)


def test_every_coarse_grid_moves_the_whole_surface_by_its_cells():
    path = make(32, coarse_grids=3).path
    cell, before = path.grid.spacing * path.bound, radii(path)
    assert [len(grid) for grid in path.coarse_sdf] == [3, 5, 9]
    with torch.no_grad():
        for grid in path.coarse_sdf:
            grid.fill_(-0.5)
    torch.testing.assert_close(float(radii(path).mean() - before.mean()), 1.5 * cell, rtol=0.02, atol=0.0)


def test_a_view_moves_its_silhouette_alone_and_whole_patches_with_coarse_grids():
    model = make(32, coarse_grids=2)
    path, rays = model.path, view_rays(views(azimuth=(0.0,)))
    model.render(rays, settings(training=True)).opacity.sum().backward()
    moved = []
    for parameter in (path.distance, *reversed(path.coarse_sdf)):
        before = radii(path)
        with torch.no_grad():
            parameter.sub_(0.05 * parameter.grad.sign())
            moved.append(float(((radii(path) - before).abs() > 1e-4).float().mean()))
            parameter.add_(0.05 * parameter.grad.sign())
    assert moved[0] < 0.25 and moved[1] > 2 * moved[0] and moved[2] > 0.9, moved


def test_far_points_keep_their_distance_only_with_coarse_grids():
    for coarse_grids, limit in ((0, 1.0), (2, 8.0)):
        path = make(32, coarse_grids=coarse_grids).path
        points = path.start(torch.zeros(3), torch.ones(3))
        true = (points.norm(dim=-1) - RADIUS) / (path.grid.spacing * path.bound)
        path.set_distance(torch.tanh(3 * (points.norm(dim=-1) - RADIUS)))  # right in zero, sign and slope at the surface only
        limited = true.clamp(-limit, limit)
        assert (path.distance.detach() - limited).abs().max() < 0.75


def test_training_carries_the_surface_for_its_regularisers():
    out = make(8).render(view_rays(views()), settings(training=True))
    assert out.surface.faces.max() < len(out.surface.vertices) and out.trace is None
    inside = out.surface.distance[out.surface.crossing] < 0
    assert (inside[:, 0] != inside[:, 1]).all()


def test_extra_outputs_of_the_field_are_rendered_per_ray():
    out = make(40).render(view_rays(views()), settings())
    middle = out.as_images(out.extras["uncertainty"])[:, 0, 24, 32]
    torch.testing.assert_close(middle, torch.tensor([RADIUS**2, 0.0]), atol=5e-3, rtol=0)


def test_a_crop_box_leaves_out_the_triangles_outside():
    rays, crop = view_rays(views(64, 64, (0.0,))), torch.tensor([-1.0, 0.0, -1.0, 1.0, 1.0, 1.0])
    whole, cut = (make(40).render(rays, settings(crop=box)).opacity.view(64, 64) for box in (None, crop))
    torch.testing.assert_close(cut[:30], whole[:30], rtol=0, atol=1e-4)
    assert cut[35:].max() == 0 and whole[35:].max() > 0.9
    assert make(40).render(rays, settings(crop=crop + 3.0)).opacity.max() == 0
