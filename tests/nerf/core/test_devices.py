"""A device that torch does not have is one sentence."""

import pytest
import torch

from nerf.core.devices import check_device
from nerf.core.errors import UserError


@pytest.mark.parametrize("name", ["", "quantum", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda 1", "mps"])
def test_another_word_is_refused(name):
    with pytest.raises(UserError, match="--device must be cpu, cuda or cuda:N, got"):
        check_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda:1: torch sees no CUDA device here"):
        check_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--device cuda:2: torch sees 2 CUDA devices here; give cuda:0 to cuda:1"):
        check_device("cuda:2")
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        check_device(name)
