"""Datasets of posed photographs: parsing, splits, and the error for each kind of broken input."""

import json
import math
from pathlib import Path

import pytest
import torch

from nerf.core.errors import UserError
from nerf.data.folder import read_folder
from tests.helpers.tasks import listening

IDENTITY = torch.eye(4).tolist()


def write(folder: Path, frames=None, name="transforms.json", count=10, **top) -> Path:
    """A folder whose photographs are empty files, described by one json; no image is opened here."""
    if frames is None:
        frames = [{"file_path": f"{i:02d}.png", "transform_matrix": IDENTITY} for i in range(count)]
    for entry in frames:
        if isinstance(entry, dict) and isinstance(entry.get("file_path"), str):
            (folder / entry["file_path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / entry["file_path"]).touch()
    (folder / name).write_text(json.dumps({"fl_x": 50.0} | top | {"frames": frames}))
    return folder


def one(folder: Path, top=None, **entry) -> Path:
    """A dataset of one photograph with these entries."""
    return write(folder, [{"file_path": "a.png", "transform_matrix": IDENTITY} | entry], **(top or {}))


def names(files, split):
    return [files.frames[i].name for i in files.splits[split]]


def test_every_eighth_photograph_by_name_is_held_out(tmp_path):
    frames = [{"file_path": f"{i:02d}.png", "transform_matrix": IDENTITY} for i in reversed(range(10))]
    files = read_folder(write(tmp_path, frames), 8)
    assert names(files, "test") == ["00.png", "08.png"] == names(files, "val")
    assert names(files, "train") == [f"{i:02d}.png" for i in (1, 2, 3, 4, 5, 6, 7, 9)]


def test_holdout_0_trains_on_everything(tmp_path):
    files = read_folder(write(tmp_path), 0)
    assert len(files.splits["train"]) == 10 and files.splits["test"] == () == files.splits["val"]


def test_blender_splits_are_the_files_of_their_names(tmp_path):
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        frames = [{"file_path": f"{split}/r_{i}.png", "transform_matrix": IDENTITY} for i in range(count)]
        write(tmp_path, frames, f"transforms_{split}.json")
    files = read_folder(tmp_path)
    assert {s: len(files.splits[s]) for s in files.splits} == {"train": 3, "val": 1, "test": 2}
    assert files.splits["train"] == (0, 1, 2)


def test_blender_without_a_test_split_is_tested_on_its_validation_split(tmp_path):
    write(tmp_path, count=4, name="transforms_train.json")
    write(tmp_path, [{"file_path": "v.png", "transform_matrix": IDENTITY}], "transforms_val.json")
    assert names(read_folder(tmp_path), "test") == ["v.png"]


def test_nerfstudio_lists_of_file_names_decide_the_split(tmp_path):
    files = read_folder(write(tmp_path, train_filenames=["01.png", "02.png"], val_filenames=["03.png"]), 8)
    assert names(files, "train") == ["01.png", "02.png"] and names(files, "val") == ["03.png"]


def test_photographs_that_are_not_listed_for_testing_are_for_training(tmp_path):
    files = read_folder(write(tmp_path, test_filenames=["03.png"]), 8)
    assert len(files.splits["train"]) == 9 and names(files, "test") == ["03.png"]


def test_names_without_suffix_and_with_backslashes_are_found(tmp_path):
    write(tmp_path, [{"file_path": "images/r_0.5.png", "transform_matrix": IDENTITY}])
    frames = [{"file_path": ".\\images\\r_0.5", "transform_matrix": IDENTITY}]
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 50.0, "frames": frames}))
    assert read_folder(tmp_path, 0).frames[0].image == tmp_path / "images" / "r_0.5.png"


def test_missing_photographs_are_skipped_and_listed(tmp_path):
    write(tmp_path)
    (tmp_path / "03.png").unlink()
    files = read_folder(tmp_path)
    assert files.missing == ("03.png",) and len(files.frames) == 9


def test_intrinsics_of_a_frame_override_those_of_the_file(tmp_path):
    files = read_folder(one(tmp_path, {"cx": 1.0, "k1": 0.5}, fl_x=70.0, cx=2.0), 0)
    assert (files.frames[0].intrinsics.fx, files.frames[0].intrinsics.cx, files.frames[0].intrinsics.distortion[0]) == (
        70.0,
        2.0,
        0.5,
    )


def test_poses_of_three_rows_are_accepted(tmp_path):
    files = read_folder(one(tmp_path, transform_matrix=IDENTITY[:3]), 0)
    assert torch.equal(files.frames[0].pose, torch.eye(4).double())


def test_rounded_rotations_are_orthonormalised(tmp_path):
    angle = torch.tensor(0.7)
    c, s = round(angle.cos().item(), 3), round(angle.sin().item(), 3)
    pose = [[c, -s, 0, 1], [s, c, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]
    rotation = read_folder(one(tmp_path, transform_matrix=pose), 0).frames[0].pose[:3, :3]
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3).double())


def test_aabb_scale_gives_instant_ngps_box(tmp_path):
    centre, half = read_folder(one(tmp_path, {"aabb_scale": 4}), 0).limit
    assert torch.equal(centre, torch.zeros(3).double()) and math.isclose(half, 2 / 0.33)


def test_scale_and_offset_move_instant_ngps_box(tmp_path):
    top = {"aabb_scale": 1, "scale": 0.5, "offset": [0.5, 0.0, 1.0]}
    centre, half = read_folder(one(tmp_path, top), 0).limit
    assert half == 1.0 and centre.tolist() == [0.0, 1.0, -1.0]


def test_applied_transform_is_undone(tmp_path):
    applied = [[0, 1, 0, 5], [1, 0, 0, 0], [0, 0, -1, 0]]
    to_reconstruction = read_folder(one(tmp_path, {"applied_transform": applied, "applied_scale": 2.0}), 0).to_reconstruction
    original = torch.tensor([1.0, 2.0, 3.0, 1.0]).double()
    in_file = 2 * (torch.tensor(applied).double() @ original)
    torch.testing.assert_close(to_reconstruction @ torch.cat([in_file, original[3:]]), original)


def refuse(folder, words, holdout=8):
    with pytest.raises(UserError, match=words):
        read_folder(folder, holdout)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    refuse(tmp_path / "nowhere", "--data must name a folder .*nowhere does not exist")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    refuse(write(tmp_path) / "transforms.json", "is a file; give the folder that contains it")


def test_a_folder_without_description_is_refused(tmp_path):
    refuse(tmp_path, "there is neither transforms.json or transforms_train.json, dense/sparse with")


def test_folders_named_like_a_format_are_refused(tmp_path):
    for name in ("sparse", "cameras_sphere.npz"):
        (tmp_path / name).mkdir()
    refuse(tmp_path, r"sparse/0 with cameras and images, .bin or .txt \(COLMAP\), cameras_sphere.npz \(NeuS\), .* in it; docs")


def test_broken_json_is_refused_with_its_line(tmp_path):
    (tmp_path / "transforms.json").write_text('{\n"fl_x": 1,\n"frames": [}\n')
    refuse(tmp_path, r"transforms.json is not valid JSON, line 3 column 12: Expecting value")


def test_a_binary_file_in_place_of_json_is_refused(tmp_path):
    (tmp_path / "transforms.json").write_bytes(b"\x89PNG\xff\xfe")
    refuse(tmp_path, "transforms.json is not a text file")


def test_a_description_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "transforms.json").mkdir()
    refuse(tmp_path, "transforms.json cannot be read: Is a directory")


def test_json_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "transforms.json").write_text("[" * 100_000)
    refuse(tmp_path, "nested too deeply")


def test_a_folder_without_read_permission_is_refused(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "transforms.json"))

    monkeypatch.setattr(Path, "is_dir", forbidden)
    refuse(tmp_path, "no permission to read .*transforms.json")


def test_an_empty_file_path_counts_as_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [{"file_path": "a.png", "transform_matrix": IDENTITY}])
    frames = [{"file_path": name, "transform_matrix": IDENTITY} for name in ("", ".", "a.png")]
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 50.0, "frames": frames}))
    assert read_folder(".", 0).missing == ("", ".")


@pytest.mark.parametrize(
    "text, got", [("[]", "a list"), ("3", "3"), ("{}", "nothing in it"), ('{"frames": 3}', "an object with frames")]
)
def test_json_without_frames_is_refused(tmp_path, text, got):
    (tmp_path / "transforms.json").write_text(text)
    refuse(tmp_path, f'expected an object with a list "frames", got .*{got}')


def test_no_frames_at_all_is_refused(tmp_path):
    refuse(write(tmp_path, []), "transforms.json lists no photograph")


def test_photographs_that_are_all_missing_are_refused_with_the_first_path(tmp_path):
    (tmp_path / "transforms.json").write_text(
        json.dumps({"fl_x": 1.0, "frames": [{"file_path": "images/x.png", "transform_matrix": IDENTITY}]})
    )
    refuse(tmp_path, "none of the photographs that it lists .1. exists; put them there, the first as .*images/x.png")


def test_holding_out_everything_is_refused(tmp_path):
    refuse(write(tmp_path, count=3), "--holdout 1 holds out every one of the 3 photographs", holdout=1)


@pytest.mark.parametrize("entry", [3, {}, {"file_path": 7}])
def test_frames_without_a_file_path_are_refused(tmp_path, entry):
    refuse(write(tmp_path, [entry]), 'frame 0: expected an object with a string "file_path"')


def test_a_missing_mask_is_refused(tmp_path):
    refuse(one(tmp_path, mask_path="masks/a.png"), r'frame 0 \(a.png\): its "mask_path" masks/a.png does not exist')
    refuse(one(tmp_path, normal_path="normals/a.png"), r'its "normal_path" normals/a.png does not exist')


@pytest.mark.parametrize(
    "pose, words",
    [
        (None, "must be 4x4 numbers, got None"),
        ("no", "must be 4x4 numbers, got 'no'"),
        (5, "must be 4x4 numbers, got 5"),
        ([[1, 2], [3]], "must be 4x4 numbers"),
        ([[1.0, 0.0], [0.0, 1.0]], "must be 4x4 numbers, got 2x2"),
        ([[math.nan] * 4] * 4, "not finite"),
        ([[10**400] * 4] * 4, "must be 4x4 numbers"),
        (torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])).tolist(), r"must be a rotation, .* are not orthonormal \(error 3\)"),
        (torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])).tolist(), "is a reflection"),
    ],
)
def test_poses_that_are_not_rotations_are_refused(tmp_path, pose, words):
    refuse(one(tmp_path, transform_matrix=pose), words)


def test_a_frame_without_pose_is_refused(tmp_path):
    refuse(write(tmp_path, [{"file_path": "a.png"}]), 'it has no "transform_matrix"')


def test_missing_intrinsics_are_refused(tmp_path):
    refuse(one(tmp_path, {"fl_x": None}), 'there is no focal length; add "fl_x" in pixels or "camera_angle_x"')


@pytest.mark.parametrize(
    "top, words",
    [
        ({"fl_x": "50"}, "\"fl_x\" must be a positive number, got '50'"),
        ({"fl_x": True}, '"fl_x" must be a positive number, got True'),
        ({"fl_x": -3}, '"fl_x" must be a positive number, got -3'),
        ({"fl_x": 10**400}, '"fl_x" must be a positive number, got 1000'),
        ({"train_filenames": 3}, '"train_filenames" must be a list of file names, got 3'),
        ({"test_filenames": ["a.png", 4]}, '"test_filenames" must be a list of file names'),
        ({"k1": math.inf}, '"k1" must be a number, got inf'),
        ({"w": 0}, '"w" must be a positive number, got 0'),
        ({"fl_x": None, "camera_angle_x": 40.0}, '"camera_angle_x" is in radians and must be below pi'),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera model EQUIRECTANGULAR is not supported"),
        ({"camera_model": ["OPENCV"]}, "camera model .'OPENCV'. is not supported"),
        ({"aabb_scale": 0}, '"aabb_scale" must be a positive number, got 0'),
        ({"aabb_scale": "big"}, '"aabb_scale" must be a positive number'),
        ({"aabb_scale": 1, "scale": -1}, '"scale" must be a positive number'),
        ({"aabb_scale": 1, "offset": [1, 2]}, '"offset" must be three numbers'),
        ({"aabb_scale": 1, "offset": "x"}, '"offset" must be three numbers'),
        ({"aabb_scale": 1, "offset": [1, 2, "x"]}, "\"offset\" must be a number, got 'x'"),
        ({"applied_transform": [[0, 0, 0, 0]] * 3}, '"applied_transform" is not invertible'),
        ({"applied_transform": 4}, '"applied_transform" must be 4x4 numbers'),
        ({"applied_scale": 0}, '"applied_scale" must be a positive number'),
    ],
)
def test_entries_of_the_wrong_kind_are_refused(tmp_path, top, words):
    refuse(one(tmp_path, top), words, holdout=0)


# ---- files as they come from other programs ----


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = write(tmp_path) / "transforms.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_folder(tmp_path, 0).frames) == 10


def test_a_number_of_thousands_of_digits_is_refused(tmp_path):
    (write(tmp_path) / "transforms.json").write_text('{"fl_x": ' + "1" * 5000 + ', "frames": []}')
    refuse(tmp_path, "transforms.json: its JSON has a number of thousands of digits")


@pytest.mark.parametrize("listed", ["images/00.png", "./images/00.png", "images//00.png", "images\\00.png", "images/00"])
@pytest.mark.parametrize("in_frame", ["images/00.png", "./images/00.png", "images/00", "images/x/../00.png"])
def test_a_photograph_that_is_listed_for_testing_is_not_trained_on_however_it_is_written(tmp_path, listed, in_frame):
    (tmp_path / "images" / "x").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "images" / f"{i:02d}.png").touch()
    frames = [{"file_path": name, "transform_matrix": IDENTITY} for name in (in_frame, "images/01.png", "images/02.png")]
    text = json.dumps({"fl_x": 50.0, "test_filenames": [listed], "frames": frames})
    (tmp_path / "transforms.json").write_text(text)
    files = read_folder(tmp_path)
    assert names(files, "train") == ["images/01.png", "images/02.png"] and names(files, "test") == [in_frame]


def test_a_listed_name_that_no_frame_has_is_refused(tmp_path):
    refuse(
        write(tmp_path, test_filenames=["00.png", "image/03.png"]),
        "\"test_filenames\" names 1 photograph that .* 'image/03.png'",
    )


def test_a_listed_photograph_that_does_not_exist_is_only_missing(tmp_path):
    write(tmp_path, test_filenames=["00.png", "01.png"])
    (tmp_path / "01.png").unlink()
    files = read_folder(tmp_path)
    assert names(files, "test") == ["00.png"] and files.missing == ("01.png",)


def test_a_photograph_in_two_lists_is_refused(tmp_path):
    both = write(tmp_path, train_filenames=["00.png", "01.png"], test_filenames=["./01.png"])
    refuse(both, "1 photograph is listed both for training and for testing, first .*01.png")


def test_a_photograph_in_two_files_is_a_warning(tmp_path, caplog):
    for split in ("train", "test"):
        frames = [{"file_path": f"./{name}.png", "transform_matrix": IDENTITY} for name in (split, "a")]
        write(tmp_path, frames, f"transforms_{split}.json")
    read_folder(tmp_path)
    assert "1 held-out photograph is also trained on, first ./a.png" in caplog.text


def test_masks_that_no_frame_names_are_a_warning(tmp_path, caplog):
    (write(tmp_path) / "masks").mkdir()
    (tmp_path / "masks" / "00.png").touch()
    read_folder(tmp_path, 0)
    assert "masks: 10 of 10 photographs have no mask there" in caplog.text and '"mask_path"' in caplog.text


@pytest.mark.parametrize("value", [{}, [[{}] * 4] * 4, [[None] * 4] * 4, [["1"] * 4] * 4, [[True] * 4] * 4, [[[1]] * 4] * 4])
def test_poses_of_another_shape_are_refused(tmp_path, value):
    refuse(one(tmp_path, transform_matrix=value), "must be 4x4 numbers")


def test_a_pose_beyond_single_precision_is_refused(tmp_path):
    far = torch.eye(4).tolist()
    far[0][3] = 1e30
    refuse(one(tmp_path, transform_matrix=far), "the pose of a.png has numbers beyond 1e[+]12", holdout=0)


def test_a_name_too_long_for_a_file_is_only_missing(tmp_path):
    frames = [{"file_path": name, "transform_matrix": IDENTITY} for name in ("a.png", "b" * 5000, "c\0d", "\ud800")]
    (tmp_path / "a.png").touch()
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 50.0, "frames": frames}))
    assert len(read_folder(tmp_path, 0).missing) == 3


def test_a_matrix_whose_last_row_is_another_is_refused_and_a_transposed_one_is_named(tmp_path):
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match=r"the last row .* got 1, 2, 3, 1; exchange its rows and columns"):
        read_folder(one(tmp_path, transform_matrix=pose.T.tolist()), 0)
    pose[3] = torch.tensor([5.0, 6.0, 7.0, 8.0])
    with pytest.raises(UserError, match=r"the last row .* got 5, 6, 7, 8; correct it"):
        read_folder(one(tmp_path, transform_matrix=pose.tolist()), 0)


def test_a_list_for_training_alone_leaves_the_others_for_testing(tmp_path):
    files = read_folder(write(tmp_path, count=4, train_filenames=["01.png", "./02.png"]), 8)
    assert names(files, "train") == ["01.png", "02.png"]
    assert names(files, "test") == ["00.png", "03.png"] == names(files, "val")


def test_reading_many_frames_shows_its_progress(tmp_path):
    with listening() as told:
        read_folder(write(tmp_path))
    assert ("reading transforms.json", 10) in [(task.doing, task.total) for task in told]
