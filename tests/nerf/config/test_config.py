"""The flags: where values come from, what is refused and in which words, and that the options survive a file."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nerf.config.compat import IGNORED, REFUSED
from nerf.config.config import GROUPS, OPTIONS, Config, describe, from_json, parse, to_json, with_preset, with_values
from nerf.config.groups import CameraConfig
from nerf.config.kept import StoredRun
from nerf.config.parser import kind_of
from nerf.config.presets import PRESETS, REASONS
from nerf.config.resolve import resolve
from nerf.config.stages import STAGE_KINDS
from nerf.core.errors import UserError
from tests.helpers.plans import EMBEDDED

ROOT = Path(__file__).resolve().parents[3]
TEXT = ["--text", "a hamburger"]

# The command line of stable-dreamfusion: flag -> default. What differs on purpose is in DIFFERENT, with docs/flags.md.
STABLE_DREAMFUSION = {
    "text": None, "negative": "", "O": False, "O2": False, "test": False, "six_views": False, "eval_interval": 1,
    "test_interval": 100, "workspace": "workspace", "seed": None, "image": None, "image_config": None,
    "known_view_interval": 4, "IF": False, "guidance": ("SD",), "guidance_scale": (100,), "save_mesh": False,
    "mcubes_resolution": 256, "decimate_target": 50_000, "dmtet": False, "tet_grid_size": 128, "init_with": "",
    "lock_geo": False, "perpneg": False, "negative_w": -2, "front_decay_factor": 2, "side_decay_factor": 10,
    "iters": 10_000, "lr": 1e-3, "ckpt": "latest", "cuda_ray": False, "taichi_ray": False, "max_steps": 1024,
    "num_steps": 64, "upsample_steps": 32, "update_extra_interval": 16, "max_ray_batch": 4096,
    "latent_iter_ratio": 0.2, "albedo_iter_ratio": 0, "min_ambient_ratio": 0.1, "textureless_ratio": 0.2,
    "jitter_pose": False, "jitter_center": 0.2, "jitter_target": 0.2, "jitter_up": 0.02, "uniform_sphere_rate": 0,
    "grad_clip": -1, "grad_clip_rgb": -1, "bg_radius": 1.4, "density_activation": "exp", "density_thresh": 10,
    "blob_density": 5, "blob_radius": 0.2, "backbone": "grid", "optim": "adan", "sd_version": "2.1", "hf_key": None,
    "fp16": False, "vram_O": False, "w": 64, "h": 64, "known_view_scale": 1.5, "known_view_noise_scale": 2e-3,
    "dmtet_reso_scale": 8, "batch_size": 1, "bound": 1, "dt_gamma": 0, "min_near": 0.01, "radius_range": (3.0, 3.5),
    "theta_range": (45, 105), "phi_range": (-180, 180), "fovy_range": (10, 30), "default_radius": 3.2,
    "default_polar": 90, "default_azimuth": 0, "default_fovy": 20, "progressive_view": False,
    "progressive_view_init_ratio": 0.2, "progressive_level": False, "angle_overhead": 30, "angle_front": 60,
    "t_range": (0.02, 0.98), "dont_override_stuff": False, "lambda_entropy": 1e-3, "lambda_opacity": 0,
    "lambda_orient": 1e-2, "lambda_tv": 0, "lambda_wd": 0, "lambda_mesh_normal": 0.5, "lambda_mesh_laplacian": 0.5,
    "lambda_guidance": 1, "lambda_rgb": 1000, "lambda_mask": 500, "lambda_normal": 0, "lambda_depth": 10,
    "lambda_2d_normal_smooth": 0, "lambda_3d_normal_smooth": 0, "save_guidance": False, "save_guidance_interval": 10,
    "gui": False, "W": 800, "H": 800, "radius": 5, "fovy": 20, "light_theta": 60, "light_phi": 0, "max_spp": 1,
    "zero123_config": "./pretrained/zero123/sd-objaverse-finetune-c_concat-256.yaml",
    "zero123_ckpt": "pretrained/zero123/zero123-xl.ckpt", "zero123_grad_scale": "angle", "dataset_size_train": 100,
    "dataset_size_valid": 8, "dataset_size_test": 100, "exp_start_iter": None, "exp_end_iter": None,
}  # fmt: skip
DIFFERENT = {"sd_version": "auto", "eval_interval": 10, "angle_front": 90, "image": (), "max_ray_batch": 0}


def options(*words):
    """The run-wide options of a command line in a new workspace."""
    return resolve(parse(words), StoredRun()).config


def refusal(*words):
    """The sentence with which a command line is refused."""
    with pytest.raises(UserError) as caught:
        options(*words)
    return str(caught.value)


# ---- flags and defaults ----


@pytest.mark.parametrize("flag", [flag for flag in STABLE_DREAMFUSION if flag not in IGNORED])
def test_every_flag_of_stable_dreamfusion_exists_with_its_default(flag):
    default = REFUSED[flag].default if flag in REFUSED else Config().value(flag)
    assert default == DIFFERENT.get(flag, STABLE_DREAMFUSION[flag])


def test_every_new_or_different_flag_is_explained_in_the_docs():
    page = (ROOT / "docs" / "flags.md").read_text()
    for flag in [*DIFFERENT, *(f for f in OPTIONS if f not in STABLE_DREAMFUSION)]:
        assert f"`--{flag}`" in page, flag


@pytest.mark.parametrize("flag", IGNORED)
def test_flags_that_are_not_needed_are_accepted_with_any_value(flag):
    assert flag in STABLE_DREAMFUSION
    assert options(*TEXT, "--seed", "1", f"--{flag}", "anything") == options(*TEXT, "--seed", "1")


def test_no_two_groups_share_a_flag():
    assert len(OPTIONS) == sum(len(dataclasses.fields(group)) for group in GROUPS.values())


def test_groups_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().optim.iters = 3


@pytest.mark.parametrize("flag", [f for f, (_, field) in OPTIONS.items() if kind_of(field).scalar is bool])
def test_every_switch_can_be_turned_off_again(flag):
    if flag not in ("O", "O2"):
        assert parse([*TEXT, f"--no_{flag}"]).value(flag) is False


def test_values_have_the_type_of_their_option():
    config = parse([*TEXT, "--iters", "5e3", "--lr", "1", "--phi_range", "-1e-1", "90", "--guidance", "SD"])
    assert (config.optim.iters, config.camera.phi_range, config.guidance.guidance) == (5000, (-0.1, 90.0), ("SD",))
    assert isinstance(config.optim.iters, int) and isinstance(config.optim.lr, float)


# ---- where values come from ----


def test_typed_overrides_file_overrides_preset_overrides_default(tmp_path):
    flags = tmp_path / "run.args"
    flags.write_text("--no_cuda_ray --iters 7 --lr 0.5\n")
    config = options(*TEXT, "-O", "--lr", "0.25", "--file", str(flags))
    assert [config.source(f) for f in ("h", "fp16", "cuda_ray", "iters", "lr")] == [
        "default", "preset", "file", "file", "typed"
    ]  # fmt: skip
    assert (config.optim.fp16, config.render.cuda_ray, config.optim.iters, config.optim.lr) == (True, False, 7, 0.25)


def test_the_place_of_a_preset_among_the_typed_words_does_not_matter():
    assert options(*TEXT, "-O", "--no_fp16", "--seed", "1") == options("--no_fp16", "--seed", "1", *TEXT, "-O")


def test_a_preset_can_be_asked_for_in_a_file(tmp_path):
    (tmp_path / "run.args").write_text("-O")
    assert options(*TEXT, "--file", str(tmp_path / "run.args")).render.cuda_ray


def test_a_file_is_read_with_shell_quotes_and_comment_lines(tmp_path):
    (tmp_path / "run.args").write_text("# my model\n--text \"a 'big' house\"\n  # more\n--negative blurry\\ mess\n")
    config = parse(["--file", str(tmp_path / "run.args")])
    assert (config.prompt.text, config.prompt.negative) == ("a 'big' house", "blurry mess")


def test_a_later_file_overrides_an_earlier_one(tmp_path):
    for name, iters in (("a", 1), ("b", 2)):
        (tmp_path / name).write_text(f"--iters {iters}")
    assert parse([*TEXT, "--file", str(tmp_path / "a"), "--file", str(tmp_path / "b")]).optim.iters == 2


def test_photographs_bring_their_preset():
    config = options("--data", "folder")
    assert (config.field.bg_radius, config.source("bg_radius")) == (PRESETS["photographs"]["bg_radius"], "preset")


def test_the_embedded_preset_leaves_what_the_user_chose():
    config = with_preset(options(*TEXT, "-O", "--iters", "77"), "embedded")
    assert config.optim.iters == 77
    assert config.guidance.guidance_scale == (PRESETS["embedded"]["guidance_scale"],)
    assert config.presets == ("O", "embedded")


def test_a_later_preset_goes_over_an_earlier_one():
    config = with_preset(with_values(Config(), {"iters": 1}, "preset"), "embedded")
    assert config.optim.iters == PRESETS["embedded"]["iters"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_flags_and_has_a_reason(name):
    assert set(PRESETS[name]) <= set(OPTIONS)
    assert REASONS[name]
    with_preset(Config(), name)


@pytest.mark.parametrize("name", ["O", "O2"])
def test_the_help_of_a_preset_says_what_it_sets(name):
    words = OPTIONS[name][1].metadata["help"]
    for flag, value in PRESETS[name].items():
        assert f"--{flag}" in words and (value is True or f"--{flag} {value}" in words)


def test_the_log_says_which_was_which(tmp_path):
    (tmp_path / "run.args").write_text("--iters 7")
    lines = describe(options("--text", "a 'big' house", "-O", "--no_fp16", "--file", str(tmp_path / "run.args")))
    assert lines[:3] == [
        "typed: --text 'a '\"'\"'big'\"'\"' house' --no_fp16 -O",
        "file: --iters 7",
        "preset (-O): --cuda_ray --save_mesh",
    ]


def test_the_logged_options_can_be_typed_again():
    words = ["--text", "a 'big' house", "-O", "--phi_range", "-90", "90", "--seed", "3", "--dmtet"]
    config = with_preset(options(*words), "embedded")
    logged = [word for line in describe(config)[:-1] for word in shlex.split(line.split(": ", 1)[1])]
    assert parse(logged) == config


# ---- files of options ----


def test_json_round_trip_keeps_values_sources_and_presets():
    config = with_preset(options(*TEXT, "-O", "--theta_range", "10", "80", "--seed", "3"), "embedded")
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config
    assert (again.sources, again.presets) == (config.sources, config.presets)


def test_options_missing_from_an_older_file_keep_their_defaults():
    stored = to_json(parse(TEXT))
    del stored["options"]["lr"]
    assert from_json(stored).optim.lr == Config().optim.lr


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], r"nothing to do: give --text .*, --data FOLDER, or --test"),
        (["--text", " "], r'--text is empty; give a value, as in --text "a hamburger", or leave'),
        (["--text", ""], r"--text is empty"),
        (["--data", ""], r"--data is empty"),
        (["--text", "a", "hamburger"], r"unexpected word 'hamburger' after the value of --text; put quotes around"),
        (["--txt", "a"], r"unknown flag --txt; did you mean --text\?"),
        ([*TEXT, "--guidance_scal=3"], r"unknown flag --guidance_scal; did you mean --guidance_scale\?"),
        ([*TEXT, "--qqqqqqqqqqqq"], r"unknown flag --qqqqqqqqqqqq; see --help"),
        ([*TEXT, "--iter", "5"], r"unknown flag --iter; did you mean --iters\?"),
        (["--text"], r'--text needs a value, as in --text "a hamburger"$'),
        ([*TEXT, "--iters", "many"], r"--iters must be a whole number, got 'many'"),
        ([*TEXT, "--iters", "1.5"], r"--iters must be a whole number, got '1.5'"),
        ([*TEXT, "--iters", "inf"], r"--iters must be a whole number, got 'inf'"),
        ([*TEXT, "--lr", "nan"], r"--lr must be a finite number, got 'nan'"),
        ([*TEXT, "--iters", "0"], r"--iters must be between 1 and 1e9, got 0"),
        ([*TEXT, "--w", "0"], r"--w must be between 1 and 8192, got 0"),
        ([*TEXT, "--H", "100000"], r"--H must be between 0 and 8192, got 100000"),
        ([*TEXT, "--grid_size", "100"], r"--grid_size must be a power of two between 8 and 512, got 100"),
        ([*TEXT, "--mcubes_resolution", "100000"], r"--mcubes_resolution must be between 8 and 1024"),
        ([*TEXT, "--theta_range", "105", "45"], r"--theta_range must be two angles .*low <= high <= 180, got 105 45"),
        ([*TEXT, "--t_range", "0.9", "0.1"], r"--t_range must be two fractions with 0 <= low <= high <= 1"),
        ([*TEXT, "--radius_range", "0", "1"], r"--radius_range must be two distances"),
        ([*TEXT, "--fovy_range", "20"], r"--fovy_range takes two numbers, as in --fovy_range 10 30, got '20'"),
        ([*TEXT, "--optim", "adm"], r"--optim must be adan or adam, got 'adm'; did you mean adam\?"),
        ([*TEXT, "--device", "gpu"], r"--device must be auto, cpu, cuda or cuda:N, got gpu"),
        ([*TEXT, "--grid_finest", "8"], r"--grid_finest must be at least --grid_coarsest, got 8 and 16"),
        ([*TEXT, "--exp_start_iter", "20000"], r"--exp_start_iter must be below .* got 20000 and 10000"),
        ([*TEXT, "-O", "-O2"], r"-O and -O2 are two presets"),
        ([*TEXT, "--fp16", "--bf16"], r"--fp16 and --bf16 exclude each other"),
        ([*TEXT, "--export_frame", "source"], r"--export_frame source needs the axes of --data"),
        ([*TEXT, "--workspace", " "], r"--workspace is empty"),
        ([*TEXT, "--file", "/nowhere/run.args"], r"--file /nowhere/run.args cannot be read: No such file"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(words, sentence):
    assert re.search(sentence, refusal(*words))


def test_taichi_ray_is_the_accelerated_path_and_contradicts_its_absence():
    config = options(*TEXT, "--taichi_ray")
    assert config.render.cuda_ray and config.source("cuda_ray") == "typed"
    assert "--taichi_ray and --no_cuda_ray contradict each other" in refusal(*TEXT, "--taichi_ray", "--no_cuda_ray")


@pytest.mark.parametrize("words", ["--dont_override_stuff"])
def test_a_flag_without_effect_in_stable_dreamfusion_is_refused_with_the_reason(words, tmp_path):
    assert re.search("is not supported: .{20,}", refusal(*TEXT, *words.split()))
    (tmp_path / "run.args").write_text(words)
    assert re.search("is not supported: .{20,}", refusal(*TEXT, "--file", str(tmp_path / "run.args")))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'--text "a', "no closing quotation"),
        (b"\xff\xfe", "not a text file"),
        (b"--file x", "cannot name another file"),
    ],
)
def test_a_broken_file_of_flags_is_refused(tmp_path, content, sentence):
    (tmp_path / "run.args").write_bytes(content)
    assert sentence in refusal("--file", str(tmp_path / "run.args"))


@pytest.mark.parametrize("words", [["--test"], ["--six_views"], ["--data", "x"], TEXT, ["--", *TEXT]])
def test_each_kind_of_run_is_accepted(words):
    resolve(parse(words), StoredRun(trained=frozenset(["nerf"])))


def test_bf16_takes_the_place_of_the_fp16_of_a_preset():
    config = options(*TEXT, "-O", "--bf16")
    assert (config.optim.fp16, config.optim.bf16, config.render.cuda_ray) == (False, True, True)


def test_a_group_made_in_code_is_checked_as_one_that_was_typed():
    with pytest.raises(UserError, match="--theta_range must be two angles"):
        CameraConfig(theta_range=(90.0, 10.0))
    with pytest.raises(UserError, match="--w must be a whole number, got 64.0"):
        CameraConfig(w=64.0)
    with pytest.raises(UserError, match="--jitter_pose must be true or false, got 1"):
        CameraConfig(jitter_pose=1)


# ---- stages ----


def stages(*words, embedded=False):
    """Name -> options of each stage of a command line in a new workspace."""
    plan = resolve(parse([*TEXT, *words]), StoredRun(), (lambda _: {"SD": EMBEDDED}) if embedded else None)
    return {stage.name: stage.config for stage in plan.stages}


@pytest.mark.parametrize(
    ("words", "names"),
    [((), ("nerf",)), (("--dmtet",), ("dmtet",)), (("--stages", "nerf,dmtet"), ("nerf", "dmtet")),
     (("--dmtet", "--stages", "nerf", "dmtet"), ("nerf", "dmtet")), (("--no_dmtet",), ("nerf",))],
)  # fmt: skip
def test_stages_are_those_that_were_asked_for(words, names):
    assert options(*TEXT, *words).stages == tuple(stages(*words)) == names


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--stages", "nerf", "--dmtet"), "--dmtet and --stages nerf contradict each other"),
        (("--init_with", "trial"), "--init_with is for the mesh stage; add --dmtet"),
        (("--stages", "nerf,dmtet", "--init_with", "trial"), "--init_with and --stages nerf,dmtet contradict each other"),
        (("--stages", "dmtet,nerf"), "--stages must be nerf, dmtet or nerf,dmtet"),
        (("--lock_geo",), "this run has no mesh stage; add --dmtet"),
    ],
)
def test_stages_that_contradict_themselves_are_refused(words, sentence):
    assert sentence in refusal(*TEXT, *words)


def test_the_mesh_stage_sees_larger_pictures_and_its_own_steps():
    found = stages(*"--stages nerf,dmtet --w 10 --h 6 --dmtet_reso_scale 2.5 --dmtet_iters 7".split())
    nerf, mesh = found["nerf"], found["dmtet"]
    assert (mesh.camera.w, mesh.camera.h, mesh.optim.iters) == (25, 15, 7)
    assert (nerf.camera.w, nerf.camera.h, nerf.optim.iters) == (10, 6, 10_000)


def test_a_preset_of_a_stage_needs_the_run_s_preset_and_leaves_what_was_typed():
    words = "--dmtet", "--lr_distance", "0.5"
    assert stages(*words)["dmtet"].dmtet.tet_grid_size == 128
    mesh = stages(*words, "--iters", "33", embedded=True)["dmtet"]
    assert mesh.dmtet.coarse_sdf_grids == PRESETS["dmtet embedded"]["coarse_sdf_grids"]
    assert (mesh.dmtet.lr_distance, mesh.optim.iters) == (0.5, 33)
    assert mesh.loss.lambda_orient == mesh.loss.lambda_entropy == 0
    assert mesh.loss.lambda_eikonal == mesh.loss.lambda_curvature == 0  # of samples along rays, which triangles have none of


def test_details_of_the_prior_are_for_the_mesh_stage_unless_they_are_asked_for():
    def wanted(*words):
        found = stages("--stages", "nerf,dmtet", *words, embedded=True)
        return [config.guidance.prior_detail for config in found.values()]

    assert wanted() == [False, True]
    assert wanted("--prior_detail") == [True, True] and wanted("--no_prior_detail") == [False, False]


def test_a_fixed_shape_is_never_rendered_without_its_texture():
    assert stages("--dmtet", "--lock_geo", "--textureless_ratio", "1")["dmtet"].schedule.textureless_ratio == 0


def test_every_stage_names_presets_and_run_presets_that_exist():
    for kind in STAGE_KINDS.values():
        for name, needed in kind.presets:
            assert name in PRESETS and (needed is None or needed in PRESETS)


# ---- text as it comes from terminals and files ----


def test_a_byte_order_mark_is_no_flag(tmp_path):
    (tmp_path / "run.args").write_bytes(b"\xef\xbb\xbf--iters 7\r\n# no more\r\n--lr 0.5\r\n")
    config = parse([*TEXT, "--file", str(tmp_path / "run.args")])
    assert (config.optim.iters, config.optim.lr) == (7, 0.5)


@pytest.mark.parametrize("flag", ["data", "workspace", "init_with", "hf_key", "ckpt"])
def test_a_tilde_is_the_users_home_in_every_flag_that_names_a_file(tmp_path, monkeypatch, flag):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.args").write_text("--iters 3")
    config = parse([*TEXT, f"--{flag}=~/x y", "--file=~/run.args"])
    assert config.value(flag) == str(tmp_path / "x y") and config.optim.iters == 3
    assert parse(["--text", "~/x"]).prompt.text == "~/x"
    assert parse([*TEXT, f"--{flag}=~nobody-of-this-name/x"]).value(flag) == "~nobody-of-this-name/x"


@pytest.mark.parametrize("flag", ["text", "negative"])
def test_a_prompt_that_is_not_utf8_is_refused(flag):
    assert f"--{flag} is not text in UTF-8, got 'a \\udcff'" in refusal(*TEXT, f"--{flag}", os.fsdecode(b"a \xff"))


def test_a_path_that_is_not_utf8_may_be_read_but_not_written():
    name = os.fsdecode(b"t\xff")
    assert parse(["--data", name]).data.data == name
    assert "is not a name in UTF-8, and checkpoints in such a folder could not be" in refusal(*TEXT, "--workspace", name)
    assert "--workspace is not the name of a file here" in refusal(*TEXT, "--workspace", "\ud800")


def test_a_prompt_under_the_c_locale_is_read_as_utf8():
    script = "import sys; from nerf.config.config import parse; print(ascii(parse(sys.argv[1:]).prompt.text))"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    words = [sys.executable, "-c", script, "--text", "ein Würfel"]
    said = subprocess.run(words, cwd=ROOT, env=locale, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == r"'ein W\xfcrfel'"


@pytest.mark.parametrize("flag", ["text", "workspace"])
def test_a_null_character_is_refused(tmp_path, flag):
    (tmp_path / "run.args").write_bytes(f"--{flag} a\0b".encode())
    assert f"--{flag} holds a null character" in refusal(*TEXT[: 2 * (flag != "text")], "--file", str(tmp_path / "run.args"))


def test_a_file_of_flags_may_be_a_pipe():
    ends = os.pipe()
    os.write(ends[1], b"--iters 9")
    os.close(ends[1])
    assert parse([*TEXT, "--file", f"/dev/fd/{ends[0]}"]).optim.iters == 9
    os.close(ends[0])


ENTRY = {"value": 5, "source": "typed"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"presets": 5}, "the stored options, presets: expected array, got int"),
        ({"presets": [{}]}, r"presets\[0\]: expected str, got object"),
        ({"presets": ["fast"]}, "does not know the stored preset 'fast'"),
        ({"options": [ENTRY]}, "options: expected object, got array"),
        ({"options": {"iters": 5}}, r"options\[.*\]: expected object, got int"),
        ({"options": {"iters": {"value": 5}}}, "missing required field source"),
        ({"options": {"iters": ENTRY | {"source": []}}}, "expected str, got array"),
        ({"options": {"iters": ENTRY | {"source": "sky"}}}, "invalid enum value 'sky'"),
        ({"options": {"iters": ENTRY | {"value": [5]}}}, "--iters must be a whole number"),
        ({"options": {"lr": ENTRY | {"value": 10**400}}}, "--lr must be a finite number"),
        ({"options": {"stages": ENTRY | {"value": [{}, []]}}}, "--stages must be text"),
        ({"options": {"workspace": ENTRY | {"value": "a\0b"}}}, "--workspace holds a null character"),
        ({"options": {"nothing": ENTRY}}, "does not know the stored option --nothing"),
        ({"format": "2"}, "not of format 2"),
        ({"format": 99}, "not of format 2"),
    ],
)
def test_stored_options_of_another_shape_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        from_json(to_json(Config()) | changes)


@pytest.mark.parametrize("flag", ["--ckpt", "--data", "--image", "--workspace", "--init_with"])
@pytest.mark.parametrize("path", ["x" * 256, "é" * 128, "/".join(["y" * 200] * 30)], ids=["name", "bytes", "path"])
def test_a_path_that_no_file_can_have_is_one_short_sentence(flag, path):
    with pytest.raises(UserError, match=rf"^{flag} is longer than the name of a file can be, got '.{{80}}\.\.\.'$"):
        parse([flag, path])
