"""Adan against a float64 transcription of the paper's algorithm, its resumption, and what it refuses."""

import copy

import numpy as np
import pytest
import torch

from optimizer import Adan

BETAS = (0.98, 0.92, 0.99)


def reference(start, gradients, lr, betas=BETAS, eps=1e-8, weight_decay=0.0, max_norm=0.0):
    """Algorithm 1 in numpy float64, with Adam-style bias correction; one flat vector."""
    b1, b2, b3 = betas
    p = np.array(start, dtype=np.float64)
    m, v, n = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    before = None
    for k, g in enumerate(np.asarray(gradients, dtype=np.float64), 1):
        if max_norm:
            g = g * min(1.0, max_norm / (np.sqrt((g**2).sum()) + 1e-8))
        d = np.zeros_like(p) if before is None else g - before
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        step_size = lr / (np.sqrt(n / (1 - b3**k)) + eps)
        p = (p - step_size * (m / (1 - b1**k) + b2 * v / (1 - b2**k))) / (1 + lr * weight_decay)
        before = g
    return p


def run(start, gradients, split=None, dtype=torch.float64, **settings):
    """The same with Adan; ``split`` cuts the vector into several parameters."""
    pieces = torch.tensor(start, dtype=dtype).split(split or len(start))
    params = [torch.nn.Parameter(piece.clone()) for piece in pieces]
    optimizer = Adan(params, **settings)
    for gradient in gradients:
        for param, grad in zip(params, torch.tensor(gradient, dtype=dtype).split(split or len(start)), strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return torch.cat([p.detach() for p in params]).numpy()


@pytest.fixture
def problem():
    """A start [7] and twelve gradients [12, 7] of very different sizes."""
    rng = np.random.default_rng(3)
    return rng.normal(size=7), rng.normal(size=(12, 7)) * 10.0 ** rng.integers(-4, 3, size=(1, 7))


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"betas": (0.9, 0.8, 0.95), "eps": 1e-3}])
def test_adan_equals_the_algorithm_of_the_paper(problem, foreach, settings):
    expected = reference(*problem, lr=0.02, **settings)
    # Both are float64 and differ only in the order of a dozen operations a step.
    np.testing.assert_allclose(run(*problem, lr=0.02, foreach=foreach, **settings), expected, rtol=1e-12)


def test_gradients_are_clipped_by_their_norm_over_all_parameters(problem):
    expected = reference(*problem, lr=0.02, max_norm=0.5)
    np.testing.assert_allclose(run(*problem, split=3, lr=0.02, max_grad_norm=0.5), expected, rtol=1e-12)


def test_clipping_leaves_the_gradient_of_the_parameter_alone():
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([30.0, 40.0])
    Adan([param], max_grad_norm=1.0).step()
    assert param.grad.tolist() == [30.0, 40.0]


def test_foreach_and_per_tensor_give_the_same_bits(problem):
    together = run(*problem, split=2, dtype=torch.float32, lr=0.02, weight_decay=0.1)
    one_by_one = run(*problem, split=2, dtype=torch.float32, lr=0.02, weight_decay=0.1, foreach=False)
    assert (together == one_by_one).all()


def test_first_step_has_the_length_of_the_learning_rate_whatever_the_gradient():
    for size in (1e-3, 1.0, 1e3):
        moved = run([0.0], [[size]], lr=0.1)
        assert moved[0] == pytest.approx(-0.1, rel=1e-4)


def test_resuming_from_a_state_dict_equals_running_straight_on(problem):
    start, gradients = problem

    def steps(param, optimizer, rows):
        for row in rows:
            param.grad = torch.tensor(row, dtype=torch.float32)
            optimizer.step()

    straight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = Adan([straight], lr=0.02, max_grad_norm=5.0)
    steps(straight, optimizer, gradients[:5])
    resumed = torch.nn.Parameter(straight.detach().clone())
    again = Adan([resumed], lr=0.5)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(straight, optimizer, gradients[5:])
    steps(resumed, again, gradients[5:])
    assert torch.equal(straight, resumed)


def test_a_parameter_without_a_gradient_stays_and_keeps_its_own_step_count():
    still, moving = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Adan([still, moving], lr=0.1)
    moving.grad = torch.ones(2)
    optimizer.step()
    assert still.tolist() == [1.0, 1.0]
    still.grad = torch.ones(2)
    optimizer.step()
    assert (optimizer.state[still]["step"], optimizer.state[moving]["step"]) == (1, 2)
    torch.testing.assert_close(still.detach(), torch.full((2,), 0.9))


def test_adan_finds_the_minimum_of_a_badly_scaled_bowl():
    scale = torch.tensor([1.0, 30.0])
    param = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = Adan([param], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (scale * param.square()).sum().backward()
        optimizer.step()
    assert param.abs().max() < 0.02


def test_the_closure_is_evaluated_with_gradients_and_its_loss_returned():
    param = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = Adan([param], lr=0.1)

    def closure():
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"betas": (0.9, 1.0, 0.9)}, {"betas": (0.9, 0.9)}, {"eps": -1.0}])
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match="Adan"):
        Adan([torch.nn.Parameter(torch.zeros(1))], **settings)


def test_half_precision_parameters_are_refused_with_the_way_out():
    param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))
    param.grad = torch.zeros_like(param)
    with pytest.raises(TypeError, match="autocast"):
        Adan([param]).step()
