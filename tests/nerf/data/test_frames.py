"""What all dataset formats share: intrinsics, splits, files and axes."""

import math
from pathlib import Path

import pytest
import torch

from nerf.core.cameras import look_at
from nerf.core.errors import UserError
from nerf.data.frames import Frame, Intrinsics, find_image, make_dataset, pose_from_opencv, split_by_holdout

NOTHING = {"fx": None, "fy": None, "cx": None, "cy": None}


def frames(names):
    return [Frame(name, Path(name), torch.eye(4), Intrinsics(50.0, None, None, None)) for name in names]


def test_field_of_view_gives_the_focal_length_for_the_width_of_the_image():
    camera = Intrinsics(**NOTHING, fov_x=math.pi / 2)
    assert camera.scaled_to(200, 100) == pytest.approx((100.0, 100.0, 100.0, 50.0))


def test_intrinsics_are_scaled_to_the_size_of_the_image():
    camera = Intrinsics(50.0, 40.0, 33.0, 20.0, width=60.0, height=40.0)
    assert camera.scaled_to(120, 80) == (100.0, 80.0, 66.0, 40.0)


def test_a_rotated_image_is_refused():
    with pytest.raises(UserError, match="270x480 pixels, but its camera is for 480x270; if it was rotated or cropped"):
        Intrinsics(**(NOTHING | {"fx": 50.0}), width=480.0, height=270.0).scaled_to(270, 480)


def test_intrinsics_without_focal_length_and_field_of_view_are_refused():
    with pytest.raises(UserError, match="neither a focal length nor a field of view"):
        Intrinsics(**NOTHING).scaled_to(20, 10)


def test_every_nth_photograph_in_the_order_of_names_is_held_out():
    groups = split_by_holdout(frames(["c", "a", "d", "b", "e"]), 3)
    assert [f.name for f in groups["test"]] == ["a", "d"] and [f.name for f in groups["train"]] == ["b", "c", "e"]
    assert set(split_by_holdout(frames("ab"), 0)) == {"train"}


def test_frames_are_indexed_over_all_splits_training_first():
    files = make_dataset(Path(), Path(), {"test": frames("x"), "train": frames("ab")}, ())
    assert files.splits == {"train": (0, 1), "test": (2,), "val": (2,)}
    assert "".join(f.name for f in files.frames) == "abx"


@pytest.mark.parametrize(
    ("names", "holdout", "sentence"),
    [
        ("ab", 1, "--holdout 1 holds out every one of the 2 photographs; give 2 or more, or 0"),
        ("a", 1, "there is a single photograph, and --holdout 1 holds out the first of every 1; give --holdout 0"),
        ("a", 8, "there is a single photograph, and --holdout 8 holds out the first of every 8; give --holdout 0"),
    ],
)
def test_holding_out_everything_is_refused_with_the_way_out_that_works(names, holdout, sentence):
    with pytest.raises(UserError, match=sentence):
        split_by_holdout(frames(names), holdout)
    assert split_by_holdout(frames(names), 0)["train"]


@pytest.mark.parametrize(("missing", "gone"), [((), ""), (("x", "y"), ", and 2 that it lists do not exist, first x")])
def test_an_empty_training_split_is_refused(missing, gone):
    with pytest.raises(
        UserError, match=f"photos.json: it lists no photograph for training that exists{gone}; correct its lists"
    ):
        make_dataset(Path(), Path("photos.json"), {"test": frames("ab")}, missing)


def test_an_image_is_found_without_its_suffix_and_with_a_backslash(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").touch()
    assert find_image(tmp_path, "a\\b") == tmp_path / "a" / "b.jpg" and find_image(tmp_path, "a/c") is None


def test_an_opencv_pose_looks_along_plus_z_with_y_down():
    ours = look_at(torch.tensor([[1.0, 2.0, 5.0]]).double(), (0.0, 0.0, 0.0))[0]
    right, down, ahead = ours[:3, 0], -ours[:3, 1], -ours[:3, 2]
    pose = pose_from_opencv(torch.stack([right, down, ahead]), ours[:3, 3])
    torch.testing.assert_close(pose, ours)
