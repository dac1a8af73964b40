"""Decoded photographs in a file: the same pixels, decoded once, resumed after a kill, whole or absent, keyed by the data."""

import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from nerf.core import progress
from nerf.core.errors import UserError
from nerf.data import image_store, pixel_cache
from nerf.data.pixel_cache import AUTO_BYTES, Layout, chosen_folder
from tests.nerf.photo_folders import SIZES, load, pattern, write


@pytest.fixture
def folder(tmp_path):
    """Photographs of different sizes, with masks and normal maps."""
    where = tmp_path / "photos"
    where.mkdir()
    images = [pattern(i, *size) for i, size in enumerate(SIZES * 30)]
    masks = [np.where(image[..., 0] % 2 == 0, 255, 0).astype(np.uint8) + image[..., 1] for image in images]
    normals = [np.roll(image, 1, -1) for image in images]
    return write(where, images, masks=masks, normals=normals)


@pytest.fixture
def decoded(monkeypatch):
    """The paths of photographs in the order in which they are decoded."""
    seen, plain = [], image_store.decode_image
    monkeypatch.setattr(image_store, "decode_image", lambda path, *rest: (seen.append(path.name), plain(path, *rest))[1])
    return seen


def photographs(seen):
    return [name for name in seen if not name.startswith("normal")]


def test_pixels_masks_and_normals_are_those_without_a_cache(folder, tmp_path):
    plain = load(folder).store
    for _ in range(2):  # made, then found
        kept = load(folder, photo_cache=str(tmp_path / "cache")).store
        torch.testing.assert_close(kept.pixels, plain.pixels)
        for i in range(len(plain.width)):
            torch.testing.assert_close(kept.valid_mask(i), plain.valid_mask(i))
            torch.testing.assert_close(kept.normal(i), plain.normal(i))


def test_photographs_are_decoded_once(folder, tmp_path, decoded):
    cache = str(tmp_path / "cache")
    load(folder, photo_cache=cache)
    assert len(photographs(decoded)) == 90
    decoded.clear()
    load(folder, photo_cache=cache)
    assert decoded == []


def test_the_file_is_a_safetensors_file_and_nothing_else_is_left(folder, tmp_path):
    store = load(folder, photo_cache=str(tmp_path / "cache")).store
    (path,) = (tmp_path / "cache").glob("*[!k]")  # but the lock
    assert path.suffix == ".safetensors"
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"decoded", "pixels", "valid", "normal"}
        torch.testing.assert_close(file.get_tensor("pixels"), store.pixels)
        assert file.get_tensor("decoded").all()


@pytest.mark.parametrize("change", ["content", "time", "name", "factor"])
def test_another_content_time_name_or_scale_is_decoded_anew_and_the_old_file_goes(folder, tmp_path, decoded, change):
    cache, options = tmp_path / "cache", {}
    load(folder, photo_cache=str(cache))
    path = folder / "04.png"
    if change == "content":
        Image.fromarray(np.asarray(Image.open(path)) + np.uint8(3)).save(path)
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "name":
        shutil.copy2(path, folder / "four.png")
        file = folder / "transforms.json"
        file.write_text(file.read_text().replace('"04.png"', '"four.png"'))
    else:
        options = {"downscale": 2}
    decoded.clear()
    store = load(folder, photo_cache=str(cache), **options).store
    assert len(photographs(decoded)) == 90
    torch.testing.assert_close(store.pixels, load(folder, **options).store.pixels)
    assert len(list(cache.glob("*.safetensors"))) == (2 if change == "factor" else 1), "a set at another scale keeps its own"


def test_a_folder_that_was_moved_is_not_decoded_again_under_its_old_name(folder, tmp_path, decoded):
    load(folder, photo_cache=str(tmp_path / "cache"))
    folder.rename(tmp_path / "moved")
    kept = load(tmp_path / "moved", photo_cache=str(tmp_path / "cache")).store
    torch.testing.assert_close(kept.pixels, load(tmp_path / "moved").store.pixels)


class Killed(BaseException):
    """What no handler catches."""


def test_a_run_that_was_killed_goes_on_and_until_then_there_is_no_file(folder, tmp_path, monkeypatch, decoded, caplog):
    cache, plain = tmp_path / "cache", image_store.decode_image

    def fails(path, *rest):
        if path.name == "70.png":
            raise Killed
        return plain(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(image_store, "decode_image", fails)
        with pytest.raises(Killed):
            load(folder, photo_cache=str(cache))
    assert not list(cache.glob("*.safetensors")) and len(list(cache.glob("*.unfinished"))) == 1
    decoded.clear()
    with caplog.at_level(logging.INFO):
        store = load(folder, photo_cache=str(cache)).store
    assert len(photographs(decoded)) == 90 - pixel_cache.TOGETHER
    assert "decoding goes on: 64 of 90 photographs" in caplog.text
    torch.testing.assert_close(store.pixels, load(folder).store.pixels)
    assert not list(cache.glob("*.unfinished"))


def test_progress_is_told(folder, tmp_path):
    class Listener:
        counts = []

        def task_begins(self, task):
            self.counts.append((task.doing, task.total))

        def task_advances(self, task): ...

        def task_ends(self, task): ...

    listener = Listener()
    progress.listen(listener)
    try:
        load(folder, photo_cache=str(tmp_path / "cache"))
    finally:
        progress.ignore(listener)
    assert ("decoding photographs", 90) in listener.counts


def test_what_is_written_to_the_pixels_does_not_reach_the_file(folder, tmp_path):
    first = load(folder, photo_cache=str(tmp_path / "cache")).store
    before = first.pixels.clone()
    first.pixels[:] = 7
    torch.testing.assert_close(load(folder, photo_cache=str(tmp_path / "cache")).store.pixels, before)


@pytest.mark.parametrize("damage", ["shorter", "header alone", "empty", "other"])
@pytest.mark.parametrize("unfinished", [False, True])
def test_a_damaged_file_is_made_again(folder, tmp_path, caplog, damage, unfinished):
    cache = tmp_path / "cache"
    load(folder, photo_cache=str(cache))
    (path,) = cache.glob("*.safetensors")
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    ends = {"shorter": len(data) - 9, "header alone": header, "empty": 0}
    damaged = path.rename(path.with_name(path.name + pixel_cache.UNFINISHED)) if unfinished else path
    damaged.write_bytes(data[: ends[damage]] if damage in ends else b"x" * len(data))
    store = load(folder, photo_cache=str(cache)).store
    torch.testing.assert_close(store.pixels, load(folder).store.pixels)
    assert "so it is made again" in caplog.text and path.read_bytes() == data and len(list(cache.iterdir())) == 2


def test_a_file_that_lacks_photographs_is_made_again(folder, tmp_path, caplog):
    """As an unfinished one that somebody renamed, whose other pixels are black."""
    cache = tmp_path / "cache"
    load(folder, photo_cache=str(cache))
    (path,) = cache.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(bytes(data[:header]) + b"\x01\x00" + bytes(len(data) - header - 2))
    store = load(folder, photo_cache=str(cache)).store
    torch.testing.assert_close(store.pixels, load(folder).store.pixels)
    assert "lacks photographs, so it is made again" in caplog.text and path.read_bytes() == data


def test_a_full_disk_is_said_before_anything_is_written(folder, tmp_path, monkeypatch, caplog):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda path: usage)
    store = load(folder, photo_cache=str(tmp_path / "cache")).store
    assert len(store.pixels) and "MiB are needed there" in caplog.text
    assert not list((tmp_path / "cache").glob("*-*"))


def test_auto_keeps_large_sets_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("SOMNIA_PHOTO_CACHE", str(tmp_path))
    small, large = (Layout(1, pixels, {"pixels": ("U8", 3)}) for pixels in (AUTO_BYTES // 4, AUTO_BYTES))
    assert chosen_folder("auto", small) is None and chosen_folder("auto", large) == tmp_path
    assert chosen_folder("off", large) is None and str(chosen_folder("here", small)) == "here"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--photo_cache .*file is a file; give a folder"):
        chosen_folder(str(tmp_path / "file"), small)


def test_an_opaque_alpha_channel_is_dropped_without_another_copy(tmp_path):
    where = tmp_path / "photos"
    where.mkdir()
    images = [pattern(i, 20, 14, 4) for i in range(3)]
    for image in images:
        image[..., 3] = 255
    store = load(write(where, images), photo_cache=str(tmp_path / "cache")).store
    assert not store.has_alpha and store.pixels.shape[1] == 3
    torch.testing.assert_close((store.image(1) * 255).round().byte(), torch.from_numpy(images[1][..., :3]))
