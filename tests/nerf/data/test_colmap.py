"""COLMAP's sparse models: text and binary are equivalent, and points project to their features."""

import math
import struct
from dataclasses import replace

import pytest
import torch

from nerf.core.cameras import centred_views, look_at, pixel_rays, project
from nerf.core.errors import UserError
from nerf.core.lens import distort
from nerf.data.colmap import CAMERA_MODELS, MODEL_NUMBERS, find_models
from nerf.data.folder import read_folder

NUMBERS = {name: number for number, name in MODEL_NUMBERS.items()}
VALUES = {"f": 50.0, "fx": 50.0, "fy": 55.0, "cx": 31.0, "cy": 23.0, "k1": 0.1, "k2": -0.02, "p1": 0.003, "p2": -0.001}
VALUES |= {"k3": 0.01, "k4": -0.004, "d1": 0.05, "d2": -0.01, "d3": 0.002}


def poses(count):
    """Cameras on an arc that look at the origin."""
    angle = torch.arange(count).double() * 0.2
    return look_at(torch.stack([4 * angle.sin(), 0.3 * angle, 4 * angle.cos()], -1), (0.0, 0.0, 0.0))


def quaternion(rotation):
    """(w, x, y, z) of a rotation [3, 3] whose angle is not near half a turn."""
    w = (1 + rotation.trace()).sqrt() / 2
    axis = torch.stack([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    return [w.item(), *(axis / (4 * w)).tolist()]


def entries(count):
    """Quaternion and translation of each pose, world to camera, y down."""
    flip = torch.tensor([1.0, -1.0, -1.0]).double()
    for pose in poses(count):
        # half a turn about x, so that the quaternion stays far from w = 0 the world is turned with the camera
        rotation = (pose[:3, :3] * flip).T @ torch.diag(flip)
        yield quaternion(rotation), (-rotation @ (torch.diag(flip) @ pose[:3, 3])).tolist()


def write_text(folder, model="PINHOLE", count=4, points=((0.1, 0.2, 0.3),), size=(62, 46), name="{:02d}.png"):
    """A model of a y-down world as text, in ``folder/sparse/0``; the photographs are empty files."""
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    parameters = " ".join(str(VALUES[term]) for term in CAMERA_MODELS.get(model, ("f",)))
    (sparse / "cameras.txt").write_text(f"# Camera list\n7 {model} {size[0]} {size[1]} {parameters}\n")
    lines = ["# Image list"]
    for i, (q, t) in enumerate(entries(count)):
        lines += [" ".join(map(str, [i + 1, *q, *t, 7, name.format(i)])), "" if i % 2 else "1.5 2.5 -1 3.5 4.5 9"]
        touch(folder, name.format(i))
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    (sparse / "points3D.txt").write_text(
        "# points\n" + "".join(f"{i} {x} {y} {z} 9 9 9 0.5 1 2 3 4\n" for i, (x, y, z) in enumerate(points))
    )
    return folder


def write_binary(folder, model="PINHOLE", count=4, points=((0.1, 0.2, 0.3),), size=(62, 46), name="{:02d}.png"):
    """The same as :func:`write_text`, as COLMAP's binary files."""
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    values = [VALUES[term] for term in CAMERA_MODELS[model]]
    camera = struct.pack(f"<QiiQQ{len(values)}d", 1, 7, NUMBERS[model], *size, *values)
    (sparse / "cameras.bin").write_bytes(camera)
    data = struct.pack("<Q", count)
    for i, (q, t) in enumerate(entries(count)):
        data += struct.pack("<i7di", i + 1, *q, *t, 7) + name.format(i).encode() + b"\0"
        data += struct.pack("<Q", i % 2) + (i % 2) * struct.pack("<ddq", 1.5, 2.5, -1)
        touch(folder, name.format(i))
    (sparse / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for i, (x, y, z) in enumerate(points):
        data += struct.pack("<Q3d3BdQ", i, x, y, z, 9, 9, 9, 0.5, 2) + struct.pack("<4i", 1, 2, 3, 4)
    (sparse / "points3D.bin").write_bytes(data)
    return folder


def touch(folder, name):
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


WRITERS = pytest.mark.parametrize("write", [write_text, write_binary])


@WRITERS
def test_poses_are_those_that_were_written(tmp_path, write):
    frames = read_folder(write(tmp_path), 0).frames
    turned = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])).double()  # the world of the file has y down
    assert [f.name for f in frames] == ["00.png", "01.png", "02.png", "03.png"]
    torch.testing.assert_close(torch.stack([turned @ f.pose for f in frames]), poses(4))


def plane_point(model, u, v):
    """Where a camera of this model sees (u, v, 1), y downwards, in pixels: the formulas of COLMAP's documentation."""
    has = {term: VALUES[term] if term in CAMERA_MODELS[model] else 0.0 for term in VALUES}
    if model.endswith("FISHEYE"):
        r = math.hypot(u, v)
        u, v = u * math.atan(r) / r, v * math.atan(r) / r
    r2 = u * u + v * v
    radial = 1 + has["k1"] * r2 + has["k2"] * r2**2 + has["k3"] * r2**3 + has["k4"] * r2**4
    radial /= 1 + has["d1"] * r2 + has["d2"] * r2**2 + has["d3"] * r2**3
    x = u * radial + 2 * has["p1"] * u * v + has["p2"] * (r2 + 2 * u * u)
    y = v * radial + 2 * has["p2"] * u * v + has["p1"] * (r2 + 2 * v * v)
    fx, fy = (VALUES["fx"], VALUES["fy"]) if "fx" in CAMERA_MODELS[model] else (VALUES["f"], VALUES["f"])
    return fx * x + VALUES["cx"], fy * y + VALUES["cy"]


@WRITERS
@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_every_camera_model_projects_by_its_formula_and_its_rays_invert_it(tmp_path, write, model):
    lens = read_folder(write(tmp_path, model), 0).frames[0].intrinsics
    fx, fy, cx, cy = (torch.tensor([value]).double() for value in lens.scaled_to(62, 46))
    views = replace(
        centred_views(torch.eye(4)[None].double(), torch.tensor([40.0]), 46, 62),
        fx=fx, fy=fy, cx=cx, cy=cy,
        distortion=torch.tensor([lens.distortion]).double(),
        fisheye=torch.tensor([True]) if lens.fisheye else None,
    )  # fmt: skip
    for u, v in ((0.2, -0.1), (-0.4, 0.3)):
        xy = torch.tensor([plane_point(model, u, v)]).double()
        torch.testing.assert_close(project(views, torch.tensor([u, -v, -1.0]).double())[0], xy)
        ray = pixel_rays(views, torch.tensor([0]), xy).directions[0]
        torch.testing.assert_close(ray, torch.nn.functional.normalize(torch.tensor([u, -v, -1.0]).double(), dim=0))


@WRITERS
def test_points_of_the_model_are_read(tmp_path, write):
    points = ((0.1, 0.2, 0.3), (-1.0, 2.0, 5.0))
    assert torch.equal(read_folder(write(tmp_path, points=points)).points, torch.tensor(points, dtype=torch.float64))
    assert read_folder(write(tmp_path / "none", points=())).points is None


def test_a_model_without_points_is_read(tmp_path):
    (write_text(tmp_path) / "sparse" / "0" / "points3D.txt").unlink()
    assert read_folder(tmp_path).points is None


def test_names_with_blanks_and_folders_are_read(tmp_path):
    frames = read_folder(write_text(tmp_path, name="left eye/{:02d} .png"), 0).frames
    assert frames[2].name == "left eye/02 .png" and frames[2].image.is_file()


def test_of_several_models_the_one_with_the_most_photographs_is_read(tmp_path):
    write_text(tmp_path, count=2)
    (tmp_path / "sparse" / "0").rename(tmp_path / "sparse" / "1")
    write_binary(tmp_path, count=5)
    (tmp_path / "sparse" / "0").rename(tmp_path / "sparse" / "2")
    write_text(tmp_path, count=3)
    assert len(find_models(tmp_path)) == 3 and len(read_folder(tmp_path, 0).frames) == 5


def test_a_model_may_be_in_sparse_itself_with_photographs_in_the_dataset_folder(tmp_path):
    write_text(tmp_path)
    for path in (*(tmp_path / "sparse" / "0").iterdir(),):
        path.rename(tmp_path / "sparse" / path.name)
    for path in (*(tmp_path / "images").iterdir(),):
        path.rename(tmp_path / path.name)
    (tmp_path / "images").rmdir()
    assert len(read_folder(tmp_path, 0).frames) == 4


@pytest.mark.parametrize("name", ["01.png", "01.png.png"])
def test_masks_are_found_by_the_name_of_their_photograph(tmp_path, name):
    write_text(tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name).touch()
    assert [f.mask and f.mask.name for f in read_folder(tmp_path, 0).frames] == [None, name, None, None]


def test_photographs_that_do_not_exist_are_skipped(tmp_path):
    (write_text(tmp_path) / "images" / "02.png").unlink()
    files = read_folder(tmp_path, 0)
    assert files.missing == ("02.png",) and len(files.frames) == 3


def test_every_nth_photograph_is_held_out(tmp_path):
    files = read_folder(write_text(tmp_path), 3)
    assert [files.frames[i].name for i in files.splits["test"]] == ["00.png", "03.png"]


# ---- refusals ----


def refuse(folder, words):
    with pytest.raises(UserError, match=words):
        read_folder(folder)


def test_a_camera_of_another_model_is_refused(tmp_path):
    refuse(write_text(tmp_path, "FOV"), "line 2: camera model FOV is not supported, .*image_undistorter")


def test_a_binary_camera_of_another_model_is_refused(tmp_path):
    path = write_binary(tmp_path) / "sparse" / "0" / "cameras.bin"
    path.write_bytes(path.read_bytes()[:12] + struct.pack("<i", 10) + path.read_bytes()[16:])
    refuse(tmp_path, "cameras.bin, camera 7: camera model number 10 is not supported")


@pytest.mark.parametrize("file, old, new, words", [
    ("cameras.txt", "PINHOLE 62 46 50.0 55.0", "PINHOLE 62 46 55.0", "line 2: PINHOLE has 4 parameters, got 3"),
    ("cameras.txt", "50.0", "-50.0", "line 2: width, height and focal lengths must be positive, got 62, 46, -50, 55"),
    ("cameras.txt", "62 46", "wide 46", "line 2: expected finite numbers, got wide 46"),
    ("cameras.txt", "7 PINHOLE", "8 PINHOLE", "photograph 00.png has camera 7, which is not described there"),
    ("cameras.txt", "7 PINHOLE 62 46 50.0 55.0 31.0 23.0", "7 PINHOLE", "line 2: expected CAMERA_ID MODEL WIDTH HEIGHT"),
    ("images.txt", "1 ", "1 5", "line 2: the pose must be a unit quaternion"),
    ("images.txt", " 7 00.png", "", "line 2: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"),
    ("images.txt", " 7 00.png", " nan 00.png", "line 2: the number of a camera must be a whole number, got nan"),
    ("points3D.txt", "0.2", "inf", "line 2: expected finite numbers, got 0.1 inf 0.3"),
    ("points3D.txt", "0 0.1 0.2 0.3 9 9 9 0.5 1 2 3 4", "0 0.1", "line 2: expected POINT3D_ID X Y Z"),
])  # fmt: skip
def test_broken_text_is_refused_with_its_line_number(tmp_path, file, old, new, words):
    path = write_text(tmp_path) / "sparse" / "0" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refuse(tmp_path, words)


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
def test_truncated_binary_files_are_refused(tmp_path, file):
    path = write_binary(tmp_path) / "sparse" / "0" / file
    path.write_bytes(path.read_bytes()[:-9])
    refuse(tmp_path, f"{file} ends after .* it was truncated")


def test_binary_points_that_are_not_finite_are_refused(tmp_path):
    refuse(write_binary(tmp_path, points=((0.0, float("nan"), 1.0),)), "points3D.bin holds points that are not finite")


def test_a_text_file_that_holds_bytes_is_refused(tmp_path):
    (write_text(tmp_path) / "sparse" / "0" / "images.txt").write_bytes(b"1 \xff\xfe")
    refuse(tmp_path, "images.txt is not a text file")


def test_a_model_none_of_whose_photographs_exists_is_refused(tmp_path):
    for path in (write_text(tmp_path) / "images").iterdir():
        path.unlink()
    refuse(tmp_path, "none of the photographs that it lists .4. exists; put them there, the first as .*images/00.png")


def test_a_model_without_photographs_is_refused(tmp_path):
    refuse(write_text(tmp_path, count=0), "lists no photograph")


# ---- real data ----


def test_points_of_lund_door_project_to_their_features(test_data):
    files = read_folder(test_data / "lund_door", 0)
    lines = [x.split() for x in (test_data / "lund_door/sparse/0/points3D.txt").read_text().splitlines() if x[0] != "#"]
    place = {int(words[0]): i for i, words in enumerate(lines)}
    text = (test_data / "lund_door/sparse/0/images.txt").read_text().splitlines()
    rows = [line for line in text if not line.startswith("#")]
    for frame, observed in zip(files.frames, rows[1::2], strict=True):
        features = torch.tensor([float(word) for word in observed.split()]).reshape(-1, 3).double()
        features = features[features[:, 2] >= 0]
        points = files.points[[place[int(number)] for number in features[:, 2]]]
        fx, fy, cx, cy = frame.intrinsics.scaled_to(1296, 1936)
        local = (points - frame.pose[:3, 3]) @ frame.pose[:3, :3]
        plane = torch.stack([local[:, 0], -local[:, 1]], -1) / -local[:, 2:]
        distorted = distort(plane, torch.tensor(frame.intrinsics.distortion).double())
        projected = distorted * torch.tensor([fx, fy]) + torch.tensor([cx, cy])
        assert len(points) > 100 and (projected - features[:, :2]).norm(dim=-1).median() < 1.0


# ---- files as they come ----


def test_a_byte_order_mark_is_no_part_of_a_text_file(tmp_path):
    for path in (write_text(tmp_path) / "sparse" / "0").iterdir():
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b"\n")
    assert len(read_folder(tmp_path, 0).frames) == 4


@pytest.mark.parametrize("name", ["{:02d}.jpg", "a/{:02d}.JPG"])
def test_masks_named_by_a_neighbours_rule_are_found(tmp_path, name, caplog):
    write_text(tmp_path, name=name)
    for i in range(4):
        path = (tmp_path / "masks" / name.format(i)).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [f.mask.name for f in read_folder(tmp_path, 0).frames] == [f"{i:02d}.png" for i in range(4)]
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_masks_that_belong_to_no_photograph_are_a_warning(tmp_path, caplog):
    (write_text(tmp_path) / "masks").mkdir()
    (tmp_path / "masks" / "mask_00.png").touch()
    read_folder(tmp_path, 0)
    assert "masks: 4 of 4 photographs have no mask there, first 00.png" in caplog.text


def test_photographs_without_their_line_of_features_are_refused(tmp_path):
    write_text(tmp_path)
    path = tmp_path / "sparse" / "0" / "images.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if line.startswith("#") or len(line.split()) == 10) + "\n")
    with pytest.raises(UserError, match="images.txt, line 3: expected the features .* every photograph has two lines"):
        read_folder(tmp_path, 0)


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
def test_a_binary_file_with_more_than_it_counts_is_refused(tmp_path, file):
    path = write_binary(tmp_path) / "sparse" / "0" / file
    path.write_bytes(path.read_bytes() + b"\0" * 5)
    with pytest.raises(UserError, match=f"{file} has 5 bytes behind the last"):
        read_folder(tmp_path, 0)


def test_a_count_of_fewer_photographs_than_there_are_is_refused(tmp_path):
    path = write_binary(tmp_path) / "sparse" / "0" / "images.bin"
    path.write_bytes(struct.pack("<Q", 2) + path.read_bytes()[8:])
    with pytest.raises(UserError, match="so its count is damaged"):
        read_folder(tmp_path, 0)


def test_a_camera_with_two_descriptions_is_refused_and_one_that_is_repeated_is_not(tmp_path):
    path = write_text(tmp_path) / "sparse" / "0" / "cameras.txt"
    line = path.read_text().splitlines()[1]
    path.write_text(f"{line}\n{line}\n")
    assert len(read_folder(tmp_path, 0).frames) == 4
    path.write_text(f"{line}\n{line.replace('50.0', '60.0')}\n")
    with pytest.raises(UserError, match="describes camera 7 twice"):
        read_folder(tmp_path, 0)


@pytest.mark.parametrize("word", ["7.5", "1e0", "nan", "9" * 400])
def test_the_number_of_a_camera_is_a_whole_number(tmp_path, word):
    path = write_text(tmp_path) / "sparse" / "0" / "cameras.txt"
    path.write_text(path.read_text().replace("7 PINHOLE", f"{word} PINHOLE"))
    with pytest.raises(UserError, match="line 2: the number of a camera must be a whole number"):
        read_folder(tmp_path, 0)
