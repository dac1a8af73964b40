"""The course of the losses stays bounded, and its points are those of the steps."""

import torch

from nerf.viewer.history import History


def test_a_long_training_keeps_evenly_spread_points():
    history = History(most=64)
    for step in range(1, 5001):
        history.add(step, {"rgb": torch.tensor(float(step)), "late": -step} if step > 3000 else {"rgb": float(step)})
    steps, values = history.points["rgb"]
    assert 32 <= len(steps) <= 64 and list(values) == [float(step) for step in steps]
    assert len({b - a for a, b in zip(steps, steps[1:], strict=False)}) == 1 and steps[-1] > 4800
    assert all(step > 3000 for step in history.points["late"][0])
    history.clear()
    assert history.points == {} and history.wants(1)


def test_points_that_were_read_do_not_change():
    history = History(most=8)
    history.add(1, {"rgb": 0.5})
    before = history.points
    for step in range(2, 100):
        history.add(step, {"rgb": 0.1})
    assert before == {"rgb": ((1,), (0.5,))}
