"""Contradictions are refused before anything happens; flags without effect, and what is regretted later, get a warning."""

import os

import pytest

from nerf.config.checks import IDLE, gpu_warnings, less_memory
from nerf.config.config import OPTIONS, parse, with_preset
from nerf.config.distillation import METHODS
from nerf.config.kept import StoredRun
from nerf.config.presets import PAINTED
from nerf.config.resolve import resolve
from nerf.core.errors import UserError

TEXT = ["--text", "a cone"]


def plan(*words, text=TEXT):
    """The plan of a command line in a new workspace."""
    return resolve(parse([*text, *words]), StoredRun())


def warnings(*words, text=TEXT):
    """The warnings of a command line."""
    return [line.removeprefix("warning: ") for line in plan(*words, text=text).lines if line.startswith("warning: ")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--background network --bg_radius -1", "--background network and --bg_radius -1, which means a constant background,"),
        ("--background constant --bg_radius 1", "--background constant and --bg_radius 1, which means a network, contradict"),
        ("--min_near 6", "--min_near must be below 5.23205, where the box ends for cameras at --radius_range 3 3.5, got 6"),
        ("--iters 5 --exp_start_iter 5", "--exp_start_iter must be below the number of steps, got 5 and 5"),
        ("--exp_end_iter 4 --exp_start_iter 5", "--exp_start_iter must be below --exp_end_iter, got 5 and 4"),
        (
            "--stages nerf,dmtet --iters 9 --dmtet_iters 4 --exp_start_iter 5",
            "--exp_start_iter must be below the number of steps in stage dmtet, got 5 and 4",
        ),
        ("--dmtet --w 2048 --h 64", "--dmtet_reso_scale 8 makes 16384x512 pixels of --w 2048 and --h 64, and a side has 8192"),
        ("--grid_coarsest 64 --grid_finest 32", "--grid_finest must be at least --grid_coarsest, got 32 and 64"),
    ],
)
def test_contradictions_are_refused(words, sentence):
    with pytest.raises(UserError) as caught:
        plan(*words.split())
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "--background network --bg_radius 1",
        "--background constant --bg_radius -1",
        "--background network",  # bg_radius of a preset or a default does not count
        "--bg_radius -1",
        "--min_near 5",
        "--min_near 6 --jitter_pose",
        "--min_near 6 --radius_range 6 7",
        "--w 2048",
        "--iters 5 --exp_start_iter 4",
    ],
)
def test_what_works_is_not_refused(words):
    plan(*words.split())


def test_a_large_render_size_of_the_nerf_can_be_resumed():
    stored = plan("--w", "2048", "--h", "8").config
    assert resolve(parse([]), StoredRun(stored, frozenset(["nerf"]))).config.prompt.text == "a cone"


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        ("--texture_size 64", "--texture_size has no effect without --save_mesh"),
        ("--mesh_ply --roughness 0.5", "--roughness, --mesh_ply have no effect without --save_mesh"),
        ("--num_rays 64", "--num_rays has no effect without --data"),
        ("--lr_distance 0.1", "--lr_distance has no effect without a mesh stage (--dmtet, or --stages nerf,dmtet)"),
        ("--jitter_up 0.1", "--jitter_up has no effect without --jitter_pose"),
        ("--negative_w -1", "--negative_w has no effect without --perpneg"),
        ("--max_steps 64", "--max_steps has no effect without --cuda_ray"),
        ("--cuda_ray --num_steps 64", "--num_steps has no effect with --cuda_ray"),
        ("--backbone vanilla --grid_levels 4", "--grid_levels has no effect with --backbone vanilla"),
        (
            "--threads 1024",
            f"--threads 1024 is more than the {os.cpu_count()} cores of this machine, which makes a run slower; leave it out "
            "to have one thread for each core",
        ),
        ("--profile 2 --iters 3", "--profile 2 will record nothing, as the first 3 steps only warm up; give more --iters"),
        (
            "--save_mesh --texture_size 64",
            "--texture_size 64 is 4,096 texels for 50,000 triangles at most; raise it or lower --decimate_target, or the mesh "
            "may have no room for its colours",
        ),
    ],
)
def test_what_has_no_effect_gets_a_warning_at_the_start(words, warning):
    assert warning in warnings(*words.split())


@pytest.mark.parametrize(
    "words",
    [
        "",
        "-O",
        "--save_mesh --texture_size 512",
        "--save_mesh --texture_size 64 --decimate_target 2000",
        "--save_mesh --texture_size 64 --decimate_target 0",
        "--stages nerf,dmtet --lr_distance 0.1 --mesh_threshold 4",
        "--no_mesh_ply --no_normal_map",
        "--profile 2 --iters 4",
        "--threads 1",
    ],
)
def test_what_has_an_effect_gets_none(words):
    assert warnings(*words.split()) == []


def test_losses_of_appearances_that_need_patches_say_so():
    words = ["--data", "x", "--appearance", "encoder"]
    assert warnings("--lambda_mode_seeking", "1", text=words) == ["--lambda_mode_seeking has no effect without --patch_grid"]
    assert warnings("--lambda_mode_seeking", "1", "--patch_grid", "8", text=words) == []


def test_losses_of_normals_have_no_effect_on_photographs_alone():
    why = "on photographs, which are compared without the field's normals"
    assert warnings("--lambda_orient", "1", text=["--data", "x"]) == [f"--lambda_orient has no effect {why}"]
    assert warnings("--lambda_orient", "1") == []


def test_guidance_flags_have_no_effect_on_photographs_alone():
    assert warnings("--guidance_scale", "5", text=["--data", "x"]) == [
        "--guidance_scale has no effect without a prompt (--text)"
    ]


EVERYTHING = (
    "--save_mesh --stages nerf,dmtet --coarse_sdf_grids 1 --jitter_pose --progressive_view --save_guidance --cuda_ray "
    "--image a_rgba.png"
)
RUNS = [  # what each flag has an effect in one of, and none in another
    ["--data", "x"],
    ["--data", "x", "--text", "a cone", "--perpneg"],
    ["--data", "x", "--appearance", "encoder", "--occluders", "mask", "--patch_grid", "16"],
    ["--data", "x", "--occluders", "robust", "--patch_grid", "16"],
    ["--text", "a cone", "--hf_key", "x", "--backbone", "vanilla"],
    ["--text", "a cone", "--sd_version", "embedded"],
    ["--text", "a cone", "--cuda_ray", "--dmtet", "--gui"],
    ["--text", "a cone", "--viewer", "web"],
    ["--data", "x", "--backbone", "sdf", "--sharpness", "scheduled", "--background", "contracted"],
    ["--data", "x", "--backbone", "sdf_vanilla", "--sfm", "--hallucinate", "x", "--save_mesh", "--fill_hidden"],
    ["--text", "a cone", "--backbone", "sdf"],
    ["--text", "a cone", "--cuda_ray", "--guidance", "clip"],
    ["--text", "a cone", "--guidance", "SD", "clip", "zero123", *EVERYTHING.split()],
    *(["--text", "a cone", "--distillation", method] for method in METHODS),
]


@pytest.mark.parametrize("idle", IDLE, ids=lambda idle: f"{idle.flags[0]} {idle.why}")
def test_flags_without_effect_exist_and_have_one_in_other_runs(idle):
    assert set(idle.flags) <= set(OPTIONS)
    runs = [*map(parse, RUNS), with_preset(parse(["--text", "a cone", "--dmtet"]), PAINTED)]
    assert {idle.where(config) for config in runs} == {True, False}


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        ("--known_view_scale 2 --lambda_depth 3", "--known_view_scale, --lambda_depth have no effect without --image"),
        ("--lambda_rgb 3", "--lambda_rgb has no effect without --image or --data"),
        (
            "--coarse_sdf_grids 2 --tet_grid_size 16 --lambda_mesh_sign 1",
            "--coarse_sdf_grids, --tet_grid_size, --lambda_mesh_sign have no effect without a mesh stage (--dmtet, or --stages "
            "nerf,dmtet)",
        ),
        ("--backbone sdf --preset neus", "--preset has no effect without --data"),
        ("--lora_rank 2", "--lora_rank has no effect without --distillation vsd"),
        ("--distillation ism --sdi_eta 0.1", "--sdi_eta has no effect without --distillation sdi"),
        ("--clip_crops 2", "--clip_crops has no effect without clip in --guidance"),
        ("--zero123_grad_scale None", "--zero123_grad_scale has no effect without zero123 in --guidance"),
        ("--hf_keys clip=x SDXL_vae=y SD=z", "--hf_keys clip=x has no effect without clip in --guidance"),
        ("--hf_keys clip=x SDXL_vae=y SD=z", "--hf_keys SDXL_vae=y has no effect without SDXL in --guidance"),
        ("--guidance IF --prediction_type epsilon", "--prediction_type has no effect without SD or SDXL in --guidance"),
        ("--guidance IF --sd_version 2.1", "--sd_version has no effect without SD in --guidance"),
        ("--hf_key x --sd_version 2.1", "--sd_version has no effect with --hf_key"),
        ("--guidance clip --t_range 0 1", "--t_range has no effect with --guidance clip, which adds no noise"),
        (
            "--sd_version embedded --angle_front 60",
            "--angle_front has no effect with the embedded prior, which is given the camera and no words",
        ),
        ("--dmtet --max_steps 9", "--max_steps has no effect in the mesh stage"),
        ("--eval_views 3", "--eval_views has no effect without --data"),
        ("--sfm --scene_up y --photo_cache x", "--sfm, --photo_cache, --scene_up have no effect without --data"),
        ("--background contracted --bg_radius 2", "--bg_radius has no effect with --background contracted"),
        ("--light_walk 4", "--light_walk has no effect without --hallucinate"),
        ("--mesh_crop 0 0 0 1 1 1", "--mesh_crop has no effect without --save_mesh"),
        ("--fill_hidden", "--fill_hidden has no effect without --save_mesh"),
    ],
)
def test_options_of_other_runs_get_a_warning(words, warning):
    assert warning in warnings(*words.split())


def test_cameras_and_shading_have_no_effect_on_photographs_alone():
    found = warnings("--batch_size", "2", "--theta_range", "0", "90", "--albedo_rate", "1", text=["--data", "x"])
    assert found == [
        "--albedo_rate has no effect without a prompt (--text or --image)",
        "--theta_range has no effect without a prompt (--text or --image) or --fill_hidden",
        "--batch_size has no effect on photographs, of which a step takes --num_rays",
    ]
    assert warnings("--batch_size", "2", text=["--data", "x", "--dmtet"]) == []


def test_angles_of_cameras_have_an_effect_on_photographs_where_hidden_hollows_are_filled():
    assert warnings("--theta_range", "0", "90", "--fill_hidden", "--save_mesh", text=["--data", "x"]) == []
    assert warnings("--sfm_size", "99", text=["--data", "x"]) == ["--sfm_size has no effect without --sfm"]


def test_a_registered_method_may_read_the_numbers_of_any_other():
    assert warnings("--distillation", "mine", "--sdi_eta", "0.1") == []


def test_the_flag_for_more_steps_is_that_of_the_stage():
    (line,) = warnings("--dmtet", "--dmtet_iters", "2", "--profile", "2")
    assert line.endswith("only warm up; give more --dmtet_iters")


def test_what_needs_a_gpu_gets_a_warning_on_a_cpu():
    asked = parse(["--fp16", "--tf32", "--text", "x"])
    assert gpu_warnings(asked, "cpu") == ["warning: --fp16, --tf32 have no effect on cpu, only on a GPU"]
    assert gpu_warnings(asked, "cuda:0") == gpu_warnings(parse(["-O", "--text", "x"]), "cpu") == []


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("--data x", "lower --num_rays or --max_steps"),
        ("--data x --stages dmtet --init_with a.obj", "lower --batch_size, --w, --h or --dmtet_reso_scale"),
        ("--text a", "lower --batch_size, --w, --h or --num_steps, or add --vram_O"),
        ("--text a --cuda_ray --vram_O", "lower --batch_size, --w, --h or --max_steps"),
        ("--text a --data x", "lower --batch_size, --w, --h, --num_rays or --max_steps, or add --vram_O"),
    ],
)
def test_where_memory_runs_out_the_flags_that_lower_it_have_an_effect(words, advice):
    (stage,) = resolve(parse(words.split()), StoredRun()).stages
    assert less_memory(stage.kind, stage.config) == advice
