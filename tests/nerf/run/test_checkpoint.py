"""Checkpoints come back as they were, are never half written, and never run anything."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nerf.core import files
from nerf.core.errors import UserError
from nerf.run import checkpoint, checkpoint_checks

META = {"stage": "nerf", "step": 1000, "scaler": {"scale": 65536.0}}


def written(folder, *steps, after=None, stage="nerf"):
    """Checkpoints of a run that goes on from the step ``after`` of the folder; their paths."""
    parent = None if after is None else folder / checkpoint.file_name(after, stage)
    lineage = checkpoint.lineage_after(folder, stage, parent)
    meta = {"stage": stage}
    return [
        checkpoint.save(folder / checkpoint.file_name(step, stage), {"x": torch.full((3,), float(step))}, meta | {"step": step},
                        lineage)
        for step in steps
    ]  # fmt: skip


def left(folder):
    """Steps of the checkpoints in a folder."""
    return [step for step, _ in checkpoint.steps(folder)]


def tree():
    """A tree with every kind of leaf."""
    return {
        "model": {"field.encoder.embeddings": torch.randn(5, 2), "flag": torch.tensor([True, False])},
        "optimizer": {"0": {"step": 7, "exp_avg": torch.randn(3, 4).t()}, "1": {}},
        "random": {"torch": torch.get_rng_state()},
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "plain": {"name": "adan", "betas": [0.9, 0.99], "none": None},
    }


def assert_equal(one, other):
    """Two trees have the same keys, values and tensor bits."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_equal(value, other[key])
        elif isinstance(value, torch.Tensor):
            assert value.dtype == other[key].dtype and torch.equal(value, other[key])
        else:
            assert value == other[key]


@pytest.fixture
def saved(tmp_path):
    """(path, tree) of a checkpoint on disk."""
    content = tree()
    return checkpoint.save(tmp_path / checkpoint.file_name(1000), content, META), content


def test_load_gives_back_what_save_was_given(saved):
    tensors, meta = checkpoint.load(saved[0])
    assert_equal(tensors, saved[1])
    assert meta == META


def test_what_a_checkpoint_says_of_itself_is_read_without_its_tensors(saved):
    assert checkpoint.read_meta(saved[0]) == META


@pytest.mark.parametrize("content", [b"", b"half"])
def test_a_damaged_file_that_is_no_checkpoint_of_a_run_asks_for_another(tmp_path, content):
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(content)
    for read in (checkpoint.load, checkpoint.read_meta):
        with pytest.raises(UserError, match="damaged.*give another file"):
            read(path)


def test_the_file_is_safetensors_that_others_can_read(saved):
    assert torch.equal(load_file(saved[0])["model/flag"], torch.tensor([True, False]))


def test_tensors_that_share_memory_are_saved_each_for_itself(tmp_path):
    base = torch.arange(4.0)
    path = checkpoint.save(tmp_path / "a.safetensors", {"one": base, "two": base, "part": base[1:]}, META)
    assert checkpoint.load(path)[0]["part"].tolist() == [1.0, 2.0, 3.0]


def test_loaded_tensors_outlive_the_file(saved):
    tensors, _ = checkpoint.load(saved[0])
    os.truncate(saved[0], 10)
    assert_equal(tensors, saved[1])


def test_saving_leaves_no_temporary_file(saved):
    assert [p.name for p in saved[0].parent.iterdir()] == ["df_step_00001000.safetensors"]


def test_an_object_that_is_neither_tensor_nor_json_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a ndarray at model/x"):
        checkpoint.save(tmp_path / "a.safetensors", {"model": {"x": np.zeros(2)}}, META)


@pytest.mark.parametrize("size", [0, 4, 40, 200, -1])
def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_named(saved, size):
    older = checkpoint.save(saved[0].with_name(checkpoint.file_name(900)), tree(), META)
    os.truncate(saved[0], saved[0].stat().st_size + size if size < 0 else size)
    with pytest.raises(UserError, match=f"damaged.*--ckpt or --init_with the one before it, {older}"):
        checkpoint.load(saved[0])


def test_noise_in_place_of_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / checkpoint.file_name(1)
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(UserError, match="damaged.*--ckpt scratch"):
        checkpoint.load(path)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no checkpoint of this program"):
        checkpoint.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("number", [1, 99])
def test_a_checkpoint_of_another_format_is_refused(tmp_path, number):
    header = {checkpoint.HEADER_KEY: json.dumps({"format": number, "meta": {}, "plain": {}})}
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", header)
    with pytest.raises(UserError, match=f"format {number}, this version reads 2; use the version .*--ckpt scratch"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_a_full_disk_in_mid_write_leaves_the_old_checkpoint_whole(saved):
    path, content = saved
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # any larger write now fails, as on a full disk
    try:
        with pytest.raises(UserError, match="could not be written"):
            checkpoint.save(path, {"big": torch.zeros(100_000)}, META)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_equal(checkpoint.load(path)[0], content)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_process_killed_in_mid_write_leaves_the_old_checkpoint_whole(saved):
    path, content = saved
    script = (
        "import os, sys, torch; from nerf.run import checkpoint\n"
        "def half(flat, name, header):\n"
        "    for file in (name, name.parent / '.tmpm0pdQU'):\n"  # safetensors has temporary files of its own
        "        file.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
        "checkpoint.save_file = half\n"
        "checkpoint.save(sys.argv[1], {'x': torch.zeros(3)}, {})"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert_equal(checkpoint.load(path)[0], content)
    files.remove_unfinished(path.parent.parent)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "the next start removes what the killed process left"


def test_a_folder_without_permission_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(UserError, match="Permission denied.*another --workspace"):
        checkpoint.save(tmp_path / "a.safetensors", tree(), META)


def test_latest_goes_by_the_step_and_not_by_the_name(tmp_path):
    for step in (99_999_999, 100_000_000, 5):
        checkpoint.save(tmp_path / checkpoint.file_name(step), {"x": torch.zeros(1)}, META | {"step": step})
    (tmp_path / "df_step_999999999.safetensors.bak").touch()
    assert checkpoint.latest(tmp_path).name == "df_step_100000000.safetensors"


def test_latest_of_a_folder_that_does_not_exist_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("keep", "kept"), [(1, [30]), (2, [20, 30]), (9, [10, 20, 30])])
def test_prune_keeps_the_newest(tmp_path, keep, kept):
    written(tmp_path, 10, 20, 30)
    checkpoint.prune(tmp_path, keep)
    assert left(tmp_path) == kept


def test_checkpoints_after_an_earlier_step_are_the_newest(tmp_path):
    written(tmp_path, 100, 200, 300)
    (newest,) = written(tmp_path, 110, after=100)
    assert checkpoint.latest(tmp_path) == newest
    assert checkpoint.lineage_after(tmp_path, path=newest) == checkpoint.Lineage(1, ((0, 100),))


def test_after_an_earlier_step_the_other_branch_goes_once_the_new_one_has_as_many(tmp_path):
    written(tmp_path, 100, 200, 300)
    for step, kept in ((110, [100, 110, 200, 300]), (120, [110, 120]), (130, [120, 130])):
        written(tmp_path, step, after=100 if step == 110 else step - 10)
        checkpoint.prune(tmp_path, 2)
        assert left(tmp_path) == kept


def test_a_checkpoint_in_use_is_not_pruned(tmp_path):
    used, *_ = written(tmp_path, 10, 20, 30)
    checkpoint.prune(tmp_path, 1, in_use=[used])
    assert left(tmp_path) == [10, 30]


def test_the_last_whole_checkpoint_is_not_pruned(tmp_path):
    *_, newest = written(tmp_path, 10, 20, 30)
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    checkpoint.prune(tmp_path, 1)
    assert left(tmp_path) == [20, 30]
    newest.write_bytes(b"half")
    checkpoint.prune(tmp_path, 1)
    assert left(tmp_path) == [20]


def test_the_newest_whole_checkpoint_is_loaded_and_what_is_wrong_with_newer_ones_is_said(tmp_path):
    written(tmp_path, 10, 20, 30, 40)
    checkpoint.steps(tmp_path)[-1][1].write_bytes(b"half")
    third = checkpoint.steps(tmp_path)[-2][1]
    third.write_bytes(third.read_bytes()[:-1] + b"x")
    found = checkpoint.load_latest(tmp_path)
    assert found.meta["step"] == 20 and found.tensors["x"].tolist() == [20.0] * 3
    assert ["00000040" in found.skipped[0], "00000030" in found.skipped[1]] == [True, True]
    assert checkpoint.load_selected(tmp_path, "latest").path == found.path


def test_the_branch_that_a_run_left_does_not_stand_in_for_a_damaged_checkpoint(tmp_path):
    written(tmp_path, 100, 200, 300)
    (newest,) = written(tmp_path, 110, after=100)
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    assert checkpoint.load_latest(tmp_path).meta["step"] == 100


def test_where_no_checkpoint_is_whole_the_newest_is_named(tmp_path):
    for path in written(tmp_path, 10, 20):
        path.write_bytes(b"half")
    with pytest.raises(UserError, match="00000020.safetensors is damaged.*--ckpt scratch"):
        checkpoint.load_latest(tmp_path)


def test_every_flipped_byte_of_a_checkpoint_is_noticed_or_means_nothing(tmp_path):
    (path,) = written(tmp_path, 10)
    content = path.read_bytes()
    accepted = 0
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(bytes(changed))
        try:
            tensors, meta = checkpoint.load(path)
        except UserError:
            continue
        assert (tensors["x"].tolist(), meta) == ([10.0] * 3, {"stage": "nerf", "step": 10}), at
        accepted += 1
    assert accepted < 16  # white space between the values of the header


def test_a_folder_with_the_name_of_a_checkpoint_is_none(tmp_path):
    written(tmp_path, 10)
    (tmp_path / checkpoint.file_name(20)).mkdir()
    checkpoint.prune(tmp_path, 1)
    assert left(tmp_path) == [10] and (tmp_path / checkpoint.file_name(20)).is_dir()


def test_the_words_of_the_flag_select_a_checkpoint(saved):
    folder = saved[0].parent
    assert checkpoint.load_selected(folder, "scratch") is None
    words = ("latest", "best", "latest_model", str(saved[0]))
    assert {checkpoint.load_selected(folder, word).path for word in words} == {saved[0]}
    with pytest.raises(UserError, match="no such file"):
        checkpoint.load_selected(folder, "nonsense.pth")


def test_another_stage_is_refused():
    checkpoint_checks.require_stage(META, "nerf", "x")
    with pytest.raises(UserError, match="stage 'nerf'.*use this one with --stages nerf in place.*--init_with"):
        checkpoint_checks.require_stage(META, "dmtet", "x")


def test_a_damaged_mesh_costs_the_nerf_nothing(tmp_path):
    path = tmp_path / checkpoint.file_name(3, "dmtet")
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="train this mesh anew with --dmtet --ckpt scratch, and leave out --test"):
        checkpoint.load(path)


def test_the_way_out_of_a_damaged_nerf_works_in_a_run_of_the_mesh_stage_too(tmp_path):
    path = tmp_path / checkpoint.file_name(3)
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="train this scene anew with --ckpt scratch, and leave out --dmtet, --test"):
        checkpoint.load(path)


def test_load_module_loads_every_tensor():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint_checks.load_module(other, one.state_dict(), "x")
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"weight": torch.zeros(2, 3)}, "lacks bias"),
        (nn.Linear(3, 2).state_dict() | {"zzz": torch.zeros(1)}, "has an extra zzz"),
        (nn.Linear(4, 2).state_dict(), r"weight of shape \[2, 4\], this run asks for \[2, 3\]"),
    ],
)
def test_a_model_of_another_shape_is_refused_by_name(state, sentence):
    with pytest.raises(UserError, match=sentence):
        checkpoint_checks.load_module(nn.Linear(3, 2), state, "x")


def test_a_checkpoint_of_stable_dreamfusion_is_read_with_its_numpy_numbers(tmp_path):
    path = tmp_path / "df_ep0100.pth"
    content = {"model": {"w": torch.ones(2)}, "global_step": 100, "epoch": 1, "tet_scale": np.ones(3, np.float32)}
    torch.save(content | {"stats": {"loss": [np.float64(0.5)]}}, path)
    tensors, meta = checkpoint.load(path)
    assert tensors["model"]["w"].tolist() == [1.0, 1.0]
    assert meta == {"stage": "stable-dreamfusion", "step": 100, "epoch": 1}


class Malicious:
    """A pickle of this makes a file when it is loaded by a reader without an allow-list."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "sprung"
    torch.save({"model": Malicious(trap)}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="would run posix.system"):
        checkpoint.load(tmp_path / "evil.pth")
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"junk", b"\x80\x02.", b"PK\x03\x04broken zip"])
def test_a_broken_pickle_is_a_sentence(tmp_path, content):
    (tmp_path / "broken.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="broken.ckpt"):
        checkpoint.load(tmp_path / "broken.ckpt")


# ---- headers and pickles of another shape ----


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("[" * 100_000, "is damaged"),
        ('{"format": ' + "1" * 5000 + "}", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"format": 2, "meta": 3}', "is damaged"),
        ('{"format": 2, "plain": []}', "is damaged"),
        ('{"format": 1}', "has format 1, this version reads 2"),
        ('{"format": 2, "plain": {"model": 3}}', "is damaged"),
        ("{", "is damaged"),
        (None, "no checkpoint of this program"),
    ],
)
def test_a_header_of_another_shape_is_one_sentence(tmp_path, header, sentence):
    path = tmp_path / checkpoint.file_name(1)
    save_file({"model/w": torch.zeros(2)}, path, {} if header is None else {checkpoint.HEADER_KEY: header})
    for read in (checkpoint.load, checkpoint.read_meta):
        with pytest.raises(UserError, match=f"{path.name}.*{sentence}"):
            read(path)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ({"model": [1]}, "holds no model"),
        ({"model": {1: torch.zeros(1)}}, "holds no model"),
        ({"model": {}, "epoch": "many"}, "gives 'many' as its epoch; expected a whole number"),
        ({"model": {}, "global_step": [1]}, "as its step"),
        ({"model": {}, "global_step": -5}, "gives -5 as its step"),
        ({"model": {}, "global_step": float("nan")}, "as its step"),
    ],
)
def test_a_pickle_of_another_shape_is_one_sentence(tmp_path, content, sentence):
    torch.save(content, tmp_path / "df.pth")
    with pytest.raises(UserError, match=sentence):
        checkpoint.load(tmp_path / "df.pth")


def test_a_renamed_checkpoint_is_as_old_as_before(tmp_path):
    written(tmp_path, 23, 24)
    (tmp_path / checkpoint.file_name(23)).rename(tmp_path / checkpoint.file_name(99))
    assert checkpoint.latest(tmp_path) == tmp_path / checkpoint.file_name(24)
    written(tmp_path, 26, after=24)
    assert checkpoint.load_latest(tmp_path).meta["step"] == 26
    checkpoint.prune(tmp_path, 2)
    assert left(tmp_path) == [24, 26]
