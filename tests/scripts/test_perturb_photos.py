"""scripts/perturb_photos.py: the folder, its truth, and sentences for bad input."""

import json

import numpy as np
import pytest
from PIL import Image

from nerf.core.errors import UserError
from nerf.data.folder import read_folder
from tests.helpers.scripts import load_script


@pytest.fixture
def main():
    """The script's main."""
    return load_script("perturb_photos").main


@pytest.fixture
def blender(tmp_path):
    """A folder of three training photographs and one for testing, 40x40 with alpha."""
    folder = tmp_path / "scene"
    for split, count in (("train", 3), ("test", 1)):
        (folder / split).mkdir(parents=True)
        frames = []
        for i in range(count):
            pixels = np.full((40, 40, 4), 120, np.uint8)
            pixels[:10, :, 3] = 0
            Image.fromarray(pixels).save(folder / split / f"r_{i}.png")
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": np.eye(4).tolist()})
        document = {"camera_angle_x": 0.7, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(document))
    return folder


def pixels_of(path):
    return np.asarray(Image.open(path)).astype(float)


def test_truth_explains_every_pixel_of_the_perturbed_photographs(main, blender, tmp_path, capsys):
    out = tmp_path / "wild"
    assert main([str(blender), str(out), "--colour", "--occluders", "--seed", "3"]) == 0
    assert "2 photographs perturbed" in capsys.readouterr().out
    truth = json.loads((out / "truth" / "perturbation.json").read_text())
    assert truth["colour"] and truth["occluders"] and truth["seed"] == 3
    assert len(read_folder(out).frames) == 4, "the result is a data set in the same format"
    for i in range(3):
        before, after = (pixels_of(folder / "train" / f"r_{i}.png") for folder in (blender, out))
        said = truth["photographs"][f"./train/r_{i}"]
        occluded = pixels_of(out / said["mask"]) > 0
        assert occluded.sum() == (0 if i == 0 else 100)
        scale, offset = np.array(said.get("scale", [1, 1, 1])), np.array(said.get("offset", [0, 0, 0]))
        expected = np.clip(before[..., :3] / 255 * scale + offset, 0, 1) * 255
        assert np.abs(after[..., :3] - expected)[~occluded].max() <= 0.5 + 1e-9
        np.testing.assert_array_equal(after[..., 3], np.where(occluded, 255, before[..., 3]))
    np.testing.assert_array_equal(pixels_of(out / "test/r_0.png"), pixels_of(blender / "test/r_0.png"))


def test_bad_input_is_one_sentence_and_leaves_nothing(main, blender, tmp_path):
    out = tmp_path / "wild"
    with pytest.raises(UserError, match="nothing is asked for; give --colour, --occluders or both"):
        main([str(blender), str(out)])
    with pytest.raises(UserError, match="has no transforms_train.json"):
        main([str(tmp_path), str(out), "--colour"])
    with pytest.raises(UserError, match="is not empty"):
        main([str(blender), str(blender), "--colour"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give the name of a folder that does not exist"):
        main([str(blender), str(tmp_path / "file"), "--colour"])
    with pytest.raises(UserError, match="out cannot be made: Not a directory; give a folder that can be written to"):
        main([str(blender), str(tmp_path / "file" / "out"), "--colour"])
    (tmp_path / "file").unlink()
    (blender / "train" / "r_1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="r_1.png"):
        main([str(blender), str(out), "--colour"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene"]


def test_a_photograph_outside_the_folder_is_refused(main, blender, tmp_path):
    path = blender / "transforms_train.json"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "outside.png")
    document = json.loads(path.read_text())
    document["frames"][1]["file_path"] = "../outside.png"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="is not inside"):
        main([str(blender), str(tmp_path / "wild"), "--colour"])
    assert (tmp_path / "outside.png").exists()


def test_photographs_of_one_name_in_two_folders_have_a_mask_each(main, blender, tmp_path):
    path = blender / "transforms_train.json"
    document = json.loads(path.read_text())
    (blender / "other").mkdir()
    (blender / "train" / "r_2.png").rename(blender / "other" / "r_1.png")
    document["frames"][2]["file_path"] = "./other/r_1"
    path.write_text(json.dumps(document))
    out = tmp_path / "wild"
    assert main([str(blender), str(out), "--occluders"]) == 0
    said = json.loads((out / "truth" / "perturbation.json").read_text())["photographs"]
    for name in ("./train/r_1", "./other/r_1"):
        left, top, columns, rows = said[name]["square"]
        occluded = pixels_of(out / said[name]["mask"]) > 0
        assert occluded[top : top + rows, left : left + columns].all() and occluded.sum() == rows * columns


def test_names_say_nothing_of_formats_and_masks_come_along(main, blender, tmp_path):
    path = blender / "transforms_train.json"
    document = json.loads(path.read_text())
    (blender / "train" / "r_1.png").rename(blender / "train" / "r_1.jpg")  # with alpha, which a JPEG cannot have
    (blender / "train" / "r_2.png").rename(blender / "train" / "r_2.raw")
    for frame, name in zip(document["frames"][1:], ("./train/r_1.jpg", "./train/r_2.raw"), strict=True):
        frame["file_path"] = name
    document["frames"][0]["mask_path"] = "masks/0.png"
    (blender / "masks").mkdir()
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(blender / "masks" / "0.png")
    path.write_text(json.dumps(document))
    out = tmp_path / "wild"
    assert main([str(blender), str(out), "--colour"]) == 0
    for name in ("r_1.jpg", "r_2.raw"):
        assert Image.open(out / "train" / name).format == "PNG" and pixels_of(out / "train" / name).shape == (40, 40, 4)
    assert read_folder(out).frames[0].mask == out / "masks" / "0.png"
    assert (out / "masks" / "0.png").read_bytes() == (blender / "masks" / "0.png").read_bytes()
