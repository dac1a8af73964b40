"""Whole runs of main.py with each family of text guidance and with several, on tiny random models of the published layouts."""

import json

import pytest
import torch
from PIL import Image

import main
from tests.guidance.single_files import FAMILIES, tensors_of, write_clip_tokenizer, write_file

TINY = (
    "--seed 5 --iters 2 --max_steps 32 --grid_size 16 --grid_levels 4 --grid_log2 10 --grid_finest 32 --hidden 16 --W 8 --H 8 "
    "--w 16 --h 16 --dataset_size_test 2 --threads 1 --cuda_ray --device cpu"
).split()


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run main.py in this process: words -> (exit code, result.json, metadata of the options, what it printed)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = torch.get_num_threads()

    def run(*words, text="a red car"):
        prompt = () if text is None else ("--text", text)
        code = main.main([*prompt, *TINY, *map(str, words), "--workspace", str(tmp_path / "run")])
        printed = "".join(capfd.readouterr())
        result = tmp_path / "run" / "result.json"
        options = tmp_path / "run" / "config.json"
        found = [json.loads(path.read_text()) if path.is_file() else None for path in (result, options)]
        return code, *found, printed

    yield run
    torch.set_num_threads(before)


@pytest.fixture
def keys(sd_folder, sdxl_folder, if_folder, clip_folder, taesdxl_folder):
    """The words that name the tiny weights of each model."""
    return {
        "SD": ["--hf_key", sd_folder],
        "SDXL": ["--hf_keys", f"SDXL={sdxl_folder}", f"SDXL_vae={taesdxl_folder}"],
        "IF": ["--hf_keys", f"IF={if_folder}"],
        "clip": ["--hf_keys", f"clip={clip_folder}"],
    }


@pytest.fixture
def picture(tmp_path):
    """A red square on clear ground."""
    image = Image.new("RGBA", (24, 24))
    image.paste((200, 30, 20, 255), (6, 6, 18, 18))
    image.save(tmp_path / "red_rgba.png")
    return tmp_path / "red_rgba.png"


@pytest.mark.parametrize("vram", [(), ("--vram_O",)])
@pytest.mark.parametrize("name", ["SD", "SDXL", "IF", "clip"])
def test_each_family_trains_alone(run, keys, name, vram):
    code, result, _, _ = run("--guidance", name, *keys[name], "--half_size_ratio", "0", *vram)
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_a_checkpoint_file_trains_as_a_folder_does(run, tmp_path, layout):
    path = tmp_path / "files" / "dream.safetensors"
    write_file(path, tensors_of(layout), {"modelspec.resolution": "128x128"})
    tokenizer = write_clip_tokenizer(tmp_path / "words")
    name = FAMILIES[layout]
    code, result, _, printed = run(
        *("--guidance", name, "--hf_keys", f"{name}={path}", f"tokenizer={tokenizer}", "--half_size_ratio", "0"),
        *("--save_mesh", "--mcubes_resolution", "24", "--texture_size", "64", "--mesh_threshold", "2"),
    )
    assert code == 0, printed
    assert result["stages"]["nerf"]["steps"] == 2
    assert f"in the file {path}" in printed and "with epsilon and latents of 16 x 16" in printed
    assert any("dream.safetensors" in title for title in str(result["weights"]).split(","))


def test_the_short_form_of_if_names_its_weights_by_the_key_of_the_run(run, if_folder):
    code, _, options, printed = run("--IF", "--hf_key", if_folder)
    assert code == 0 and options["options"]["guidance"]["value"] == ["IF"] and "the weights of IF in" in printed


def test_stable_diffusion_and_clip_guide_together_each_with_its_own_options(run, keys, tmp_path):
    words = [
        "--guidance",
        "SD",
        "clip",
        *keys["SD"],
        *keys["clip"],
        "--guidance_scale",
        "7.5",
        "1",
        "--guidance_weights",
        "1",
        "2",
    ]
    code, result, options, printed = run(*words, "--t_range", *"0.02 0.98 0.2 0.6".split(), "--batch_size", "2")
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2
    assert options["options"]["guidance_scale"]["value"] == [7.5, 1.0]
    assert "sds/SD" in printed and "sds/clip" in printed


def test_three_models_guide_together_and_the_run_resumes(run, keys):
    words = ["--guidance", "clip", "IF", "SD", *keys["SD"], "--hf_keys", keys["clip"][1], keys["IF"][1]]
    assert run(*words)[0] == 0
    code, result, options, printed = run("--iters", "4")  # the guidance and its weights are those of the workspace
    assert code == 0 and result["stages"]["nerf"]["steps"] == 4
    assert options["options"]["guidance"]["value"] == ["clip", "IF", "SD"] and "going on from" in printed


def test_a_picture_and_words_are_guided_by_stable_diffusion_and_clip_together(run, keys, picture):
    words = ["--image", picture, *keys["SD"], *keys["clip"], "--known_view_interval", "4"]
    code, result, options, printed = run(*words)
    assert code == 0 and options["options"]["guidance"]["value"] == ["SD", "clip"]
    assert "sds/clip" in printed and result["stages"]["nerf"]["steps"] == 2


def test_a_picture_alone_is_enough_for_clip(run, keys, picture):
    code, result, _, _ = run("--guidance", "clip", "--image", picture, *keys["clip"], text=None)
    assert code == 0 and result["stages"]["nerf"]["steps"] == 2


def test_exported_files_name_every_model_and_its_licence(run, keys, sd_folder, clip_folder):
    import guidance
    from nerf.config.config import parse

    words = ["--text", "a", "--guidance", "SD", "clip", *map(str, keys["SD"]), *map(str, keys["clip"])]
    notes = guidance.notes(guidance.choose_weights(parse(words)))
    assert notes["guidance"] == "Stable Diffusion, CLIP" and notes["licence of the weights"].count(":") == 2
    assert notes["copyright"].startswith("Made with the weights of Stable Diffusion (licence: unknown; see")


def test_the_result_names_the_weights_and_their_licence(run, keys):
    code, result, _, _ = run("--guidance", "clip", *keys["clip"])
    assert code == 0 and result["weights"]["guidance"] == "CLIP" and "unknown" in result["weights"]["licence of the weights"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--guidance", "IF"], "--guidance IF: DeepFloyd IF is not in the Hugging Face cache"),
        (["--guidance", "clip", "--hf_keys", "nowhere"], "--hf_keys must be NAME=FOLDER, NAME=FILE or NAME=HUB_ID"),
        (["--guidance", "clip", "--hf_keys", "clip=/nowhere"], "/nowhere is not a folder"),
        (["--guidance", "clip", "--hf_keys", "clip=a/b", "clip=c/d"], "--hf_keys names clip twice"),
        (["--guidance", "clip", "--hf_keys", "clip=a/b"], "neither a folder nor complete in the Hugging Face cache"),
        (["--guidance", "SD", "clip", "--guidance_weights", "1", "2", "3"], "--guidance_weights gives 3 values"),
        (["--guidance", "SDX"], "--guidance must be SD, zero123, SDXL"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(run, tmp_path, words, sentence):
    code, result, options, printed = run(*words)
    assert code == 2 and sentence in printed and result is None and options is None and "Traceback" not in printed
