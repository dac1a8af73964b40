"""Records that would contradict themselves are refused, and packed samples say which of them are real."""

import pytest
import torch

from nerf.core.streams import Random
from nerf.core.structs import Part, RenderSettings, Samples, ViewRequest


@pytest.mark.parametrize("settings", [RenderSettings("other", random=Random(3)), RenderSettings("a", random=Random(4))])
def test_the_two_halves_of_a_part_belong_to_one_source_and_seed(settings):
    assert Part(ViewRequest("a", random=Random(3)), RenderSettings("a", random=Random(3))).source == "a"
    with pytest.raises(ValueError, match="expected one source and one Random"):
        Part(ViewRequest("a", random=Random(3)), settings)


def test_rows_of_a_buffer_that_no_ray_owns_are_not_valid():
    count = torch.tensor([2, 0, 1])
    samples = Samples(torch.zeros(5, 3), torch.zeros(5), torch.zeros(5), torch.zeros(5), count.cumsum(0) - count, count)
    assert samples.valid_mask.tolist() == [True, True, True, False, False]
