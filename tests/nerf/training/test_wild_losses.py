"""Losses of photographs in the wild against their equations in float64, their gradients, and their guards."""

import math

import numpy as np
import pytest
import torch

from nerf.training import wild_losses


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_masked_error_is_that_of_the_paper_over_all_rays():
    error, keep = draw(7, 3), draw(7, seed=1)
    expected = np.mean([keep[i] * np.mean(error[i].numpy()) for i in range(7)])
    assert float(wild_losses.masked(error, keep)) == pytest.approx(expected, abs=1e-14)
    assert float(wild_losses.masked(error, None)) == pytest.approx(float(error.mean()), abs=1e-14)
    assert wild_losses.masked(error, torch.zeros(7)) == 0


def test_mask_losses_are_those_of_the_paper():
    mask = draw(9)
    assert float(wild_losses.mask_size(mask)) == pytest.approx(np.mean(mask.numpy() ** 2), abs=1e-14)
    expected = np.mean([1 / ((m - 0.5) ** 2 + 0.02) for m in mask.numpy()])
    assert float(wild_losses.mask_digital(mask)) == pytest.approx(expected, abs=1e-12)


def test_vector_losses_are_those_of_the_paper():
    vectors, rendered = draw(3, 4), draw(3, 4, seed=1)
    assert float(wild_losses.vector_norm(vectors)) == pytest.approx(np.mean(vectors.numpy() ** 2), abs=1e-14)
    expected = np.mean(np.abs(vectors.numpy() - rendered.numpy()))
    assert float(wild_losses.vector_match(vectors, rendered)) == pytest.approx(expected, abs=1e-14)


def test_mode_seeking_is_that_of_the_paper_for_each_patch():
    image, other, a, b = draw(2, 5, 3), draw(2, 5, 3, seed=1), draw(2, 4, seed=2), draw(2, 4, seed=3)
    expected = np.mean(
        [1 / (np.abs(image[p] - other[p]).numpy().mean() / np.abs(a[p] - b[p]).numpy().mean() + 1e-5) for p in range(2)]
    )
    assert float(wild_losses.mode_seeking(image, other, a, b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("same", [(0, 1), (0,)])
def test_mode_seeking_leaves_out_patches_whose_vectors_are_the_same(same):
    """The peer divides zero by zero there, in the first step of every run."""
    image, other, a, b = draw(2, 5, 3), draw(2, 5, 3, seed=1).requires_grad_(True), draw(2, 4, seed=2), draw(2, 4, seed=3)
    for p in same:
        b[p] = a[p]
    value = wild_losses.mode_seeking(image, other, a, b)
    value.backward()
    assert math.isfinite(value.detach()) and other.grad.isfinite().all() and not other.grad[list(same)].any()
    if len(same) == 1:
        assert float(value) == pytest.approx(float(wild_losses.mode_seeking(image[1:], other[1:], a[1:], b[1:])))
    else:
        assert value == 0


def test_mode_seeking_of_colours_that_do_not_change_is_finite():
    image, a, b = draw(1, 5, 3), draw(1, 4), draw(1, 4, seed=1)
    assert float(wild_losses.mode_seeking(image, image.clone(), a, b)) == pytest.approx(1e5)


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (wild_losses.masked, ((6, 3), (6,))),
        (wild_losses.mask_size, ((6,),)),
        (wild_losses.mask_digital, ((6,),)),
        (wild_losses.vector_norm, ((3, 4),)),
    ],
)
def test_gradcheck(loss, shapes):
    inputs = [draw(*shape, seed=i).requires_grad_(True) for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_gradients_go_to_what_was_rendered_alone():
    vectors, others, image = (draw(2, 4, seed=s).requires_grad_(True) for s in range(3))
    other = draw(2, 5, 3, seed=4).requires_grad_(True)
    shown = draw(2, 5, 3, seed=5).requires_grad_(True)
    (wild_losses.vector_match(vectors, image) + wild_losses.mode_seeking(shown, other, vectors, others)).backward()
    assert image.grad is not None and other.grad is not None
    assert vectors.grad is None and others.grad is None and shown.grad is None


def test_gradcheck_of_what_looks_at_another_light():
    vectors, others = draw(2, 4), draw(2, 4, seed=1)
    image, other = draw(2, 5, 3, seed=2), draw(2, 5, 3, seed=3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: wild_losses.mode_seeking(image, x, vectors, others), (other,))
    rendered = draw(2, 4, seed=4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: wild_losses.vector_match(vectors, x), (rendered,))
