"""The measures of the prior: errors of x_0 without and with the detail network."""

from dataclasses import replace

import torch

from guidance.prior import detail, model
from guidance.prior.diagnose import x0_errors


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
