"""A file is whole or absent, and JSON that cannot be read is a sentence."""

import errno
import os
import zlib
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import torch
from safetensors.torch import save_file

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


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not a text file"),
        (b"9" * 5000, "thousands of digits"),
        (b"[" * 10**5, "nested too deeply"),
        (None, "No such"),
    ],
)
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


def fill(folder, names, content="new", own=("a", "b")):
    """Replace a folder by one with these files."""
    with files.replace_folder(folder, own) as fresh:
        for name in names:
            (fresh / name).write_text(content)


def texts(folder):
    """Name -> text of the files in a folder."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_replaced_as_a_whole_and_keeps_the_files_of_others(tmp_path):
    fill(tmp_path / "mesh", ["a", "b"], "old")
    (tmp_path / "mesh" / "notes").mkdir()
    (tmp_path / "mesh" / "notes" / "mine").write_text("mine")
    (tmp_path / "mesh" / "license").write_text("mine")
    fill(tmp_path / "mesh", ["a"])
    assert (tmp_path / "mesh" / "notes" / "mine").read_text() == "mine"
    (tmp_path / "mesh" / "notes" / "mine").unlink()
    (tmp_path / "mesh" / "notes").rmdir()
    assert texts(tmp_path / "mesh") == {"a": "new", "license": "mine"}
    assert [p.name for p in tmp_path.iterdir()] == ["mesh"]


def test_a_folder_whose_files_cannot_be_written_stays_as_it_was(tmp_path):
    fill(tmp_path / "mesh", ["a"], "old")
    with pytest.raises(OSError, match="No space"), files.replace_folder(tmp_path / "mesh", ["a"]) as fresh:
        (fresh / "a").write_text("half")
        raise OSError(28, "No space left on device")
    assert texts(tmp_path / "mesh") == {"a": "old"} and [p.name for p in tmp_path.iterdir()] == ["mesh"]


def test_a_file_in_the_place_of_a_folder_is_not_removed(tmp_path):
    (tmp_path / "mesh").write_text("mine")
    with pytest.raises(OSError, match="not a folder"):
        fill(tmp_path / "mesh", ["a"])
    assert (tmp_path / "mesh").read_text() == "mine"


def test_a_link_to_a_folder_elsewhere_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "mesh").symlink_to(tmp_path / "disk")
    fill(tmp_path / "mesh", ["a"])
    assert (tmp_path / "mesh").is_symlink() and texts(tmp_path / "disk") == {"a": "new"}


@pytest.mark.parametrize("rename", [0, 1])
def test_a_process_killed_while_it_replaces_a_folder_leaves_one_of_the_two_whole(tmp_path, monkeypatch, rename):
    """The kill comes before one of the two renames; the next start repairs what it left."""
    fill(tmp_path / "mesh", ["a", "b"], "old")
    process = os.fork()
    if process == 0:
        real, count = os.rename, iter(range(9))
        monkeypatch.setattr(files.os, "rename", lambda *names: os._exit(9) if next(count) == rename else real(*names))
        fill(tmp_path / "mesh", ["a"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    files.remove_unfinished(tmp_path)
    assert texts(tmp_path / "mesh") == {"a": "old", "b": "old"} and [p.name for p in tmp_path.iterdir()] == ["mesh"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "results").mkdir()
    mine = [".bashrc", "a.txt", ".x.12.png", "results/.y.3.tmp"]
    left = [".a.12.unfinished.txt", "results/.df.7.unfinished.mp4", "results/.no_suffix.7.unfinished"]
    for name in mine + left:
        (tmp_path / name).write_text("x")
    (tmp_path / ".mesh.7.unfinished").mkdir()
    (tmp_path / ".mesh.7.unfinished" / "mesh.obj").write_text("x")
    assert len(files.remove_unfinished(tmp_path)) == 4
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(mine)


# ---- reading what a user gives ----


class Shape(msgspec.Struct):
    """What the tests read."""

    size: int
    scales: list[float] = []


DAMAGED = {
    "nested": (b"[" * 100_000, "nested too deeply"),
    "nested and closed": (b'{"size": ' * 90 + b"1" + b"}" * 90, "nested too deeply"),
    "digits": (b'{"size": ' + b"1" * 5000 + b"}", "a number of thousands of digits"),
    "large": (b'{"size": 1' + b" " * 200 + b"}", "larger than 0 MiB"),
    "utf-16": ('{"size": 1}'.encode("utf-16"), "UTF-16; save it as UTF-8"),
    "list": (b"[1]", ": expected object, got array; do"),
    "missing": (b"{}", "object missing required field size; do"),
    "inside": (b'{"size": 1, "scales": [1, null]}', r", scales\[1\]: expected float, got null; do"),
    "huge": (b'{"size": 1, "scales": [1' + b"0" * 400 + b"]}", r"scales\[0\]: number out of range; do"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_json_is_one_sentence_that_names_the_place(tmp_path, name):
    content, sentence = DAMAGED[name]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=f"x.json.*{sentence}"):
        files.read_json(tmp_path / "x.json", "do that", Shape, limit=150 if name == "large" else files.MAX_BYTES)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_one_sentence_at_once(tmp_path, make):
    make(tmp_path / "x.json")
    with pytest.raises(UserError, match="x.json cannot be read: .*; do that"):
        files.read_json(tmp_path / "x.json", "do that", Shape)


def test_a_byte_order_mark_is_no_data(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"size": 3, "more": 1}')
    assert files.read_json(tmp_path / "x.json", "", Shape) == Shape(3)
    assert files.parse_json("\ufeff[1]", "x", "") == [1]


def test_a_name_with_a_null_is_one_sentence():
    with pytest.raises(UserError, match="embedded null"):
        files.read_text("a\0b", "do that")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("model"), "there is no 'model'"),
        (IndexError(), "IndexError"),
        (zlib.error("bad block"), "bad block"),
        (RecursionError("too deep"), "too deep"),
        (NotImplementedError("no such method"), "no such method"),
        (MemoryError(), "more memory than there is"),
        (type("PanicException", (BaseException,), {})("called unwrap"), "called unwrap"),
    ],
)
def test_whatever_a_parser_raises_is_one_sentence(error, sentence):
    with pytest.raises(UserError, match=f"^x.npz cannot be read: .*{sentence}; write it again$"):
        with files.reading("x.npz", "write it again"):
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), UserError("mine")])
def test_an_interruption_and_our_own_sentence_pass_a_parser(error):
    with pytest.raises(type(error)) as caught, files.reading("x.npz", "write it again"):
        raise error
    assert caught.value is error


def test_text_that_is_not_utf8_survives_json(tmp_path):
    value = {"workspace": os.fsdecode(b"t\xff"), "prompt": "Würfel"}
    assert files.read_json(files.write_json(tmp_path / "x.json", value), "") == value


def test_a_lone_surrogate_where_text_is_expected_is_one_sentence():
    with pytest.raises(UserError, match="x holds text that is not UTF-8 .*; do that"):
        files.as_shape("\ud800", "x", "do that", Literal["a", "b"])


@pytest.mark.parametrize("write", [lambda path: save_file({"a": torch.zeros(1)}, path), lambda path: path.write_text("a")])
def test_files_have_the_mode_of_the_umask(tmp_path, write):
    before = os.umask(0o027)
    try:
        files.write_atomically(tmp_path / "a", write)
        (tmp_path / "b").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
