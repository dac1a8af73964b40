"""Frames of videos: depth with what stands behind the box, and normals in the axes of the camera."""

import torch

from nerf.core.cameras import centred_views, look_at
from nerf.core.structs import RenderOutput
from nerf.run.evaluation import _depth_picture, _frame


def output(**changes):
    values = {"image": torch.zeros(2, 3), "opacity": torch.zeros(2), "depth": torch.zeros(2), "background": torch.ones(2, 3)}
    return RenderOutput(**(values | changes), shape=(1, 1, 2))


def view_from(position):
    return centred_views(look_at(torch.tensor([position])), torch.tensor([40.0]), 1, 2)


def test_a_surface_that_faces_the_camera_is_blue_wherever_it_stands_and_nothing_is_white():
    for position in ((0.0, 0.0, 2.0), (2.0, 0.0, 0.0), (0.0, 1.5, -1.5)):
        towards = torch.nn.functional.normalize(torch.tensor(position), dim=0)
        out = output(normal=torch.stack([towards, torch.zeros(3)]), opacity=torch.tensor([1.0, 0.0]))
        frame = _frame("normal", out, view_from(position))
        assert abs(frame[0, 0].astype(int) - [128, 128, 255]).max() <= 1 and (frame[0, 1] == 255).all()


def test_the_depth_of_a_background_that_is_a_scene_is_shown_too():
    out = output(opacity=torch.tensor([1.0, 0.0]), depth=torch.tensor([1.0, 0.0]))
    behind = output(
        opacity=torch.tensor([1.0, 0.0]),
        depth=torch.tensor([1.0, 0.0]),
        behind_opacity=torch.ones(2),
        behind_depth=torch.tensor([7.0, 9.0]),
    )
    torch.testing.assert_close(behind.whole[1], torch.tensor([1.0, 9.0]))
    assert (_depth_picture(out, (1, 2))[0, 1] != _depth_picture(behind, (1, 2))[0, 1]).any()
    assert (_frame("depth", behind, view_from((0.0, 0.0, 2.0))) == _depth_picture(behind, (1, 2))).all()
