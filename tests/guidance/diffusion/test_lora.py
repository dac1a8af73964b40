"""A LoRA beside the frozen UNet, for VSD: what it leaves alone, what it learns, and what a checkpoint holds."""

from types import SimpleNamespace

import pytest
import torch

from nerf.core.errors import UserError
from nerf.core.structs import Control
from tests.guidance.models import T_RANGE, embedded_prior, gradient, image_of, stable_diffusion, views_at
from tests.helpers.parts import part_of

FLAGS = {"vram_O": False, "distillation": "vsd", "lora_rank": 2, "lora_lr": 1e-3}
KINDS = {"sd": (stable_diffusion, 16), "prior": (embedded_prior, None)}


@pytest.fixture(params=KINDS)
def kind(request):
    """A way to make a model, plain or with a LoRA, on a tiny random folder."""
    make, camera_dim = KINDS[request.param]
    folder = request.getfixturevalue(f"{request.param}_folder")

    def of(learns=True, dtype=torch.float32):
        model = make(folder, dtype=dtype, method="vsd" if learns else "sds")
        if learns:
            model.learn(SimpleNamespace(**FLAGS), camera_dim)
        return model

    return of


def shaken(model, spread=0.3):
    """The model with a LoRA that changes something."""
    generator = torch.Generator().manual_seed(1)
    for p in model.lora.weights.values():
        p.data.add_(spread * torch.randn(p.shape, generator=generator))
    return model


def raw(model, camera=True, seed=0):
    """The learned prediction for some noisy images."""
    views = views_at(0, 120)
    options = model.options
    learned = model.learned(views, 2, getattr(options, "detail", options))
    noisy = torch.randn((2, *model.distiller.codec.shape), generator=torch.Generator().manual_seed(seed))
    return learned(noisy, torch.tensor([300, 700]), camera)


def base(model):
    """The published prediction under the prompt for the same images."""
    noisy = torch.randn((2, *model.distiller.codec.shape), generator=torch.Generator().manual_seed(0))
    options = model.options if hasattr(model, "positive") else model.options.detail
    with torch.no_grad():
        return model.denoiser(views_at(0, 120), 2, options, ("text",))(noisy, torch.tensor([300, 700]))[0]


def test_the_published_predictions_are_untouched_by_a_lora(kind):
    plain, learning = kind(learns=False), shaken(kind())
    raw(learning).sum().backward()  # once through the other side and back
    assert torch.equal(base(learning), base(plain))


def test_a_fresh_lora_predicts_what_the_published_model_does(kind):
    model = kind()
    if hasattr(model, "positive"):  # it is given the prompt without a view word
        model.further["plain"] = model.condition("front")
        torch.testing.assert_close(raw(model)[:1], base(model)[:1], rtol=0, atol=0)
    else:
        assert torch.equal(raw(model), base(model))


def test_only_the_lora_is_trained(kind):
    model = kind()
    (group,) = model.param_groups(lr=0.5)
    assert group["lr"] == 1e-3 and {id(p) for p in group["params"]} == {id(p) for p in model.lora.weights.values()}
    trainable = {id(p) for p in model.unet.parameters() if p.requires_grad}
    assert trainable <= {id(p) for p in group["params"]}
    assert all(p.dtype == torch.float32 for p in group["params"])


def test_gradients_arrive_although_the_lora_is_off_when_they_are_computed(kind):
    model = shaken(kind())
    raw(model).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.lora.weights.values())


def test_the_cameras_change_what_a_trained_lora_predicts(kind):
    model = shaken(kind())
    front, side = raw(model)
    unknown = raw(model, camera=False)
    assert not torch.allclose(raw(model), unknown)
    assert front.shape == side.shape and torch.isfinite(raw(model)).all()


def test_the_gradient_of_the_image_vanishes_with_a_fresh_lora_at_scale_one(prior_folder):
    # Prediction and learned prediction are then the same network.
    model = embedded_prior(prior_folder, method="vsd")
    model.learn(SimpleNamespace(**FLAGS), None)
    assert gradient(model, image_of(2), views_at(0, 120), scale=1.0).abs().max() < 1e-6
    assert gradient(shaken(model), image_of(2), views_at(0, 120), scale=1.0).abs().max() > 1e-4


def test_training_the_lora_lowers_its_loss_on_the_same_renderings(kind):
    model, image, views = kind(), image_of(2), views_at(0, 120)
    optimizer = torch.optim.Adam(model.param_groups(1.0))
    control = Control(T_RANGE)

    def losses(seeds, step):
        found = []
        for seed in seeds:
            out = model.loss(image, views, part_of("guided", seed=seed), control)
            found.append(out.stats["lora_loss"].item())
            if step:
                optimizer.zero_grad()
                out.loss.backward()
                optimizer.step()
        return sum(found) / len(found)

    before = losses(range(3), False)
    losses(range(100, 112), True)
    assert losses(range(3), False) < before


def test_a_checkpoint_restores_the_lora_and_a_stage_begins_with_a_fresh_one(kind):
    model, other = shaken(kind()), kind()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not torch.equal(raw(model), raw(other))
    other.load_state_dict(state)
    assert torch.equal(raw(model), raw(other))
    other.begin_stage()
    assert torch.equal(raw(other), raw(kind()))


def test_half_precision_weights_have_a_lora_in_float32(kind):
    model = shaken(kind(dtype=torch.bfloat16), 0.05)
    predicted = raw(model)
    assert predicted.dtype == torch.float32 and torch.isfinite(predicted).all()
    predicted.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.lora.weights.values())


def test_a_lora_and_offloaded_weights_contradict_each_other(prior_folder):
    with pytest.raises(UserError, match="--distillation vsd trains a part of the UNet, which --vram_O"):
        embedded_prior(prior_folder).learn(SimpleNamespace(**FLAGS | {"vram_O": True}), None)


def test_a_missing_peft_is_told_with_the_way_out(prior_folder, monkeypatch):
    monkeypatch.setattr("guidance.diffusion.lora.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install peft"):
        embedded_prior(prior_folder).learn(SimpleNamespace(**FLAGS), None)


def test_a_model_without_a_lora_refuses_the_state_of_one(prior_folder):
    model = embedded_prior(prior_folder)
    assert model.state_dict() == {} and model.param_groups(1.0) == []
    with pytest.raises(ValueError, match="another --guidance"):
        model.load_state_dict({"x": torch.zeros(1)})
