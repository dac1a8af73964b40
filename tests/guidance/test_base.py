"""The records of the interface, and what a guidance model that overrides nothing does."""

import pytest
import torch

from guidance.base import CameraRequirements, Conditions, Guidance, GuidanceOutput, ImageCondition


class Frozen(Guidance):
    """The least that a guidance model must define."""

    name = "frozen"

    def prepare(self, conditions):
        """Nothing to prepare."""

    def loss(self, image, views, part, control, *, debug=False):
        """The mean of the image."""
        return GuidanceOutput(image.mean())


def test_an_image_prompt_carries_the_camera_it_was_taken_with():
    condition = ImageCondition(torch.zeros(4, 8, 6), polar=80.0, azimuth=30.0, radius=3.0, fovy=25.0, weight=0.5)
    assert Conditions(images=(condition,)).images[0].azimuth == 30.0


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8)])
def test_an_image_prompt_without_alpha_or_with_a_batch_axis_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected image \[4, H, W\]"):
        ImageCondition(torch.zeros(shape))


def test_a_negative_weight_of_an_image_prompt_is_refused():
    with pytest.raises(ValueError, match="weight"):
        ImageCondition(torch.zeros(4, 8, 8), weight=-1.0)


def test_by_default_a_model_is_frozen_takes_any_view_and_has_no_options():
    model = Frozen()
    assert model.requirements() == CameraRequirements() and model.stage_options(None) is None
    assert model.state_dict() == {} and model.param_groups(1e-3) == []
    model.after_step()
    model.load_state_dict({})


def test_a_frozen_model_refuses_the_state_of_another():
    with pytest.raises(ValueError, match="another --guidance"):
        Frozen().load_state_dict({"lora": torch.zeros(1)})
