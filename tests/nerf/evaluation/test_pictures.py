"""Pictures for scorers: a mesh with vertex colours is where the true shape is, crops and backgrounds do what they say."""

import pytest
import torch

from guidance.prior.shapes import canonical
from nerf.evaluation import pictures
from nerf.evaluation.cameras import circle
from nerf.evaluation.pictures import Look
from tests.nerf.evaluation.meshes import mesh_of


@pytest.fixture(scope="module")
def mug():
    return canonical("a yellow mug")


def test_a_mesh_of_a_true_shape_looks_like_the_shape(mug):
    views, look = circle(4, 48), Look(48)
    seen, truth = pictures.of_mesh(mesh_of(mug), views, look), pictures.of_shape(mug, views, look)
    assert seen.shape == truth.shape == (4, 3, 48, 48)
    assert (seen - truth).abs().mean() < 0.01 < (seen - truth.roll(2, 0)).abs().mean()  # and not from the other side


def test_the_background_is_where_nothing_is(mug):
    corners = {
        name: pictures.of_shape(mug, circle(2, 32), Look(32, background=name))[:, :, 0, 0].unique().tolist()
        for name in pictures.BACKGROUNDS
    }
    assert corners == {"white": [1.0], "grey": [0.5], "black": [0.0]}


def test_a_crop_fills_the_picture_with_the_object(mug):
    def share(crop):
        return float((pictures.of_shape(mug, circle(2, 64), Look(64, crop=crop)) < 0.99).any(1).float().mean())

    assert share("object") > 1.5 * share("none")
    colour, nothing = torch.zeros(8, 8, 3), torch.zeros(8, 8)
    assert (Look(8, crop="object").over(colour, nothing) == 1).all()  # nothing is seen: the whole picture


def test_a_mesh_in_the_ball_of_guided_runs_stays_and_others_are_moved_there(mug):
    mesh = mesh_of(mug)
    assert pictures.placed(mesh, "auto") == (mesh, False)
    far = pictures.in_ball(mesh, 3.0, torch.tensor([0.0, 5.0, 0.0]))
    moved, was = pictures.placed(far, "auto")
    low, high = moved.vertices.min(0).values, moved.vertices.max(0).values
    assert was and pictures.reach(moved) == pytest.approx(0.5) and (low + high).abs().max() < 1e-5
    assert pictures.placed(far, "never") == (far, False) and pictures.placed(mesh, "always")[1]
    unit = pictures.unit_ball(far)
    assert pictures.reach(unit) == pytest.approx(1) and unit.vertices.mean(0).abs().max() < 1e-5


def test_what_is_no_look_is_refused():
    with pytest.raises(ValueError, match="expected a size"):
        Look(crop="half")
    with pytest.raises(ValueError, match="expected fit"):
        pictures.placed(None, "sometimes")
