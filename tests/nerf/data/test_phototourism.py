"""Phototourism's folders: the split by file names, cameras by their ids, near and far planes, and sentences for bad input."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.config.inputs import DataConfig
from nerf.core.errors import UserError
from nerf.data.folder import read_folder, recognise
from nerf.data.phototourism import depth_ranges, read_table
from nerf.data.posed_images import Photographs
from tests.nerf.tours import ROWS, SIZES, focal, rows_of, write_tour


def names(dataset, split):
    return [dataset.frames[i].name for i in dataset.splits[split]]


def test_the_split_is_that_of_the_table_in_its_order(tmp_path):
    dataset = read_folder(write_tour(tmp_path, rows_of(ROWS)))
    assert recognise(tmp_path)[0].name == "phototourism"
    assert names(dataset, "train") == ["00.jpg", "01.jpg", "03.jpg", "04.jpg"]
    assert names(dataset, "test") == ["02.jpg", "05.jpg"]


def test_cameras_are_looked_up_by_their_own_id_and_not_by_that_of_the_photograph(tmp_path):
    for frame in read_folder(write_tour(tmp_path, rows_of(ROWS))).frames:
        i = int(frame.name[:2])
        assert frame.intrinsics.fx == focal(i)
        assert (frame.intrinsics.width, frame.intrinsics.height) == SIZES[i]


def test_a_missing_photograph_does_not_shift_the_split(tmp_path):
    write_tour(tmp_path, rows_of(ROWS))
    (tmp_path / "dense" / "images" / "01.jpg").unlink()
    dataset = read_folder(tmp_path)
    assert names(dataset, "train") == ["00.jpg", "03.jpg", "04.jpg"] and names(dataset, "test") == ["02.jpg", "05.jpg"]
    assert dataset.missing == ("01.jpg",)


@pytest.mark.parametrize("no_id", ["", "nan", " "])
def test_rows_without_an_id_are_dropped(tmp_path, no_id):
    ids = ["1", no_id, "3", "4", no_id, "6"]
    rows = rows_of(ROWS, ids=ids)
    rows.append("never_registered.jpg\t\ttest\tplace")  # no camera, as its empty id says
    dataset = read_folder(write_tour(tmp_path, rows))
    assert names(dataset, "train") == ["00.jpg", "03.jpg"] and names(dataset, "test") == ["02.jpg", "05.jpg"]


def test_rows_in_another_order_and_more_columns_give_the_same_cameras(tmp_path):
    rows = ["dataset\tsplit\tid\tfilename", *(f"x\t{ROWS[i]}\t{i}\t{i:02d}.jpg" for i in (5, 0, 3, 2, 1, 4)), ""]
    dataset = read_folder(write_tour(tmp_path, rows))
    assert names(dataset, "train") == ["00.jpg", "03.jpg", "01.jpg", "04.jpg"]
    assert [frame.intrinsics.fx for frame in dataset.frames] == [focal(int(frame.name[:2])) for frame in dataset.frames]


def test_without_a_table_the_split_is_that_of_holdout(tmp_path):
    dataset = read_folder(write_tour(tmp_path), holdout=3)
    assert names(dataset, "test") == ["00.jpg", "03.jpg"]


def test_a_table_beside_a_plain_model_splits_it_and_another_table_does_not(tmp_path):
    write_tour(tmp_path, rows_of(ROWS), inside=".")
    assert names(read_folder(tmp_path), "test") == ["02.jpg", "05.jpg"]
    (tmp_path / "place.tsv").write_text("people\tcount\nmany\t9\n")
    assert recognise(tmp_path)[0].name == "COLMAP"


def test_near_and_far_are_quantiles_of_the_depths_of_all_points_in_front(tmp_path):
    points = np.random.default_rng(1).uniform(-1, 1, (500, 3))
    points[:50, 2] -= 100  # behind the cameras
    dataset = read_folder(write_tour(tmp_path, rows_of(ROWS), points=points))
    depth = points[50:, 2] + 4
    expected = np.quantile(depth, (0.001, 0.999))
    np.testing.assert_allclose(dataset.ranges.numpy(), np.tile(expected, (6, 1)), rtol=1e-9)


def test_points_beyond_the_far_plane_of_every_camera_are_left_out():
    points = torch.rand(4000, 3, dtype=torch.float64) + torch.tensor([0, 0, -5.0])
    points[7] = torch.tensor([0.0, 0.0, -1000.0])
    ranges, kept = depth_ranges(torch.eye(4, dtype=torch.float64)[None], points)
    assert not kept[7] and kept.sum() >= 3990 and float(ranges[0, 1]) < 5.1


def test_few_points_say_nothing_of_near_and_far():
    ranges, _ = depth_ranges(torch.eye(4, dtype=torch.float64)[None], -torch.rand(19, 3, dtype=torch.float64))
    assert ranges.tolist() == [[0.0, float("inf")]]


def test_near_planes_follow_the_normalisation_and_the_scene_is_in_the_open(tmp_path):
    splits = Photographs.splits_of(write_tour(tmp_path, rows_of(ROWS)), DataConfig())
    train = splits["train"]
    scale = float(torch.linalg.det(train.transform[:3, :3])) ** (-1 / 3)
    dataset = read_folder(tmp_path)
    expected = dataset.ranges[list(dataset.splits["train"]), 0].float() * scale
    torch.testing.assert_close(train.cameras.near, expected, rtol=1e-4, atol=0)
    scene = train.scene(1.0)
    assert scene.unbounded and torch.equal(scene.pictures.axes, -train.cameras.pose[:, :3, 2])


def test_mixed_sizes_load_with_their_own_pixels(tmp_path):
    train = Photographs.splits_of(write_tour(tmp_path, rows_of(ROWS)), DataConfig())["train"]
    assert train.sizes() == [(30, 40), (40, 30), (24, 44), (44, 24)]
    assert [round(float(train.image(k).mean()) * 255) for k in range(4)] == [0, 10, 30, 40]


# ---- orientation ----


def write_turned(folder, size, camera):
    """A tour whose first photograph is stored on its side: its EXIF tag says to turn it by a quarter, clockwise."""
    write_tour(folder, rows_of(ROWS), sizes=(camera, *SIZES[1:]))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[:, : size[0] // 2] = 200  # the left half as it is stored is the upper one as it is shown
    Image.fromarray(picture).save(folder / "dense" / "images" / "00.jpg", exif=exif, quality=100)
    return Photographs.splits_of(folder, DataConfig())["train"]


def test_a_photograph_on_its_side_is_turned_where_its_camera_is_upright(tmp_path):
    train = write_turned(tmp_path, (40, 30), camera=(30, 40))
    assert train.store.size(0) == (40, 30)
    assert train.image(0)[:18].min() > 0.7 and train.image(0)[22:].max() < 0.1


def test_a_photograph_on_its_side_stays_where_its_camera_was_on_its_side_too(tmp_path):
    train = write_turned(tmp_path, (40, 30), camera=(40, 30))
    assert train.store.size(0) == (30, 40)
    assert train.image(0)[:, :18].min() > 0.7 and train.image(0)[:, 22:].max() < 0.1


# ---- bad input ----


def test_names_that_the_reconstruction_does_not_know_are_one_sentence(tmp_path):
    rows = [*rows_of(ROWS), "a.jpg\t17\ttrain\tplace", "b.jpg\t18\ttest\tplace"]
    with pytest.raises(UserError, match=r"place\.tsv: it lists 2 photographs that the reconstruction has no pose for, first a"):
        read_folder(write_tour(tmp_path, rows))


def test_a_picture_without_a_pose_is_left_out_and_said(tmp_path, caplog):
    write_tour(tmp_path, rows_of(ROWS))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "dense" / "images" / "new.jpg")
    with caplog.at_level(logging.WARNING):
        assert len(read_folder(tmp_path).frames) == 6
    assert "1 picture has no pose and is left out, first new.jpg" in caplog.text


def test_an_empty_split_for_training_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="it lists no photograph for training that exists"):
        read_folder(write_tour(tmp_path, rows_of(["test"] * 6)))


def test_a_table_that_holds_nothing_out_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert not read_folder(write_tour(tmp_path, rows_of(["train"] * 6))).splits["test"]
    assert "no photograph is held out for testing" in caplog.text


def test_several_tables_are_one_sentence(tmp_path):
    write_tour(tmp_path, rows_of(ROWS))
    (tmp_path / "other.tsv").write_text("\n".join(rows_of(ROWS)))
    with pytest.raises(UserError, match=r"several tables of splits \(other.tsv, place.tsv\)"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must name the columns filename, id, split"),
        ("filename\tsplit\na.jpg\ttrain\n", "and id is not among filename, split"),
        ("filename\tid\tsplit\na.jpg\t1\n", "line 2: expected 3 columns, got 2"),
        ("filename\tid\tsplit\na.jpg\t1\tholiday\n", "line 2: the split must be one of train, val, test, got 'holiday'"),
        ("filename\tid\tsplit\na.jpg\t1\ttrain\n./a.jpg\t2\ttest\n", "line 3: ./a.jpg is in two splits"),
    ],
)
def test_a_damaged_table_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "place.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_table(path)
    write_tour(tmp_path)
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path)


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "place.tsv"
    path.write_text("\n".join(rows_of(ROWS)), encoding="utf-8-sig")
    assert len(read_table(path)) == 6


@pytest.mark.parametrize("wild", [False, True])
def test_a_plain_reconstruction_in_the_wild_shows_more_than_its_points(tmp_path, caplog, wild):
    caplog.set_level("INFO")
    folder = write_tour(tmp_path, rows_of(ROWS)) / "dense"
    train = Photographs.splits_of(folder, DataConfig(scene_scale="points"), wild=wild)["train"]
    assert train.scene_kind == "given" and train.scene(1.0).unbounded == wild
    assert ("--background auto is contracted" in caplog.text) == wild
