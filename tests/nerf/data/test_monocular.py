"""Depth and normals from one picture, with tiny random models in the published layouts of Depth Anything V2 and Marigold."""

import json
import shutil

import numpy as np
import pytest
import torch

from nerf.core.errors import UserError
from nerf.data import monocular

pytest.importorskip("transformers")
pytest.importorskip("diffusers")


@pytest.fixture(scope="session")
def depth_anything(tmp_path_factory):
    """Depth Anything V2 Small in the files of the hub, every width cut down: a DINOv2 with four stages, a DPT head."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    folder = tmp_path_factory.mktemp("depth-anything")
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=1, image_size=518, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[4, 8, 8, 8], fusion_hidden_size=8,
        head_in_index=-1, head_hidden_size=8, patch_size=14,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def marigold(tmp_path_factory):
    """Folder of Marigold for "depth" and "normal": Stable Diffusion 2's parts with a UNet of eight input channels."""
    from diffusers import AutoencoderKL, DDIMScheduler, MarigoldDepthPipeline, MarigoldNormalsPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("marigold")
    torch.manual_seed(0)
    (folder / "words").mkdir()
    tokens = ["a", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "words" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n")
    narrow = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    parts = {
        "unet": UNet2DConditionModel(
            in_channels=8, out_channels=4, cross_attention_dim=16, attention_head_dim=2, use_linear_projection=True,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **narrow,
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, **narrow
        ),
        "scheduler": DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction"),
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                                     num_attention_heads=2, bos_token_id=2, eos_token_id=3)),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "words", model_max_length=77),
        "default_denoising_steps": 2, "default_processing_resolution": 32,
    }  # fmt: skip
    MarigoldDepthPipeline(**parts, prediction_type="depth", scale_invariant=True, shift_invariant=True).save_pretrained(
        folder / "depth"
    )
    MarigoldNormalsPipeline(**parts, prediction_type="normals", use_full_z_range=True).save_pretrained(folder / "normal")
    return folder


@pytest.fixture
def picture():
    return np.random.default_rng(0).random((30, 44, 3))


def test_depth_anything_gives_depth_of_the_size_of_the_picture_and_farther_is_larger(depth_anything, picture):
    """The model gives inverse depth; its own output on the same input, turned round, is ours."""
    from transformers import DepthAnythingForDepthEstimation

    found = monocular.find("depth", str(depth_anything))
    assert (found.marigold, found.metric) == (False, False)
    depth = monocular.estimator(found)(picture)
    assert depth.shape == (30, 44) and np.isfinite(depth).all() and depth.std() > 0
    model = DepthAnythingForDepthEstimation.from_pretrained(depth_anything).eval()
    with torch.no_grad():
        inverse = monocular._depth_anything(model, torch.tensor(picture).float().permute(2, 0, 1)[None], found)
    np.testing.assert_allclose(depth, inverse[0, 0].numpy(), atol=1e-6)
    assert depth.max() <= 0  # minus what a ReLU gave


def test_the_short_side_is_that_of_the_model_and_sides_are_whole_patches(depth_anything, picture, monkeypatch):
    sizes = []

    class Spy(torch.nn.Module):
        def forward(self, pixel_values):
            sizes.append(tuple(pixel_values.shape[-2:]))
            return type("Output", (), {"predicted_depth": pixel_values.mean(1)})

    monocular._depth_anything(Spy(), torch.rand(1, 3, 30, 44), monocular.find("depth", str(depth_anything)))
    assert sizes == [(518, 756)]


def test_a_metric_model_is_not_turned_round(depth_anything, tmp_path, picture):
    folder = tmp_path / "metric"
    shutil.copytree(depth_anything, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"depth_estimation_type": "metric", "max_depth": 2}))
    found = monocular.find("depth", str(folder))
    depth = monocular.estimator(found)(picture)
    assert found.metric and depth.min() >= 0 and depth.max() <= 2


def test_marigold_gives_depth_and_unit_normals_the_same_each_time(marigold, picture):
    depth = monocular.estimator(monocular.find("depth", str(marigold / "depth")))(picture)
    assert depth.shape == (30, 44) and depth.min() >= 0 and depth.max() <= 1
    estimate = monocular.estimator(monocular.find("normal", str(marigold / "normal")))
    normal = estimate(picture)
    assert normal.shape == (30, 44, 3)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1.0, atol=1e-5)
    assert np.array_equal(normal, estimate(picture))


@pytest.mark.parametrize(("kind", "which"), [("normal", "depth"), ("depth", "normal")])
def test_a_model_of_the_other_kind_is_refused(marigold, kind, which):
    with pytest.raises(UserError, match=f"--{kind} .* holds Marigold"):
        monocular.find(kind, str(marigold / which))


def test_without_weights_auto_finds_none_and_a_name_says_how_to_fetch_it(monkeypatch, tmp_path):
    monkeypatch.setattr("guidance.weights.cached", lambda *_: None)
    assert monocular.find("depth", "auto") is None and monocular.find("normal", "none") is None
    with pytest.raises(UserError, match="hf download owner/model"):
        monocular.find("depth", "owner/model")
    with pytest.raises(UserError, match="has neither model_index.json nor config.json"):
        monocular.find("normal", str(tmp_path))


def test_auto_takes_the_first_published_model_that_is_in_the_cache(monkeypatch, marigold):
    there = {"prs-eth/marigold-depth-v1-1": marigold / "depth"}
    monkeypatch.setattr("guidance.weights.cached", lambda hub_id, missing, probe: there.get(hub_id))
    found = monocular.find("depth", "auto")
    assert found.marigold and found.folder == marigold / "depth"


def test_a_complete_folder_has_a_description_and_weights_that_are_not_pickled():
    assert monocular.missing(["config.json", "model.safetensors"]) is None
    assert monocular.missing(["model_index.json", "unet/diffusion_pytorch_model.safetensors"]) is None
    assert monocular.missing(["config.json", "pytorch_model.bin"]) == "weights in safetensors"
    assert "config.json" in monocular.missing(["model.safetensors"])


def test_a_damaged_model_is_refused(depth_anything, tmp_path):
    shutil.copytree(depth_anything, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="--depth .* cannot be read"):
        monocular.estimator(monocular.find("depth", str(tmp_path / "cut")))
