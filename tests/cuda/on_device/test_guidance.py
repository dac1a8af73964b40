"""What a step of each guidance model waits for on a GPU."""

import pytest
import torch

from guidance.base import Conditions
from guidance.clip_utils import Clip
from guidance.if_utils import DeepFloydIF
from guidance.mvdream_utils import ImageDream, MVDream
from guidance.prior import view_model
from guidance.prior.guidance import EmbeddedPrior
from guidance.prior.view_guidance import EmbeddedViewPrior
from guidance.sd_utils import StableDiffusion
from guidance.sdxl_utils import StableDiffusionXL
from guidance.zero123_utils import Zero123
from tests.guidance import camera_models
from tests.guidance.conftest import clip_folder, if_folder, prior_folder, sd_folder, sdxl_folder  # noqa: F401  # fixtures
from tests.guidance.models import PROMPT, gradient, image_of, views_at
from tests.helpers.fake_cuda import waits


def zero123_file(folder):
    torch.save({"state_dict": camera_models.tiny_tensors("zero123")}, folder / "zero123.ckpt")
    return folder / "zero123.ckpt"


def view_folder(folder):
    view_model.save(view_model.build(tiny=True), folder)
    return folder


MODELS = {
    "SD": (StableDiffusion, "sd_folder"),
    "SDXL": (StableDiffusionXL, "sdxl_folder"),
    "IF": (DeepFloydIF, "if_folder"),
    "clip": (Clip, "clip_folder"),
    "embedded": (EmbeddedPrior, "prior_folder"),
    "view": (EmbeddedViewPrior, view_folder),
    "zero123": (Zero123, zero123_file),
    "MVDream": (MVDream, lambda folder: camera_models.write_multiview_folder(folder / "a", "MVDream")),
    "ImageDream": (ImageDream, lambda folder: camera_models.write_multiview_folder(folder / "a", "ImageDream")),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_waits_for_nothing_but_whether_the_views_are_linked(request, tmp_path, name):
    kind, source = MODELS[name]
    model = kind(request.getfixturevalue(source) if isinstance(source, str) else source(tmp_path), "cuda")
    model.prepare(Conditions(PROMPT, images=(camera_models.picture(),)))
    views, image = views_at(0, 90, 180, 270).to("cuda"), image_of(4).to("cuda")
    gradient(model, image, views)  # the first may
    with waits.record() as seen:
        gradient(model, image, views)
    assert seen.by_function() == ({("check_linked", "copy to the host"): 1} if "Dream" in name else {})
