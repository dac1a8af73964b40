"""What every layout of photographs has in common: lenses, splits, files and axes."""

import math
from pathlib import Path

import pytest
import torch

from nerf.core.cameras import look_at
from nerf.core.errors import UserError
from nerf.data.frames import Frame, Lens, find_picture, from_opencv, gather, held_out

NOTHING = {"fx": None, "fy": None, "cx": None, "cy": None}


def frames(names):
    return [Frame(name, Path(name), torch.eye(4), Lens(50.0, None, None, None)) for name in names]


def test_field_of_view_gives_the_focal_length_of_the_pictures_own_width():
    lens = Lens(**NOTHING, angle_x=math.pi / 2)
    assert lens.pixels(200, 100) == pytest.approx((100.0, 100.0, 100.0, 50.0))


def test_intrinsics_follow_the_pictures_size():
    lens = Lens(50.0, 40.0, 33.0, 20.0, width=60.0, height=40.0)
    assert lens.pixels(120, 80) == (100.0, 80.0, 66.0, 40.0)


def test_a_turned_picture_is_refused():
    with pytest.raises(UserError, match="270x480 pixels, but its camera is for 480x270; was it turned"):
        Lens(**(NOTHING | {"fx": 50.0}), width=480.0, height=270.0).pixels(270, 480)


def test_every_so_manyth_photograph_in_the_order_of_names_is_held_out():
    groups = held_out(frames(["c", "a", "d", "b", "e"]), 3)
    assert [f.name for f in groups["test"]] == ["a", "d"] and [f.name for f in groups["train"]] == ["b", "c", "e"]
    assert set(held_out(frames("ab"), 0)) == {"train"}


def test_gathered_photographs_are_numbered_over_the_splits_training_first():
    files = gather(Path(), Path(), {"test": frames("x"), "train": frames("ab")}, (), 8)
    assert files.splits == {"train": (0, 1), "test": (2,), "val": (2,)}
    assert "".join(f.name for f in files.frames) == "abx"


def test_gathering_nothing_to_train_from_is_refused():
    with pytest.raises(UserError, match="photos.json: no photograph is left to train from; raise --holdout, which is 1"):
        gather(Path(), Path("photos.json"), held_out(frames("ab"), 1), (), 1)


def test_a_picture_is_found_without_its_suffix_and_with_a_foreign_separator(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").touch()
    assert find_picture(tmp_path, "a\\b") == tmp_path / "a" / "b.jpg" and find_picture(tmp_path, "a/c") is None


def test_an_opencv_camera_looks_where_its_z_axis_points_and_has_y_down():
    ours = look_at(torch.tensor([[1.0, 2.0, 5.0]]).double(), (0.0, 0.0, 0.0))[0]
    right, down, ahead = ours[:3, 0], -ours[:3, 1], -ours[:3, 2]
    pose = from_opencv(torch.stack([right, down, ahead]), ours[:3, 3])
    torch.testing.assert_close(pose, ours)
