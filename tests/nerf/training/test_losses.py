"""Losses against closed forms, and what they must not depend on."""

import pytest
import torch

from nerf.mesh.tetrahedra import marching_tetrahedra, tet_grid
from nerf.training import losses


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


def test_the_error_of_where_rays_end_counts_haze_on_both_sides_and_leaves_their_opacity():
    weights = torch.tensor([0.25, 0.25, 0.6, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    distance, ray = torch.tensor([2.8, 3.2, 2.9, 3.3, 3.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2])
    target, known = torch.tensor([3.0, 3.1, torch.inf], dtype=torch.float64), torch.tensor([True, True, False])
    loss = losses.depth_distribution(weights, distance, ray, target, known)
    assert loss.item() == pytest.approx((0.5 * 0.2 + 0.8 * 0.2) / 2, rel=0.03)
    loss.backward()
    assert weights.grad[2:4].abs().max() < 0.01 and weights.grad[4] == 0  # both are 0.2 away
    assert losses.depth_distribution(weights, distance, ray, target, torch.zeros(3, dtype=torch.bool)).item() == 0
    nearer = torch.tensor([0.25, 0.25, 0.7, 0.1, 0.3], dtype=torch.float64, requires_grad=True)
    other = losses.depth_distribution(nearer, torch.tensor([3.0, 3.0, 3.1, 3.5, 3.0], dtype=torch.float64), ray, target, known)
    other.backward()
    assert nearer.grad[2] < 0 < nearer.grad[3]  # weight moves to the target, and the sum over the ray is kept
    assert (0.7 * nearer.grad[2] + 0.1 * nearer.grad[3]).abs() < 1e-3


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


SURFACE_LOSSES = [losses.normal_consistency, losses.laplacian_uniform, losses.laplacian_cotangent]
EMPTY_FACES = torch.zeros(0, 3, dtype=torch.int64)


def icosphere(radius=1.0, subdivisions=2):
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    return torch.tensor(mesh.vertices), torch.tensor(mesh.faces)


def sheet(n=6):
    """A tilted square of 2 n^2 triangles with irregular inner vertices, and faces [T, 3]."""
    i, j = torch.meshgrid(torch.arange(n + 1), torch.arange(n + 1), indexing="ij")
    flat = torch.stack([i, j], dim=-1).double()
    flat[1:-1, 1:-1] += 0.2 * (torch.rand(n - 1, n - 1, 2, dtype=torch.float64) - 0.5)
    frame = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0][:2]
    low = (i * (n + 1) + j)[:-1, :-1].reshape(-1)
    a, b, c, d = low, low + n + 1, low + n + 2, low + 1
    return flat.reshape(-1, 2) @ frame, torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])


@pytest.mark.parametrize("loss", [losses.normal_consistency, losses.laplacian_cotangent])
def test_surface_loss_of_an_irregular_plane_is_zero(loss):
    assert loss(*sheet()).item() == pytest.approx(0.0, abs=1e-12)


def test_uniform_laplacian_of_a_regular_plane_is_zero_and_of_an_irregular_one_is_not():
    vertices, faces = sheet()
    step = vertices[1] - vertices[0], vertices[7] - vertices[0]
    regular = torch.stack([vertices[0] + i * step[1] + j * step[0] for i in range(7) for j in range(7)])
    assert losses.laplacian_uniform(regular, faces).item() == pytest.approx(0.0, abs=1e-12)
    assert losses.laplacian_uniform(vertices, faces) > 1e-4


@pytest.mark.parametrize("loss", SURFACE_LOSSES)
def test_surface_loss_does_not_depend_on_size_or_place(loss):
    vertices, faces = icosphere(subdivisions=1)
    vertices = vertices + 0.05 * torch.randn_like(vertices)
    torch.testing.assert_close(loss(0.01 * vertices + 3.0, faces), loss(vertices, faces))


@pytest.mark.parametrize("loss", SURFACE_LOSSES)
def test_surface_loss_ignores_vertices_that_no_triangle_uses(loss):
    vertices, faces = icosphere(subdivisions=1)
    vertices = vertices + 0.05 * torch.randn_like(vertices)
    more = torch.cat([torch.full((1, 3), 7.0, dtype=vertices.dtype), vertices])
    torch.testing.assert_close(loss(more, faces + 1), loss(vertices, faces))


@pytest.mark.parametrize("loss", SURFACE_LOSSES)
def test_surface_loss_is_the_same_whichever_corner_comes_first(loss):
    vertices, faces = icosphere(subdivisions=1)
    vertices = vertices + 0.05 * torch.randn_like(vertices)
    turned = torch.cat([faces[::2].roll(1, 1), faces[1::2]])
    torch.testing.assert_close(loss(vertices, turned), loss(vertices, faces))


@pytest.mark.parametrize("loss", SURFACE_LOSSES)
def test_surface_loss_falls_when_a_rough_sphere_becomes_smooth(loss):
    vertices, faces = icosphere()
    rough = vertices + 0.03 * torch.randn_like(vertices)
    assert loss(vertices, faces) < 0.7 * loss(rough, faces)


@pytest.mark.parametrize("loss", SURFACE_LOSSES)
def test_step_against_the_gradient_of_a_surface_loss_smooths(loss):
    vertices, faces = icosphere()
    rough = (vertices + 0.03 * torch.randn_like(vertices)).requires_grad_()
    loss(rough, faces).backward()
    step = 1e-3 * rough.grad / rough.grad.norm(dim=1).max()
    assert loss(rough - step, faces) < loss(rough, faces)


@pytest.mark.parametrize("loss", SURFACE_LOSSES)
@pytest.mark.parametrize("count", [0, 5])
def test_surface_loss_of_an_empty_mesh_is_zero_and_can_be_differentiated(loss, count):
    vertices = torch.rand(count, 3, requires_grad=True)
    value = loss(vertices, EMPTY_FACES)
    value.backward()
    assert value == 0 and torch.equal(vertices.grad, torch.zeros(count, 3))


@pytest.mark.parametrize("loss", SURFACE_LOSSES)
def test_surface_loss_of_one_open_triangle_is_zero_and_can_be_differentiated(loss):
    vertices = torch.eye(3, requires_grad=True)
    value = loss(vertices, torch.tensor([[0, 1, 2]]))
    value.backward()
    assert value == 0 and torch.equal(vertices.grad, torch.zeros(3, 3))


@pytest.mark.parametrize("loss", SURFACE_LOSSES)
def test_surface_loss_with_triangles_without_area_has_finite_gradients(loss):
    vertices, faces = icosphere(subdivisions=1)
    vertices[faces[0, 1]] = vertices[faces[0, 0]]
    vertices = (100 * vertices.float()).requires_grad_()
    loss(vertices, faces).backward()
    assert torch.isfinite(vertices.grad).all() and vertices.grad.abs().max() < 0.1


def test_gradient_of_normal_consistency_is_right():
    vertices, faces = icosphere(subdivisions=0)
    assert torch.autograd.gradcheck(lambda v: losses.normal_consistency(v, faces), vertices.requires_grad_())


def test_gradient_of_uniform_laplacian_is_right_at_a_fixed_edge_length():
    vertices, faces = icosphere(subdivisions=0)
    vertices = (vertices + 0.1 * torch.randn_like(vertices)).requires_grad_()
    edges = torch.cat([faces[:, :2], faces[:, 1:], faces[:, ::2]])
    length = (vertices[edges[:, 0]] - vertices[edges[:, 1]]).square().sum(-1).mean().detach()
    neighbours = [edges[(edges == i).any(dim=1)].unique() for i in range(12)]
    umbrella = torch.stack([vertices[n[n != i]].mean(0) - vertices[i] for i, n in enumerate(neighbours)])
    expected = umbrella.square().sum(-1).mean() / length
    value = losses.laplacian_uniform(vertices, faces)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, vertices)[0] for x in (value, expected)))


def test_normal_consistency_of_two_triangles_is_one_minus_the_cosine_between_them():
    angle = 0.7
    apex = [-torch.cos(torch.tensor(angle)).item(), torch.sin(torch.tensor(angle)).item(), 0.0]
    vertices = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], apex])
    faces = torch.tensor([[0, 1, 2], [1, 0, 3]])
    expected = 1 - torch.cos(torch.tensor(angle))
    torch.testing.assert_close(losses.normal_consistency(vertices, faces), expected)


def test_normal_consistency_does_not_count_edges_of_three_triangles():
    vertices = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 1, 0]])
    fan = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])
    assert losses.normal_consistency(vertices, fan) == 0


@pytest.mark.parametrize("radius", [0.1, 1.0, 30.0])
def test_cotangent_laplacian_of_any_sphere_is_one(radius):
    assert losses.laplacian_cotangent(*icosphere(radius, 3)).item() == pytest.approx(1.0, abs=0.02)


def test_cotangent_laplacian_is_quadratic_in_the_vertices_because_its_weights_are_detached():
    vertices, faces = icosphere(subdivisions=1)
    vertices = (vertices + 0.05 * torch.randn_like(vertices)).requires_grad_()
    value = losses.laplacian_cotangent(vertices, faces)
    value.backward()
    torch.testing.assert_close((vertices.grad * vertices).sum(), 2 * value)  # Euler, on homogeneous functions


def test_sign_entropy_of_distances_near_zero_is_two_bits_in_nats():
    value = losses.sdf_sign_entropy(torch.tensor([-1e-9, 1e-9]), torch.tensor([[0, 1]]))
    assert value.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item())


def test_sign_entropy_counts_edges_that_change_sign_only():
    sdf = torch.tensor([-1.0, 2.0, 3.0, -4.0])
    changing = torch.tensor([[0, 1], [2, 3]])
    every = torch.cat([changing, torch.tensor([[1, 2], [0, 3]])])
    torch.testing.assert_close(losses.sdf_sign_entropy(sdf, every), losses.sdf_sign_entropy(sdf, changing))
    by_hand = torch.nn.functional.softplus(torch.tensor([1.0, 2.0, 3.0, 4.0])).sum() / 2
    torch.testing.assert_close(losses.sdf_sign_entropy(sdf, changing), by_hand)


def test_sign_entropy_pushes_both_ends_towards_the_other_sign():
    sdf = torch.tensor([-0.5, 0.7], requires_grad=True)
    losses.sdf_sign_entropy(sdf, torch.tensor([[0, 1]])).backward()
    assert sdf.grad[0] < 0 < sdf.grad[1]


def test_gradient_of_sign_entropy_is_right():
    sdf = torch.randn(8, dtype=torch.float64, requires_grad=True)
    edges = torch.combinations(torch.arange(8))
    assert torch.autograd.gradcheck(lambda s: losses.sdf_sign_entropy(s, edges), sdf)


def test_sign_entropy_without_edges_is_zero_and_can_be_differentiated():
    sdf = torch.rand(4, requires_grad=True)
    value = losses.sdf_sign_entropy(sdf, torch.zeros(0, 2, dtype=torch.int64))
    value.backward()
    assert value == 0 and torch.equal(sdf.grad, torch.zeros(4))


@pytest.mark.parametrize("resolution", [32, 64])
def test_cotangent_laplacian_is_not_misled_by_the_slivers_of_marching_tetrahedra(resolution):
    grid = tet_grid(resolution)
    surface = marching_tetrahedra(grid.vertices, grid.vertices.norm(dim=1) - 0.6, grid)
    vertices = surface.vertices.requires_grad_()
    value = losses.laplacian_cotangent(vertices, surface.faces)
    value.backward()
    gradient = vertices.grad.norm(dim=1)
    assert 0.9 < value < 1.4  # 1 for the sphere itself
    assert gradient.max() < 30 * gradient.median()
