"""A texture fitted to photographs: its renders, the least squares, photographs that show another light, and texels nearby."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from nerf.mesh import texture_fit
from nerf.mesh.mesh import Mesh
from nerf.mesh.photo_colors import PhotoColors
from nerf.run.mesh_evaluation import TexturedMesh, render
from tests.nerf.mesh.test_photo_colors import camera, pictured, plain, wall

SIZE, BOUND, NEAR = 48, 2.0, 0.002


def textured(seed=0) -> Mesh:
    """The wall with a random texture."""
    texels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    return replace(wall(), texture=texels)


def white(view):
    """A picture of full weight."""
    return torch.full((view.height, view.width, 4), 255, dtype=torch.uint8)


def around(count, height=3.5):
    """Cameras that look at the wall."""
    return [camera(np.sin(a) * 1.3, np.cos(a) * 1.3, height) for a in np.linspace(0, 6, count)]


def given(matrix, photo, colour, weight=None) -> texture_fit.Pixels:
    """Pixels with a given matrix."""
    weight = np.ones(len(photo), np.float32) if weight is None else weight
    return texture_fit.Pixels(
        csr_matrix(matrix.astype(np.float32)),
        np.arange(matrix.shape[1]),
        np.array(photo),
        (colour * weight[:, None]).astype(np.float32),
        weight,
        int(max(photo)) + 1,
    )


def test_the_matrix_renders_what_the_evaluation_of_a_mesh_shows(monkeypatch):
    monkeypatch.setattr(texture_fit, "_FINE", (3, 3))  # as many samples of a pixel as the evaluation has
    mesh, view = textured(), camera(1.0, 0.5, 3.0)
    pixels = texture_fit.pixels_of(mesh, [(view, white(view))], BOUND, NEAR)
    faces = torch.from_numpy(mesh.faces)
    shown = TexturedMesh(
        torch.from_numpy(mesh.vertices).float(), faces, torch.from_numpy(mesh.uv).float(), faces, mesh.texture / 255.0
    )
    colour, coverage = render(shown, view, NEAR, BOUND)
    expected = colour[coverage > 0.999].numpy()
    found = pixels.render(mesh.texture.reshape(-1, 3)[pixels.used] / 255.0)
    assert len(expected) > 300
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(pixels.matrix.sum(axis=1), 1.0, rtol=1e-5)


def test_the_transpose_is_the_transpose():
    mesh, view = textured(), camera(1.0, 0.5, 3.0)
    pixels, rng = texture_fit.pixels_of(mesh, [(view, white(view))], BOUND, NEAR), np.random.default_rng(0)
    texels, other = rng.normal(size=(len(pixels.used), 3)), rng.normal(size=(len(pixels.photo), 3))
    assert (pixels.render(texels) * other).sum() == pytest.approx((texels * pixels.gather(other)).sum(), rel=1e-5)


def test_one_photograph_gives_the_solution_of_the_normal_equations(monkeypatch):
    monkeypatch.setattr(texture_fit, "_STEPS", 12)
    rng = np.random.default_rng(0)
    matrix, colour, start = rng.random((30, 8)), rng.random((30, 3)), rng.random((8, 3)).astype(np.float32)
    weight = rng.uniform(0.2, 1.0, 30).astype(np.float32)
    found, confidence = texture_fit.fit(given(matrix, [0] * 30, colour, weight), start)
    left = matrix.T @ (weight[:, None] * matrix) + texture_fit._KEEP * np.eye(8)
    expected = start + np.linalg.solve(left, matrix.T @ (weight[:, None] * (colour - matrix @ start)))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(confidence, [1.0], rtol=1e-5)


def test_photographs_that_contradict_the_others_count_less():
    """Nine photographs of a grey wall, two of which show it white, as a reflection does: a mean would be off by 0.11."""
    mesh = replace(wall(), texture=np.full((SIZE, SIZE, 3), 128, dtype=np.uint8))
    photos = [
        (view, white(view) if k < 2 else white(view) // 2 + 128 * (torch.arange(4) == 3)) for k, view in enumerate(around(9))
    ]
    found, confidence = texture_fit.fitted(mesh, photos, BOUND, NEAR)
    middle = found[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4]
    assert np.abs(middle - 127 / 255.0).max() < 0.02
    assert confidence[:2].max() < 0.1 * confidence[2:].min()
    assert confidence.mean() == pytest.approx(1.0, abs=0.1)


def test_the_confidence_weighs_the_colours_of_points_too():
    photos = [plain(view, (1, 1, 1) if k < 2 else (0.5, 0.5, 0.5)) for k, view in enumerate(around(9))]
    seen, mesh = PhotoColors(photos, wall(), BOUND), replace(wall(), texture=np.full((SIZE, SIZE, 3), 128, dtype=np.uint8))
    origin, up, grey = np.zeros((1, 3)), np.array([[0.0, 0.0, 1.0]]), np.full((1, 3), 0.5)
    assert seen.over(origin, up, grey)[0, 0] > 0.6
    seen.fitted(mesh)
    assert seen.over(origin, up, grey)[0, 0] < 0.52


def test_texels_beside_those_that_are_shown_change_with_them_and_others_stay():
    change, used = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([5 * 12 + 5])
    picture = texture_fit._spread(change, used, 12)
    away = np.hypot(*np.meshgrid(np.arange(12) - 5, np.arange(12) - 5))
    np.testing.assert_array_equal(picture[away <= 2.0], np.broadcast_to(change, ((away <= 2.0).sum(), 3)))
    assert not picture[away > 2.0].any()


def test_fine_textures_have_no_texels_that_no_sample_reaches():
    """A texture of six texels for a pixel: without more samples, those between them would keep their first colour."""
    mesh, views = replace(wall(), texture=np.full((256, 256, 3), 255, dtype=np.uint8)), around(3)
    black = torch.tensor([0, 0, 0, 255], dtype=torch.uint8)
    found, _ = texture_fit.fitted(mesh, [(view, black.expand(view.height, view.width, 4)) for view in views], BOUND, NEAR)
    assert np.quantile(found[20:-20, 20:-20], 0.99) < 0.45 and np.abs(found[20:-20, 20:-20]).mean() < 0.2


def test_the_back_of_a_surface_shows_none_of_its_texels():
    view = camera(0.0, 0.01, -4.0)
    assert texture_fit.pixels_of(textured(), [(view, white(view))], BOUND, NEAR) is None


def test_many_pixels_have_fewer_samples_and_at_last_a_share_of_them():
    most, sampling = texture_fit._MOST_SAMPLES, texture_fit._sampling
    assert sampling(1000, 1, 1000) == (2, 1) and sampling(1000, 1, 50_000) == (5, 1) and sampling(0, 1, 1e6) == (8, 1)
    assert sampling(most / 400, 100, 1000) == (2, 1)
    assert sampling(most / 200, 100, 1000) == (1, 1)
    assert sampling(most / 40, 100, 1000) == (1, 3)


def test_some_of_the_pixels_give_nearly_the_same_texture(monkeypatch):
    exact, views = textured(), around(9)
    smooth = replace(exact, texture=np.full((SIZE, SIZE, 3), 128, dtype=np.uint8))
    pictures = [pictured(view, exact, exact.texture / 255.0)() for view in views]
    photos = [(one.view, (one.rgba * 255).round().to(torch.uint8)) for one in pictures]
    monkeypatch.setattr(texture_fit, "_MOST_SAMPLES", 9 * 64 * 64 // 3)
    found, _ = texture_fit.fitted(smooth, photos, BOUND, NEAR)
    middle = (slice(8, -8), slice(8, -8))
    off = np.abs(found[middle] - exact.texture[middle] / 255.0).mean()
    assert off < 0.7 * np.abs(smooth.texture[middle] / 255.0 - exact.texture[middle] / 255.0).mean()


def test_a_photograph_without_pixels_in_the_fit_counts_as_the_mean():
    """Its weight is that of its colours at vertices; without differences it would be the greatest."""
    colour = np.random.default_rng(0).uniform(0, 1, (40, 3))
    pixels = replace(given(np.tile(np.eye(4), (10, 1)), np.repeat([0, 2], 20), colour), count=4)
    _, confidence = texture_fit.fit(pixels, np.full((4, 3), 0.5, np.float32))
    assert confidence[1] == confidence[3] == 1.0
    np.testing.assert_allclose(confidence[[0, 2]].mean(), 1.0, atol=1e-6)
