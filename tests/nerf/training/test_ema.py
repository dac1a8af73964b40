"""The average follows the weights, swaps in and out without loss, and survives a checkpoint."""

import pytest
import torch
from torch import nn

from nerf.training.ema import Ema


def test_average_of_constant_weights_is_those_weights():
    module = nn.Linear(2, 2)
    ema = Ema(module, 0.9)
    for _ in range(3):
        ema.update()
    with ema.applied():
        inside = module.weight.detach().clone()
    torch.testing.assert_close(inside, module.weight)


def test_update_is_a_lerp_with_the_warmed_up_decay():
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
    ema = Ema(module, 0.99)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema.update()
    assert ema.average[0].item() == pytest.approx(1 - 2 / 11)


def test_raw_weights_come_back_bit_for_bit_even_after_an_error():
    module = nn.Linear(3, 3)
    ema = Ema(module, 0.5)
    with torch.no_grad():
        module.weight.add_(1.0)
    raw = module.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        assert not torch.equal(module.weight, raw)
        raise RuntimeError("inside")
    assert torch.equal(module.weight, raw)


def test_state_round_trip_continues_the_same_average():
    module = nn.Linear(2, 2)
    ema, other = Ema(module, 0.9), Ema(module, 0.9)
    with torch.no_grad():
        module.weight.add_(1.0)
    ema.update()
    other.load_state_dict({k: v.clone() for k, v in ema.state_dict().items()})
    ema.update()
    other.update()
    assert all(torch.equal(a, b) for a, b in zip(ema.average, other.average, strict=True))


def test_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="another model"):
        Ema(nn.Linear(2, 2), 0.9).load_state_dict({"updates": torch.tensor(1)})
