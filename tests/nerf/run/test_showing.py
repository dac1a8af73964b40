"""Objects as people see them: from above and below, framed, in a light that goes with the camera."""

from dataclasses import replace

import pytest
import torch

from nerf.config.config import parse
from nerf.config.kept import StoredRun
from nerf.config.resolve import resolve
from nerf.core.cameras import project, view_rays
from nerf.core.shading import SHOW_AMBIENT
from nerf.core.structs import RenderOutput
from nerf.run import showing


def config(*words):
    return resolve(parse(["--text", "a hamburger", *words]), StoredRun()).config


def corners(low, high):
    axes = [torch.tensor([a, b]) for a, b in zip(low, high, strict=True)]
    return torch.cartesian_prod(*axes)


def test_turntable_looks_from_above_and_turns_from_the_default_azimuth_towards_plus_x():
    views = showing.turntable(config("--default_azimuth", "30"), 4, 6, 6)
    torch.testing.assert_close(views.azimuth, torch.tensor([30.0, 120.0, -150.0, -60.0]))
    assert (views.polar == showing.RAISED).all() and (views.radius == torch.tensor(3.2)).all()


@pytest.mark.parametrize("polar", [90.0, 75.0])
def test_turntable_looks_from_where_it_is_asked_to(polar):
    assert (showing.turntable(config("--default_polar", f"{polar}"), 3, 6, 6).polar == polar).all()


def test_turntable_of_a_picture_looks_from_where_the_picture_does():
    plain = config("--default_azimuth", "10")
    pictured = replace(plain, prompt=replace(plain.prompt, image=("burger_rgba.png",)))
    views = showing.turntable(pictured, 2, 6, 6)
    assert views.polar[0] == 90 and views.azimuth[0] == 10


def test_sheet_and_preview_look_from_above_and_from_below_beside_the_front():
    sheet, preview = showing.sheet_views(config(), 6, 6), showing.preview_views(config(), 4, 6, 6)
    assert (sheet.pose[:4, 1, 3] > 1).all() and (sheet.pose[4:, 1, 3] < -1).all()
    torch.testing.assert_close(sheet.azimuth[:4], sheet.azimuth[4:])
    assert sheet.azimuth[0] == preview.azimuth[0] == preview.azimuth[3] == showing.BESIDE
    assert (preview.pose[:3, 1, 3] > 1).all() and preview.pose[3, 1, 3] < -1
    assert len(showing.preview_views(config(), 1, 6, 6)) == 1


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
@pytest.mark.parametrize("box", [((-0.1, 0.2, -0.05), (0.15, 0.4, 0.05)), ((-0.9, -0.6, -0.9), (0.9, 0.8, 0.9))])
def test_frame_fits_the_object_whole_and_closely(size, box):
    views = showing.turntable(config(), 6, *size)
    found = showing.framed(views, corners(*box))
    xy = project(found, corners(*box))[0]
    height, width = size
    assert (xy > 0).all() and (xy[..., 0] < width).all() and (xy[..., 1] < height).all()
    span = xy.amax((0, 1)) - xy.amin((0, 1))
    assert max(float(span[0]) / width, float(span[1]) / height) > 0.9
    assert len(found.fx.unique()) == len(found.cy.unique()) == 1  # the object does not jump from frame to frame
    focal = height / 2 / torch.tan(torch.deg2rad(found.fovy) / 2)
    torch.testing.assert_close(found.fy, focal)


def test_frame_without_an_object_or_with_the_camera_inside_stays():
    views = showing.turntable(config(), 2, 8, 8)
    assert showing.framed(views, torch.zeros(0, 3)) is views
    assert showing.framed(views, corners((-5.0, -5.0, -5.0), (5.0, 5.0, 5.0))) is views


def rendered(views, normal, opacity=1.0):
    """Every pixel shows grey of 0.5 with one normal over white."""
    count = len(views) * views.height * views.width
    opacity = torch.full((count,), opacity)
    image = 0.5 * opacity[:, None] + (1 - opacity)[:, None] * torch.ones(count, 3)
    return RenderOutput(
        image=image,
        opacity=opacity,
        depth=opacity,
        normal=opacity[:, None] * normal,
        background=torch.ones(count, 3),
        shape=(len(views), views.height, views.width),
    )


def shaded(views, normal, opacity=1.0):
    out = rendered(views, normal, opacity)
    return showing.lit(out, out.normal, views)


def test_light_goes_with_the_camera_so_that_the_same_side_of_it_is_bright_in_every_view():
    views = showing.sheet_views(config(), 2, 2)
    for axis, low, high in ((views.pose[:, :3, 2], 0.9, 1.0), (-views.pose[:, :3, 2], SHOW_AMBIENT, SHOW_AMBIENT)):
        factor = shaded(views, axis.repeat_interleave(4, 0)) / 0.5
        assert (factor >= low - 1e-5).all() and (factor <= high + 1e-5).all()
    left = shaded(views, -views.pose[:, :3, 0].repeat_interleave(4, 0))
    right = shaded(views, views.pose[:, :3, 0].repeat_interleave(4, 0))
    assert (left > right + 0.05).all()


def test_background_and_half_transparent_pixels_keep_the_light_behind_them():
    views = showing.preview_views(config(), 2, 2, 2)
    away = -views.pose[:, :3, 2].repeat_interleave(4, 0)
    assert (shaded(views, away, 0.0) == 1).all()
    half = shaded(views, away, 0.5)
    torch.testing.assert_close(half, torch.full_like(half, 0.25 * SHOW_AMBIENT + 0.5))


CENTRE = torch.tensor([0.0, 0.1, 0.0])


def ball(views):
    """A ball of radius 0.3 about the centre; fog where it is seen from the left."""
    rays = view_rays(views)
    origin = rays.origins - CENTRE
    along = -(origin * rays.directions).sum(-1)
    half = 0.09 - origin.square().sum(-1) + along.square()
    opacity = (half > 0).float() * torch.where(rays.origins[:, 0] > 0, 1.0, 0.4)
    out = rendered(views, torch.zeros(1, 3))
    return replace(out, opacity=opacity, depth=opacity * (along - half.clamp(min=0).sqrt()), normal=None)


def test_object_is_looked_for_where_pixels_are_solid():
    points = showing.seen_points(config(), ball)
    assert len(points) > 200
    torch.testing.assert_close((points - CENTRE).norm(dim=-1), torch.full((len(points),), 0.3), atol=1e-4, rtol=0)


def test_volume_has_the_normals_of_its_depth_and_a_surface_those_of_its_render():
    views = showing.framed(showing.preview_views(config(), 4, 96, 96), 0.3 * corners((-1.0,) * 3, (1.0,) * 3) + CENTRE)
    out = ball(views)
    found = showing.normals(out, views)
    rays = view_rays(views)
    points = rays.origins + (out.depth / out.opacity.clamp(min=1e-3))[:, None] * rays.directions
    true = torch.nn.functional.normalize(points - CENTRE, dim=-1)
    facing = (out.opacity > 0) & (-(true * rays.directions).sum(-1) > 0.4)
    assert 0.1 < facing.float().mean() < 0.9
    assert ((found * true).sum(-1)[facing] > 0.99).all()
    assert (found[out.opacity == 0] == 0).all() and (-(found * rays.directions).sum(-1) >= -1e-5).all()
    own = torch.ones_like(found)
    assert showing.normals(replace(out, normal=own), views) is own
