"""Camera paths: past the cameras of photographs, and files in nerfstudio's format."""

import json

import pytest
import torch

from nerf.core.cameras import look_at
from nerf.core.errors import UserError
from nerf.data.camera_path import SceneCameras, read_camera_path

EYE = torch.eye(4).double()


def cameras(position, target):
    return SceneCameras(look_at(position.double(), target), 0.5, 0.4, EYE)


def ring(count=12, span=360.0, radius=3.0):
    angle = torch.deg2rad(torch.arange(count).double() * span / count - span / 2)
    return torch.stack([radius * angle.sin(), 0.2 * torch.ones_like(angle), radius * angle.cos()], -1)


def test_cameras_on_all_sides_give_a_circle_and_those_on_one_side_a_swing():
    around = cameras(ring(), (0.0, 0.0, 0.0)).path(16, 40, 60)
    assert around.azimuth.sort().values.diff().max() < 25
    swing = cameras(ring(span=80.0), (0.0, 0.0, 0.0)).path(16, 40, 60)
    assert swing.azimuth.abs().max() < 45 and swing.azimuth.max() > 15 and swing.azimuth.min() < -15
    torch.testing.assert_close(swing.azimuth[0], swing.azimuth[8], atol=1e-2, rtol=0)  # back where it began, on its way back


def test_cameras_that_look_outwards_are_followed_in_their_order_and_never_left():
    """A walk along two walls of a room, around a corner: the centre of the cameras is in the wall."""
    first = torch.stack([torch.linspace(0, 4, 9), torch.zeros(9), torch.zeros(9)], -1)
    second = torch.stack([torch.full((8,), 4.0), torch.zeros(8), torch.linspace(0.5, 4, 8)], -1)
    position = torch.cat([first, second])
    middle = torch.tensor([2.0, 0.0, 2.0])
    path = cameras(position, (2 * position - middle).double()).path(40, 40, 40)
    distance = (path.pose[:, None, :3, 3] - position).norm(dim=-1).amin(-1)
    assert distance.max() < 0.5
    forward = -path.pose[:, :3, 2]
    outward = torch.nn.functional.normalize(path.pose[:, :3, 3] - middle, dim=-1)
    assert (forward * outward).sum(-1).min() > 0.8
    torch.testing.assert_close(path.pose[0, :3, 3], position[0], atol=0.8, rtol=0)


# ---- files ----


def write(folder, poses=2, flat=True, **changes):
    """A path of cameras that move along x, in the file's world."""
    entries = []
    for i in range(poses):
        pose = torch.eye(4)
        pose[0, 3] = i
        rows = pose.reshape(-1).tolist() if flat else pose.tolist()
        entries.append({"camera_to_world": rows, "fov": 60.0, "aspect": 1.5})
    document = {"camera_type": "perspective", "render_height": 40, "render_width": 60, "fps": 12, "camera_path": entries}
    path = folder / "path.json"
    path.write_text(json.dumps(document | changes))
    return path


@pytest.mark.parametrize("flat", [True, False])
def test_a_path_in_the_scene_is_read_as_it_is(tmp_path, flat):
    path = read_camera_path(write(tmp_path, flat=flat), None, 8, 8)
    assert (path.fps, path.views.height, path.views.width) == (12, 40, 60)
    assert path.views.pose[:, 0, 3].tolist() == [0, 1]
    torch.testing.assert_close(path.views.fx, torch.full((2,), 20 / torch.tensor(0.5773502691896257).item()))
    assert path.views.cx.tolist() == [30, 30] and path.views.fovy.tolist() == [60, 60]


def test_a_path_in_the_dataset_s_world_is_normalised_with_it(tmp_path):
    to_source = EYE.clone()
    to_source[:3, :3] = 2.0 * torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]).double()  # +Y up becomes +Z up
    to_source[:3, 3] = torch.tensor([5.0, 6.0, 7.0])
    pose = read_camera_path(write(tmp_path), to_source, 8, 8).views.pose.double()
    torch.testing.assert_close(to_source[:3, :3] / 2 @ pose[1, :3, :3], torch.eye(3).double())
    torch.testing.assert_close(to_source[:3, :3] @ pose[1, :3, 3] + to_source[:3, 3], torch.tensor([1.0, 0, 0]).double())


def test_nerfstudio_s_own_placement_beside_the_file_is_undone(tmp_path):
    placed = {"transform": [[0, 1, 0, 3], [-1, 0, 0, 0], [0, 0, 1, 0]], "scale": 0.5}
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps(placed))
    pose = read_camera_path(write(tmp_path), None, 8, 8).views.pose
    for i in range(2):
        x, y, z = pose[i, :3, 3].tolist()
        assert (0.5 * (y + 3), -0.5 * x, 0.5 * z) == pytest.approx((i, 0, 0), abs=1e-6)
    torch.testing.assert_close(pose[0, :3, :3], torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))


def test_a_record_of_nerfstudio_that_maps_space_to_a_plane_is_refused(tmp_path):
    (tmp_path / "dataparser_transforms.json").write_text(
        json.dumps({"transform": torch.diag(torch.tensor([1.0, 1, 0, 1]))[:3].tolist()})
    )
    with pytest.raises(UserError, match=r'dataparser_transforms.json: the left 3x3 of "transform" must be a rotation'):
        read_camera_path(write(tmp_path), None, 8, 8)


def test_the_duration_decides_the_frame_rate(tmp_path):
    assert read_camera_path(write(tmp_path, 30, seconds=2.0), None, 8, 8).fps == 15
    assert read_camera_path(write(tmp_path, 30, seconds=0), None, 8, 8).fps == 12


def test_sizes_and_fields_of_view_have_defaults(tmp_path):
    path = write(tmp_path, default_fov=50.0)
    document = json.loads(path.read_text())
    del document["render_height"], document["render_width"], document["fps"], document["camera_path"][0]["fov"]
    path.write_text(json.dumps(document))
    found = read_camera_path(path, None, 10, 20)
    assert (found.views.height, found.views.width, found.fps) == (10, 20, 25) and found.views.fovy.tolist() == [50, 60]


def test_a_crop_box_in_the_file_is_not_used_and_that_is_said(tmp_path, caplog):
    read_camera_path(write(tmp_path, crop={"crop_center": [0, 0, 0]}), None, 8, 8)
    assert "its crop box is not used; --mesh_crop cuts the mesh" in caplog.text


@pytest.mark.parametrize("changes, words", [
    ({"camera_path": []}, 'expected an object with a list "camera_path" of 1 to 10000 cameras'),
    ({"camera_path": 3}, 'expected an object with a list "camera_path"'),
    ({"camera_path": [3]}, 'camera 0: expected an object with "camera_to_world", got 3'),
    ({"camera_path": [{"camera_to_world": [1.0] * 15, "fov": 50}]}, 'camera 0: "camera_to_world" must be 4x4 numbers'),
    ({"camera_path": [{"camera_to_world": (2 * EYE)[:3].tolist(), "fov": 50}]}, "must be a rotation"),
    ({"camera_path": [{"camera_to_world": torch.eye(4).tolist()}]}, 'camera 0: "fov" must be a number, got None'),
    ({"camera_path": [{"camera_to_world": torch.eye(4).tolist(), "fov": 180}]}, '"fov" must be between 0.1 and 170, got 180'),
    ({"camera_type": "equirectangular"}, "\"camera_type\" must be perspective, got 'equirectangular'"),
    ({"render_height": 0}, '"render_height" must be between 1 and 8192, got 0'),
    ({"fps": 0}, '"fps" must be between 1 and 240, got 0'),
])  # fmt: skip
def test_a_broken_path_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        read_camera_path(write(tmp_path, **changes), None, 8, 8)


@pytest.mark.parametrize("away", [1e30, 2e4])
def test_a_camera_beyond_the_precision_of_float32_is_refused(tmp_path, away):
    pose = EYE.clone()
    pose[0, 3] = away
    cameras = [{"camera_to_world": EYE.tolist(), "fov": 50}, {"camera_to_world": pose.tolist(), "fov": 50}]
    with pytest.raises(UserError, match="camera 1: it is .* scene units from the middle of the scene, and 10000 is the most"):
        read_camera_path(write(tmp_path, camera_path=cameras), None, 8, 8)
    to_source = torch.diag(torch.tensor([1e30, 1e30, 1e30, 1.0]).double())  # the dataset is that large
    assert len(read_camera_path(write(tmp_path, camera_path=cameras), to_source, 8, 8).views) == 2


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no.json"):
        read_camera_path(tmp_path / "no.json", None, 8, 8)
