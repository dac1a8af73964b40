"""A workspace keeps the options of its run: it fills in what was not said and stops what contradicts it."""

import json

import pytest
import torch

from nerf.config.config import Config, from_json, parse, with_preset
from nerf.config.presets import PRESETS
from nerf.core.errors import UserError
from nerf.run import checkpoint
from nerf.run.workspace import adopt, has_later_stage, open_workspace, pending_stages, stages_had, stored_config


@pytest.fixture
def used(tmp_path):
    """A workspace with a finished run of a hamburger on a small grid; returns its folder as text."""
    folder = str(tmp_path / "trial")
    open_workspace(parse(["--text", "a hamburger", "--grid_levels", "8", "--workspace", folder]))
    save_checkpoint(folder, 100)
    return folder


def save_checkpoint(folder, step, stage="nerf"):
    """A checkpoint of nothing."""
    path = f"{folder}/checkpoints/{checkpoint.file_name(step, stage)}"
    return checkpoint.save(path, {"x": torch.zeros(1)}, {"stage": stage, "step": step})


def settled(folder, *words):
    """The options of a command in a workspace."""
    return open_workspace(adopt(parse(["--text", "a hamburger", "--workspace", folder, *words])))


def test_a_new_workspace_gets_a_config_that_reads_back(tmp_path):
    config = parse(["--text", "a hamburger", "-O", "--workspace", str(tmp_path / "a" / "b")])
    assert open_workspace(config) == config
    written = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert written["stages"] == ["nerf"]
    assert written["options"]["cuda_ray"] == {"value": True, "source": "preset"}
    assert from_json(written) == config


def test_another_prompt_in_a_used_workspace_stops_with_the_way_out(used):
    with pytest.raises(UserError, match="'a hamburger'.*'a chair'.*--ckpt scratch"):
        open_workspace(parse(["--text", "a chair", "--workspace", used]))


def test_an_incompatible_option_stops_and_is_named(used):
    with pytest.raises(UserError, match="--grid_levels 8, this run asks for 12"):
        open_workspace(parse(["--text", "a hamburger", "--grid_levels", "12", "--workspace", used]))


def test_options_that_were_not_said_come_from_the_workspace(used):
    config = open_workspace(parse(["--workspace", used, "--test"]))
    assert (config.prompt.text, config.field.levels) == ("a hamburger", 8)
    assert config.source("text") == "workspace"


def test_a_run_goes_on_along_the_render_path_it_was_made_on(used):
    assert not settled(used, "-O").render.cuda_ray
    with pytest.raises(UserError, match="--cuda_ray False, this run asks for True"):
        settled(used, "--cuda_ray")


def test_a_workspace_wins_over_a_preset(used):
    config = with_preset(parse(["--text", "a hamburger", "--workspace", used]), "embedded")
    assert open_workspace(config).field.levels == 8
    assert with_preset(open_workspace(config), "embedded").field.levels == 8


def test_the_same_photographs_by_another_path_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "trial")
    open_workspace(parse(["--data", "photos", "--workspace", folder]))
    save_checkpoint(folder, 100)
    open_workspace(parse(["--data", str(tmp_path / "photos"), "--workspace", folder]))
    with pytest.raises(UserError, match="--data .*photos', this run asks for 'others'"):
        open_workspace(parse(["--data", "others", "--workspace", folder]))


def test_options_that_may_change_do_change(used):
    config = open_workspace(parse(["--text", "a hamburger", "--iters", "77", "--lr", "0.1", "--workspace", used]))
    assert (config.optim.iters, stored_config(used).optim.iters) == (77, 77)


def test_scratch_starts_over_and_forgets_the_old_checkpoints(used):
    config = open_workspace(parse(["--text", "a chair", "--ckpt", "scratch", "--workspace", used]))
    assert config.field.levels == Config().field.levels
    assert checkpoint.latest(f"{used}/checkpoints") is None
    assert stored_config(used).prompt.text == "a chair"


def test_a_run_that_never_saved_does_not_bind_the_next_one(tmp_path):
    open_workspace(parse(["--text", "a hamburger", "--workspace", str(tmp_path)]))
    assert open_workspace(parse(["--text", "a chair", "--workspace", str(tmp_path)])).prompt.text == "a chair"


def test_testing_does_not_rewrite_the_options(used):
    open_workspace(parse(["--workspace", used, "--test", "--W", "32"]))
    assert stored_config(used).output.W == Config().output.W


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2, "options": {}}', '{"format": 1, "options": {"zzz": {}}}'])
def test_a_broken_config_is_a_sentence(used, content):
    with open(f"{used}/config.json", "w") as file:
        file.write(content)
    with pytest.raises(UserError, match="--ckpt scratch"):
        open_workspace(parse(["--text", "a hamburger", "--workspace", used]))


@pytest.mark.parametrize("value", ['"eight"', "-3", "null", "[8]"])
def test_a_stored_value_of_the_wrong_kind_is_a_sentence(used, value):
    path = f"{used}/config.json"
    with open(path) as file:
        text = json.load(file)
    text["options"]["grid_levels"]["value"] = json.loads(value)
    with open(path, "w") as file:
        json.dump(text, file)
    with pytest.raises(UserError, match="--grid_levels must be"):
        open_workspace(parse(["--text", "a hamburger", "--workspace", used]))


def test_a_workspace_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--workspace .* cannot be written to"):
        open_workspace(parse(["--text", "a hamburger", "--workspace", str(tmp_path / "file" / "inside")]))


def test_a_mesh_stage_that_never_began_leaves_the_nerf_its_turn(used):
    assert settled(used, "--dmtet").stages == ("dmtet",)
    assert settled(used).stages == ("nerf",)


def test_a_mesh_stage_that_began_goes_on(used):
    settled(used, "--dmtet")
    save_checkpoint(used, 5, "dmtet")
    assert settled(used).stages == ("dmtet",)


def test_both_stages_go_on_where_the_first_was_killed(used):
    settled(used, "--stages", "nerf,dmtet")
    assert pending_stages(settled(used)) == ("nerf", "dmtet")
    save_checkpoint(used, 5, "dmtet")
    assert pending_stages(settled(used)) == ("dmtet",)


def test_a_named_checkpoint_of_the_first_stage_goes_back_to_it(used):
    path = save_checkpoint(used, 100)
    save_checkpoint(used, 5, "dmtet")
    assert pending_stages(settled(used, "--stages", "nerf,dmtet", "--ckpt", str(path))) == ("nerf", "dmtet")


def test_the_grid_of_the_mesh_may_be_chosen_until_the_mesh_stage_has_begun(used):
    assert settled(used, "--dmtet", "--tet_grid_size", "64").dmtet.tet_grid_size == 64
    save_checkpoint(used, 5, "dmtet")
    assert settled(used, "--dmtet").dmtet.tet_grid_size == 64
    with pytest.raises(UserError, match="--tet_grid_size 64, this run asks for 32"):
        settled(used, "--dmtet", "--tet_grid_size", "32")


def test_the_grid_that_a_stage_preset_chose_may_be_typed(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS["dmtet embedded"], "tet_grid_size", 64)
    folder = str(tmp_path)
    open_workspace(with_preset(parse(["--text", "a hamburger", "--dmtet", "--workspace", folder]), "embedded"))
    save_checkpoint(folder, 5, "dmtet")
    assert settled(folder, "--dmtet", "--tet_grid_size", "64").dmtet.tet_grid_size == 64
    with pytest.raises(UserError, match="--tet_grid_size 64, this run asks for 128"):
        settled(folder, "--dmtet", "--tet_grid_size", "128")


@pytest.mark.parametrize("flag", ["--test", "--six_views"])
def test_showing_what_is_not_there_leaves_no_folder(tmp_path, flag):
    with pytest.raises(UserError, match="no checkpoint to show"):
        open_workspace(parse([flag, "--workspace", str(tmp_path / "typo")]))
    assert not (tmp_path / "typo").exists()


def test_every_stage_s_steps_are_known_and_a_damaged_one_is_left_out(used):
    mesh = save_checkpoint(used, 7, "dmtet")
    assert {stage: had["steps"] for stage, had in stages_had(used).items()} == {"nerf": 100, "dmtet": 7}
    mesh.write_bytes(b"half")
    assert list(stages_had(used)) == ["nerf"]


def test_a_later_stage_is_one_that_has_a_checkpoint(used):
    assert not has_later_stage(used, "nerf")
    save_checkpoint(used, 7, "dmtet")
    assert has_later_stage(used, "nerf") and not has_later_stage(used, "dmtet")
