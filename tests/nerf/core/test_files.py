"""A file is whole or absent, and JSON that cannot be read is a sentence."""

import errno

import pytest

from nerf.core import files
from nerf.core.errors import UserError


def test_a_file_appears_with_its_folder_and_nothing_else(tmp_path):
    path = files.write_atomically(tmp_path / "a" / "b.txt", lambda name: name.write_text("whole"))
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, durable):
    def fail(name):
        name.write_text("hal")
        raise OSError(28, "No space left on device")

    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(tmp_path / "b.txt", fail, durable)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("b.txt", "old")]


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files.os, "fsync", lambda _: order.append("fsync"))
    rename = files.os.replace
    monkeypatch.setattr(files.os, "replace", lambda *names: (order.append("rename"), rename(*names)))
    files.write_atomically(tmp_path / "b.txt", lambda name: name.write_text("x"), durable=True)
    assert order[:2] == ["fsync", "rename"]


def test_the_temporary_file_keeps_the_suffix_that_writers_look_at(tmp_path):
    files.write_atomically(tmp_path / "b.png", lambda name: name.write_text(name.suffix))
    assert (tmp_path / "b.png").read_text() == ".png"


def test_json_comes_back_with_its_umlauts(tmp_path):
    value = {"prompt": "ein blauer Würfel", "list": [1, None, 2.5]}
    assert files.read_json(files.write_json(tmp_path / "x.json", value), "") == value


@pytest.mark.parametrize(("content", "sentence"), [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (None, "No such")])
def test_unreadable_json_is_a_sentence_with_the_way_out(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=f"x.json.*{sentence}.*; bake another"):
        files.read_json(tmp_path / "x.json", "bake another")


def test_a_write_that_fails_names_the_file_and_not_its_temporary_name(tmp_path):
    def no_room(temporary):
        raise OSError(errno.ENOSPC, "No space left on device")

    for write in (no_room, lambda temporary: open(temporary / "below", "w")):
        with pytest.raises(OSError) as caught:
            files.write_atomically(tmp_path / "a.json", write)
        assert caught.value.filename == str(tmp_path / "a.json") and list(tmp_path.iterdir()) == []
