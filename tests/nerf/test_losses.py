"""Losses against closed forms, and what they must not depend on."""

import pytest
import torch

from nerf import losses


def test_mse_of_equal_images_is_zero_and_of_black_and_white_one():
    image = torch.rand(5, 3)
    assert losses.image_mse(image, image) == 0
    assert losses.image_mse(torch.zeros(5, 3), torch.ones(5, 3)) == 1


def test_mse_refuses_images_that_would_broadcast():
    with pytest.raises(ValueError, match="one shape"):
        losses.image_mse(torch.zeros(5, 3), torch.zeros(5, 1))


def test_mask_mse_takes_a_boolean_mask():
    assert losses.mask_mse(torch.tensor([1.0, 0.0]), torch.tensor([True, False])) == 0


def test_entropy_of_a_half_transparent_ray_is_one_bit_and_of_certain_rays_none():
    assert losses.entropy(torch.tensor([0.5])).item() == pytest.approx(1.0)
    assert losses.entropy(torch.tensor([0.0, 1.0])).item() < 3e-4


def test_entropy_gradient_is_finite_at_and_beyond_the_ends():
    opacity = torch.tensor([0.0, 1.0, 1.0 + 1e-6, 1e-5], requires_grad=True)
    losses.entropy(opacity).backward()
    assert torch.isfinite(opacity.grad).all()


def test_entropy_pushes_a_ray_to_the_nearer_end():
    opacity = torch.tensor([0.3, 0.7], requires_grad=True)
    losses.entropy(opacity).backward()
    assert opacity.grad[0] > 0 > opacity.grad[1]


def test_orientation_does_not_depend_on_samples_per_ray():
    d = torch.tensor([[0.0, 0.0, 1.0]])
    coarse = losses.orientation(torch.tensor([0.8]), d, d, num_rays=1)
    fine = losses.orientation(torch.full((4,), 0.2), d.expand(4, 3), d.expand(4, 3), num_rays=1)
    torch.testing.assert_close(coarse, fine)


def test_orientation_is_zero_for_surface_that_faces_the_camera():
    d = torch.tensor([[0.0, 0.0, 1.0]])
    assert losses.orientation(torch.ones(1), -d, d, num_rays=1) == 0


def test_orientation_moves_no_density():
    weights = torch.ones(1, requires_grad=True)
    normal = torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)
    losses.orientation(weights, normal, normal.detach(), 1).backward()
    assert weights.grad is None and normal.grad.abs().sum() > 0


def test_2d_smoothness_of_a_ramp_is_its_squared_slope():
    ramp = torch.arange(8.0).expand(2, 3, 5, 8)
    assert losses.normal_smooth_2d(ramp).item() == pytest.approx(1.0)


def test_2d_smoothness_of_a_one_pixel_image_is_zero():
    assert losses.normal_smooth_2d(torch.rand(1, 3, 1, 1)) == 0


def test_3d_smoothness_is_zero_for_equal_normals_and_ignores_empty_space():
    n, other = torch.rand(4, 3), torch.rand(4, 3)
    assert losses.normal_smooth_3d(n, n, torch.ones(4), 2) == 0
    assert losses.normal_smooth_3d(n, other, torch.zeros(4), 2) == 0


def test_depth_pearson_is_blind_to_scale_and_offset():
    depth, mask = torch.rand(50, dtype=torch.float64), torch.ones(50)
    assert losses.depth_pearson(depth, 3 * depth + 2, mask).item() == pytest.approx(0.0, abs=1e-9)
    assert losses.depth_pearson(depth, -depth, mask).item() == pytest.approx(2.0, abs=1e-9)


@pytest.mark.parametrize("mask", [torch.zeros(4), torch.ones(4)])
def test_depth_pearson_of_nothing_or_of_a_flat_map_is_zero_with_a_finite_gradient(mask):
    depth = torch.rand(4, requires_grad=True)
    loss = losses.depth_pearson(depth, torch.ones(4), mask)
    loss.backward()
    assert loss == 0 and torch.isfinite(depth.grad).all()


def test_normal_cosine_is_zero_for_equal_and_two_for_opposite_normals():
    n = torch.nn.functional.normalize(torch.randn(6, 3), dim=-1)
    mask = torch.ones(6)
    assert losses.normal_cosine(n, n, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.normal_cosine(n, -n, mask).item() == pytest.approx(2.0, abs=1e-6)


def test_normal_cosine_looks_inside_the_mask_only():
    n = torch.eye(3)
    target = n.clone()
    target[0] = -target[0]
    assert losses.normal_cosine(n, target, torch.tensor([0.0, 1.0, 1.0])) == 0
