"""What a GPU computed is looked at late, before a checkpoint at the latest, and the first wrong step is the one named."""

import math

import pytest
import torch

from nerf.core.errors import DivergenceError
from nerf.training.divergence import DivergenceMonitor
from nerf.training.unread import Unread

GOOD, BAD = torch.tensor(1.0), torch.tensor(math.nan)


@pytest.fixture
def unread(device):
    """Nothing yet, with a monitor of its own."""
    return Unread(DivergenceMonitor(), lambda: "no checkpoint was written yet")


def test_nothing_is_looked_at_before_it_is_sent(unread, device):
    unread.add(3, {"rgb": BAD.to(device)})
    unread.look()
    with pytest.raises(DivergenceError, match="step 3: the loss term rgb"):
        unread.settle()
    unread.settle()  # said once


def test_the_first_wrong_step_is_named_with_all_its_terms(unread, device):
    unread.add(3, {"rgb": GOOD.to(device), "mask": GOOD.to(device)})
    unread.add(4, {"rgb": BAD.to(device), "opacity": GOOD.to(device), "mask": BAD.to(device)})
    unread.add(5, {"opacity": BAD.to(device)})
    unread.send()
    with pytest.raises(DivergenceError, match="step 4: the loss term rgb, mask is not finite"):
        unread.send()


@pytest.mark.parametrize(
    ("images", "gradients", "sentence"),
    [
        ([True, True], [True, False], r"step 7: score distillation: the gradient of images \[1\] of 2 is not finite though"),
        ([False, True], [False, True], r"step 7: score distillation: the rendered images \[0\] of 2 hold NaN"),
    ],
)
def test_a_loss_of_guidance_that_is_not_finite_is_explained(unread, device, images, gradients, sentence):
    good = torch.ones(2, 3, dtype=torch.bool, device=device)
    unread.add(6, {"sds/A": GOOD.to(device)}, {"sds/A": good})
    terms = {"sds/A": GOOD.to(device), "sds/SD": BAD.to(device)}
    unread.add(7, terms, {"sds/A": good, "sds/SD": torch.tensor([images, gradients], device=device)})
    with pytest.raises(DivergenceError, match=sentence):
        unread.settle()


def test_the_monitor_is_told_what_it_would_have_seen_itself(unread, device):
    opacity, itself = torch.rand(100, generator=torch.Generator().manual_seed(0)), DivergenceMonitor()
    for step in range(3):
        unread.add(step, {"rgb": GOOD.to(device)}, opacity=(step * opacity).to(device), stands_for=16)
        itself.update(step * opacity, 16)
    unread.settle()
    assert unread.monitor == itself and itself.steps == 48
