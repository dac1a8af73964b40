"""Measures from every side: a true shape has no error, and a cave, a hole, turned normals and another kind are seen."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import shape_measure
from benchmarks.mesh_measure import ColoredMesh
from guidance.prior import classifier
from guidance.prior.captions import parse
from guidance.prior.shapes import canonical
from nerf.mesh.soundness import soundness
from tests.benchmarks.test_mesh_measure import mesh_of


@pytest.fixture(scope="module")
def mug():
    return mesh_of("a yellow mug", 64)


def test_true_shape_has_small_errors_and_the_genus_of_the_truth(mug):
    found = shape_measure.from_every_side(mug, canonical("a yellow mug"))
    assert found["boundary_f"] > 0.95 and found["normal"] < 8
    assert found["genus"] == found["true_genus"] == 1
    assert found["caves"] < 0.01 and found["true_caves"] < 0.01


def test_surface_that_is_inside_out_has_normals_the_wrong_way(mug):
    turned = replace(mug, faces=mug.faces[:, ::-1])
    assert shape_measure.normal_error(turned, canonical("a yellow mug")) > 170


def test_normals_of_a_rough_surface_are_off_by_as_much_as_it_is_rough():
    ball, rng = mesh_of("a green ball", 64), np.random.default_rng(0)
    rough = replace(ball, vertices=ball.vertices + 0.004 * rng.standard_normal(ball.vertices.shape))
    smooth, noisy = (shape_measure.normal_error(mesh, canonical("a green ball")) for mesh in (ball, rough))
    assert smooth < 2 and noisy > smooth + 5


def test_views_that_see_no_common_pixel_have_the_error_of_random_normals():
    away = mesh_of("a green ball", 32)
    away = replace(away, vertices=0.01 * away.vertices + 5.0)
    assert shape_measure.normal_error(away, canonical("a green ball")) == 90.0


def test_genus_and_caves_of_a_file_do_not_depend_on_the_seams_of_its_uv(mug):
    whole = shape_measure.sound(mug)
    apart = ColoredMesh(mug.vertices[mug.faces].reshape(-1, 3), np.arange(mug.faces.size).reshape(-1, 3), color=mug.color)
    assert (whole.genus, whole.caves) == (1, shape_measure.sound(apart).caves) and shape_measure.sound(apart).genus == 1


def test_surface_of_a_true_shape_is_closed_and_has_its_handles():
    assert soundness(shape_measure.true_surface(canonical("a green donut"))).genus == 1
    assert soundness(shape_measure.true_surface(canonical("a red pyramid"))).genus == 0


def test_mesh_is_recognised_by_its_shape_and_its_true_shape_beside_it(mug, monkeypatch):
    few = {name: value[:2] for name, value in classifier.views().items()}
    monkeypatch.setattr(classifier, "views", lambda: few)
    found = shape_measure.recognition(mug, canonical("a yellow mug"), parse("a yellow mug").caption)
    assert found["recognised"] == found["true_recognised"] == "mug" and found["lead"] > 0 and found["true_lead"] > 0
    found = shape_measure.recognition(mesh_of("a yellow table", 64), canonical("a yellow mug"), parse("a yellow mug").caption)
    assert found["recognised"] == "table" and found["lead"] < 0
