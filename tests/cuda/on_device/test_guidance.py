"""What a step of each guidance model waits for on a GPU."""

import pytest
import torch

from guidance.base import Conditions
from guidance.clip_utils import Clip
from guidance.if_utils import DeepFloydIF
from guidance.mvdream_utils import ImageDream, MVDream
from guidance.prior.guidance import EmbeddedPrior
from guidance.prior.view_guidance import EmbeddedViewPrior
from guidance.sd_utils import StableDiffusion
from guidance.sdxl_utils import StableDiffusionXL
from guidance.zero123_utils import Zero123
from nerf.core.cameras import orbit
from tests.guidance.camera_models import picture
from tests.guidance.conftest import (  # noqa: F401  # fixtures
    clip_folder,
    if_folder,
    imagedream_folder,
    knowing_folder,
    multiview_folders,
    mvdream_folder,
    prior_folder,
    sd_folder,
    sdxl_folder,
    view_prior_folder,
    zero123_file,
)
from tests.guidance.models import PROMPT, gradient, image_of, views_at
from tests.helpers.fake_cuda import waits

MODELS = {
    "sd_folder": StableDiffusion,
    "sdxl_folder": StableDiffusionXL,
    "if_folder": DeepFloydIF,
    "clip_folder": Clip,
    "prior_folder": EmbeddedPrior,
    "knowing_folder": EmbeddedPrior,
    "view_prior_folder": EmbeddedViewPrior,
    "zero123_file": Zero123,
    "mvdream_folder": MVDream,
    "imagedream_folder": ImageDream,
}


@pytest.mark.parametrize(("source", "model"), MODELS.items())
def test_a_gradient_waits_for_nothing_but_whether_the_views_are_linked(request, source, model):
    model = model(request.getfixturevalue(source), "cuda")
    model.prepare(Conditions(PROMPT, images=(picture(),)))
    views, image = views_at(0, 90, 180, 270).to("cuda"), image_of(4).to("cuda")
    gradient(model, image, views)  # the first may
    with waits.record() as seen:
        gradient(model, image, views)
    assert seen.by_function() == ({("check_linked", "copy to the host"): 1} if isinstance(model, MVDream) else {})


def test_views_that_the_unet_cannot_judge_get_no_gradient_and_the_others_theirs(request):
    views = orbit(torch.tensor([80.0, 125.0]), torch.tensor([0.0, 90.0]), 3.2, 20.0, 64, 64).to("cuda")
    models = [EmbeddedPrior(request.getfixturevalue(name), "cuda") for name in ("knowing_folder", "prior_folder")]
    for model in models:
        model.prepare(Conditions(PROMPT))
    found, all_of_them = (gradient(model, image_of(2).to("cuda"), views).cpu() for model in models)
    torch.testing.assert_close(found[0], all_of_them[0], rtol=0.05, atol=1e-3)  # the weights of one are in float16
    assert not found[1].any() and all_of_them[1].any()
