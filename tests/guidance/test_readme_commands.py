"""Every command of the README, two steps of it, on backend taichi.

Only what a machine without weights lacks is stood in for: photographs, a mesh, a picture, and tiny random models in the layouts
of the published ones. The commands run in their order in one folder, as a reader would type them.
"""

import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import extension
import main
import preprocess_image
from extension import toolchain
from tests.guidance.single_files import tensors_of, write_clip_tokenizer, write_file
from tests.helpers import kernel_backends
from tests.nerf import photo_folders

# Two steps of small pictures, so that all commands take a minute or two and not hours. Where a flag is not of a stage, the run
# says so and goes on.
SMALL = (
    "--backend taichi --iters 2 --dmtet_iters 2 --w 16 --h 16 --W 16 --H 16 --batch_size 1 --dataset_size_test 2 --threads 1 "
    "--tet_grid_size 8 --grid_size 16 --grid_log2 12 --mcubes_resolution 24 --texture_size 64 --mesh_threshold 2 "
    "--max_steps 64 --seed 0"
)
WINDOWS = {"--gui", "--viewer"}  # commands that open one and wait; their own tests run them


def commands():
    """The words of every ``python ...`` line in the README's blocks of code that trains, renders or prepares something."""
    text = (toolchain.ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if re.match(r"python (main|preprocess_image)\.py ", line)]
    return [words for line in lines if not WINDOWS & set(words := shlex.split(line, comments=True)[1:])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader would stand, with the files that the commands name."""
    folder = tmp_path_factory.mktemp("readme")
    images, picture = np.zeros((8, 12, 12, 4), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    (folder / "photographs").mkdir()
    for i in range(8):
        images[i, 4:8, 4:8] = (200, 30 * i, 20, 255)
    photo_folders.write(folder / "photographs", images)
    if data := os.environ.get("SOMNIA_TEST_DATA"):  # cameras are found from real photographs alone
        (folder / "pictures").mkdir()
        for path in sorted(Path(data, "lund_door", "images").iterdir())[:4]:
            shutil.copy(path, folder / "pictures")
    picture[20:44, 16:48] = (180, 90, 30)
    Image.fromarray(picture).save(folder / "burger.jpg")
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.icosphere(2, 0.4).export(folder / "cow.glb")
    (folder / "my.args").write_text("--text 'a hamburger'  -O --no_save_mesh")
    write_clip_tokenizer(folder / "tokenizer")
    write_file(folder / "dream.safetensors", tensors_of("sd1"), {"modelspec.resolution": "128x128"})  # what it is shown
    return folder


def with_stand_ins(words, folder, sd, clip):
    """The words with tiny weights in place of those that would be downloaded, and then with a workspace of their own."""
    given = words = [str(sd) if word == "~/models/sd" else word for word in words]
    if "--sd_version" in words:
        at = words.index("--sd_version")
        given = [*words[:at], "--hf_key", str(sd), *words[at + 2 :]]
    elif "dream.safetensors" in words:
        given = [*words, "--hf_keys", f"tokenizer={folder / 'tokenizer'}"]
    elif "--image" in words and "--text" in words:
        given = [*words, "--hf_keys", f"SD={sd}", f"clip={clip}"]
    if given is not words:  # the README names the same workspace for several choices of weights
        given[given.index("--workspace") + 1] += f"_{len(list(folder.iterdir()))}"
    return given


def ends_well(words):
    """Run a command in this process; its exit code must be 0."""
    threads, request = torch.get_num_threads(), extension.requested()
    try:
        if words[0] == "preprocess_image.py":
            assert preprocess_image.main(words[1:]) == 0
        else:
            assert main.main([*words[1:], *SMALL.split()]) == 0
    finally:
        torch.set_num_threads(threads)
        extension.use(request)


def test_the_readme_has_the_commands_that_this_test_reads():
    programs = [words[0] for words in commands()]
    assert programs.count("main.py") >= 15 and programs.count("preprocess_image.py") >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_runs_two_steps_on_taichi(folder, sd_folder, clip_folder, hub_cache, monkeypatch, capfd):
    kernel_backends.on("cpu", "taichi")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for words in commands():
        if "--sfm" in words and not (folder / "pictures").exists():
            continue
        ends_well(with_stand_ins(words, folder, sd_folder, clip_folder))
    written = {path.name for path in folder.glob("*/mesh/*")} | {path.suffix for path in folder.glob("*/results/*")}
    assert {"mesh.obj", "mesh.glb", ".mp4"} <= written
    log = (folder / "trial" / "log_df.txt").read_text()
    assert "--backend taichi" in log and "several times slower" not in log
    assert "[Taichi]" not in capfd.readouterr().out
