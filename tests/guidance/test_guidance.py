"""Building the guidance of a run from its options."""

import pytest
import torch

import guidance
from guidance.base import Guidance
from guidance.perpneg_utils import PerpNeg
from nerf.config.config import parse
from nerf.core.errors import UserError


def build(folder, *flags):
    return guidance.build(parse(["--text", "a red car", "--hf_key", str(folder), *flags]), "cpu")


def test_built_guidance_is_ready_to_judge(prior_folder):
    model = build(prior_folder, "--guidance_scale", "7.5")
    assert isinstance(model, Guidance) and model.positive is not None and model.settings.guidance_scale == 7.5


def test_half_precision_is_for_the_gpu_and_bfloat16_for_any_device(prior_folder):
    assert build(prior_folder, "--fp16").dtype == torch.float32
    assert build(prior_folder, "--bf16").dtype == torch.bfloat16


def test_perpneg_flags_reach_the_model(sd_folder):
    model = build(sd_folder, "--perpneg", "--negative_w", "-3", "--side_decay_factor", "5")
    assert model.settings.perpneg == PerpNeg(-3.0, 2.0, 5.0)


def test_a_frozen_model_has_nothing_to_save_and_refuses_a_foreign_state(prior_folder):
    model = build(prior_folder)
    assert model.state_dict() == {} and model.param_groups(1e-3) == []
    model.load_state_dict({})
    with pytest.raises(ValueError, match="another --guidance"):
        model.load_state_dict({"lora": torch.zeros(1)})


def test_a_missing_weights_folder_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        build(tmp_path / "nowhere")
