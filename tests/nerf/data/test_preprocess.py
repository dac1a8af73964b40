"""Preprocessing: any picture becomes the files of an image prompt, which training reads back as they were meant."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import preprocess_image
from nerf.config.config import parse
from nerf.config.references import references
from nerf.core.errors import UserError
from nerf.data import monocular
from nerf.data.image_prompt import image_prompts
from nerf.data.preprocess import (
    Options,
    Tools,
    has_alpha,
    load_tools,
    normalised,
    outputs,
    preprocess,
    read,
    without_background,
)
from tests.nerf.data.test_matting import ball, iou, over

ROOT = Path(__file__).resolve().parents[3]


def picture(mode="RGB", ground=(0.2, 0.35, 0.7)):
    """A green ball on plain ground as a picture of PIL."""
    return Image.fromarray(np.uint8(over(ball(), ground) * 255)).convert(mode)


def made(path, tools=None, **options):
    """(prompt as training reads it, lines) of a preprocessed picture."""
    result = preprocess(path, Options(**({"size": 64} | options)), tools or Tools())
    (one,) = image_prompts(references(parse(["--image", str(result.files[0])])))
    return one, result


def box(alpha):
    """(top, bottom, left, right) of the visible pixels, ends excluded."""
    rows, columns = (np.flatnonzero((np.asarray(alpha) > 0.5).any(axis)) for axis in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_the_object_is_cut_out_and_fills_the_middle_but_for_the_border(tmp_path):
    picture().save(tmp_path / "green ball.v2.png")
    one, result = made(tmp_path / "green ball.v2.png")
    assert result.files == [tmp_path / "green ball.v2_rgba.png"]  # the name keeps its dots and spaces
    top, bottom, left, right = box(one.condition.image[3])
    assert abs(bottom - top - 51) <= 1 and abs(right - left - 51) <= 2 and abs(top + bottom - 64) <= 2  # 0.8 of 64 pixels
    assert abs(left + right - 64) <= 2
    inside = one.condition.image[:3, one.condition.image[3] > 0.5]
    assert (inside[1] > inside[2] + 0.2).all()  # green to its edge, no blue of the ground


FORMATS = {
    "grey": lambda: picture("L", (1, 1, 1)), "palette": lambda: picture().quantize(64), "CMYK": lambda: picture("CMYK"),
    "grey with alpha": lambda: Image.fromarray(np.uint8(ball() * 255)).convert("LA"),
    "16 bits": lambda: Image.fromarray(np.asarray(picture("L", (1, 1, 1))).astype(np.uint16) * 257),
    "1 bit": lambda: Image.fromarray(ball()[..., 3] > 0.5),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_of_picture_is_read(tmp_path, kind):
    path = tmp_path / ("x.tif" if kind == "CMYK" else "x.png")
    FORMATS[kind]().save(path)
    one, _ = made(path)
    top, bottom, left, right = box(one.condition.image[3])
    assert abs(bottom - top - 51) <= 2 and abs(right - left - 51) <= 2


@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 2])
def test_a_turned_photograph_is_upright(tmp_path, orientation):
    """The pixels of the file are turned against the tag, so that what is shown is the same for each."""
    upright = picture()
    undo = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
            8: Image.Transpose.ROTATE_270}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    (upright if undo is None else upright.transpose(undo)).save(tmp_path / "x.jpg", exif=exif, quality=100, subsampling=0)
    shown = read(tmp_path / "x.jpg")
    assert shown.shape == (60, 80, 4)
    assert np.abs(shown[..., :3] - np.asarray(upright) / 255).mean() < 0.01


def test_alpha_that_is_there_is_kept_and_the_models_see_grey_behind_it(tmp_path):
    rgba = ball()
    rgba[..., 3] *= 0.8  # half transparent all over, which no matting would give
    Image.fromarray(np.uint8(np.round(rgba * 255))).save(tmp_path / "x.png")
    seen = []
    tools = Tools(matting=pytest.fail, depth=lambda rgb: seen.append(rgb) or rgb[..., 1])
    one, result = made(tmp_path / "x.png", tools)
    assert "its own alpha is used" in result.lines
    assert abs(float(one.condition.image[3, 32, 32]) - 0.8) < 0.01
    np.testing.assert_allclose(seen[0][0, 0], 0.5, atol=0.01)


def test_an_alpha_channel_without_a_transparent_pixel_says_nothing(tmp_path):
    picture().convert("RGBA").save(tmp_path / "x.png")
    one, result = made(tmp_path / "x.png")
    assert "its own alpha is used" not in result.lines and (one.condition.image[3] < 0.5).any()
    assert not has_alpha(np.ones((9, 9))) and has_alpha(ball()[..., 3])


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_without_recentring_the_framing_is_kept_in_a_square(tmp_path, shape):
    rgba = np.zeros((*shape, 4))
    rgba[10:20, 5:25] = (0, 1, 0, 1)
    Image.fromarray(np.uint8(rgba * 255)).save(tmp_path / "x.png")
    one, _ = made(tmp_path / "x.png", recenter=False, size=90)
    rows, columns = (90 - shape[0]) // 2, (90 - shape[1]) // 2
    assert box(one.condition.image[3]) == (rows + 10, rows + 20, columns + 5, columns + 25)


@pytest.mark.parametrize("scale", [1, 60])
def test_tiny_and_huge_pictures(tmp_path, scale):
    small = np.zeros((6, 5, 4), np.uint8)
    small[1:5, 1:4] = (10, 200, 30, 255)
    Image.fromarray(np.kron(small, np.ones((scale * 10 if scale > 1 else 1,) * 2 + (1,), np.uint8))).save(tmp_path / "x.png")
    one, result = made(tmp_path / "x.png")
    top, bottom, left, right = box(one.condition.image[3])
    assert bottom - top == 51 and abs(right - left - 38) <= 1
    assert any("enlarged" in line for line in result.lines) == (scale == 1)
    colour = one.condition.image[:3, 32, 32]
    torch.testing.assert_close(colour, torch.tensor([10, 200, 30]) / 255, atol=0.01, rtol=0)


def test_a_picture_of_one_pixel_of_an_object(tmp_path):
    dot = np.zeros((5, 5, 4), np.uint8)
    dot[2, 3] = (255, 0, 0, 255)
    Image.fromarray(dot).save(tmp_path / "x.png")
    one, _ = made(tmp_path / "x.png")
    assert float(one.condition.image[3, 32, 32]) > 0.9


def two_objects():
    rgba = np.zeros((40, 60, 4))
    rgba[5:35, 5:25] = (1, 0, 0, 1)
    rgba[10:30, 35:52] = (0, 0, 1, 1)
    rgba[2, 58] = (0, 1, 0, 1)  # dust
    return Image.fromarray(np.uint8(rgba * 255))


@pytest.mark.parametrize("largest", [False, True])
def test_several_objects_become_one_model_or_the_largest_alone(tmp_path, largest):
    two_objects().save(tmp_path / "x.png")
    one, result = made(tmp_path / "x.png", largest=largest)
    image = one.condition.image
    blue = ((image[2] > 0.5) & (image[3] > 0.5)).any()
    assert bool(blue) != largest and any("2 separate objects" in line for line in result.lines) != largest
    top, bottom, left, right = box(image[3])
    expected = (51, 34) if largest else (32, 51)  # without the dust: 30x20, or 30x47
    assert abs(bottom - top - expected[0]) <= 1 and abs(right - left - expected[1]) <= 1


def test_depth_of_16_bits_and_normals_come_back_as_they_were_estimated(tmp_path):
    Image.fromarray(np.uint8(ball() * 255)).save(tmp_path / "x.png")
    x = np.linspace(0, 1, 80)[None].repeat(60, 0)
    normal = np.broadcast_to(np.array([0.6, 0.0, 0.8]), (60, 80, 3))
    one, result = made(tmp_path / "x.png", Tools(depth=lambda rgb: 3 * x + 7, normal=lambda rgb: normal))
    assert [file.name for file in result.files] == ["x_rgba.png", "x_depth.png", "x_normal.png"]
    with Image.open(tmp_path / "x_depth.png") as stored:
        assert stored.mode.startswith("I;16") and stored.getextrema()[1] == 65535
    inside = one.condition.image[3] > 0.5
    row = one.depth[32]
    assert (row[14:50].diff() > 0).all() and one.depth[inside].min() == 0 and one.depth[inside].max() == 1
    torch.testing.assert_close(one.normal[:, 32, 32], torch.tensor([0.6, 0.0, 0.8]), atol=0.01, rtol=0)
    assert (one.depth[~inside & (one.condition.image[3] == 0)] == 0).all()


def test_depth_is_normalised_over_the_object_without_outliers():
    depth = torch.linspace(2, 4, 1000).reshape(25, 40)
    depth[0, 0] = 1e6
    inside = torch.ones(25, 40, dtype=torch.bool)
    inside[-1] = False
    found = normalised(depth, inside)
    assert (found[-1] == 0).all() and found[0, 0] == 1 and abs(found[12, 0] - 0.5) < 0.03
    assert (normalised(depth, ~inside & inside) == 0).all() and torch.isfinite(
        normalised(torch.ones(4, 4), torch.ones(4, 4) > 0)
    ).all()


def test_the_rim_of_a_cut_out_object_has_its_own_colours():
    alpha = ball()[..., 3]
    rgb = over(ball(), (0, 0, 1))
    clean = without_background(rgb, alpha)
    assert clean[alpha > 0][:, 2].max() < 0.1 < rgb[(alpha > 0) & (alpha < 0.5)][:, 2].max()


def test_files_of_an_earlier_picture_do_not_stay_beside_a_new_one(tmp_path):
    picture().save(tmp_path / "x.png")
    (tmp_path / "x_depth.png").write_bytes(b"old")
    _, result = made(tmp_path / "x.png")
    assert not (tmp_path / "x_depth.png").exists() and any("removed" in line for line in result.lines)


BROKEN = {
    "transparent": (lambda: Image.new("RGBA", (9, 9)), "is transparent"),
    "plain": (lambda: Image.new("RGB", (30, 30), (9, 9, 9)), "nothing in it differs from its border"),
    "text": (lambda: None, "not a picture"),
    "cut": (lambda: picture(), "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_picture_that_shows_nothing_is_refused_and_nothing_is_written(tmp_path, case):
    make, words = BROKEN[case]
    buffer = io.BytesIO(b"hello")
    if (image := make()) is not None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    data = buffer.getvalue()
    (tmp_path / "x.png").write_bytes(data[: len(data) // 3] if case == "cut" else data)
    with pytest.raises(UserError, match=words):
        made(tmp_path / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


# ---- the command line ----


def command(*words):
    try:
        return preprocess_image.main([str(word) for word in (*words, "--depth", "none", "--normal", "none")])
    except SystemExit as refused:  # by the reader of the flags
        return refused.code


def test_the_command_makes_what_main_reads(tmp_path, capsys):
    picture().save(tmp_path / "x.png")
    assert command(tmp_path / "x.png", "--size", "48", "--output", tmp_path / "out") == 0
    (one,) = image_prompts(references(parse(["--image", str(tmp_path / "out" / "x_rgba.png")])))
    assert one.condition.image.shape == (4, 48, 48) and "x_rgba.png" in capsys.readouterr().out


def test_one_bad_picture_does_not_stop_the_others(tmp_path, capsys):
    (tmp_path / "a.png").write_text("hello")
    picture().save(tmp_path / "b.png")
    assert command(tmp_path / "a.png", tmp_path / "b.png") == 2
    assert (tmp_path / "b_rgba.png").is_file() and "a.png cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none.png"], "none.png does not exist"),
        (["."], "is not a file"),
        (["x_rgba.png"], "would replace a picture that is given; name a folder with --output"),
        (["x.png", "x.jpg"], "would both become"),
        (["x.png", "--size", "4"], "--size must be between 8 and 4096, got 4"),
        (["x.png", "--border_ratio", "1"], "--border_ratio must be between 0 and 0.9, got 1"),
        (["x.png", "--matting", "none.onnx"], "no such file|needs onnxruntime"),
        (["x.png", "--matting", "u2netp"], "fetch it with: python scripts/fetch_weights.py u2netp"),
        (["x.png", "--matting_layout", "x"], "--matting_layout must be one of"),
        (["x.png", "--output", "x.png"], "is not a folder"),
        (["x.png", "--recenter", "--dont_recenter"], "contradict each other"),
    ],
)
def test_a_wrong_command_is_refused_and_changes_nothing(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOMNIA_MODEL_CACHE", str(tmp_path / "models"))
    for name in ("x.png", "x.jpg", "x_rgba.png"):
        picture().save(name)
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())
    assert command(*words) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before


def test_without_weights_it_says_that_depth_and_normals_are_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("guidance.weights.cached", lambda *_: None)
    picture().save(tmp_path / "x.png")
    assert preprocess_image.main([str(tmp_path / "x.png")]) == 0
    said = capsys.readouterr().out
    assert "--lambda_depth will have no effect" in said and "--lambda_normal will have no effect" in said


def test_the_script_runs_by_itself_and_its_help_is_quick():
    said = subprocess.run(
        [sys.executable, "preprocess_image.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--matting" in said.stdout and said.stderr == ""


@pytest.mark.slow
def test_a_photograph_that_is_cut_out_again_is_the_picture_that_it_was_made_of(tmp_path, test_data):
    """The peer's own picture over plain ground, preprocessed: the same object, at the same place."""
    truth = np.asarray(Image.open(test_data / "image_prompts" / "teddy_rgba.png"), float) / 255
    Image.fromarray(np.uint8(over(truth, (0.55, 0.5, 0.45)) * 255)).save(tmp_path / "teddy.png")
    one, _ = made(tmp_path / "teddy.png", size=256)
    assert iou(one.condition.image[3].numpy(), truth[..., 3]) > 0.95
    assert outputs(tmp_path / "teddy.png", Options())["_depth"].name == "teddy_depth.png"


def test_a_device_that_is_not_there_is_refused_also_where_no_model_would_run_on_it():
    with pytest.raises(UserError, match="--device must be cpu, cuda or cuda:N, got 'quantum'"):
        load_tools("none", "auto", "none", "none", "quantum")


def test_the_advice_for_a_folder_that_is_not_there_is_no_download_of_its_path():
    for name in ("/nonexistent", "a/b/c", "x" * 5000):
        with pytest.raises(UserError, match=f"hf download {monocular.PUBLISHED['depth'][0]} "):
            load_tools("none", "auto", name, "none")
