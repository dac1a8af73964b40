"""The diagnosis of the prior: errors without and with details."""

from dataclasses import replace

import torch

from guidance.prior import detail, model
from guidance.prior.diagnose import sharpness


def test_errors_are_given_without_and_with_details():
    plain = model.build(tiny=True)
    network = detail.build(tiny=True)
    torch.nn.init.normal_(network.conv_out.weight, std=0.5)
    without = sharpness(plain, ["a red car"], (100, 700), 2)
    given = sharpness(replace(plain, detail=network), ["a red car"], (100, 700), 2)
    for t in (100, 700):
        assert without[t]["patches"] == without[t]["details"] == given[t]["patches"] > 0
        assert without[t]["worn patches"] == without[t]["worn details"] != without[t]["details"]
        assert given[t]["details"] != given[t]["patches"]
