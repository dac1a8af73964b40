"""NeuS's format: projection matrices are decomposed into the intrinsics and poses that they were composed of."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.core.cameras import look_at
from nerf.core.errors import UserError
from nerf.data.folder import read_folder
from nerf.data.image_store import decode_opacity
from nerf.data.neus import decompose_projection

K = torch.tensor([[60.0, 0.0, 31.0], [0.0, 50.0, 22.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
CENTRE, SCALE = torch.tensor([10.0, -20.0, 600.0], dtype=torch.float64), 200.0


def poses(count):
    """Cameras on an arc around the sphere at CENTRE."""
    angle = torch.arange(count).double() * 0.3
    offset = torch.stack([3 * angle.sin(), torch.full_like(angle, 0.4), 3 * angle.cos()], -1)
    return look_at(SCALE * offset + CENTRE, CENTRE.tolist())


def projection(pose, camera=K):
    """The projection matrix [4, 4] from world to pixels of a camera-to-world pose with OpenGL axes."""
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
def test_a_matrix_of_any_scale_and_sign_is_decomposed(factor):
    for pose in poses(4):
        intrinsics, found = decompose_projection(factor * projection(pose)[:3], "here")
        assert (intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy) == pytest.approx((60.0, 50.0, 31.5, 22.5))
        torch.testing.assert_close(found, pose)


def test_skew_does_not_affect_the_pose():
    camera = K.clone()
    camera[0, 1] = 0.3
    intrinsics, found = decompose_projection(projection(poses(3)[2], camera)[:3], "here")
    assert intrinsics.fx == pytest.approx(60.0)
    torch.testing.assert_close(found, poses(3)[2])


def test_poses_stay_in_their_world_and_the_box_is_around_the_unit_sphere(tmp_path):
    files = read_folder(write(tmp_path), 0)
    torch.testing.assert_close(torch.stack([f.pose for f in files.frames]), poses(4))
    torch.testing.assert_close(files.box[0], CENTRE)
    assert files.box[1] == pytest.approx(SCALE) and files.to_reconstruction is None


def test_photographs_with_different_unit_spheres_are_brought_to_the_first(tmp_path):
    other = scale_matrix()
    other[:3] *= 2  # the same camera in a world of twice the size
    twice = poses(2)[1]
    twice[:3, 3] *= 2
    files = read_folder(write(tmp_path, 2, world_mat_1=projection(twice).numpy(), scale_mat_1=other.numpy()), 0)
    torch.testing.assert_close(torch.stack([f.pose for f in files.frames]), poses(2))


def test_masks_are_the_alpha_of_the_photograph_at_the_same_position(tmp_path):
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
    refuse(write(tmp_path, world_mat_2=None), "there is no world_mat_2; expected one for each photograph")


@pytest.mark.parametrize("wrong", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_a_malformed_matrix_is_refused(tmp_path, wrong):
    refuse(write(tmp_path, world_mat_1=wrong), "world_mat_1 must be 4x4 finite numbers whose left 3x3 is invertible")


def test_a_matrix_that_is_no_projection_is_refused(tmp_path):
    flat = np.diag([1e-6, 1.0, 1.0, 1.0])
    refuse(
        write(tmp_path, world_mat_0=flat, scale_mat_0=None),
        "world_mat_0: not the projection matrix of a camera, as its focal lengths",
    )


def test_a_wrong_number_of_masks_is_refused(tmp_path):
    (write(tmp_path) / "mask" / "003.png").unlink()
    refuse(tmp_path, "expected one mask for each of 4 photographs, got 3 in mask")


def test_a_folder_without_photographs_is_refused(tmp_path):
    refuse(write(tmp_path, count=0), "cameras_sphere.npz lists no photograph")


def test_a_file_that_is_not_an_archive_is_refused(tmp_path):
    (write(tmp_path) / "cameras_sphere.npz").write_bytes(b"not an archive")
    refuse(tmp_path, "cannot be read: File is not a zip file; export the cameras again")


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    write(tmp_path, world_mat_1=np.array([Trap()], dtype=object))
    refuse(tmp_path, "cannot be read: Object arrays cannot be loaded")


# ---- real data ----


def test_cameras_of_dtu_surround_their_unit_sphere_and_look_at_it(test_data):
    files = read_folder(test_data / "dtu_scan24", 0)
    centre, radius = files.box
    assert len(files.frames) == 49 and radius == pytest.approx(231.07, abs=0.01)
    for frame in files.frames:
        offset = centre - frame.pose[:3, 3]
        assert 2.5 < offset.norm() / radius < 3.5
        assert torch.dot(offset / offset.norm(), -frame.pose[:3, 2]) > 0.95
        assert frame.intrinsics.fx == pytest.approx(frame.intrinsics.fy, rel=0.01)


# ---- damaged archives ----


def rewrite(folder, **how):
    """The archive of a folder, packed again."""
    path = write(folder) / "cameras_sphere.npz"
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def test_a_truncated_archive_is_one_sentence(tmp_path):
    path = rewrite(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    refuse(tmp_path, "cameras_sphere.npz cannot be read: .*; export the cameras again")


def test_damaged_compressed_data_is_one_sentence(tmp_path):
    path = rewrite(tmp_path, compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    refuse(tmp_path, "cameras_sphere.npz cannot be read: .*; export the cameras again")


@pytest.mark.parametrize("place, value, words", [(8, 99, "compression method"), (6, 1, "encrypted|password")])
def test_an_archive_that_python_cannot_unpack_is_one_sentence(tmp_path, place, value, words):
    path = rewrite(tmp_path)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset + place] |= value
            at = data.find(signature, at + 4)
    path.write_bytes(data)
    refuse(tmp_path, f"cameras_sphere.npz cannot be read: .*({words})")


@pytest.mark.parametrize(
    "wrong, words",
    [
        (np.eye(4).astype(complex), "world_mat_1 must be 4x4 numbers, got complex128"),
        (np.full((4, 4), "a"), "world_mat_1 must be 4x4 numbers, got <U1"),
        (np.zeros((4, 4), dtype=[("x", "f8")]), "world_mat_1 must be 4x4 numbers, got"),
        (np.eye(200), "world_mat_1 must be 4x4 numbers, got 320128 bytes"),
        (np.full((4, 4), np.inf), "world_mat_1 must be 4x4 finite numbers"),
        (np.eye(4) * 1e200, "cameras_sphere.npz"),
    ],
)
def test_an_array_of_another_kind_is_one_sentence(tmp_path, wrong, words):
    refuse(write(tmp_path, world_mat_1=wrong), words)


def test_arrays_that_are_no_cameras_are_not_read(tmp_path):
    write(tmp_path, notes=np.array([object()], dtype=object))
    assert len(read_folder(tmp_path, 0).frames) == 4


def test_opacity_of_zeros_and_ones_is_opaque_where_it_is_one(tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "a.png")
    assert torch.equal(decode_opacity(tmp_path / "a.png"), 255 * torch.eye(8, dtype=torch.uint8))
    assert torch.equal(decode_opacity(tmp_path / "a.png", 2), 128 * torch.eye(4, dtype=torch.uint8))


def test_more_matrices_than_photographs_are_refused_as_the_others_would_shift(tmp_path):
    write(tmp_path)
    for name in ("image", "mask"):
        (tmp_path / name / "001.png").unlink()
    refuse(tmp_path, "it has 4 matrices world_mat_i for 3 photographs")


def test_hidden_files_and_folders_are_no_photographs(tmp_path):
    write(tmp_path)
    (tmp_path / "image" / "._000.png").touch()
    (tmp_path / "image" / "old.png").mkdir()
    assert [frame.name for frame in read_folder(tmp_path, 0).frames] == [f"{i:03d}.png" for i in range(4)]


@pytest.mark.parametrize("diagonal", [(-1, -1, -1, 1), (1, 200, 3, 1), (200, 200, 200, 0)])
def test_a_scale_matrix_that_is_no_similarity_is_refused(tmp_path, diagonal):
    refuse(write(tmp_path, scale_mat_0=np.diag(np.array(diagonal, float))), "scale_mat_0 must scale all axes alike")
