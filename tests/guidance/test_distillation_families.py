"""Every distillation method with every family of diffusion models, on tiny random weights."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from guidance.base import Conditions, ImageCondition
from guidance.distillation import METHODS
from guidance.if_utils import DeepFloydIF
from guidance.mvdream_utils import MVDream
from guidance.prior import view_model
from guidance.prior.view_guidance import EmbeddedViewPrior
from guidance.sd_utils import CAMERA_DIM
from guidance.sdxl_utils import StableDiffusionXL
from nerf.core.errors import UserError
from nerf.core.structs import Control
from tests.guidance.camera_models import write_multiview_folder
from tests.guidance.models import PROMPT, T_RANGE, gradient, image_of, views_at
from tests.helpers.parts import part_of

pytestmark = pytest.mark.slow

FROZEN = [name for name, method in METHODS.items() if not method.learns]
FLAGS = SimpleNamespace(vram_O=False, distillation="vsd", lora_rank=2, lora_lr=1e-3)


@pytest.fixture(scope="module")
def view_folder(tmp_path_factory):
    """A tiny view-conditioned prior."""
    folder = tmp_path_factory.mktemp("weights") / "view"
    view_model.save(view_model.build(tiny=True), folder)
    return folder


@pytest.fixture(scope="module")
def multiview_folder(tmp_path_factory):
    """A tiny MVDream."""
    return write_multiview_folder(tmp_path_factory.mktemp("weights") / "MVDream", "MVDream")


def red_square():
    """An image prompt."""
    picture = torch.zeros(4, 64, 64)
    picture[[0, 3], 16:48, 16:48] = 1
    return ImageCondition(picture)


FAMILIES = {
    "if_folder": DeepFloydIF,
    "sdxl_folder": StableDiffusionXL,
    "multiview_folder": MVDream,
    "view_folder": EmbeddedViewPrior,
}


def ready(request, folder):
    """A model that has its prompts, and a gradient of four linked views under a method."""
    model = FAMILIES[folder](request.getfixturevalue(folder))
    model.prepare(Conditions(PROMPT, images=(red_square(),)))

    def of(method, **options):
        record = replace(model.options, method=method, **options)
        views = views_at(0, 90, 180, 270)
        return gradient(model, image_of(4), views, options=record, scale=5.0)

    return model, of


@pytest.mark.parametrize("folder", FAMILIES)
def test_every_frozen_method_gives_a_gradient_of_its_own(request, folder):
    _, of = ready(request, folder)
    found = {name: of(name) for name in FROZEN}
    for name, grad in found.items():
        assert torch.isfinite(grad).all() and grad.abs().max() > 0, name
        assert not any(torch.equal(grad, other) for another, other in found.items() if another != name)


@pytest.mark.parametrize("folder", ["if_folder", "sdxl_folder"])
def test_models_of_text_to_image_train_a_lora(request, folder):
    model, of = ready(request, folder)
    model.learn(FLAGS, CAMERA_DIM)
    assert torch.isfinite(of("vsd")).all()
    out = model.loss(
        image_of(2), views_at(0, 90), part_of("guided"), Control(T_RANGE, options=replace(model.options, method="vsd"))
    )
    out.loss.backward()
    assert all(p.grad is not None for p in model.lora.weights.values())


@pytest.mark.parametrize("folder", ["multiview_folder", "view_folder"])
def test_other_models_refuse_to_train_one(request, folder):
    model, _ = ready(request, folder)
    with pytest.raises(UserError, match="--distillation vsd trains a LoRA"):
        model.stage_options(SimpleNamespace(distillation="vsd"))


@pytest.mark.parametrize("folder", FAMILIES)
def test_a_bound_on_the_gradient_holds_for_every_family(request, folder):
    model, _ = ready(request, folder)
    seen = []
    distiller = model.distiller
    model.distiller = replace(distiller)
    object.__setattr__(
        model.distiller, "output", lambda image, x, out, debug: seen.append(out) or distiller.output(image, x, out, debug)
    )
    record = replace(model.options, debias_gradient=(1e-3, 1e-3))
    gradient(model, image_of(4), views_at(0, 90, 180, 270), options=record, scale=5.0)
    assert seen[0].gradient.abs().max() <= 1e-3
