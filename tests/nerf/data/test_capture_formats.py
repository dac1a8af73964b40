"""Readers of LLFF, Polycam, Record3D, Metashape and RealityCapture: points project where they were seen, or a sentence."""

import json
import math

import numpy as np
import pytest
import torch

from nerf.core.cameras import project
from nerf.core.errors import UserError
from nerf.core.structs import Views
from nerf.data.folder import FORMATS, read_folder, recognise
from tests.nerf.data.captures import FOCAL, HEIGHT, POINTS, WIDTH, photographs, poses, seen

JPG = [f"{i}.jpg" for i in range(5)]


def projected(frame, width=WIDTH, height=HEIGHT, points=POINTS):
    """Pixels [P, 2] of points by the program's own camera of a frame."""
    lens = frame.intrinsics
    fx, fy, cx, cy = (torch.tensor([value]).double() for value in lens.scaled_to(width, height))
    zero = torch.zeros(1).double()
    distortion, fisheye = torch.tensor([lens.distortion]).double(), torch.tensor([lens.fisheye])
    views = Views(frame.pose[None], fx, fy, cx, cy, height, width, zero, zero, zero, zero, distortion, fisheye)
    return project(views, points)[0][0]


def check(dataset, expected_poses, expected=seen, **size):
    """Every camera sees the points where ``expected(pose)`` says, in the order of the frames' names."""
    frames = sorted(dataset.frames, key=lambda frame: frame.name)
    assert len(frames) == len(expected_poses)
    for frame, pose in zip(frames, expected_poses, strict=True):
        torch.testing.assert_close(projected(frame, **size), expected(pose), atol=1e-6, rtol=0)


def refuse(folder, words):
    with pytest.raises(UserError, match=words) as error:
        read_folder(folder, 0)
    assert "\n" not in str(error.value)


# ---- LLFF ----


def llff(folder, images="images", rows=None, near=1.5, far=6.0, count=5):
    """poses_bounds.npy of a capture whose full size is twice that of the files: columns down, right, back | position | size."""
    photographs(folder / images, JPG[:count])
    table = []
    for pose in poses(count):
        right, up, back, position = pose[:3].T
        size = torch.tensor([2.0 * HEIGHT, 2.0 * WIDTH, 2.0 * FOCAL]).double()
        table.append(torch.cat([torch.stack([-up, right, back, position, size], -1).reshape(-1), torch.tensor([near, far])]))
    np.save(folder / "poses_bounds.npy", torch.stack(table).numpy() if rows is None else rows)
    return folder


def test_llff_projects_points_where_they_were_seen(tmp_path):
    dataset = read_folder(llff(tmp_path), 0)
    check(dataset, poses())
    assert recognise(tmp_path)[0].name == "LLFF" and dataset.downscaled == 1


def test_llff_box_lies_between_the_bounds_and_holds_the_cameras(tmp_path):
    dataset = read_folder(llff(tmp_path), 0)
    centre, half = dataset.box
    position = torch.stack([frame.pose[:3, 3] for frame in dataset.frames])
    assert (position - centre).norm(dim=-1).max() < half
    ahead = (centre - position.mean(0)).norm()
    assert 1.5 < ahead < 6.0
    assert read_folder(llff(tmp_path / "flat", near=0.0), 0).box is None


def test_llff_reads_a_folder_of_reduced_photographs_where_it_is_asked_for_or_alone(tmp_path):
    llff(tmp_path)
    photographs(tmp_path / "images_4", [f"image{i:03d}.png" for i in range(5)], (WIDTH // 4, HEIGHT // 4))
    dataset = read_folder(tmp_path, 0, 4)
    assert dataset.downscaled == 4 and dataset.frames[0].image.parent.name == "images_4"
    check(dataset, poses(), lambda pose: seen(pose) / 4, width=WIDTH // 4, height=HEIGHT // 4)
    assert read_folder(tmp_path, 0, 2).downscaled == 1
    alone = read_folder(llff(tmp_path / "alone", images="images_8"), 0)
    assert alone.downscaled == 1 and alone.frames[0].image.parent.name == "images_8"


def test_llff_holds_out_photographs(tmp_path):
    assert len(read_folder(llff(tmp_path), 2).splits["test"]) == 3


@pytest.mark.parametrize("rows, words", [
    (np.zeros((5, 16)), r"expected rows of 17 finite numbers, got float64 \[5, 16\]"),
    (np.full((5, 17), np.nan), "expected rows of 17 finite numbers"),
    (np.array([{}] * 5, dtype=object), "poses_bounds.npy cannot be read"),
    (np.zeros((5, 17)), "row 0: height, width and focal length must be positive, got 0, 0, 0"),
    (np.ones((5, 17)), 'row 0: the left 3x3 of "pose" must be a rotation'),
    (np.ones((4, 17)), "it has 4 cameras, and there are 5 photographs"),
])  # fmt: skip
def test_broken_llff_files_are_refused(tmp_path, rows, words):
    refuse(llff(tmp_path, rows=rows), words)


# ---- Polycam ----


def polycam(folder, cameras="corrected_cameras", images="corrected_images", **changes):
    photographs(folder / "keyframes" / images, JPG)
    (folder / "keyframes" / cameras).mkdir(parents=True, exist_ok=True)
    for i, pose in enumerate(poses()):
        entry = {f"t_{r}{c}": pose[r, c].item() for r in range(3) for c in range(4)}
        entry |= {"fx": FOCAL, "fy": FOCAL, "cx": 31.0, "cy": 25.0, "width": WIDTH, "height": HEIGHT, "blur_score": 10.0}
        (folder / "keyframes" / cameras / f"{i}.json").write_text(json.dumps(entry | changes))
    return folder


def test_polycam_projects_points_and_knows_up(tmp_path):
    dataset = read_folder(polycam(tmp_path), 0)
    check(dataset, poses(), lambda pose: seen(pose, centre=(31.0, 25.0)))
    assert dataset.up.tolist() == [0, 1, 0]
    check(read_folder(tmp_path / "keyframes", 0), poses(), lambda pose: seen(pose, centre=(31.0, 25.0)))


def test_polycam_uses_the_tracked_cameras_where_there_are_no_corrected_ones(tmp_path, caplog):
    dataset = read_folder(polycam(tmp_path, "cameras", "images"), 0)
    assert len(dataset.frames) == 5 and "there are no corrected cameras" in caplog.text
    assert read_folder(polycam(tmp_path), 0).frames[0].image.parent.name == "corrected_images"


def test_polycam_depth_maps_are_millimetres(tmp_path):
    polycam(tmp_path)
    photographs(tmp_path / "keyframes" / "depth", ["1.png"])
    frames = read_folder(tmp_path, 0).frames
    assert [frame.depth is not None for frame in frames] == [False, True, False, False, False]
    assert frames[1].depth_unit == 1e-3


@pytest.mark.parametrize("changes, words", [
    ({"fx": 0}, r'0.json: "fx" must be a positive number, got 0'),
    ({"t_11": None}, r'0.json: "t_11" must be a number, got None'),
    ({"t_00": 9.0}, 'must be a rotation, but its columns'),
])  # fmt: skip
def test_broken_polycam_files_are_refused(tmp_path, changes, words):
    refuse(polycam(tmp_path, **changes), words)


def test_polycam_without_photographs_is_refused(tmp_path):
    polycam(tmp_path)
    for path in (tmp_path / "keyframes" / "corrected_images").iterdir():
        path.unlink()
    refuse(tmp_path, r"none of the photographs that it lists \(5\) exists")


# ---- Record3D ----


def quaternion(rotation):
    """(x, y, z, w) of a rotation, by its definition with half the angle about its axis."""
    angle = math.acos(max(-1.0, min(1.0, (rotation.trace().item() - 1) / 2)))
    axis = torch.stack([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    axis = axis / axis.norm()
    return [*(axis * math.sin(angle / 2)).tolist(), math.cos(angle / 2)]


def record3d(folder, name="metadata.json", frames="rgb", each=False, **changes):
    photographs(folder / frames, JPG)
    document = {
        "w": 2 * WIDTH, "h": 2 * HEIGHT,
        "K": [2 * FOCAL, 0, 0, 0, 2 * FOCAL, 0, 62.0, 50.0, 1],
        "poses": [[*quaternion(pose[:3, :3]), *pose[:3, 3].tolist()] for pose in poses()],
    }  # fmt: skip
    if each:
        document["perFrameIntrinsicCoeffs"] = [[2 * FOCAL, 2 * FOCAL, 62.0, 50.0]] * 5
        document["K"] = [1.0] * 9
    (folder / name).write_text(json.dumps(document | changes))
    return folder


@pytest.mark.parametrize("layout", [{}, {"name": "metadata", "frames": "rgbd"}, {"each": True}])
def test_record3d_projects_points_of_reduced_frames(tmp_path, layout):
    dataset = read_folder(record3d(tmp_path, **layout), 0)
    check(dataset, poses(), lambda pose: seen(pose, centre=(31.0, 25.0)))
    assert dataset.up.tolist() == [0, 1, 0]


def test_record3d_sorts_frames_by_their_number(tmp_path):
    record3d(tmp_path)
    document = json.loads((tmp_path / "metadata.json").read_text())
    document["poses"] = document["poses"] * 3
    (tmp_path / "metadata.json").write_text(json.dumps(document))
    photographs(tmp_path / "rgb", [f"{i}.jpg" for i in range(12)])
    dataset = read_folder(tmp_path, 0)
    assert [frame.image.name for frame in dataset.frames] == [f"{i}.jpg" for i in range(12)]
    assert len(dataset.missing) == 3


@pytest.mark.parametrize("changes, words", [
    ({"poses": 3}, 'expected an object with a list "poses"'),
    ({"poses": [[0, 0, 0, 1, 0, 0, 0]]}, "it has 1 pose, and there is a frame .*4.jpg"),
    ({"poses": [[0, 0, 0, 2, 0, 0, 0]] * 5}, "pose 0: its first four numbers must be a unit quaternion, got one of length 2"),
    ({"K": [1, 2]}, '"K" must be 9 numbers'),
    ({"K": [-1.0] * 9}, "focal lengths must be positive, got -1 and -1"),
    ({"w": "wide"}, '"w" must be a positive number'),
])  # fmt: skip
def test_broken_record3d_files_are_refused(tmp_path, changes, words):
    refuse(record3d(tmp_path, **changes), words)


def test_a_record3d_frame_without_a_number_is_refused(tmp_path):
    photographs(record3d(tmp_path) / "rgb", ["first.jpg"])
    refuse(tmp_path, "first.jpg: frames are named by their number")


# ---- Metashape ----

TURN = torch.linalg.qr(torch.tensor([[1.0, 2, 0], [0, 1, 3], [2, 0, 1]]).double())[0]
TURN = TURN * torch.linalg.det(TURN).sign()
SHIFT, SCALE = torch.tensor([5.0, -2.0, 1.0]).double(), 2.5
LENS = {"k1": -0.05, "k2": 0.02, "k3": -0.004, "k4": 0.001, "p1": 0.002, "p2": -0.003, "b1": 1.5}


def metashape(folder, kind="frame", where="component", suffix="", **changes):
    """A file of cameras; its chunk is the world of the poses, turned, scaled and moved by its component."""
    photographs(folder / "photos", [f"DSC_{i}.jpg" for i in range(5)])
    calibration = {"f": FOCAL, "cx": 1.5, "cy": -2.0} | LENS | changes
    cameras = ""
    for i, pose in enumerate(poses()):
        cv = pose.clone()
        cv[:3, 1:3] *= -1  # y down, z forward
        numbers = " ".join(f"{value:.17g}" for value in cv.reshape(-1).tolist())
        cameras += (
            f'<camera id="{i}" sensor_id="0" component_id="0" label="DSC_{i}{suffix}"><transform>{numbers}</transform></camera>'
        )
    cameras += '<camera id="8" sensor_id="0" label="DSC_8"/>'
    cameras += '<camera id="9" sensor_id="0" label="DSC_0" enabled="false"><transform>1</transform></camera>'
    turn = " ".join(f"{value:.17g}" for value in TURN.reshape(-1).tolist())
    place = f"<transform><rotation>{turn}</rotation><translation>5 -2 1</translation><scale>{SCALE}</scale></transform>"
    components = f'<components><component id="0">{place}</component></components>' if where == "component" else ""
    (folder / "cameras.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><document version="1.5.0"><chunk label="1">'
        f'<sensors><sensor id="0" type="{kind}"><resolution width="{WIDTH}" height="{HEIGHT}"/><calibration class="adjusted">'
        + "".join(f"<{key}>{value}</{key}>" for key, value in calibration.items() if value is not None)
        + f"</calibration></sensor></sensors>{components}<cameras>{cameras}</cameras>"
        + f"{place if where == 'chunk' else ''}</chunk></document>"
    )
    return folder


def metashape_pixels(pose, fisheye=False):
    """The camera model of Metashape's manual at the points of the chunk."""
    local = (POINTS - pose[:3, 3]) @ pose[:3, :3]
    x, y = local[:, 0] / -local[:, 2], local[:, 1] / local[:, 2]
    if fisheye:
        r = (x * x + y * y).sqrt()
        x, y = x * r.atan() / r, y * r.atan() / r
    r2 = x * x + y * y
    radial = 1 + LENS["k1"] * r2 + LENS["k2"] * r2**2 + LENS["k3"] * r2**3 + LENS["k4"] * r2**4
    u = x * radial + LENS["p1"] * (r2 + 2 * x * x) + 2 * LENS["p2"] * x * y
    v = y * radial + LENS["p2"] * (r2 + 2 * y * y) + 2 * LENS["p1"] * x * y
    return torch.stack([WIDTH / 2 + 1.5 + u * (FOCAL + LENS["b1"]), HEIGHT / 2 - 2.0 + v * FOCAL], -1)


@pytest.mark.parametrize("kind", ["frame", "fisheye"])
@pytest.mark.parametrize("where", ["component", "chunk"])
@pytest.mark.parametrize("suffix", ["", ".JPG"])
def test_metashape_projects_points_of_its_world(tmp_path, kind, where, suffix, caplog):
    dataset = read_folder(metashape(tmp_path, kind, where, suffix), 0)
    world = SCALE * POINTS @ TURN.T + SHIFT
    for frame, pose in zip(dataset.frames, poses(), strict=True):
        expected = metashape_pixels(pose, kind == "fisheye")
        torch.testing.assert_close(projected(frame, points=world), expected, atol=1e-6, rtol=0)
    assert "1 photograph was not aligned, and left out" in caplog.text


def test_metashape_calibration_without_some_terms_has_them_zero(tmp_path):
    frame = read_folder(metashape(tmp_path, **dict.fromkeys(LENS)), 0).frames[0]
    assert not any(frame.intrinsics.distortion) and frame.intrinsics.fx == FOCAL


@pytest.mark.parametrize("old, new, words", [
    ('type="frame"', 'type="spherical"', "is of the type spherical, and frame and fisheye are read"),
    ('class="adjusted"><f>60.0<', 'class="adjusted"><f>wide<', "f must be a finite number, got 'wide'"),
    ("<f>60.0</f>", "", "width, height and focal length must be positive"),
    ('sensor_id="0" component', 'sensor_id="7" component', "the sensor of camera DSC_0 is not described there"),
    ("<scale>2.5", "<scale>-1", "scale must be positive, got -1"),
    ("</document>", "", "cameras.xml cannot be read: .*no element found"),
    ("<document", "<!DOCTYPE x [<!ENTITY a 'b'>]><document", "declares a document type"),
    ("DSC_", "IMG_", r"none of the photographs that it lists \(5\) exists"),
])  # fmt: skip
def test_broken_metashape_files_are_refused(tmp_path, old, new, words):
    path = metashape(tmp_path) / "cameras.xml"
    path.write_text(path.read_text().replace(old, new))
    refuse(tmp_path, words)


def test_two_photographs_of_one_name_are_refused(tmp_path):
    photographs(metashape(tmp_path) / "other", ["DSC_3.jpg"])
    refuse(tmp_path, "are both called DSC_3, and which of them is meant is not said")


def test_an_xml_file_of_something_else_is_no_dataset(tmp_path):
    (tmp_path / "a.xml").write_text("<settings/>")
    refuse(tmp_path, "there is neither")


# ---- RealityCapture ----

HEADER = "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"


def angles(pose):
    """Heading, pitch and roll in degrees of R = Rz(-heading) Rx(pitch) Ry(roll)."""
    r = pose[:3, :3]
    pitch = math.asin(r[2, 1].item())
    return [
        math.degrees(a)
        for a in (math.atan2(r[0, 1].item(), r[1, 1].item()), pitch, math.atan2(-r[2, 0].item(), r[2, 2].item()))
    ]


def reality_capture(folder, header=HEADER, first="", lens=(0.0,) * 6):
    photographs(folder / "images", [f"{i}.png" for i in range(5)])
    lines = [header]
    for i, pose in enumerate(poses(up=(0.0, 0.0, 1.0))):
        focal, px, py = FOCAL * 36 / WIDTH, 1.0 / WIDTH, -2.0 / WIDTH
        values = [*pose[:3, 3].tolist(), *angles(pose), focal, px, py, *lens]
        lines.append(",".join([f"{i}.png", *(f"{value:.15g}" for value in values)][: header.count(",") + 1]))
    (folder / "cameras.csv").write_text(first + "\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("first", ["", "#cameras 5\n", "\ufeff"])
def test_reality_capture_projects_points_and_knows_up(tmp_path, first):
    dataset = read_folder(reality_capture(tmp_path, first=first), 0)
    check(dataset, poses(up=(0.0, 0.0, 1.0)), lambda pose: seen(pose, centre=(WIDTH / 2 + 1, HEIGHT / 2 - 2)))
    assert dataset.up.tolist() == [0, 0, 1]


def test_reality_capture_looks_north_at_heading_0_and_pitch_90_and_east_at_heading_90(tmp_path):
    photographs(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.csv").write_text("#name,x,y,alt,heading,pitch,roll,f\na.png,0,0,0,0,90,0,30\nb.png,0,0,0,90,90,0,30\n")
    forward = [-frame.pose[:3, 2] for frame in read_folder(tmp_path, 0).frames]
    torch.testing.assert_close(torch.stack(forward), torch.tensor([[0.0, 1, 0], [1, 0, 0]]).double())


def test_reality_capture_has_the_distortion_of_its_columns(tmp_path):
    frame = read_folder(reality_capture(tmp_path, lens=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)), 0).frames[0]
    assert frame.intrinsics.distortion == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@pytest.mark.parametrize("old, new, words", [
    ("\n0.png,", "\n0.png,7,", r"camera 1: expected 16 values, got 17"),
    ("0.png,0", "0.png,east", r"camera 1 \(0.png\): x must be a finite number, got 'east"),
    (".png,", "_x.png,", r"none of the photographs that it lists \(5\) exists"),
    ("#name,x,y", "#name,x,z", "it holds 5 pictures and no file of cameras; add --sfm"),
])  # fmt: skip
def test_broken_reality_capture_files_are_refused(tmp_path, old, new, words):
    path = reality_capture(tmp_path) / "cameras.csv"
    path.write_text(path.read_text().replace(old, new, 1) if "_x" not in new else path.read_text().replace(old, new))
    refuse(tmp_path, words)


# ---- the registry ----


def test_other_tables_and_documents_in_the_folder_do_not_hide_that_there_are_no_cameras(tmp_path):
    photographs(tmp_path, JPG)
    (tmp_path / "notes.csv").write_bytes(b"\xff\xfe a,b\n" * 3)
    (tmp_path / "broken.xml").write_bytes(b"<a\xff")
    (tmp_path / "folder.csv").mkdir()
    refuse(tmp_path, "it holds 5 pictures and no file of cameras; add --sfm")


def test_the_recognised_format_is_said(tmp_path, caplog):
    with caplog.at_level("INFO", "somnia.photographs"):
        read_folder(polycam(tmp_path), 0)
    assert f"{tmp_path} is in the format of Polycam" in caplog.text


def test_plain_pictures_are_told_of_sfm(tmp_path):
    photographs(tmp_path / "images", JPG)
    refuse(tmp_path, "it holds 5 pictures and no file of cameras; add --sfm")


def test_every_format_is_named_where_there_is_none(tmp_path):
    with pytest.raises(UserError) as error:
        read_folder(tmp_path)
    assert all(form.files in str(error.value) for form in FORMATS)
