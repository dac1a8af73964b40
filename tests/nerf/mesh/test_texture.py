"""Texture baking: the point of every covered texel, colours below the surface, and padding without seams."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import trimesh

from nerf.core.errors import ExportError
from nerf.mesh import decimate, repair, texture, uv
from nerf.mesh import mesh as meshes
from nerf.mesh.mesh import Mesh
from tests.helpers import solids
from tests.helpers.glb_render import bilinear
from tests.helpers.seams import along_seams
from tests.helpers.tasks import listening


def brute_force(uv, faces, size):
    """Which texel centres [S, S] lie strictly inside some triangle, by edge functions."""
    y, x = np.mgrid[0:size, 0:size] + 0.5
    inside = np.zeros((size, size), dtype=bool)
    for a, b, c in np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)[faces] * size:
        sides = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
        inside |= np.all([s > 1e-9 for s in sides], axis=0) | np.all([s < -1e-9 for s in sides], axis=0)
    return inside


def covered(texels):
    """The covered texels as a picture [S, S]."""
    mask = np.zeros(texels.size**2, dtype=bool)
    mask[texels.index] = True
    return mask.reshape(texels.size, texels.size)


def square():
    """The unit square of the plane z = 0, mapped to the whole texture."""
    corners = np.array([[0.0, 0.0], [1, 0], [1, 1], [0, 1]])
    return Mesh(np.pad(corners, ((0, 0), (0, 1))), np.array([[0, 1, 2], [0, 2, 3]]), np.tile([[0.0, 0, 1]], (4, 1)), uv=corners)


def test_rasterized_texels_are_those_whose_centre_is_in_a_triangle():
    rng = np.random.default_rng(0)
    uv, faces = rng.random((90, 2)), np.arange(90).reshape(30, 3)
    uv = uv[::3].repeat(3, axis=0) * 0.6 + 0.4 * uv  # triangles of many sizes
    texels = texture.rasterize_uv(uv, faces, 41)
    missed = brute_force(uv, faces, 41) & ~covered(texels)
    assert missed.sum() == 0
    inside = (texels.weights >= 0).all(axis=1)
    assert inside.all() and len(np.unique(texels.index)) == len(texels)


def test_interpolated_uv_of_a_texel_is_its_own_centre():
    rng = np.random.default_rng(1)
    uv, faces = rng.random((60, 2)), np.arange(60).reshape(20, 3)
    texels = texture.rasterize_uv(uv, faces, 64)
    mesh = Mesh(np.zeros((60, 3)), faces, uv=uv)
    centre = np.stack([(texels.index % 64 + 0.5) / 64, 1 - (texels.index // 64 + 0.5) / 64], axis=1)
    np.testing.assert_allclose(texels.interpolate(mesh, uv), centre, atol=1e-9)


def test_square_over_the_whole_texture_covers_every_texel_once():
    assert covered(texture.rasterize_uv(square().uv, square().faces, 33)).all()


def test_triangle_between_texel_centres_gets_the_texel_of_its_centroid():
    uv = np.array([[0.51, 0.51], [0.53, 0.51], [0.51, 0.53]])
    texels = texture.rasterize_uv(uv, np.array([[0, 1, 2]]), 8)
    assert texels.index.tolist() == [3 * 8 + 4]
    np.testing.assert_allclose(texels.weights, [[1 / 3] * 3])


def test_triangle_without_area_gives_finite_weights():
    uv = np.array([[0.2, 0.2], [0.8, 0.8], [0.5, 0.5]])
    assert np.isfinite(texture.rasterize_uv(uv, np.array([[0, 1, 2]]), 16).weights).all()


def test_baked_picture_stands_upright_with_row_0_at_the_top():
    picture, coverage = texture.bake(square(), lambda p: p, 16)
    assert coverage == 1.0
    assert picture[0, 0].tolist() == [8, 247, 0] and picture[15, 15].tolist() == [247, 8, 0]  # red: x, green: y


def test_padding_repeats_the_nearest_texel():
    picture = np.zeros((5, 9, 3), dtype=np.uint8)
    picture[2, 1], picture[2, 7] = [200, 0, 0], [0, 0, 100]
    padded = texture.pad_texture(picture, picture.any(axis=2))
    assert (padded[:, :4] == [200, 0, 0]).all() and (padded[:, 5:] == [0, 0, 100]).all()


def test_padding_reaches_beyond_the_charts_so_that_bilinear_lookup_sees_no_black():
    mesh = replace(square(), uv=square().uv * 0.5 + 0.25)
    picture, coverage = texture.bake(mesh, lambda p: np.full((len(p), 3), 0.5), 32)
    assert coverage == pytest.approx(0.25) and (picture == 128).all()


UP = np.array([[0.0, 0.0, 1.0]])


@pytest.mark.parametrize("extinction", [5.0, 40.0, 1000.0])
def test_light_of_a_uniform_body_comes_from_its_mean_free_path(extinction):
    depth = texture.light_depth(lambda p: torch.full((len(p),), extinction), np.zeros((1, 3)), UP, 0.01, samples=400)
    step = 0.005  # samples sit in the middle of their step, so a dense body is seen half a step deep
    assert depth[0] == pytest.approx(max(1 / extinction, step / 2), rel=0.15)


def test_light_passes_through_empty_space_to_the_body_below():
    depth = texture.light_depth(lambda p: torch.where(p[:, 2] < -0.02, 1e5, 0.0), np.zeros((1, 3)), UP, 0.01)
    assert depth[0] == pytest.approx(0.0225)  # the first sample below


def test_light_of_a_thin_sheet_comes_from_the_sheet():
    depth = texture.light_depth(lambda p: torch.where(p[:, 2] > -0.01, 3.0, 0.0), np.zeros((1, 3)), UP, 0.01)
    assert depth[0] == pytest.approx(0.005, rel=0.05)


def test_light_depth_is_zero_without_density():
    assert texture.light_depth(lambda p: torch.zeros(len(p)), np.zeros((1, 3)), UP, 0.1)[0] == 0.0


def test_colour_is_evaluated_below_the_surface_by_the_inset():
    points_of_calls = []

    def color(points):
        points_of_calls.append(points)
        return points

    texture.bake(square(), color, 16, inset=np.array([0.1, 0.1, 0.3, 0.3]))
    np.testing.assert_allclose(points_of_calls[0][:, 2], -0.1 - 0.2 * points_of_calls[0][:, 1], atol=1e-9)


def test_colours_in_chunks_equal_colours_at_once():
    points = np.random.default_rng(0).random((50, 3))
    np.testing.assert_allclose(texture.query_color(lambda p: p, points, chunk=7), points, atol=1e-7)


def test_albedo_that_is_nan_is_refused():
    with pytest.raises(ExportError, match="albedo is NaN"):
        texture.query_color(lambda p: p * torch.nan, np.zeros((1, 3)))


def test_albedo_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected albedo \[1, 3\], got \[1, 4\]"):
        texture.query_color(lambda p: torch.zeros(1, 4), np.zeros((1, 3)))


def test_layers_count_the_triangles_over_a_texel_and_shared_edges_once():
    uv, faces = square().uv, square().faces
    assert (texture.uv_layers(uv, faces, 32) == 1).all()
    folded = np.concatenate([faces, [[0, 1, 3]]])
    assert (texture.uv_layers(uv, folded, 64) == 2).mean() == pytest.approx(0.5, abs=0.02)


@cache
def torus(size=256):
    """A torus, unwrapped for a texture of ``size``."""
    mesh = repair.without_slivers(solids.surface(solids.torus, 48), 1.0)
    mesh = repair.without_slivers(decimate.decimate(mesh, 3000), 1.0)  # xatlas places triangles without area anywhere
    return uv.unwrap(replace(mesh, normals=meshes.vertex_normals(mesh)), size)


def waves(points):
    """A colour with a period of a quarter of a unit, about ten texels."""
    return 0.5 + 0.5 * np.sin(25.0 * points)


def across_seams(mesh, texture):
    """Bilinear lookups [n, 2, 3] on both sides of points along all seams."""
    uv = along_seams(mesh, mesh.uv)
    return np.stack([bilinear(texture, uv[:, side]) for side in (0, 1)], axis=1) / 255.0


@pytest.mark.parametrize("supersample", [1, 2])
def test_lookups_on_both_sides_of_every_seam_agree(supersample):
    seen = across_seams(torus(), texture.bake(torus(), waves, 256, supersample=supersample)[0])
    apart = np.abs(seen[:, 0] - seen[:, 1]).max(axis=1)
    assert len(apart) > 1000 and apart.max() < 0.12 and np.percentile(apart, 99) < 0.03 and apart.mean() < 0.005


def test_extrapolation_beyond_the_charts_halves_the_seams():
    mesh = torus()
    texels = texture.rasterize_uv(mesh.uv, mesh.faces, 256)
    copied = np.zeros((256 * 256, 3), dtype=np.uint8)
    copied[texels.index] = texture.to_bytes(waves(texels.interpolate(mesh, mesh.vertices)))
    copied = texture.pad_texture(copied.reshape(256, 256, 3), covered(texels))
    plain, extrapolated = (across_seams(mesh, picture) for picture in (copied, texture.bake(mesh, waves, 256)[0]))
    assert np.abs(extrapolated[:, 0] - extrapolated[:, 1]).mean() < 0.5 * np.abs(plain[:, 0] - plain[:, 1]).mean()


def test_mipmaps_have_no_seams():
    def slow(points):
        return 0.5 + 0.5 * np.sin(4.0 * points)

    mesh = torus(1024)
    picture = texture.bake(mesh, slow, 1024)[0].astype(np.float64)
    for level in (1, 2):
        picture = picture.reshape(len(picture) // 2, 2, -1, 2, 3).mean(axis=(1, 3))
        seen = across_seams(mesh, picture)
        apart = np.abs(seen[:, 0] - seen[:, 1]).max(axis=1)
        assert apart.max() < 0.06 * level and apart.mean() < 0.002 * level, level


def test_padding_leaves_no_texel_without_a_colour():
    picture, coverage = texture.bake(torus(), lambda points: np.full((len(points), 3), 0.7), 256)
    assert coverage < 0.9 and (picture == 178).all()


def test_supersampling_takes_the_mean_of_what_a_texel_covers():
    def stripes(points):
        return np.repeat((np.floor(points[:, :1] * 64) % 2 == 0).astype(float), 3, axis=1)

    picture, _ = texture.bake(square(), stripes, 16, supersample=4)
    assert set(np.unique(texture.bake(square(), stripes, 16)[0])) <= {0, 255} and (picture == 128).all()


def test_baking_in_bands_equals_baking_at_once(monkeypatch):
    whole = texture.bake(torus(), waves, 256, supersample=2)[0]
    monkeypatch.setattr(texture, "_BAND", 2**13)
    with listening() as tasks:
        bands = texture.bake(torus(), waves, 256, supersample=2)[0]
    np.testing.assert_array_equal(bands, whole)
    assert tasks[0].doing == "baking colours" and tasks[0].done == tasks[0].total > 8


def test_the_colour_of_a_part_does_not_run_into_another_one():
    """A box of two colours: lookups agree with the truth from two texels on beyond the border, in the next mipmap from four."""
    solid = trimesh.creation.box((1.0, 1.0, 1.0)).subdivide().subdivide().subdivide()
    turned = trimesh.transformations.rotation_matrix(0.4, [1, 2, 3])[:3, :3]
    mesh = Mesh(np.asarray(solid.vertices, dtype=np.float64) @ turned.T, np.asarray(solid.faces, dtype=np.int64))
    flat = uv.unwrap(replace(mesh, normals=meshes.vertex_normals(mesh)), 256)

    def two(points):
        return np.where(points[:, 1:2] > 0.03, [[0.9, 0.1, 0.1]], [[0.9, 0.9, 0.9]])

    baked = texture.bake(flat, two, 256)[0] / 255.0
    points, face = meshes.scatter(flat, 20_000, np.random.default_rng(0))
    weights = np.linalg.solve(np.moveaxis(flat.corners[face], 1, 2), points[:, :, None])[:, :, 0]
    place = (weights[:, :, None] * flat.uv[flat.faces[face]]).sum(1)
    half = baked.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    area = np.linalg.norm(mesh.face_normals, axis=1).sum() / 2
    texel = np.sqrt(area / (np.count_nonzero(texture.uv_layers(flat.uv, flat.faces, 256))))
    for picture, reach in ((baked, 2.0), (half, 4.0)):
        away = np.abs(points[:, 1] - 0.03) > reach * texel
        wrong = np.abs(bilinear(picture, place) - two(points)).max(axis=1)
        assert away.mean() > 0.8 and wrong[away].max() < 0.02
