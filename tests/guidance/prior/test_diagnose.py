"""The measures of the prior: errors of x_0 without and with the detail network."""

from dataclasses import replace

import torch

from guidance.prior import detail, model
from guidance.prior.diagnose import kind_errors, x0_errors


def test_errors_are_measured_without_and_with_the_detail_network():
    plain = model.build(tiny=True)
    network = detail.build(tiny=True)
    torch.nn.init.normal_(network.conv_out.weight, std=0.5)
    without = x0_errors(plain, ["a red car"], (100, 700), 2)
    given = x0_errors(replace(plain, detail=network), ["a red car"], (100, 700), 2)
    for t in (100, 700):
        assert without[t]["patches"] == without[t]["details"] == given[t]["patches"] > 0
        assert without[t]["degraded patches"] == without[t]["degraded details"] != without[t]["details"]
        assert given[t]["details"] != given[t]["patches"]


def test_the_error_of_a_kind_is_a_share_of_its_contrast():
    prior = model.build(tiny=True)
    white = torch.ones(1)
    prior.predict = lambda noisy, *rest: white.expand_as(noisy)  # the background alone: it misses all of the contrast
    assert kind_errors(prior, ["teddy bear", "bottle"], (100, 850), 2) == {
        kind: {100: 1.0, 850: 1.0} for kind in ("teddy bear", "bottle")
    }
