"""Writing images: files read back equal what was written, and depth maps have the documented colours."""

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.core import images
from nerf.core.files import write_atomically


def gradient(height=24, width=32):
    """A smooth image [H, W, 3]: red increases to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x / width, y / height, np.full_like(x, 0.25, dtype=float)], axis=-1).astype(np.float32)


def read_mp4(path):
    """All frames of an mp4, uint8 [F, H, W, 3]."""
    imageio = pytest.importorskip("imageio.v2")
    with imageio.get_reader(path) as reader:
        return np.stack([frame for frame in reader])


def test_png_read_back_equals_what_was_written(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(images.write_png(tmp_path / "a" / "x.png", image))), image)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 4)])
def test_png_accepts_grey_and_alpha(tmp_path, shape):
    read = np.asarray(Image.open(images.write_png(tmp_path / "x.png", torch.full(shape, 0.5))))
    assert read.shape == (shape if shape[-1] == 4 else shape[:2]) and (read == 128).all()


def test_png_refuses_an_image_with_nan_and_keeps_the_old_file(tmp_path):
    path = images.write_png(tmp_path / "x.png", np.zeros((2, 2, 3)))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="NaN"):
        images.write_png(path, np.full((2, 2, 3), np.nan))
    assert path.read_bytes() == before


def test_failed_write_leaves_no_temporary_file(tmp_path):
    def write(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "x.txt", write)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_names_the_file_and_not_its_temporary_name(tmp_path):
    def write(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(OSError, match=r"No space left on device: '[^']*/x\.txt'$"):
        write_atomically(tmp_path / "x.txt", write)


def test_png_refuses_two_channels(tmp_path):
    with pytest.raises(ValueError, match=r"write_png: expected an image .* got \[2, 2, 2\]"):
        images.write_png(tmp_path / "x.png", np.zeros((2, 2, 2)))


def test_to_uint8_rounds_and_clips():
    assert images.to_uint8(np.array([[0.0, 0.999, 1.0, 1.7, -0.2]])).tolist() == [[0, 255, 255, 255, 0]]


@pytest.mark.skipif(not images.ffmpeg_available(), reason="no ffmpeg on this machine")
def test_mp4_keeps_number_size_and_colour_of_frames(tmp_path):
    frames = np.stack([np.roll(gradient(), 4 * k, axis=1) for k in range(6)])
    path = images.write_video(tmp_path / "v.mp4", frames, fps=10)
    read = read_mp4(path)
    assert path.suffix == ".mp4" and read.shape == (6, 24, 32, 3)
    assert np.abs(read.astype(float) - 255 * frames).mean() < 12  # chroma is stored at half size


@pytest.mark.skipif(not images.ffmpeg_available(), reason="no ffmpeg on this machine")
def test_mp4_of_odd_size_is_padded_and_not_resized(tmp_path):
    assert read_mp4(images.write_video(tmp_path / "v.mp4", [gradient(17, 19)] * 2)).shape == (2, 18, 20, 3)


def test_video_becomes_a_gif_and_reports_it_once_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "ffmpeg_available", lambda: False)
    lines = []
    path = images.write_video(
        tmp_path / "v.mp4", torch.stack([torch.full((4, 6, 3), k / 4) for k in range(5)]), 10, lines.append
    )
    read = Image.open(path)
    assert path.name == "v.gif" and read.n_frames == 5 and read.size == (6, 4)
    assert len(lines) == 1 and "GIF" in lines[0]


@pytest.mark.parametrize("frames", [[], [np.zeros((4, 4, 3)), np.zeros((4, 5, 3))], [np.zeros((4, 4))]])
def test_video_refuses_no_frames_and_frames_of_different_shapes(tmp_path, frames):
    with pytest.raises(ValueError, match="write_video: expected"):
        images.write_video(tmp_path / "v.mp4", frames)


def test_contact_sheet_places_images_in_row_major_order():
    arrays = [np.full((3, 4, 3), 10 * k, dtype=np.uint8) for k in range(5)]
    sheet = images.contact_sheet(arrays, columns=3, gap=1)
    assert sheet.shape == (2 * 4 + 1, 3 * 5 + 1, 3)
    assert (sheet[5:8, 6:10] == 40).all() and (sheet[5:8, 11:15] == 255).all()


def test_contact_sheet_writes_captions_below_the_images():
    arrays = [np.zeros((20, 60, 3), dtype=np.uint8)] * 2
    plain, captioned = images.contact_sheet(arrays, 2), images.contact_sheet(arrays, 2, ["front", "\u2603"])
    assert captioned.shape[0] > plain.shape[0]
    below = captioned[22:-2, 2:62]
    assert below.min() < 100 and below.max() == 255


def test_contact_sheet_refuses_a_wrong_number_of_captions():
    with pytest.raises(ValueError, match="one caption per image, got 2 for 1 images"):
        images.contact_sheet([gradient()], 1, ["a", "b"])


def test_depth_colours_get_darker_with_distance_and_empty_pixels_are_black():
    color = images.depth_to_color(torch.tensor([[1.0, 2.0, 3.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]]))[0]
    light = color.sum(-1)
    assert light[0] > light[1] > light[2] and light[3] == 0


def test_depth_is_divided_by_the_opacity():
    opacity = torch.tensor([[1.0, 0.8]])
    color = images.depth_to_color(torch.tensor([[2.0, 1.6]]), opacity, limits=(1.0, 3.0))[0]
    torch.testing.assert_close(color[1], 0.8 * color[0])


def test_depth_image_accepts_flat_rays_of_an_image():
    image = images.depth_image(torch.linspace(1, 2, 12), torch.ones(12), (3, 4))
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8 and image[0, 0].sum() > image[2, 3].sum()
