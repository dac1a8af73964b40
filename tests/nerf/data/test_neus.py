"""NeuS's folders: matrices are taken apart into the cameras that they were made of."""

import numpy as np
import pytest
import torch

from nerf.core.cameras import look_at
from nerf.core.errors import UserError
from nerf.data.neus import decompose
from nerf.data.transforms import read_folder

K = torch.tensor([[60.0, 0.0, 31.0], [0.0, 50.0, 22.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
CENTRE, SCALE = torch.tensor([10.0, -20.0, 600.0], dtype=torch.float64), 200.0


def poses(count):
    """Cameras on an arc around the ball at CENTRE."""
    angle = torch.arange(count).double() * 0.3
    offset = torch.stack([3 * angle.sin(), torch.full_like(angle, 0.4), 3 * angle.cos()], -1)
    return look_at(SCALE * offset + CENTRE, CENTRE.tolist())


def projection(pose, camera=K):
    """The matrix [4, 4] from the world to pixels of a pose with OpenGL axes."""
    rotation = (pose[:3, :3] * torch.tensor([1.0, -1.0, -1.0])).T
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = camera @ torch.cat([rotation, -rotation @ pose[:3, 3:]], -1)
    return matrix


def scale_matrix():
    matrix = torch.diag(torch.tensor([SCALE, SCALE, SCALE, 1.0], dtype=torch.float64))
    matrix[:3, 3] = CENTRE
    return matrix


def write(folder, count=4, masks=True, factor=1.0, **changed):
    """A folder of empty photographs; ``changed`` replaces (or, as None, leaves out) matrices."""
    for name in ("image", "mask")[: 1 + masks]:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i:03d}.png").touch()
    matrices = {f"world_mat_{i}": (factor * projection(pose)).numpy() for i, pose in enumerate(poses(count))}
    matrices |= {f"scale_mat_{i}": scale_matrix().numpy() for i in range(count)}
    np.savez(folder / "cameras_sphere.npz", **{k: v for k, v in (matrices | changed).items() if v is not None})
    return folder


@pytest.mark.parametrize("factor", [1.0, 0.01, -3.0])
def test_a_matrix_of_any_scale_and_sign_comes_apart_into_lens_and_pose(factor):
    for pose in poses(4):
        lens, found = decompose(factor * projection(pose)[:3], "here")
        assert (lens.fx, lens.fy, lens.cx, lens.cy) == pytest.approx((60.0, 50.0, 31.5, 22.5))
        torch.testing.assert_close(found, pose)


def test_skew_of_the_image_axes_does_not_disturb_the_pose():
    camera = K.clone()
    camera[0, 1] = 0.3
    lens, found = decompose(projection(poses(3)[2], camera)[:3], "here")
    assert lens.fx == pytest.approx(60.0)
    torch.testing.assert_close(found, poses(3)[2])


def test_cameras_keep_their_world_and_the_box_is_around_the_unit_ball(tmp_path):
    files = read_folder(write(tmp_path), 0)
    torch.testing.assert_close(torch.stack([f.pose for f in files.frames]), poses(4))
    torch.testing.assert_close(files.box[0], CENTRE)
    assert files.box[1] == pytest.approx(SCALE) and files.recorded is None


def test_photographs_with_unit_balls_of_their_own_are_brought_to_the_first_ones(tmp_path):
    other = scale_matrix()
    other[:3] *= 2  # the same camera in a world of twice the size
    twice = poses(2)[1]
    twice[:3, 3] *= 2
    files = read_folder(write(tmp_path, 2, world_mat_1=projection(twice).numpy(), scale_mat_1=other.numpy()), 0)
    torch.testing.assert_close(torch.stack([f.pose for f in files.frames]), poses(2))


def test_masks_are_the_opacity_of_the_photograph_of_the_same_place(tmp_path):
    frames = read_folder(write(tmp_path), 0).frames
    assert [f.alpha.name for f in frames] == [f.image.name for f in frames] and frames[0].mask is None
    assert read_folder(write(tmp_path / "bare", masks=False), 0).frames[0].alpha is None


def test_cameras_without_scale_prescribe_no_box(tmp_path):
    bare = {f"scale_mat_{i}": None for i in range(4)}
    assert read_folder(write(tmp_path, **bare), 0).box is None


# ---- refusals ----


def refuse(folder, words):
    with pytest.raises(UserError, match=words):
        read_folder(folder)


def test_a_missing_matrix_is_named(tmp_path):
    refuse(write(tmp_path, world_mat_2=None), "there is no world_mat_2; it needs one for each photograph")


@pytest.mark.parametrize("wrong", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_a_matrix_that_cannot_be_one_is_refused(tmp_path, wrong):
    refuse(write(tmp_path, world_mat_1=wrong), "world_mat_1 must be 4x4 finite numbers whose left 3x3 can be inverted")


def test_a_matrix_of_no_camera_is_refused(tmp_path):
    flat = np.diag([1e-6, 1.0, 1.0, 1.0])
    refuse(write(tmp_path, world_mat_0=flat, scale_mat_0=None), "world_mat_0: it is no camera's, as the focal lengths")


def test_masks_of_another_number_are_refused(tmp_path):
    (write(tmp_path) / "mask" / "003.png").unlink()
    refuse(tmp_path, "expected a mask for each of 4 photographs, got 3 in mask")


def test_a_folder_without_photographs_is_refused(tmp_path):
    refuse(write(tmp_path, count=0), "cameras_sphere.npz describes no photograph")


def test_a_file_that_is_not_an_archive_is_refused(tmp_path):
    (write(tmp_path) / "cameras_sphere.npz").write_bytes(b"not an archive")
    refuse(tmp_path, "cannot be read as arrays of numbers")


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    write(tmp_path, world_mat_1=np.array([Trap()], dtype=object))
    refuse(tmp_path, "cannot be read as arrays of numbers: Object arrays cannot be loaded")


# ---- real data ----


def test_cameras_of_dtu_stand_around_their_unit_ball_and_look_at_it(test_data):
    files = read_folder(test_data / "dtu_scan24", 0)
    centre, radius = files.box
    assert len(files.frames) == 49 and radius == pytest.approx(231.07, abs=0.01)
    for frame in files.frames:
        offset = centre - frame.pose[:3, 3]
        assert 2.5 < offset.norm() / radius < 3.5
        assert torch.dot(offset / offset.norm(), -frame.pose[:3, 2]) > 0.95
        assert frame.lens.fx == pytest.approx(frame.lens.fy, rel=0.01)
