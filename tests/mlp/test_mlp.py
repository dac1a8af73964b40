"""The narrow ReLU network against its reference, in values and gradients, for every way of calling it."""

import itertools

import pytest
import torch

import extension
from mlp import features, features_and_slope, reference

SHAPES = [(32, 64, 2), (16, 32, 1), (48, 128, 3), (32, 16, 4)]
BETAS = [None, 1.0, 100.0]  # ReLU, and softplus


def network(inputs, width, layers, dtype=torch.float32):
    """Weights, biases and a read-out that require gradients."""
    sizes = [inputs] + [width] * layers
    weights = [torch.randn(b, a, dtype=dtype) / a**0.5 for a, b in itertools.pairwise(sizes)]
    tensors = [*weights, *(torch.randn(width, dtype=dtype) for _ in range(layers)), torch.randn(width, dtype=dtype)]
    tensors = [t.requires_grad_() for t in tensors]
    return tensors[:layers], tensors[layers:-1], tensors[-1]


def close(ours, exact):
    """Equal up to sums of some hundred float32 products: 1e-4 of the largest entry."""
    scale = exact.detach().abs().max() if exact.numel() else 0
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=float(1e-4 * scale) + 1e-6)


def both(function, twin, tensors):
    """Outputs and gradients of a loss on all outputs, by the kernel in float32 and by the reference in float64."""
    results = []
    for call, dtype in ((function, torch.float32), (twin, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        outputs = call(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((o.sin() * (1 + i)).sum() for i, o in enumerate(outputs))
        results.append((*outputs, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)))
    return zip(*results, strict=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 96, 500])
@pytest.mark.parametrize("beta", BETAS)
def test_features_and_their_gradients_equal_reference(shape, rows, beta):
    weights, biases, _ = network(*shape)
    count = len(weights)

    def call(function):
        return lambda x, *p: function(x, p[:count], p[count:], beta)

    for ours, exact in both(call(features), call(reference.features), [torch.randn(rows, shape[0]), *weights, *biases]):
        close(ours, exact)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [0, 97, 500])
@pytest.mark.parametrize("beta", BETAS)
def test_features_with_slope_and_their_gradients_equal_reference(shape, rows, beta):
    weights, biases, readout = network(*shape)
    count = len(weights)

    def call(function):
        return lambda x, r, *p: function(x, p[:count], p[count:], r, beta)

    tensors = [torch.randn(rows, shape[0]), readout, *weights, *biases]
    for ours, exact in both(call(features_and_slope), call(reference.features_and_slope), tensors):
        close(ours, exact)


@pytest.mark.parametrize("beta", BETAS)
def test_the_slope_is_the_derivative_of_the_read_out(beta):
    weights, biases, readout = network(32, 64, 2, torch.float64)
    x = torch.randn(20, 32, dtype=torch.float64, requires_grad=True)
    output, slope = features_and_slope(x, weights, biases, readout, beta)
    torch.testing.assert_close(slope, torch.autograd.grad((output @ readout).sum(), x)[0])


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("beta", BETAS)
def test_a_loss_on_one_output_alone_gives_the_reference_gradients(part, beta):
    weights, biases, readout = network(32, 64, 2)
    x = torch.randn(200, 32, requires_grad=True)
    leaves = [x, readout, *weights, *biases]
    grads = [
        torch.autograd.grad(
            f(x, weights, biases, readout, beta)[part].square().sum(), leaves, allow_unused=True, materialize_grads=True
        )
        for f in (features_and_slope, reference.features_and_slope)
    ]
    for ours, twin in zip(*grads, strict=True):
        close(ours, twin.double())


def test_softplus_is_exact_from_far_below_to_far_above_zero():
    z = torch.cat([torch.linspace(-3, 3, 6001), torch.tensor([-1e4, -90.0, 1e4, 0.0])])
    x = torch.zeros(len(z), 16)
    x[:, 0] = z
    weight, bias = torch.eye(16), torch.zeros(16)
    ours = features(x, [weight], [bias], 100.0)[:, 0]
    exact = torch.nn.functional.softplus(z.double(), beta=100.0)
    # exp(-87) has the relative error of its argument's rounding, 87 units in the last place
    torch.testing.assert_close(ours.double(), exact, rtol=87 * 1.2e-7, atol=1e-37)
    slope = features_and_slope(x, [weight], [bias], torch.ones(16), 100.0)[1][:, 0]
    torch.testing.assert_close(slope.double(), torch.sigmoid(100 * z.double()), rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_a_softplus_without_a_slope_is_refused(beta):
    weights, biases, _ = network(32, 64, 1)
    with pytest.raises(ValueError, match="expected beta above 0"):
        features(torch.zeros(1, 32), weights, biases, beta)


def test_one_and_two_threads_give_the_same_bits():
    weights, biases, readout = network(32, 64, 2)
    x = torch.randn(7000, 32, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            output, slope = features_and_slope(x, weights, biases, readout)
            loss = output.sin().sum() + slope.sin().sum()
            results.append((output, slope, *torch.autograd.grad(loss, [x, readout, *weights, *biases])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_second_derivative_by_the_kernel_is_refused():
    weights, biases, _ = network(32, 64, 1)
    x = torch.randn(4, 32, requires_grad=True)
    first = torch.autograd.grad(features(x, weights, biases).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_widths_the_kernel_does_not_have_and_backend_torch_are_the_reference():
    for shape in ((5, 7, 2), (32, 64, 5)):
        weights, biases, _ = network(*shape)
        x = torch.randn(6, shape[0])
        assert torch.equal(features(x, weights, biases), reference.features(x, weights, biases))
    weights, biases, _ = network(32, 64, 2)
    x = torch.randn(6, 32)
    with extension.scope("torch"):
        assert torch.equal(features(x, weights, biases), reference.features(x, weights, biases))


def test_shapes_that_do_not_chain_are_refused_with_a_sentence():
    weights, biases, readout = network(32, 64, 2)
    with pytest.raises(ValueError, match=r"expected a weight \[64, 16\] and a bias \[64\]"):
        features(torch.zeros(4, 16), weights, biases)
    with pytest.raises(ValueError, match="as many weights as biases"):
        features(torch.zeros(4, 32), weights, biases[:1])
    with pytest.raises(ValueError, match=r"expected readout \[64\], got \[63\]"):
        features_and_slope(torch.zeros(4, 32), weights, biases, readout[:63])
