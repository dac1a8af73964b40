"""Colours of a surface from photographs: weights, what hides what, borders; the fit of a texture is in test_texture_fit.py."""

import numpy as np
import pytest
import torch

from nerf.core.cameras import centred_views, clip_space, look_at
from nerf.mesh import photo_colors
from nerf.mesh.mesh import Mesh, vertex_normals
from nerf.mesh.photo_colors import Photo, PhotoColors
from nerf.mesh.surface_colors import lookup
from nerf.mesh.texture import bake
from rasterizer import interpolate, rasterize
from tests.helpers.solids import joined

SIDE = 64
UP = np.array([0.0, 0.0, 1.0])


def wall(z=0.0, half=1.0) -> Mesh:
    """A square that faces +Z, with its uv over the whole texture."""
    corners = half * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    vertices = np.concatenate([corners, np.full((4, 1), z)], axis=1)
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), np.tile(UP, (4, 1)), uv=0.5 + 0.5 * corners / half)


def camera(*position, side=SIDE):
    """A view of 40 degrees of the origin."""
    return centred_views(look_at(torch.tensor([position], dtype=torch.float32)), torch.tensor([40.0]), side, side)


def plain(view, colour, alpha=1.0):
    """What gives a photograph of one colour."""
    rgba = torch.tensor([*colour, 1.0]) * alpha
    return lambda: Photo(view, rgba.expand(view.height, view.width, 4))


def colours_of(photos, mesh, points, given=0.5):
    """Colours at points on surfaces that face +Z."""
    points = np.atleast_2d(np.array(points, dtype=np.float64))
    seen = PhotoColors(photos, mesh, 2.0)
    return seen.over(points, np.tile(UP, (len(points), 1)), np.full((len(points), 3), given))


def test_the_colour_is_the_mean_of_the_photographs_by_the_cosine():
    above, aside = camera(0.0, 0.01, 4.0), camera(3.0, 0.01, 2.0)
    found = colours_of([plain(above, (1, 0, 0)), plain(aside, (0, 1, 0))], wall(), [0.0, 0.0, 0.0])
    slant = 2.0 / np.sqrt(13.0)
    np.testing.assert_allclose(found, [[1 / (1 + slant), slant / (1 + slant), 0.0]], atol=0.01)


def test_what_is_transparent_or_outside_of_a_photograph_shows_nothing():
    view, red = camera(0.0, 0.01, 4.0), plain(camera(0.5, 0.01, 4.0), (1, 0, 0))
    np.testing.assert_allclose(colours_of([plain(view, (0, 1, 0), 0.0), red], wall(), [0.0, 0.0, 0.0]), [[1, 0, 0]], atol=1e-3)
    half = colours_of([plain(view, (0, 1, 0), 0.5), plain(view, (1, 0, 0), 1.0)], wall(), [0.0, 0.0, 0.0])
    np.testing.assert_allclose(half, [[2 / 3, 1 / 3, 0]], atol=0.01)
    outside = colours_of([red], wall(half=4.0), [[3.5, 0.0, 0.0], [0.5, 0.0, 0.0]])
    np.testing.assert_allclose(outside, [[0.5] * 3, [1, 0, 0]], atol=1e-3)


def test_what_another_part_hides_has_the_given_colour():
    both = joined(wall(), wall(z=0.5, half=0.3))
    photos = [plain(camera(0.0, 0.01, 4.0), (1, 0, 0))]
    found = colours_of(photos, both, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.8, 0.0, 0.0]])
    np.testing.assert_allclose(found, [[0.5] * 3, [1, 0, 0], [1, 0, 0]], atol=1e-3)
    np.testing.assert_allclose(colours_of(photos, wall(), [0.0, 0.0, 0.0]), [[1, 0, 0]], atol=1e-3)


def test_a_surface_that_faces_away_is_not_seen():
    behind = plain(camera(0.0, 0.01, -4.0), (1, 0, 0))
    np.testing.assert_allclose(colours_of([behind], wall(), [0.0, 0.0, 0.0]), [[0.5] * 3])


def test_what_is_behind_a_camera_is_not_seen():
    """A camera that looks away from a wall, as those in a room do from the one behind them; its pixels mirror the wall."""
    pose = look_at(torch.tensor([[0.0, 0.01, 4.0]]), torch.tensor([0.0, 0.01, 8.0]))
    away = plain(centred_views(pose, torch.tensor([40.0]), SIDE, SIDE), (1, 0, 0))
    np.testing.assert_allclose(colours_of([away], wall(), [0.0, 0.0, 0.0]), [[0.5] * 3])


@pytest.mark.parametrize("tilt", [30.0, 60.0, 80.0])
def test_a_slanted_surface_does_not_hide_itself(tilt):
    angle = np.radians(tilt)
    photos = [plain(camera(4 * np.sin(angle), 0.01, 4 * np.cos(angle)), (1, 0, 0))]
    x = np.linspace(-0.8, 0.8, 41)
    found = colours_of(photos, wall(), np.stack([x, 0.3 * x, 0 * x], axis=1))
    assert (found[:, 0] > 0.9).all() if tilt < 75 else (found[:, 0] > 0.6).all()


def test_the_border_of_a_photograph_fades(monkeypatch):
    monkeypatch.setattr(photo_colors, "RIM", 0.1)
    x = np.linspace(-1.2, 1.2, 801)
    photos = [plain(camera(0.0, 0.01, 2.0), (1, 0, 0)), plain(camera(0.0, 0.01, 4.0), (0, 0, 1))]  # half of what the other sees
    row = colours_of(photos, wall(half=2.0), np.stack([x, 0 * x, 0 * x], axis=1))
    assert np.abs(np.diff(row, axis=0)).max() < 0.05
    assert (row[np.abs(x) > 0.75, 0] == 0.0).all() and row[400, 0] == pytest.approx(0.5, abs=0.01)


def pattern(points):
    """A colour that changes within a pixel or two of the photographs."""
    return 0.5 + 0.4 * np.sin(points[:, [0, 1, 0]] * np.array([14.0, 18.0, 22.0]))


def pictured(view, mesh, texture):
    """What gives a photograph of the wall with a fine texture: the mean of 4x4 samples of a pixel."""
    fine = 4
    side = view.width * fine
    vertices, faces = torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.faces)
    raster = rasterize(clip_space(camera_like(view, fine), vertices, 2.0 * photo_colors.NEAREST, 2.0), faces, side, side)
    covered = raster.triangle[0] >= 0
    uv = interpolate(torch.from_numpy(mesh.uv).float()[None], raster, faces)[0][covered]
    rgba = torch.zeros(side, side, 4)
    rgba[covered] = torch.cat(
        [torch.from_numpy(lookup(texture, uv.double().numpy())).float(), torch.ones(int(covered.sum()), 1)], -1
    )
    mean = rgba.reshape(view.height, fine, view.width, fine, 4).mean((1, 3))
    return lambda: Photo(view, mean)


def camera_like(view, factor):
    """The same view with more pixels."""
    return centred_views(view.pose, view.fovy, view.height * factor, view.width * factor)


def test_the_fit_makes_the_texture_sharper():
    mesh = wall()
    exact = bake(mesh, pattern, 256)[0] / 255.0
    views = [camera(np.sin(a) * 1.3, np.cos(a) * 1.3, 3.5) for a in np.linspace(0, 6, 9)]
    seen = PhotoColors([pictured(view, mesh, exact) for view in views], mesh, 2.0)
    first = Mesh(
        mesh.vertices,
        mesh.faces,
        mesh.normals,
        mesh.uv,
        texture=bake(mesh, lambda points: np.full((len(points), 3), 0.5), 256, over=seen.over)[0],
    )
    middle = (slice(40, -40), slice(40, -40))
    before = np.abs(first.texture[middle] / 255.0 - exact[middle]).mean()
    after = np.abs(seen.fitted(first)[middle] / 255.0 - exact[middle]).mean()
    assert before < 0.12 and after < 0.5 * before


def test_without_a_photograph_of_a_part_the_fit_leaves_it():
    mesh = wall()
    seen = PhotoColors([plain(camera(0.0, 0.01, -4.0), (1, 0, 0))], mesh, 2.0)
    texture = np.full((32, 32, 3), 77, dtype=np.uint8)
    given = Mesh(mesh.vertices, mesh.faces, vertex_normals(mesh), mesh.uv, texture=texture)
    np.testing.assert_array_equal(seen.fitted(given), texture)
