"""CLIP as guidance, on a tiny random model in the published file layout."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from guidance import text_weights
from guidance.base import Conditions, ImageCondition
from guidance.clip_utils import Clip, Options
from guidance.diffusion import loader, text
from nerf.core.errors import DivergenceError, UserError
from nerf.core.structs import Control
from tests.guidance.models import PROMPT, gradient, image_of, views_at
from tests.guidance.tiny import LAYOUTS
from tests.helpers.parts import part_of

LAYOUT = LAYOUTS["clip"]


def reference(azimuth=0.0, seed=7, weight=1.0, polar=75.0):
    return ImageCondition(torch.cat([image_of(1, 32, seed=seed)[0], torch.ones(1, 32, 32)]), polar, azimuth, weight=weight)


def make(folder, prompt=PROMPT, images=(), crops=0, vram_O=False):
    model = Clip(folder, "cpu", options=Options(crops), vram_O=vram_O)
    model.prepare(Conditions(prompt, images=tuple(images)))
    return model


def loss(model, image, views, seed=0, **control):
    return model.loss(image, views, part_of("guided", seed=seed), Control(**control))


@pytest.fixture(scope="module")
def whole(clip_folder):
    """The whole model of transformers."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(clip_folder).eval()


@pytest.fixture(scope="module")
def model(clip_folder):
    return make(clip_folder)


def test_the_loss_is_one_minus_the_cosine_that_clip_itself_gives(clip_folder, whole, model):
    from transformers import CLIPTokenizer

    image = image_of(2, 32)
    ids = CLIPTokenizer.from_pretrained(clip_folder)(PROMPT, padding="max_length", return_tensors="pt")
    mean, std = (
        torch.tensor(v).reshape(3, 1, 1) for v in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    with torch.no_grad():
        out = whole(**ids, pixel_values=(image - mean) / std)
    cosine = out.logits_per_image[:, 0] / whole.logit_scale.exp()
    torch.testing.assert_close(loss(model, image, views_at(0, 90)).loss, (1 - cosine).mean())


def test_gradient_is_that_of_finite_differences_in_float64(clip_folder):
    model = Clip(clip_folder, "cpu", torch.float64, Options(0))
    model.prepare(Conditions(PROMPT, images=(reference(),)))
    image = image_of(1, 32).double()
    exact = gradient(model, image, views_at(30))
    step = 1e-3 * exact / exact.norm()
    ahead, behind = (loss(model, image + sign * step, views_at(30)).loss for sign in (1, -1))
    assert ((ahead - behind) / 2e-3).item() == pytest.approx(exact.norm().item(), rel=1e-5)


def test_a_step_against_the_gradient_brings_the_picture_nearer_to_the_text(model):
    image = image_of(1, 32)
    before = loss(model, image, views_at(0))
    moved = image - 5.0 * gradient(model, image, views_at(0))
    after = loss(model, moved, views_at(0))
    assert after.loss < before.loss and after.stats["text"] > before.stats["text"]


@pytest.mark.parametrize("size", [32, 20, 64])
def test_gradient_reaches_every_pixel_of_any_size(model, size):
    grad = gradient(model, image_of(1, size), views_at(0))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


def test_a_picture_is_nearest_to_itself_and_counts_less_the_further_the_view_is(clip_folder):
    target = reference(azimuth=0.0)
    model = make(clip_folder, prompt=None, images=[target])
    image = target.image[None, :3]
    assert loss(model, image, views_at(0)).loss.item() == pytest.approx(0.0, abs=1e-5)
    other = image_of(1, 32, seed=9)
    near, side, back = (loss(model, other, views_at(a)).loss.item() for a in (0, 90, 180))
    assert near > side > back
    angle = {90: 86.16, 180: 150.0}  # between directions at 75 degrees of polar angle, from their scalar products
    assert side / near == pytest.approx(1 - angle[90] / 180, abs=1e-3) and back / near == pytest.approx(
        1 - angle[180] / 180, abs=1e-3
    )


def test_references_are_weighted_and_text_adds_to_them(clip_folder):
    a, b = reference(seed=1), reference(seed=2)
    image, views = image_of(1, 32), views_at(0)
    alone = [loss(make(clip_folder, None, [one]), image, views).loss for one in (a, b)]
    both = loss(make(clip_folder, None, [reference(seed=1, weight=3.0), b]), image, views).loss
    torch.testing.assert_close(both, 0.75 * alone[0] + 0.25 * alone[1])
    with_text = loss(make(clip_folder, PROMPT, [a]), image, views)
    torch.testing.assert_close(with_text.loss, alone[0] + loss(make(clip_folder), image, views).loss)
    assert set(with_text.stats) == {"text", "image"}


def test_a_reference_of_weight_zero_is_left_out(clip_folder):
    image, views = image_of(1, 32), views_at(0)
    both = make(clip_folder, None, [reference(seed=1), reference(seed=2, weight=0.0)])
    torch.testing.assert_close(
        loss(both, image, views).loss, loss(make(clip_folder, None, [reference(seed=1)]), image, views).loss
    )


def test_transparent_pixels_of_a_reference_are_white(clip_folder):
    hidden = ImageCondition(torch.cat([torch.zeros(3, 32, 32), torch.zeros(1, 32, 32)]))
    model = make(clip_folder, None, [hidden])
    assert loss(model, torch.ones(1, 3, 32, 32), views_at(0)).stats["image"].item() == pytest.approx(1.0, abs=1e-5)


def test_crops_are_drawn_from_the_part_lie_inside_and_differ_between_views(clip_folder):
    model, image = make(clip_folder, crops=3), image_of(2, 64)
    first, again = (model.crops(image, part_of("guided", seed=4), 3) for _ in range(2))
    assert first.shape == (6, 3, 32, 32) and torch.equal(first, again)
    assert not torch.equal(first, model.crops(image, part_of("guided", seed=5), 3))
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    crops = model.crops(ramp, part_of("guided"), 8)
    width = crops.amax((1, 2, 3)) - crops.amin((1, 2, 3))
    assert width.min() > 0.8 - 0.05 and width.max() <= 1.0 and len(set(width.tolist())) > 4


def test_a_crop_belongs_to_its_own_view(clip_folder):
    model = make(clip_folder, crops=2)
    flat = torch.stack([torch.full((3, 32, 32), value) for value in (0.1, 0.5, 0.9)])
    crops = model.crops(flat, part_of("guided"), 2).unflatten(0, (2, 3)).mean((2, 3, 4))
    torch.testing.assert_close(crops, torch.tensor([[0.1, 0.5, 0.9]] * 2))


def test_all_views_and_crops_pass_through_the_network_at_once(clip_folder):
    model, seen = make(clip_folder, crops=3), []
    model.network.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    loss(model, image_of(2, 32), views_at(0, 90))
    assert seen == [6]


def test_options_of_the_stage_and_debug_images(clip_folder):
    model = make(clip_folder)
    output = model.loss(image_of(2, 32), views_at(0, 90), part_of("guided"), Control(options=Options(2)), debug=True)
    assert output.debug["crops"].shape == (2, 3, 32, 32)


def test_the_text_half_is_not_kept_and_the_prompt_is_read_from_disk(clip_folder, monkeypatch):
    seen, load = [], text.load_part
    monkeypatch.setattr(text, "load_part", lambda *args: seen.append(args[1]) or load(*args))
    first, again = make(clip_folder), make(clip_folder)
    assert seen == ["."] and torch.equal(first.text, again.text)
    assert not any("text_model" in name for name in first.network.state_dict())


def test_the_files_of_2022_give_the_same_loss(clip_folder, tmp_path, model):
    folder = shutil.copytree(clip_folder, tmp_path / "legacy")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: torch.arange(77 if "text" in name else 17)[None] for name in LAYOUT["legacy_extra"]}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    image = image_of(1, 32)
    torch.testing.assert_close(loss(make(folder), image, views_at(0)).loss, loss(model, image, views_at(0)).loss)


def test_the_tiny_model_has_the_tensor_names_of_the_real_one(clip_folder):
    assert set(LAYOUT["some_names"]) <= set(load_file(clip_folder / "model.safetensors"))


@pytest.mark.parametrize("name", LAYOUT["files"])
def test_the_published_file_lists_are_complete(name):
    files = LAYOUT["files"][name]
    assert text_weights.LAYOUTS["clip"].missing(files) is None
    wanted = text_weights.LAYOUTS["clip"].wanted(files)
    assert ("pytorch_model.bin" in wanted) == ("model.safetensors" not in files)


def test_neither_text_nor_picture_is_refused(clip_folder):
    with pytest.raises(UserError, match="--text .* or --image"):
        make(clip_folder, prompt=" ")


def test_a_loss_before_prepare_is_an_error(clip_folder):
    with pytest.raises(RuntimeError, match="prepare"):
        loss(Clip(clip_folder), image_of(1, 32), views_at(0))


def test_pictures_that_are_not_finite_are_a_divergence(model):
    with pytest.raises(DivergenceError, match="not finite"):
        loss(model, torch.full((1, 3, 32, 32), torch.nan), views_at(0))


def test_images_that_do_not_match_the_views_are_refused(model):
    with pytest.raises(ValueError, match=r"expected image \[2, 3, H, W\]"):
        loss(model, image_of(1, 32), views_at(0, 90))


def test_a_diffusion_folder_and_another_kind_of_model_are_refused(sd_folder, clip_folder, tmp_path):
    with pytest.raises(UserError, match="lacks config.json; it is not a folder of clip"):
        Clip(sd_folder)
    folder = shutil.copytree(clip_folder, tmp_path / "other")
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="a model of type 'siglip'"):
        Clip(folder)


def test_offloaded_weights_give_the_same_gradient(clip_folder, model):
    other = make(clip_folder, vram_O=True)
    loader.offload(other.network, torch.device("cpu"))
    torch.testing.assert_close(gradient(other, image_of(1, 32), views_at(0)), gradient(model, image_of(1, 32), views_at(0)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_a_gradient_near_that_of_float32(clip_folder, model, dtype):
    half = Clip(clip_folder, "cpu", dtype, Options(0))
    half.prepare(Conditions(PROMPT))
    a, b = (gradient(m, image_of(1, 32), views_at(0)).flatten() for m in (model, half))
    assert b.dtype == torch.float32 and torch.cosine_similarity(a, b, dim=0) > 0.9


def test_autocast_of_the_caller_does_not_reach_the_model(model):
    plain = loss(model, image_of(1, 32), views_at(0)).loss
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(model, image_of(1, 32), views_at(0)).loss, plain)
