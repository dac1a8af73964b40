"""Only the named formats are opened, by content, up to a size; masks of any white are read."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from nerf.core.errors import UserError
from nerf.core.pictures import FORMATS, MAX_PIXELS, as_mode, is_picture, nonzero, open_picture

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"


def read(source):
    with open_picture(source, "photograph a.png", "replace it") as image:
        return np.asarray(image.convert("RGB"))


def bomb(side):
    """The header of a PNG of side x side pixels, and no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_named_format_is_read_whatever_the_file_is_called(tmp_path, kind):
    Image.new("RGB", (5, 4), (200, 100, 50)).save(tmp_path / "a.bin", kind)
    path = (tmp_path / "a.bin").rename(tmp_path / "a.png")
    assert is_picture(path.read_bytes())
    np.testing.assert_allclose(read(path), np.broadcast_to([200, 100, 50], (4, 5, 3)), atol=6)


@pytest.mark.parametrize("content", [EPS, b"\xc5\xd0\xd3\xc6" + EPS, b"GIF89a" + bytes(30), b"", b"P6 1 1 255 abc"])
def test_any_other_format_is_refused_and_starts_no_program(tmp_path, monkeypatch, content):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a picture started a program"))
    (tmp_path / "a.png").write_bytes(content)
    for source in (tmp_path / "a.png", content):
        with pytest.raises(
            UserError, match="photograph a.png cannot be read: it is not a picture in one of .*PNG.*; replace it"
        ):
            read(source)


@pytest.mark.parametrize("side", [30_000, 13_378])
def test_a_bomb_is_one_sentence(side):
    assert side * side > MAX_PIXELS
    with pytest.raises(UserError, match="photograph a.png cannot be read: it has more than 178 million pixels; replace it"):
        read(bomb(side))


def test_a_large_picture_is_no_warning(tmp_path):
    (tmp_path / "a.png").write_bytes(bomb(10_000))
    script = "import sys, pathlib; from nerf.data.image_store import read_header; print(read_header(pathlib.Path(sys.argv[1])))"
    words = [sys.executable, "-c", script, tmp_path / "a.png"]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("(10000, 10000, False)\n", "")


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: os.mkfifo(p), lambda p: None])
def test_what_is_no_file_is_one_sentence_at_once(tmp_path, make):
    make(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.png cannot be read: .*(not a file|No such file)"):
        read(tmp_path / "a.png")


def test_a_truncated_picture_is_one_sentence(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="photograph a.png cannot be read: .*truncated.*; replace it"):
        read((tmp_path / "a.png").read_bytes()[:3000])


@pytest.mark.parametrize("mode, white", [("L", 1), ("L", 255), ("1", 1), ("I;16", 1), ("I;16", 65535), ("RGB", 1), ("P", 1)])
def test_a_mask_is_valid_where_it_is_not_black(tmp_path, mode, white):
    valid = np.eye(6, dtype=bool)
    if mode == "RGB":
        image = Image.fromarray((valid[..., None] * [0, 0, white]).astype(np.uint8))
    else:
        image = Image.fromarray((valid * white).astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image = image.convert("P")
        image.putpalette([0, 0, 0, 128, 0, 0])
    (image.convert("1", dither=0) if mode == "1" and white == 255 else image).save(tmp_path / "m.png")
    with open_picture(tmp_path / "m.png", "mask", "") as opened:
        np.testing.assert_array_equal(nonzero(opened), valid)


def test_a_lossy_mask_is_valid_where_it_is_nearer_to_white(tmp_path):
    valid = np.zeros((32, 32), dtype=bool)
    valid[5:20, 7:25] = True
    Image.fromarray(valid.astype(np.uint8) * 255).save(tmp_path / "m.jpg", quality=40)
    with open_picture(tmp_path / "m.jpg", "mask", "") as opened:
        assert (np.asarray(opened) > 0).sum() > valid.sum()  # black is not quite black
        np.testing.assert_array_equal(nonzero(opened), valid)


@pytest.mark.parametrize(
    "levels",
    [np.full((4, 4), 0.5, np.float32), np.full((4, 4), np.nan, np.float32), np.full((4, 4), 2**20, np.int32)],
    ids=["float", "nan", "int32"],
)
def test_a_picture_whose_white_is_not_known_is_refused_and_not_black(tmp_path, levels):
    Image.fromarray(levels).save(tmp_path / "a.png", "TIFF")
    with pytest.raises(UserError, match="its levels are .* pictures of 8 or 16 bits are read; give another"):
        with open_picture(tmp_path / "a.png", "photograph a.png", "give another") as image:
            as_mode(image, "RGB")
