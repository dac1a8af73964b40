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


# ---- Under a gradient scaler, which leaves the decision whether a step is taken on the device ----

CANCELLED = ([0, 1, 4], [5, 11], [])


def scaled(start, gradients, cancelled, scale=None, dtype=torch.float64, **settings):
    """Adan as a gradient scaler calls it: ``cancelled`` steps have gradients that are not finite, and the flag."""
    params = [torch.nn.Parameter(piece.clone()) for piece in torch.tensor(start, dtype=dtype).split(3)]
    optimizer = Adan(params, **settings)
    for number, gradient in enumerate(gradients):
        for param, grad in zip(params, torch.tensor(gradient, dtype=dtype).split(3), strict=True):
            param.grad = grad * (1.0 if scale is None else scale)
            if number in cancelled:
                param.grad[0] = float("nan") if number % 2 else float("inf")
        optimizer.found_inf = torch.tensor(float(number in cancelled))
        optimizer.grad_scale = None if scale is None else torch.tensor(scale)
        optimizer.step()
        del optimizer.found_inf, optimizer.grad_scale
    return torch.cat([p.detach() for p in params]).numpy(), optimizer


@pytest.mark.parametrize("cancelled", CANCELLED)
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "max_grad_norm": 0.5, "foreach": False}])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_steps_that_a_gradient_scaler_cancels_have_never_been(problem, cancelled, settings, scale):
    start, gradients = problem
    found, optimizer = scaled(start, gradients, cancelled, scale, lr=0.02, **settings)
    norm = settings.get("max_grad_norm", 0.0)
    taken = np.delete(gradients, cancelled, axis=0)
    expected = reference(start, taken, 0.02, weight_decay=settings.get("weight_decay", 0.0), max_norm=norm)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert {state["step"] for state in optimizer.state_dict()["state"].values()} == {len(taken)}


def test_a_cancelled_step_changes_no_bit(problem):
    start, gradients = problem
    before, optimizer = scaled(start, gradients[:5], [2], dtype=torch.float32, lr=0.02, weight_decay=0.1, max_grad_norm=0.5)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    params = optimizer.param_groups[0]["params"]
    for param in params:
        param.grad = torch.full_like(param, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert (torch.cat([p.detach() for p in params]).numpy() == before).all()
    for mine, old in zip(optimizer.state_dict()["state"].values(), state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(mine[name]), torch.as_tensor(old[name])) for name in old)


def test_parameters_that_sit_out_a_cancelled_step_count_their_own():
    rng = np.random.default_rng(5)
    gradients, cancelled, absent = rng.normal(size=(12, 2)), {0, 3, 7}, {3, 4, 7}  # the second parameter has no gradient there
    params = [torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2)]
    optimizer = Adan(params, lr=0.02)
    for number, gradient in enumerate(gradients):
        for param, value, there in zip(params, gradient, (True, number not in absent), strict=True):
            param.grad = torch.full((1,), np.inf if number in cancelled else value, dtype=torch.float64) if there else None
        optimizer.found_inf = torch.tensor(float(number in cancelled))
        optimizer.step()
    for k, left_out in enumerate((cancelled, cancelled | absent)):
        expected = reference([1.0], np.delete(gradients[:, k : k + 1], sorted(left_out), axis=0), 0.02)
        np.testing.assert_allclose(params[k].detach().numpy(), expected, rtol=1e-12)


def test_a_run_goes_on_from_the_state_of_one_with_cancelled_steps(problem):
    start, gradients = problem
    expected, _ = scaled(start, gradients, [0, 2], lr=0.02)
    found, first = scaled(start, gradients[:4], [0, 2], lr=0.02)
    params = [torch.nn.Parameter(p.detach().clone()) for p in first.param_groups[0]["params"]]
    second = Adan(params, lr=0.02)
    second.load_state_dict(first.state_dict())
    for gradient in gradients[4:]:
        for param, grad in zip(params, torch.tensor(gradient).split(3), strict=True):
            param.grad = grad.clone()
        second.step()  # without a scaler: the same rule
    np.testing.assert_allclose(torch.cat([p.detach() for p in params]).numpy(), expected, rtol=1e-12)


def test_a_state_of_cancelled_steps_alone_begins_anew(problem):
    start, gradients = problem
    _, optimizer = scaled(start, gradients[:2], [0, 1], lr=0.02)
    params = optimizer.param_groups[0]["params"]
    for gradient in gradients:
        for param, grad in zip(params, torch.tensor(gradient).split(3), strict=True):
            param.grad = grad.clone()
        optimizer.step()
    np.testing.assert_allclose(torch.cat([p.detach() for p in params]).numpy(), reference(start, gradients, 0.02), rtol=1e-12)


@pytest.mark.parametrize("unscale", [True, False])
def test_torch_s_gradient_scaler_skips_a_step_that_overflows_and_lowers_its_scale(unscale):
    param = torch.nn.Parameter(torch.ones(2))
    optimizer, scaler = Adan([param], lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (float("inf"), 3.0):
        before = param.detach().clone()
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(param.detach(), before) == (factor == float("inf"))
    assert scaler.get_scale() == 4.0 and optimizer.state_dict()["state"][0]["step"] == 1
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.9))  # a first step has the length of the learning rate
