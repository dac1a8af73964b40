"""Bad input on the command line: one sentence on stderr, nothing else, and exit code 2."""

import errno
import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace as Space

import pytest
import torch
from PIL import Image

import main
from nerf.run import checkpoint
from tests.helpers.processes import wait_for

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(capfd, monkeypatch):
    """Run main.py in this process, which has torch already: words -> (exit code, last line on stderr)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = torch.get_num_threads()

    def run(*words):
        code = main.main(["--threads", "1", *map(str, words)])
        return code, capfd.readouterr().err.strip().splitlines()[-1]

    yield run
    torch.set_num_threads(before)


TINY = (
    "--iters 2 --num_rays 16 --grid_levels 2 --grid_log2 6 --grid_finest 16 --grid_size 8 --max_steps 16 --W 8 --H 8 "
    "--dataset_size_test 2 --seed 1"
).split()


@pytest.fixture
def photographs(tmp_path):
    """A folder with four grey photographs of 16x16 pixels from four sides."""
    folder = tmp_path / "photos"
    folder.mkdir()
    frames = []
    for i, (c, s) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        Image.new("RGB", (16, 16), (100, 100, 100)).save(folder / f"{i}.png")
        pose = [[c, 0, s, 3 * s], [0, 1, 0, 0], [-s, 0, c, 3 * c], [0, 0, 0, 1]]
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    return folder


def assert_refused(outcome, sentence):
    """Exit code 2 and one line that names the trouble."""
    code, last = outcome
    assert code == 2
    assert last.startswith("main.py: ") and re.search(sentence, last)


def spawn(*words):
    """Run main.py as a user does; returns the finished process."""
    command = [sys.executable, str(ROOT / "main.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=100)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "nothing to do"),
        (("--text", ""), "--text is empty"),
        (("--text", "a", "--theta_range", "105", "45"), "low <= high"),
        (("--text", "a", "--w", "0"), "--w must be between"),
        (("--text", "a", "--W", "100000"), "--W must be between"),
        (("--text", "a", "--guidance_scal", "3"), "did you mean --guidance_scale"),
        (("--text", "a", "--gui", "--viewer", "web"), "--gui and --viewer web contradict each other"),
        (("--text", "a", "--lock_geo"), "no mesh stage; add --dmtet"),
        (("--text", "a", "--workspace", "-dash"), "--workspace=VALUE"),
    ],
)
def test_a_bad_flag_is_one_sentence_and_nothing_else(words, sentence):
    done = spawn(*words)
    assert_refused((done.returncode, done.stderr.strip()), sentence)
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--backbone gird",
            "--backbone must be grid, vanilla, grid_tcnn, grid_taichi, sdf or sdf_vanilla, got 'gird'; did you mean grid?",
        ),
        ("--background sky", "--background must be auto, constant, network or contracted, got 'sky'"),
        ("--backend vulkan", "--backend must be auto, cuda, cpu, taichi or torch, got 'vulkan'"),
        ("--guidance sd", "got 'sd'; did you mean SD?"),
        ("--guidance SD SD", "--guidance names SD twice"),
    ],
)
def test_a_name_that_is_not_registered_is_refused_before_anything_is_loaded(run, tmp_path, monkeypatch, words, sentence):
    monkeypatch.setattr(main, "read_disk", pytest.fail)
    outcome = run("--text", "a ball", "--sd_version", "embedded", "--workspace", tmp_path / "w", *words.split())
    assert_refused(outcome, re.escape(sentence))


@pytest.mark.parametrize("iters", [2, 1])
def test_a_run_that_has_nothing_left_to_train_says_so(run, tmp_path, photographs, iters):
    words = ("--data", photographs, "--workspace", tmp_path / "w", *TINY)
    assert run(*words)[0] == 0
    assert run(*words, "--iters", iters)[0] == 0
    more = "" if iters == 2 else ", more than the 1 asked for"
    assert f"df_step_00000002.safetensors has 2 steps{more}; give more --iters" in (tmp_path / "w" / "log_df.txt").read_text()


def test_a_run_that_takes_the_weights_alone_says_where_it_begins(run, tmp_path, photographs):
    words = ("--data", photographs, "--workspace", tmp_path / "w", *TINY)
    assert run(*words)[0] == 0
    assert run(*words, "--ckpt", "latest_model", "--iters", 3)[0] == 0
    said = (tmp_path / "w" / "log_df.txt").read_text()
    assert "df_step_00000002.safetensors, at step 0 of 3" in said and "training begins with the weights of " in said
    assert "going on from" not in said and "step 3/3" in said


def test_help_goes_to_standard_output_and_succeeds():
    done = spawn("--help")
    assert done.returncode == 0 and "--text" in done.stdout and done.stderr == ""


def test_flags_after_a_double_dash_are_read():
    done = spawn("--", "--text", "")
    assert_refused((done.returncode, done.stderr), "--text is empty")


def test_a_workspace_below_a_file_is_one_sentence(run, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(run("--data", tmp_path, "--workspace", tmp_path / "file" / "x"), "cannot be written to")


def test_a_data_folder_that_does_not_exist_is_one_sentence(run, tmp_path):
    assert_refused(run("--data", tmp_path / "none", "--workspace", tmp_path / "w"), "none")


def test_a_data_folder_without_photographs_is_one_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(run("--data", tmp_path / "empty", "--workspace", tmp_path / "w"), "transforms")


def test_a_broken_transforms_file_is_one_sentence(run, tmp_path):
    (tmp_path / "transforms.json").write_text('{"frames": [')
    assert_refused(run("--data", tmp_path, "--workspace", tmp_path / "w"), "transforms.json")


def test_a_broken_photograph_is_one_sentence(run, tmp_path):
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]
    frames = [{"file_path": f"{i}.png", "transform_matrix": pose} for i in range(3)]
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    for frame in frames:
        (tmp_path / frame["file_path"]).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert_refused(run("--data", tmp_path, "--workspace", tmp_path / "w"), r"\.png")


def test_a_broken_config_in_the_workspace_is_one_sentence(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "df_step_00000010.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{")
    assert_refused(run("--test", "--workspace", tmp_path), "config.json is not valid JSON")


def test_testing_an_empty_workspace_is_one_sentence(run, tmp_path):
    assert_refused(run("--test", "--workspace", tmp_path / "w"), "checkpoint")


def test_a_corrupt_checkpoint_is_one_sentence(run, tmp_path, photographs):
    words = ("--data", photographs, "--workspace", tmp_path / "w", *TINY)
    assert run(*words)[0] == 0
    (saved,) = (tmp_path / "w" / "checkpoints").iterdir()
    saved.write_bytes(saved.read_bytes()[:-9])
    assert_refused(run(*words), f"checkpoint {saved} is damaged.*--ckpt scratch")


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_checkpoint_is_one_sentence(tmp_path, photographs):
    def small_files():  # larger than the log and the options, not the checkpoint; in a process whose stderr is a pipe
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    words = ["--data", photographs, "--workspace", tmp_path / "w", "--threads", "1", "--device", "cpu", *TINY]
    command = [sys.executable, "main.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files, timeout=100)
    assert_refused((done.returncode, done.stderr.strip().splitlines()[-1]), "could not be written.*start again")
    assert list((tmp_path / "w" / "checkpoints").iterdir()) == []


def test_a_disk_that_is_full_elsewhere_names_the_file_and_says_to_free_space(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "mesh.glb")

    monkeypatch.setattr(main, "run", full)
    assert_refused(run("--text", "a ball", "--workspace", tmp_path), "mesh.glb could not be .* No space.*free some space")


def test_other_photographs_in_a_used_workspace_are_one_sentence(run, tmp_path, photographs):
    assert run("--data", photographs, "--workspace", tmp_path / "w", *TINY)[0] == 0
    photographs.rename(tmp_path / "moved")
    assert_refused(run("--data", tmp_path / "moved", "--workspace", tmp_path / "w", *TINY), "--ckpt scratch")


def test_a_weights_folder_that_does_not_exist_is_one_sentence(run, tmp_path):
    assert_refused(run("--text", "a chair", "--hf_key", tmp_path / "none", "--workspace", tmp_path / "w"), "none")


def test_a_weights_folder_with_a_missing_part_is_one_sentence(run, tmp_path):
    (tmp_path / "weights" / "unet").mkdir(parents=True)
    (tmp_path / "weights" / "model_index.json").write_text("{}")
    outcome = run("--text", "a chair", "--hf_key", tmp_path / "weights", "--workspace", tmp_path / "w")
    assert_refused(outcome, "weights")


def test_stages_after_the_one_whose_checkpoint_is_named_start_over(run, tmp_path, monkeypatch):
    seen = []

    def make_trainer(stage, *_):
        seen.append((stage.name, stage.config.runtime.ckpt))
        return Space(stage=stage, step=len(seen), seconds=0.5)

    def train(trainer, attendant):
        assert attendant is None
        made = tmp_path / "checkpoints" / checkpoint.file_name(trainer.step, trainer.stage.name)
        checkpoint.save(made, {}, {"stage": trainer.stage.name, "step": trainer.step, "seconds": trainer.seconds})

    stand_ins = {"make_trainer": make_trainer, "make_inputs": lambda *_: None, "train": train, "finish": lambda *_: None}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(main, name, stand_in)
    path = str(checkpoint.save(tmp_path / "df_step_00000007.safetensors", {}, {"stage": "nerf", "step": 7}))
    code, _ = run("--text", "a ball", "--sd_version", "embedded", "--workspace", tmp_path, "--stages", "nerf,dmtet",
                  "--ckpt", path)  # fmt: skip
    assert code == 0 and seen == [("nerf", path), ("dmtet", "scratch")]
    assert json.loads((tmp_path / "result.json").read_text())["stages"]["dmtet"] == {"steps": 2, "seconds": 0.5}


def test_a_start_that_is_no_longer_read_is_logged(run, tmp_path, photographs):
    words = ("--data", photographs, "--workspace", tmp_path / "w", *TINY, "--dmtet", "--tet_grid_size", 4, "--w", 8, "--h", 8)
    assert run(*words)[0] == 0
    assert run(*words, "--init_with", "gone")[0] == 0
    assert "--init_with gone was for the first step" in (tmp_path / "w" / "log_df.txt").read_text()


def test_a_used_workspace_resumes_without_its_flags_being_repeated(run, tmp_path, photographs):
    assert run("--data", photographs, "--workspace", tmp_path / "w", *TINY)[0] == 0
    code, _ = run("--workspace", tmp_path / "w", *TINY, "--iters", 3)
    assert code == 0 and checkpoint.latest(tmp_path / "w" / "checkpoints").name == checkpoint.file_name(3)


def contents(folder):
    """Path -> bytes of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--data none", "none"),
        ("--data empty", "transforms"),
        ("--data photos --dmtet --init_with gone.obj", "gone.obj: no such file"),
        ("--data photos --dmtet --init_with sheet.obj", "sheet.obj"),
        ("--data photos --ckpt gone.safetensors", "gone.safetensors: no such file"),
        ("--data photos --device cuda:77", "--device cuda"),
        ("--text xyzzy --sd_version embedded", "xyzzy"),
    ],
)
@pytest.mark.parametrize("scratch", [False, True])
def test_a_run_that_fails_a_later_check_leaves_the_workspace_untouched(
    run, tmp_path, photographs, monkeypatch, words, sentence, scratch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "sheet.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    folder = tmp_path / "w"
    if scratch:
        assert run("--data", photographs, "--workspace", folder, *TINY)[0] == 0
        checkpoint.save(folder / "checkpoints" / checkpoint.file_name(4, "dmtet"), {}, {"stage": "dmtet", "step": 4})
        if "--ckpt" not in words:
            words += " --ckpt scratch" if "--dmtet" in words else " --ckpt scratch --stages nerf,dmtet"
    before = contents(tmp_path)
    mesh = ["--tet_grid_size", "4", "--w", "8", "--h", "8"] if "--dmtet" in words else []
    assert_refused(run(*words.split(), "--workspace", folder, *TINY, *mesh), sentence)
    assert contents(tmp_path) == before and folder.exists() == scratch


def test_a_profile_is_written_to_the_workspace(run, tmp_path, photographs):
    assert run("--data", photographs, "--workspace", tmp_path / "w", *TINY, "--iters", 6, "--profile", 2)[0] == 0
    (trace,) = (tmp_path / "w" / "profile").iterdir()
    assert trace.name == "df_step_00000000.json"
    assert any(event.get("name", "").startswith("aten::") for event in json.loads(trace.read_text())["traceEvents"])


def test_pictures_that_the_embedded_prior_cannot_see_are_one_sentence(run, tmp_path):
    words = ("--text", "a ball", "--sd_version", "embedded", "--workspace", tmp_path, "--w", 9, "--h", 5)
    assert_refused(run(*words), "--w and --h must be equal.*got 9 and 5")


def start(photographs, folder, *words):
    """Start main.py on photographs as a user does; returns the running process."""
    command = [sys.executable, "main.py", "--data", photographs, "--workspace", folder, "--threads", "1", *TINY, *words]
    return subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def test_a_second_program_in_a_workspace_is_one_sentence_and_changes_nothing(run, tmp_path, photographs):
    folder = tmp_path / "w"
    first = start(photographs, folder, "--iters", 10**6, "--checkpoint_seconds", 1e6)
    try:
        wait_for((folder / "metrics.jsonl").exists, first)
        options = (folder / "config.json").read_bytes()
        for words in ((), ("--ckpt", "scratch"), ("--test",), ("--six_views",)):
            outcome = run("--data", photographs, "--workspace", folder, *TINY, *words)
            assert_refused(outcome, f"in use by process {first.pid} on")
            assert (folder / "config.json").read_bytes() == options, words
    finally:
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=60) == 130
    assert "in use" not in (folder / "log_df.txt").read_text() and not list(folder.glob(".*"))


def test_a_run_that_starts_over_and_is_killed_before_its_first_checkpoint_loses_nothing(run, tmp_path, photographs):
    folder = tmp_path / "w"
    words = ("--data", photographs, "--workspace", folder, *TINY)
    assert run(*words)[0] == 0
    (path,) = (folder / "checkpoints").iterdir()
    before = checkpoint.load(path)
    again = start(photographs, folder, "--ckpt", "scratch", "--iters", 10**6, "--checkpoint_seconds", 1e6)
    wait_for((folder / "checkpoints" / "replaced").exists, again)
    again.kill()
    again.wait()
    assert run(*words)[0] == 0
    assert [*(folder / "checkpoints").iterdir()] == [path] and not list(folder.glob(".*"))
    assert torch.equal(checkpoint.load(path)[0]["random"]["torch"], before[0]["random"]["torch"])
    assert "put back df_step_00000002.safetensors" in (folder / "log_df.txt").read_text()
    assert run(*words, "--ckpt", "scratch", "--iters", 3)[0] == 0
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [checkpoint.file_name(3)]


def test_a_later_look_at_a_run_keeps_its_mesh_in_the_result(run, tmp_path, photographs):
    words = ("--data", photographs, "--workspace", tmp_path / "w", *TINY, "--texture_size", 32, "--mcubes_resolution", 16)
    blob = ("--mesh_threshold", 2, "--blob_density", 4, "--blob_radius", 0.6)
    code, last = run(*words, "--save_mesh", *blob)
    assert code == 0, last
    mesh = json.loads((tmp_path / "w" / "result.json").read_text())["mesh"]
    assert (mesh["stage"], mesh["step"]) == ("nerf", 2)
    assert run("--workspace", tmp_path / "w", "--test", *TINY, "--no_save_mesh")[0] == 0
    assert json.loads((tmp_path / "w" / "result.json").read_text())["mesh"] == mesh
