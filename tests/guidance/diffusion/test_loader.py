"""Reading the parts of a diffusers folder: damaged files are refused by name, pickled code is not run."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from guidance.diffusion.loader import load_part, load_schedule, parked, weights_dtype
from nerf.config.config import parse
from nerf.core.errors import UserError

CPU = torch.device("cpu")


def load(folder, part="unet", kind=UNet2DConditionModel):
    return load_part(folder, part, kind, CPU, torch.float32)


def test_a_truncated_weights_file_is_refused_by_name(broken_folder):
    path = broken_folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="vae cannot be read as AutoencoderKL"):
        load(broken_folder, "vae", AutoencoderKL)


def test_weights_that_lack_a_tensor_are_refused_by_name(broken_folder):
    from safetensors.torch import load_file, save_file

    path = broken_folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "conv_out.weight"}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 tensor of unet, first conv_out\.weight"):
        load(broken_folder)


def test_pickled_code_in_legacy_files_is_refused_and_not_run(legacy_folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"conv_in.weight": Bomb()}, legacy_folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="unet cannot be read"):
        load(legacy_folder)
    assert not (tmp_path / "exploded").exists()


def test_a_parked_network_is_where_it_was_afterwards(device):
    layer = torch.nn.Linear(2, 2).to(device)
    with parked(layer, device):
        assert layer.weight.device.type == "cpu"
    assert layer.weight.device.type == device.type


@pytest.mark.parametrize(
    ("flags", "device", "dtype"),
    [
        ([], "cuda", torch.float32),
        (["--fp16"], "cuda", torch.float16),
        (["--fp16"], "cpu", torch.float32),
        (["--bf16"], "cpu", torch.bfloat16),
        (["--bf16"], "cuda", torch.bfloat16),
    ],
)
def test_fp16_weights_are_for_cuda_and_bf16_ones_for_any_device(flags, device, dtype):
    assert weights_dtype(parse(["--text", "a", *flags]).optim, torch.device(device)) == dtype


@pytest.mark.parametrize(
    "text, words",
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"num_train_timesteps": 1e12}', "num_train_timesteps: expected int"),
        ('{"num_train_timesteps": 1000000000000}', "a schedule of 1000000000000 steps"),
        ('{"num_train_timesteps": 5, "trained_betas": [0.1]}', "a schedule of 5 steps"),
        ('{"prediction_type": "guess"}', "prediction_type: invalid enum value"),
        ('{"beta_schedule": "steep"}', "scheduler_config.json cannot be read"),
        ('{"trained_betas": [NaN], "num_train_timesteps": 1}', "noise levels that are no fractions"),
        ('{"trained_betas": [2.5, 1.5], "num_train_timesteps": 2}', "noise levels that are no fractions"),
        ("3", "expected object, got int"),
    ],
)
def test_a_damaged_schedule_is_one_sentence(broken_folder, text, words):
    (broken_folder / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(UserError, match=f"{words}.*restore or download it again"):
        load_schedule(broken_folder, CPU)


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"block_out_channels": 3}', b"\xff"])
def test_a_damaged_part_is_one_sentence(broken_folder, file, content):
    (broken_folder / "unet" / file).write_bytes(content)
    with pytest.raises(UserError, match="unet cannot be read as UNet2DConditionModel"):
        load(broken_folder)


def test_weights_that_hold_nan_are_refused_by_name(broken_folder):
    from safetensors.torch import load_file, save_file

    path = broken_folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.weight"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"holds numbers that are not finite, in conv_out\.weight; restore"):
        load(broken_folder)


@pytest.mark.parametrize("change", [{"beta_start": 0.9, "beta_end": 0.1}, {"trained_betas": [1.0] * 1000}])
def test_a_schedule_that_begins_with_noise_is_refused(broken_folder, change):
    path = broken_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="gives noise levels that are no fractions"):
        load_schedule(broken_folder, CPU)
