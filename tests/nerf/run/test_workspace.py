"""A workspace keeps the options of its run: they fill in what is not given, and what contradicts them is refused."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from nerf.config.config import Config, from_json, parse
from nerf.config.presets import PRESETS
from nerf.core.errors import UserError
from nerf.run import checkpoint, workspace
from nerf.run.workspace import has_later_stage, stage_progress, stored_config
from tests.helpers.plans import EMBEDDED, opened, planned


@pytest.fixture
def used(tmp_path):
    """A workspace with a finished run of a hamburger on a small grid; returns its folder as text."""
    folder = str(tmp_path / "trial")
    opened("--text", "a hamburger", "--grid_levels", "8", "--workspace", folder)
    save_checkpoint(folder, 100)
    return folder


def save_checkpoint(folder, step, stage="nerf"):
    """A checkpoint of nothing."""
    path = f"{folder}/checkpoints/{checkpoint.file_name(step, stage)}"
    return checkpoint.save(path, {"x": torch.zeros(1)}, {"stage": stage, "step": step})


def options(folder, *words, **others):
    """The options of a command in a workspace, which it opens."""
    return opened("--text", "a hamburger", "--workspace", folder, *words, **others).config


def pending(folder, *words):
    """Names of the stages that a command in a workspace goes through."""
    return tuple(stage.name for stage in opened("--text", "a hamburger", "--workspace", folder, *words).pending)


def test_a_new_workspace_gets_a_config_that_reads_back(tmp_path):
    config = opened("--text", "a hamburger", "-O", "--workspace", tmp_path / "a" / "b").config
    written = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert written["stages"] == ["nerf"]
    assert written["options"]["cuda_ray"] == {"value": True, "source": "preset"}
    assert from_json(written) == config


def test_another_prompt_in_a_used_workspace_is_refused_with_what_to_do(used):
    with pytest.raises(UserError, match="'a hamburger'.*'a chair'.*--ckpt scratch"):
        planned("--text", "a chair", "--workspace", used)


def test_an_incompatible_option_is_refused_by_name(used):
    with pytest.raises(UserError, match="--grid_levels 8, this run asks for --grid_levels 12"):
        options(used, "--grid_levels", "12")


@pytest.mark.parametrize("words", [["--test"], []])
def test_options_that_are_not_given_come_from_the_workspace(used, words):
    config = opened("--workspace", used, *words).config
    assert (config.prompt.text, config.field.levels) == ("a hamburger", 8)
    assert config.source("text") == "workspace"


def test_a_run_resumes_on_the_render_path_it_was_made_on(used):
    assert not options(used, "-O").render.cuda_ray
    with pytest.raises(UserError, match="--no_cuda_ray, this run asks for --cuda_ray"):
        options(used, "--cuda_ray")


def test_a_workspace_overrides_a_preset(used):
    assert options(used, weights=EMBEDDED).field.levels == 8 != PRESETS["embedded"]["grid_levels"]


def test_the_same_photographs_by_another_path_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "trial")
    opened("--data", "photos", "--workspace", folder)
    save_checkpoint(folder, 100)
    opened("--data", tmp_path / "photos", "--workspace", folder)
    with pytest.raises(UserError, match="--data .*photos, this run asks for --data others"):
        opened("--data", "others", "--workspace", folder)


def test_options_that_may_change_do_change(used):
    config = options(used, "--iters", "77", "--lr", "0.1")
    assert (config.optim.iters, stored_config(used).optim.iters) == (77, 77)


def test_scratch_starts_over_and_removes_the_old_checkpoints(used):
    config = opened("--text", "a chair", "--ckpt", "scratch", "--workspace", used).config
    assert config.field.levels == Config().field.levels
    assert checkpoint.latest(f"{used}/checkpoints") is None
    assert stored_config(used).prompt.text == "a chair"


def test_a_run_that_never_saved_does_not_fix_the_options_of_the_next_one(tmp_path):
    opened("--text", "a hamburger", "--workspace", tmp_path)
    assert opened("--text", "a chair", "--workspace", tmp_path).config.prompt.text == "a chair"


def test_testing_does_not_rewrite_the_options(used):
    opened("--workspace", used, "--test", "--W", "32")
    assert stored_config(used).output.W == Config().output.W


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"format": 1, "options": {}}', '{"format": 2, "options": {"zzz": {}}}',
     '{"format": 2, "options": {"zzz": {"value": 1, "source": "typed"}}}', '{"format": 2, "options": {"lr": 1}}',
     '{"format": 2, "options": {}, "presets": ["zzz"]}'],
)  # fmt: skip
def test_a_broken_config_is_a_sentence_unless_the_run_starts_over(used, content):
    with open(f"{used}/config.json", "w") as file:
        file.write(content)
    with pytest.raises(UserError, match="--ckpt scratch"):
        options(used)
    options(used, "--ckpt", "scratch")


def test_checkpoints_without_their_options_are_not_continued_with_others(used):
    os.unlink(f"{used}/config.json")
    with pytest.raises(UserError, match="has checkpoints and no config.json.*--ckpt scratch"):
        opened("--text", "a chair", "--workspace", used)
    assert opened("--text", "a chair", "--ckpt", "scratch", "--workspace", used).config.prompt.text == "a chair"


@pytest.mark.parametrize("value", ['"eight"', "-3", "null", "[8]"])
def test_a_stored_value_of_the_wrong_kind_is_a_sentence(used, value):
    path = f"{used}/config.json"
    with open(path) as file:
        text = json.load(file)
    text["options"]["grid_levels"]["value"] = json.loads(value)
    with open(path, "w") as file:
        json.dump(text, file)
    with pytest.raises(UserError, match="--grid_levels must be"):
        options(used)


def test_a_workspace_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "inside")
    for call in (lambda: workspace.check_writable(folder), lambda: options(folder)):
        with pytest.raises(UserError, match="--workspace .* cannot be written to"):
            call()


def test_a_workspace_without_permission_is_found_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written to .no permission"):
        workspace.check_writable(tmp_path / "a" / "b")
    monkeypatch.undo()
    workspace.check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_mesh_stage_without_a_checkpoint_is_not_resumed(used):
    assert options(used, "--dmtet").stages == ("dmtet",)
    assert options(used).stages == ("nerf",)


def test_a_mesh_stage_with_a_checkpoint_is_resumed(used):
    options(used, "--dmtet")
    save_checkpoint(used, 5, "dmtet")
    assert options(used).stages == ("dmtet",)


def test_both_stages_resume_where_the_first_was_killed(used):
    options(used, "--stages", "nerf,dmtet")
    assert pending(used) == ("nerf", "dmtet")
    save_checkpoint(used, 5, "dmtet")
    assert pending(used) == ("dmtet",)


def test_a_named_checkpoint_of_the_first_stage_goes_back_to_it(used):
    path = save_checkpoint(used, 100)
    save_checkpoint(used, 5, "dmtet")
    assert pending(used, "--stages", "nerf,dmtet", "--ckpt", str(path)) == ("nerf", "dmtet")


def test_the_grid_of_the_mesh_may_change_until_the_mesh_stage_has_a_checkpoint(used):
    assert options(used, "--dmtet", "--tet_grid_size", "64").dmtet.tet_grid_size == 64
    save_checkpoint(used, 5, "dmtet")
    assert options(used, "--dmtet").dmtet.tet_grid_size == 64
    with pytest.raises(UserError, match="--tet_grid_size 64, this run asks for --tet_grid_size 32"):
        options(used, "--dmtet", "--tet_grid_size", "32")


def test_the_grid_that_a_stage_preset_gave_may_be_typed(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS["dmtet embedded"], "tet_grid_size", 64)
    folder = str(tmp_path)
    options(folder, "--dmtet", weights=EMBEDDED)
    save_checkpoint(folder, 5, "dmtet")
    assert options(folder, "--dmtet", "--tet_grid_size", "64").dmtet.tet_grid_size == 64
    with pytest.raises(UserError, match="--tet_grid_size 64, this run asks for --tet_grid_size 128"):
        options(folder, "--dmtet", "--tet_grid_size", "128")


@pytest.mark.parametrize("flag", ["--test", "--six_views"])
def test_showing_a_run_that_does_not_exist_makes_no_folder(tmp_path, flag):
    with pytest.raises(UserError, match="no checkpoint to show"):
        opened(flag, "--workspace", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_the_progress_of_every_stage_is_read_and_a_damaged_one_is_left_out(used):
    mesh = save_checkpoint(used, 7, "dmtet")
    assert {stage: progress["steps"] for stage, progress in stage_progress(used).items()} == {"nerf": 100, "dmtet": 7}
    mesh.write_bytes(b"half")
    assert list(stage_progress(used)) == ["nerf"]


def test_a_later_stage_is_one_that_has_a_checkpoint(used):
    assert not has_later_stage(used, "nerf")
    save_checkpoint(used, 7, "dmtet")
    assert has_later_stage(used, "nerf") and not has_later_stage(used, "dmtet")


def test_reading_a_workspace_makes_nothing(tmp_path):
    found = workspace.read(parse(["--text", "a", "--workspace", str(tmp_path / "none")]))
    assert (found.config, found.trained) == (None, frozenset()) and list(tmp_path.iterdir()) == []


def names(folder):
    """Names of the checkpoints in a workspace."""
    return sorted(path.name for path in (Path(folder) / "checkpoints").iterdir())


def test_a_run_that_starts_over_and_ends_before_its_first_checkpoint_is_undone_at_the_next_start(used):
    opened("--text", "a chair", "--ckpt", "scratch", "--workspace", used)
    assert names(used) == ["replaced"] and stored_config(used).prompt.text == "a chair"
    (line,) = workspace.recover(used)
    assert line.startswith("put back df_step_00000100.safetensors: the run that started over ended before")
    assert names(used) == ["df_step_00000100.safetensors"] and stored_config(used).prompt.text == "a hamburger"
    assert workspace.recover(used) == []


def test_a_first_new_checkpoint_ends_what_was_set_aside(used):
    opened("--text", "a chair", "--ckpt", "scratch", "--workspace", used)
    save_checkpoint(used, 5)
    assert workspace.recover(used) == [] and names(used) == ["df_step_00000005.safetensors"]


def test_starting_over_in_one_stage_leaves_the_other_alone(used):
    options(used, "--dmtet")
    save_checkpoint(used, 7, "dmtet")
    options(used, "--dmtet", "--ckpt", "scratch")
    assert names(used) == ["df_step_00000100.safetensors", "replaced"]
    workspace.recover(used)
    assert names(used) == ["df_dmtet_step_00000007.safetensors", "df_step_00000100.safetensors"]


@pytest.mark.parametrize("kill", range(6))
def test_a_process_killed_while_it_sets_checkpoints_aside_loses_none(used, monkeypatch, kill):
    save_checkpoint(used, 200)
    before = {name: (Path(used) / "checkpoints" / name).read_bytes() for name in names(used)}
    start_over = partial(opened, "--text", "a chair", "--ckpt", "scratch", "--workspace", used)
    assert killed_in(monkeypatch, kill, [(os, "replace"), (os, "rename")], start_over)
    workspace.recover(used)
    assert {name: (Path(used) / "checkpoints" / name).read_bytes() for name in names(used)} == before
    assert stored_config(used).prompt.text == "a hamburger"


def killed_in(monkeypatch, count, functions, work):
    """Run ``work`` in another process, which is killed at the ``count``-th call of one of the functions (module, name)."""
    process = os.fork()
    if process == 0:
        left = iter(range(count, -1, -1))
        for module, name in functions:
            real = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, real=real, **k: os._exit(9) if next(left) == 0 else real(*a, **k))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


@pytest.mark.parametrize("kill", range(5))
def test_a_process_killed_while_it_removes_what_was_set_aside_mixes_nothing(used, monkeypatch, kill):
    save_checkpoint(used, 7, "dmtet")
    options(used, "--stages", "nerf,dmtet", "--ckpt", "scratch")
    save_checkpoint(used, 5)
    assert killed_in(
        monkeypatch, kill, [(os, "unlink"), (os, "rmdir"), (os, "rename")], partial(workspace.remove_replaced, used)
    )
    workspace.recover(used)
    assert names(used) == ["df_step_00000005.safetensors"]


@pytest.mark.parametrize("kill", range(4))
def test_a_process_killed_while_it_puts_checkpoints_back_loses_none(used, monkeypatch, kill):
    save_checkpoint(used, 7, "dmtet")
    options(used, "--stages", "nerf,dmtet", "--ckpt", "scratch")
    assert names(used) == ["replaced"]
    assert killed_in(monkeypatch, kill, [(os, "replace"), (os, "rename")], partial(workspace.recover, used))
    workspace.recover(used)
    assert names(used) == ["df_dmtet_step_00000007.safetensors", "df_step_00000100.safetensors"]


@pytest.mark.parametrize("content", ["{", "3", '[["nerf"]]'])
def test_a_damaged_note_of_the_stages_loses_no_checkpoint(used, content):
    opened("--text", "a chair", "--ckpt", "scratch", "--workspace", used)
    (Path(used) / "checkpoints" / "replaced" / workspace.STAGES_FILE).write_text(content)
    workspace.recover(used)
    assert names(used) == ["df_step_00000100.safetensors"]


def test_going_back_to_the_first_stage_sets_the_mesh_aside_until_the_new_one_has_a_checkpoint(used):
    save_checkpoint(used, 7, "dmtet")
    options(used, "--stages", "nerf,dmtet", "--ckpt", f"{used}/checkpoints/{checkpoint.file_name(100)}")
    assert names(used) == ["df_step_00000100.safetensors", "replaced"]
    workspace.recover(used)
    assert names(used) == ["df_dmtet_step_00000007.safetensors", "df_step_00000100.safetensors"]
    workspace.set_aside(used, ["dmtet"])
    workspace.remove_replaced(used)
    assert names(used) == ["df_step_00000100.safetensors"]


def test_what_a_killed_process_left_is_removed_at_the_next_start(used):
    (Path(used) / "checkpoints" / ".df_step_00000200.77.unfinished.safetensors").write_bytes(b"half")
    (line,) = workspace.recover(used)
    assert "unfinished" in line and names(used) == ["df_step_00000100.safetensors"]
    assert workspace.recover(Path(used) / "none") == []


def test_a_checkpoint_of_another_workspace_brings_the_render_path_whose_state_it_holds(tmp_path):
    opened("--text", "a ball", "--workspace", tmp_path / "a", "--cuda_ray", "--grid_size", "32")
    path = tmp_path / "a" / "checkpoints" / checkpoint.file_name(3)
    checkpoint.save(path, {}, {"stage": "nerf", "step": 3})
    there = ["--text", "a ball", "--workspace", tmp_path / "b", "--ckpt", path]
    render = planned(*there).config.render
    assert render.cuda_ray and render.grid_size == 32
    with pytest.raises(UserError, match="made with --cuda_ray, this run asks for --no_cuda_ray; leave the flag out"):
        planned(*there, "--no_cuda_ray")


def test_a_checkpoint_of_another_workspace_brings_the_field_it_was_made_for(tmp_path):
    opened("--text", "a ball", "--workspace", tmp_path / "a", "--bound", "2")
    path = tmp_path / "a" / "checkpoints" / checkpoint.file_name(3)
    checkpoint.save(path, {}, {"stage": "nerf", "step": 3})
    there = ["--text", "a ball", "--workspace", tmp_path / "b", "--ckpt", path]
    assert planned(*there).config.field.bound == 2.0
    with pytest.raises(UserError, match="--ckpt .*: its weights were made with --bound 2, this run asks for --bound 3"):
        planned(*there, "--bound", "3")
    opened("--text", "a ball", "--workspace", tmp_path / "b")
    checkpoint.save(tmp_path / "b" / "checkpoints" / checkpoint.file_name(1), {}, {"stage": "nerf", "step": 1})
    with pytest.raises(UserError, match="made with --bound 2, and workspace .* holds a NeRF with --bound 1"):
        planned(*there)


@pytest.mark.parametrize("name", (*workspace.FILES, *workspace.FOLDERS))
@pytest.mark.parametrize("how", ["wrong kind", "pipe", "link to itself", "read-only"])
def test_a_name_that_a_run_writes_to_and_that_is_taken_is_refused_before_the_training(tmp_path, monkeypatch, name, how):
    taken, folder = tmp_path / name, name in workspace.FOLDERS
    taken.parent.mkdir(exist_ok=True)
    if how == "read-only":
        taken.mkdir() if folder else taken.touch()
        allowed = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != taken and allowed(path, mode))
    elif how == "pipe":
        os.mkfifo(taken)
    elif how == "link to itself":
        taken.symlink_to(taken.name)
    else:
        taken.touch() if folder else taken.mkdir()
    words = "may not be written to" if how == "read-only" else f"is no {'folder' if folder else 'file'}; move it away"
    with pytest.raises(UserError, match=f"--workspace .* cannot be written to: {name} in it {words}"):
        workspace.check_writable(tmp_path)


def test_a_config_of_another_program_is_named_with_its_path(used):
    Path(used, "config.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=rf"^{used}/config.json: the stored options are not of format"):
        options(used)
