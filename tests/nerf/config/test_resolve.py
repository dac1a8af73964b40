"""The run plan: what it takes from the flags, the disk and the guidance, and that making it changes no file."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

from nerf.config.config import KEPT, Config, parse, to_json, with_values
from nerf.config.kept import StoredRun, StoredStart, needs_start
from nerf.config.parser import RUN
from nerf.config.presets import PRESETS
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from tests.helpers.plans import EMBEDDED, planned

TEXT = ["--text", "a hamburger"]
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.utime")
audited: list[str] | None = None  # changes of files, while a test listens


def audit(event, arguments):
    """Note every event that changes a file."""
    if audited is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in CHANGES:
        audited.append(f"{event} {arguments[0]}")


sys.addaudithook(audit)


@pytest.fixture
def changes():
    """The changes of files that happen during the test."""
    global audited
    audited = []
    yield audited
    audited = None


def stored(*words, trained=("nerf",), embedded=False, **others):
    """What a finished run with these flags leaves on disk."""
    plan = resolve(parse([*TEXT, *words]), StoredRun(), (lambda _: {"SD": EMBEDDED}) if embedded else None)
    return StoredRun(plan.config, frozenset(trained), **others)


def test_the_audit_sees_a_file_that_is_written(tmp_path, changes):
    (tmp_path / "x").write_text("x")
    assert changes


@pytest.mark.parametrize("folder", ["none", "used"])
@pytest.mark.parametrize("words", ["--ckpt scratch", "--stages nerf,dmtet -O", "--dmtet --tet_grid_size 16", "--test"])
def test_a_plan_changes_no_file(tmp_path, changes, folder, words):
    run = stored("--seed", "1") if folder == "used" else StoredRun(trained=frozenset(["nerf"]))
    resolve(parse([*TEXT, "--workspace", str(tmp_path / folder), *words.split()]), run, lambda _: {"SD": EMBEDDED})
    assert changes == [] and list(tmp_path.iterdir()) == []


def test_planning_from_a_disk_that_cannot_be_written_to_changes_nothing(tmp_path, changes):
    assert planned(*TEXT, "--workspace", tmp_path / "none", "--stages", "nerf,dmtet").first == 0
    assert changes == [] and list(tmp_path.iterdir()) == []


def test_the_same_arguments_give_the_same_plan():
    def plan():
        return resolve(parse([*TEXT, "-O", "--stages", "nerf,dmtet"]), StoredRun(), lambda _: {"SD": EMBEDDED}, lambda: 5)

    assert plan() == plan()


def test_a_plan_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve(parse(TEXT), StoredRun()).first = 1


def test_a_seed_is_drawn_once_for_all_stages_unless_one_is_given():
    plan = resolve(parse([*TEXT, "--stages", "nerf,dmtet"]), StoredRun(), None, lambda: 5)
    assert {stage.config.runtime.seed for stage in plan.stages} == {5}
    assert resolve(parse([*TEXT, "--seed", "3"]), StoredRun(), None, pytest.fail).config.runtime.seed == 3
    assert resolve(parse(TEXT), stored("--seed", "3"), None, pytest.fail).config.runtime.seed == 3


# ---- weights ----


def test_the_weights_are_chosen_by_the_resolved_prompt():
    seen = []
    run = stored("--sd_version", "embedded")
    plan = resolve(
        parse([]), run, lambda config: seen.append((config.prompt.text, config.guidance.sd_version)) or {"SD": EMBEDDED}
    )
    assert seen == [("a hamburger", "embedded")]
    assert plan.weights["SD"] is EMBEDDED and plan.config.presets == ("embedded",)


@pytest.mark.parametrize("words", [["--data", "x"], [*TEXT, "--test"]])
def test_no_weights_are_chosen_without_guidance(words):
    run = StoredRun(trained=frozenset(["nerf"]))
    assert resolve(parse(words), run, pytest.fail).weights == {}


def test_other_weights_bring_no_preset():
    plan = resolve(parse(TEXT), StoredRun(), lambda _: {"SD": SimpleNamespace(kind="sd", version="2.1")})
    assert plan.config.presets == ()


# ---- the workspace ----


def test_a_kept_value_overrides_a_preset_and_yields_to_a_file_and_to_typed_words():
    config = resolve(parse(["-O"]), stored("--grid_levels", "8"), lambda _: {"SD": EMBEDDED}).config
    assert (config.field.levels, config.source("grid_levels")) == (8, "workspace")
    assert (config.field.bound, config.source("bound")) == (Config().field.bound, "workspace")
    assert PRESETS["embedded"]["bound"] != Config().field.bound


def test_a_kept_value_that_a_preset_gives_too_is_not_reported():
    run = stored(embedded=True)
    config = resolve(parse([]), run, lambda _: {"SD": EMBEDDED}).config
    assert (config.field.bound, config.source("bound")) == (PRESETS["embedded"]["bound"], "preset")
    assert config.presets == ("embedded",)


def test_presets_of_the_stored_run_apply_when_it_is_only_shown():
    config = resolve(parse(["--test"]), stored(embedded=True)).config
    assert config.output.mesh_threshold == PRESETS["embedded"]["mesh_threshold"]


# Values other than the default, and than the prompt of these tests, of every option that is kept by the whole run.
OTHERS = {
    "text": "a chair", "negative": "blur", "distillation": "csd", "lora_rank": 8,
    "data": "photos", "holdout": 4, "downscale": 2, "exposure": True, "refine_poses": True, "guidance": ("SD", "clip"),
    "sd_version": "1.5", "hf_key": "x", "hf_keys": ("clip=x",), "prediction_type": "v_prediction",
    "backbone": "vanilla", "bound": 2.0, "background": "constant", "bg_radius": -1.0,
    "density_activation": "softplus", "density_bias": -1.0, "blob_density": 1.0, "blob_radius": 0.5, "grid_levels": 8,
    "grid_features": 4, "grid_coarsest": 8, "grid_finest": 64, "grid_log2": 10, "hidden": 32, "layers": 2, "cuda_ray": True,
    "grid_size": 64, "optim": "adam", "seed": 7, "image": ("x_rgba.png",), "image_config": "x.csv", "ref_radii": (2.0,),
    "ref_polars": (60.0,), "ref_azimuths": (30.0,), "zero123_ws": (0.5,), "zero123": "zero123-xl", "zero123_ckpt": "x.ckpt",
    "mvdream": "embedded", "prior_views": "words", "scene_center": "cameras", "scene_up": "y", "scene_scale": "2",
    "wild": True, "appearance": "embedding", "appearance_size": 8, "appearance_side": 64, "appearance_scope": "local",
    "occluders": "robust", "mask_vector": 16, "mask_hidden": 32, "mask_octaves": 4,
    "preset": "neus", "sharpness": "scheduled", "colour_hidden": 32, "background_bias": -2.0,
}  # fmt: skip


@pytest.mark.parametrize("flag", [flag for flag, owner in KEPT.items() if owner == RUN])
def test_every_kept_option_comes_back_and_another_value_is_refused(tmp_path, monkeypatch, flag):
    (tmp_path / "x_rgba.png").touch()
    (tmp_path / "x.csv").write_text("image\nx_rgba.png\n")
    monkeypatch.chdir(tmp_path)
    run = stored("--seed", "1", *(["--image", "x_rgba.png"] if flag.startswith(("ref_", "zero123_ws")) else []))
    auto = {"sd_version": "2.0", "zero123": "embedded"}  # their default, auto, takes what there is
    mine = auto.get(flag, run.config.value(flag))
    run = dataclasses.replace(run, config=with_values(run.config, {flag: OTHERS[flag]}, "typed"))
    assert resolve(parse([]), run).config.value(flag) == OTHERS[flag]
    assert resolve(with_values(parse([]), {flag: OTHERS[flag]}, "file"), run).config.source(flag) == "file"
    with pytest.raises(UserError, match=f"--(no_)?{flag}.*, this run asks for .*--ckpt scratch"):
        resolve(with_values(parse([]), {flag: mine}, "typed"), run)


@pytest.mark.parametrize("preset", ["neus", "neus-unmasked", "neuralangelo", "auto"])
@pytest.mark.parametrize("masks", [True, False])
def test_photographs_without_masks_have_a_background_that_learns_as_fast_as_the_surface(preset, masks):
    words = ["--data", "photos", "--backbone", "sdf", *([] if preset == "auto" else ["--preset", preset])]
    config = resolve(parse(words), StoredRun(masks=masks)).config
    behind = preset == "neus-unmasked" or (preset != "neus" and not masks)
    assert (config.field.background, config.field.background_lr) == (("contracted", 1.0) if behind else ("auto", 0.1))
    assert (config.data.scene_scale, config.loss.lambda_mask) == (("seen", 0.0) if behind else ("auto", 0.1))
    assert config.field.sdf_gradient == ("taps4" if preset == "neuralangelo" else "auto")


@pytest.mark.parametrize(
    ("preset", "masks", "said"),
    [
        ("neus", False, "warning: --preset neus is for photographs with masks, and these have none"),
        ("neus-unmasked", True, "warning: --preset neus-unmasked is for photographs without masks, and these have masks"),
        ("neus", True, None),
        ("neus-unmasked", False, None),
        ("neuralangelo", False, None),
    ],
)
def test_a_recipe_for_other_photographs_is_warned_about(preset, masks, said):
    plan = resolve(parse(["--data", "photos", "--backbone", "sdf", "--preset", preset]), StoredRun(masks=masks))
    found = [line for line in plan.lines if line.startswith("warning: --preset")]
    assert len(found) == (said is not None) and all(line.startswith(said) for line in found)


def test_the_plan_of_the_stored_options_is_the_stored_plan():
    run = stored("-O", "--stages", "nerf,dmtet", "--tet_grid_size", "32", embedded=True)
    again = resolve(parse(["-O"]), run, lambda _: {"SD": EMBEDDED})
    assert again.config == with_values(run.config, {}, "typed")
    assert to_json(again.config)["options"]["tet_grid_size"]["value"] == 32


def again(words, *stored_words):
    """The options of a command line in the workspace of a run with other words."""
    return resolve(parse(words.split()), stored(*stored_words)).config


@pytest.mark.parametrize(
    ("words", "fp16", "bf16"),
    [("", False, True), ("-O", True, False), ("--fp16", True, False), ("--no_bf16", False, False), ("--no_O", False, False)],
)
def test_the_precision_that_replaced_a_preset_comes_back_with_it(words, fp16, bf16):
    config = again(words, "-O", "--bf16", "--seed", "1")
    assert (config.optim.fp16, config.optim.bf16, config.render.cuda_ray) == (fp16, bf16, True)


def test_what_was_switched_off_in_a_preset_stays_off_when_it_comes_back():
    config = again("", "-O", "--no_fp16", "--no_save_mesh", "--seed", "1")
    assert not config.optim.fp16 and not config.output.save_mesh
    assert again("--save_mesh", "-O", "--no_save_mesh", "--seed", "1").output.save_mesh
    assert again("", "-O", "--seed", "1").optim.fp16


def test_another_value_of_a_kept_option_is_refused_with_what_loses_nothing_first():
    with pytest.raises(UserError) as caught:
        again("--seed 11", "--seed", "1")
    assert str(caught.value).endswith(
        "holds a run with --seed 1, this run asks for --seed 11: leave the flag out to go on with that run, choose another "
        "--workspace for a new one, or start over in it with --ckpt scratch"
    )


@pytest.mark.parametrize("flag", ["data", "hf_key"])
def test_a_path_is_kept_in_full_so_that_a_run_can_be_resumed_from_elsewhere(tmp_path, monkeypatch, flag):
    for folder in ("one/x", "other/x"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "one")
    run = stored(f"--{flag}", "x")
    assert run.config.value(flag) == str(tmp_path / "one" / "x")
    monkeypatch.chdir(tmp_path / "other")
    assert resolve(parse([]), run).config.value(flag) == str(tmp_path / "one" / "x")
    with pytest.raises(UserError, match=f"holds a run with --{flag} {tmp_path}/one/x, this run asks for --{flag} {tmp_path}"):
        resolve(parse([f"--{flag}", "x"]), run)
    resolve(parse([f"--{flag}", "../one/x"]), run)


def test_a_model_of_the_hub_is_no_path():
    assert stored("--hf_key", "some/model").config.guidance.hf_key == "some/model"


# ---- what is left to do ----


@pytest.mark.parametrize(
    ("words", "trained", "pending"),
    [
        ("", (), ["nerf", "dmtet"]),
        ("", ("nerf",), ["nerf", "dmtet"]),
        ("", ("nerf", "dmtet"), ["dmtet"]),
        ("--ckpt scratch", ("nerf", "dmtet"), ["nerf", "dmtet"]),
        ("--ckpt checkpoints/df_step_00000100.safetensors", ("nerf", "dmtet"), ["nerf", "dmtet"]),
        ("--test", ("nerf",), ["nerf"]),
        ("--test", ("nerf", "dmtet"), ["dmtet"]),
    ],
)
def test_the_pending_stages_follow_from_the_checkpoints(words, trained, pending):
    run = StoredRun(trained=frozenset(trained), checkpoint_exists="safetensors" in words)
    plan = resolve(parse([*TEXT, "--stages", "nerf,dmtet", *words.split()]), run)
    assert [stage.name for stage in plan.pending] == pending
    assert [stage.name for stage in plan.stages] == ["nerf", "dmtet"]


def test_a_named_checkpoint_applies_to_the_first_pending_stage_alone():
    name = "df_step_00000007.safetensors"
    plan = resolve(parse([*TEXT, "--stages", "nerf,dmtet", "--ckpt", name]), StoredRun(checkpoint_exists=True))
    assert [stage.config.runtime.ckpt for stage in plan.pending] == [name, "scratch"]


def test_a_checkpoint_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="--ckpt gone: no such file; give latest"):
        resolve(parse([*TEXT, "--ckpt", "gone"]), StoredRun())
    with pytest.raises(UserError, match="--ckpt latets: no such file; .*; did you mean latest"):
        resolve(parse([*TEXT, "--ckpt", "latets"]), StoredRun())


# ---- what the mesh stage starts from ----


@pytest.mark.parametrize(
    ("words", "trained", "needed"),
    [
        ("--dmtet", (), True),
        ("--dmtet", ("dmtet",), False),
        ("--dmtet --ckpt scratch", ("dmtet",), True),
        ("--stages nerf,dmtet", (), False),
        ("", (), False),
    ],
)
def test_a_start_is_needed_by_a_first_stage_that_has_no_checkpoint(words, trained, needed):
    assert needs_start(parse([*TEXT, *words.split()]), StoredRun(trained=frozenset(trained))) == needed


def test_options_of_the_start_override_presets_and_yield_to_what_is_typed():
    start = StoredStart({"hidden": 24, "tet_grid_size": 16, "bound": 1.0}, {"mesh_threshold": 5.0, "mesh_smooth": 2.0})
    words = [*TEXT, "--dmtet", "--init_with", "x", "--mesh_smooth", "1"]
    plan = resolve(parse(words), StoredRun(start=start), lambda _: {"SD": EMBEDDED})
    mesh = plan.stages[0].config
    assert (mesh.field.hidden, mesh.dmtet.tet_grid_size, mesh.field.bound) == (24, 16, 1.0)
    assert (mesh.output.mesh_threshold, mesh.output.mesh_smooth) == (5.0, 1.0)
    with pytest.raises(UserError, match="--init_with x: its weights were made with --hidden 24, this run asks for --hidden 32"):
        resolve(parse([*words, "--hidden", "32"]), StoredRun(start=start))


def test_the_grid_of_the_start_overrides_what_the_workspace_says_of_a_mesh_stage_that_never_ran():
    run = stored("--tet_grid_size", "64", start=StoredStart({"tet_grid_size": 16}))
    assert resolve(parse(["--dmtet", "--init_with", "x"]), run).config.dmtet.tet_grid_size == 16


def test_a_start_that_is_ignored_is_logged():
    run = StoredRun(trained=frozenset(["dmtet"]))
    lines = resolve(parse([*TEXT, "--dmtet", "--init_with", "x"]), run).lines
    assert "--init_with x was for the first step; --dmtet --ckpt scratch starts over from it" in lines


# ---- starting over ----


def test_starting_one_stage_over_keeps_the_run_of_the_other():
    run = stored("--stages", "nerf,dmtet", "--bound", "0.8", trained=("nerf", "dmtet"))
    again = resolve(parse(["--dmtet", "--ckpt", "scratch"]), run)
    assert again.config.prompt.text == run.config.prompt.text and again.config.field.bound == 0.8
    assert again.config.runtime.seed == run.config.runtime.seed and again.first == 0
    with pytest.raises(UserError, match="--text .*start over with all its stages: --stages nerf,dmtet --ckpt scratch"):
        resolve(parse(["--ckpt", "scratch", "--text", "another thing"]), run)


def test_starting_every_stage_over_keeps_nothing():
    run = stored("--stages", "nerf,dmtet", "--bound", "0.8", trained=("nerf", "dmtet"))
    words = ["--ckpt", "scratch", "--stages", "nerf,dmtet", "--text", "another thing"]
    config = resolve(parse(words), run).config
    assert config.prompt.text == "another thing" and config.field.bound == 1.0


def test_weights_that_auto_found_are_those_of_the_run_for_good():
    run = stored(embedded=True)
    assert run.config.guidance.sd_version == "embedded"
    for words in ([], ["--sd_version", "auto"], ["--sd_version", "embedded"]):
        assert resolve(parse(words), run, lambda _: {"SD": EMBEDDED}).config.guidance.sd_version == "embedded"


def test_a_preset_for_another_network_than_that_of_the_workspace_is_refused():
    with pytest.raises(UserError, match="holds a run with -O, a preset for another network than -O2"):
        resolve(parse(["-O2"]), stored("-O"))


def test_showing_and_starting_over_contradict_each_other():
    with pytest.raises(UserError, match="--ckpt scratch starts over, and --test"):
        resolve(parse(["--test", "--ckpt", "scratch"]), stored())


def test_the_log_lists_what_a_stage_takes_from_its_presets_and_from_other_options():
    lines = resolve(parse(["--data", "x", "--dmtet", "--w", "64", "--dmtet_reso_scale", "2"]), StoredRun()).lines
    (line,) = [line for line in lines if line.startswith("stage dmtet")]
    assert line.startswith("stage dmtet (the mesh stage, the mesh stage of --data): --t_range 0.02 0.5 ")
    assert " --w 128 --h 512 --iters 400 " in line and "--ckpt" not in line and not any("stage nerf" in one for one in lines)
