"""Structure from motion on plain pictures: real photographs with known cameras, what is kept, and every refusal."""

import builtins
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.config.inputs import DataConfig
from nerf.core.errors import UserError
from nerf.data import sfm
from nerf.data.folder import read_folder
from nerf.data.posed_images import Photographs
from tests.helpers.tasks import listening
from tests.nerf.data.captures import photographs

pycolmap = pytest.importorskip("pycolmap")
CONFIG = DataConfig(sfm=True, sfm_size=400)


def copy(test_data, folder, count=None):
    """The pictures of lund_door alone."""
    folder.mkdir()
    for path in sorted((test_data / "lund_door" / "images").iterdir())[:count]:
        shutil.copy(path, folder)
    return folder


def aligned_errors(found, known):
    """Distance of camera positions [I, 3] after the best similarity (Umeyama 1991), as a share of the known ones' extent."""
    a, b = found - found.mean(0), known - known.mean(0)
    u, s, vt = torch.linalg.svd(b.T @ a)
    d = torch.ones(3).double()
    d[2] = torch.linalg.det(u @ vt).sign()
    rotation = u @ torch.diag(d) @ vt
    scale = (s * d).sum() / a.square().sum()
    return (scale * a @ rotation.T - b).norm(dim=-1) / b.norm(dim=-1).max(), rotation


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cameras_of_real_photographs_agree_with_the_known_ones(test_data, tmp_path, caplog):
    folder = copy(test_data, tmp_path / "door")
    with caplog.at_level("INFO", "somnia.photographs"), listening() as tasks:
        found = sfm.find_cameras(folder, CONFIG)
    assert found.registered == found.pictures == 12 and found.error < 1.0 and found.points > 300
    assert "12 of 12 pictures (100 %)" in caplog.text and "mean reprojection error" in caplog.text
    assert [task.doing for task in tasks] == ["looking for features", "matching pictures", "placing cameras"]
    ours = {frame.name: frame for frame in read_folder(folder, 0).frames}
    known = {frame.name: frame for frame in read_folder(test_data / "lund_door", 0).frames}
    assert ours.keys() == known.keys()
    positions = [torch.stack([frames[name].pose[:3, 3] for name in sorted(known)]) for frames in (ours, known)]
    errors, rotation = aligned_errors(*positions)
    assert errors.max() < 0.02
    for name in known:
        turn = (rotation @ ours[name].pose[:3, :3]).T @ known[name].pose[:3, :3]
        assert torch.rad2deg(torch.acos(((turn.trace() - 1) / 2).clamp(-1, 1))) < 1.0
    assert abs(ours[name].intrinsics.fx / known[name].intrinsics.scaled_to(324, 484)[0] - 1) < 0.05


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_pictures_give_the_same_cameras_which_are_kept_and_reused(test_data, tmp_path, caplog):
    first, second = (copy(test_data, tmp_path / name, 4) for name in "ab")
    for folder in (first, second):
        sfm.find_cameras(folder, CONFIG)
    names = {path.name for path in (first / "sparse" / "0").iterdir()}
    assert {"cameras.bin", "images.bin", "points3D.bin", sfm.RECORD} <= names
    assert not [path for path in (first / "sparse").iterdir() if path.name != "0"]
    for stem in ("cameras.bin", "images.bin", "points3D.bin"):
        assert (first / "sparse" / "0" / stem).read_bytes() == (second / "sparse" / "0" / stem).read_bytes()
    with caplog.at_level("INFO", "somnia.photographs"):
        assert sfm.find_cameras(first, CONFIG) is None
    assert "has cameras already, in the format of COLMAP, and they are used" in caplog.text
    caplog.clear()
    sfm.warn_of_changes(first)
    assert caplog.text == ""
    shutil.copy(test_data / "lund_door" / "images" / "DSC_0009.JPG", first)
    (first / "DSC_0001.JPG").write_bytes((test_data / "lund_door" / "images" / "DSC_0007.JPG").read_bytes())
    (first / "DSC_0002.JPG").unlink()
    Photographs.splits_of(first, DataConfig(holdout=0))
    assert "1 picture added, 1 picture removed, 1 picture changed since the cameras in sparse/0 were found" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_picture_of_another_scene_is_left_out_and_named(test_data, tmp_path, caplog):
    folder = copy(test_data, tmp_path / "door", 4)
    noise = np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8)
    Image.fromarray(noise).resize((324, 484)).save(folder / "other.jpg")
    found = sfm.find_cameras(folder, CONFIG)
    assert (found.registered, found.pictures) == (4, 5)
    assert "1 picture has no camera and is left out: other.jpg" in caplog.text


@pytest.mark.slow
def test_pictures_without_details_are_refused_and_nothing_is_kept(tmp_path):
    photographs(tmp_path, ["a.png", "b.png", "c.png"])
    with pytest.raises(UserError, match="could not find the camera of any of the 3 pictures"):
        sfm.find_cameras(tmp_path, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_pictures_are_refused(tmp_path, count):
    photographs(tmp_path, ["a.png", "b.png"][:count])
    with pytest.raises(UserError, match=f"at least 3 pictures .* {'is' if count == 1 else 'are'} {count} in"):
        sfm.find_cameras(tmp_path, CONFIG)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        sfm.find_cameras(tmp_path / "no", CONFIG)


def test_without_pycolmap_the_way_to_install_it_is_said(tmp_path, monkeypatch):
    photographs(tmp_path, ["a.png", "b.png", "c.png"])
    monkeypatch.setattr(sfm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'somnia\[sfm\]'"):
        sfm.find_cameras(tmp_path, CONFIG)


def test_colmap_is_not_imported_without_the_flag(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "pycolmap", raising=False)
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a, **k: pytest.fail(name) if name == "pycolmap" else real(name, *a, **k)
    )
    photographs(tmp_path, ["a.png", "b.png", "c.png"])
    with pytest.raises(UserError, match="add --sfm"):
        Photographs.splits_of(tmp_path, DataConfig())


@pytest.mark.parametrize("sizes, exif, asked, single", [
    ([(9, 6), (9, 6)], ["Phone", "Phone"], "auto", True),
    ([(9, 6), (6, 9)], ["Phone", "Phone"], "auto", False),
    ([(9, 6), (9, 6)], ["Phone", "Other"], "auto", False),
    ([(9, 6), (6, 9)], ["Phone", "Other"], "single", True),
    ([(9, 6), (9, 6)], ["Phone", "Phone"], "each", False),
])  # fmt: skip
def test_one_lens_is_shared_by_pictures_of_one_size_and_camera(tmp_path, sizes, exif, asked, single):
    paths = [tmp_path / f"{i}.jpg" for i in range(2)]
    for path, size, model in zip(paths, sizes, exif, strict=True):
        image = Image.new("RGB", size)
        tags = image.getexif()
        tags[sfm.EXIF_MODEL] = model
        image.save(path, exif=tags)
    assert sfm._one_camera(paths, asked) == single


def test_a_broken_picture_is_refused_before_colmap_begins(tmp_path):
    photographs(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(UserError, match="c.png cannot be read"):
        sfm.find_cameras(tmp_path, CONFIG)


def test_a_damaged_record_is_refused_with_the_way_out(tmp_path):
    record = tmp_path / "sparse" / "0" / sfm.RECORD
    record.parent.mkdir(parents=True)
    record.write_text("{")
    with pytest.raises(UserError, match="somnia.json is not valid JSON.*find the cameras again with --sfm"):
        sfm.warn_of_changes(tmp_path)
    record.write_text(json.dumps({"pictures": 3}))
    sfm.warn_of_changes(tmp_path)


def process(code):
    """A process of these lines of Python in place of COLMAP's."""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_the_steps_of_the_process_are_shown_as_they_advance():
    lines = [{"doing": "a", "total": 3}, {"done": 2}, {"doing": "b", "total": 0}, {"done": 0}, {"model": {"names": []}}]
    with listening() as tasks:
        said = sfm._follow(process("\n".join(f"print({json.dumps(line)!r})" for line in lines)))
    assert said == lines[-1] and [(task.doing, task.total, task.done) for task in tasks] == [("a", 3, 2), ("b", 1, 0)]


def test_an_abort_of_colmap_is_one_sentence_with_its_message(tmp_path, monkeypatch):
    aborts = tmp_path / "aborts.py"
    aborts.write_text("import os, sys\nprint('[x.cc:1] Check failed: a == b', file=sys.stderr, flush=True)\nos.abort()\n")
    monkeypatch.setattr(sfm.sfm_process, "__file__", str(aborts))
    with pytest.raises(UserError, match=r"--sfm: COLMAP failed: \[x.cc:1\] Check failed: a == b; replace pictures"):
        sfm._reconstruct(tmp_path, ["a.png"], tmp_path, CONFIG, True)


def test_an_interruption_ends_the_process(tmp_path, monkeypatch):
    waits, started = tmp_path / "waits.py", []
    waits.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(sfm.sfm_process, "__file__", str(waits))

    def interrupted(process):
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(sfm, "_follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sfm._reconstruct(tmp_path, ["a.png"], tmp_path, CONFIG, True)
    assert started[0].poll() is not None


def test_a_file_where_the_cameras_are_kept_is_refused_before_the_search(tmp_path, monkeypatch):
    photographs(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "sparse").write_text("mine")
    monkeypatch.setattr(sfm, "_reconstruct", lambda *_: pytest.fail("the search began"))
    with pytest.raises(UserError, match="sparse, which is a file; remove or rename it"):
        sfm.find_cameras(tmp_path, CONFIG)


def test_a_folder_that_cannot_be_written_is_refused_before_the_search(tmp_path, monkeypatch):
    photographs(tmp_path, ["a.png", "b.png", "c.png"])
    monkeypatch.setattr(sfm.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="which cannot be written to; give a copy of the folder"):
        sfm.find_cameras(tmp_path, CONFIG)
