"""The pieces of the plain path: weights, strata and importance samples."""

import torch

from nerf.core.structs import FieldOutput
from nerf.render.plain import bin_edges, merged, sample_pdf, stratified, weights_from_alpha

SPAN = torch.tensor([[1.0, 3.0], [0.5, 0.7]])


def test_stratified_samples_ascend_with_one_in_each_part():
    t = stratified(SPAN, 8, torch.rand(2, 8))
    stratum = ((t - SPAN[:, :1]) / (SPAN[:, 1:] - SPAN[:, :1]) * 8).floor()
    assert torch.equal(stratum, torch.arange(8.0).expand(2, 8))


def test_steps_fill_the_span_and_contain_their_samples():
    t = stratified(SPAN, 8, torch.rand(2, 8))
    edges = bin_edges(t, SPAN)
    torch.testing.assert_close(edges.diff(dim=-1).sum(-1), SPAN[:, 1] - SPAN[:, 0])
    assert (edges[:, :-1] <= t).all() and (t <= edges[:, 1:]).all()


def test_weights_and_final_transmittance_sum_to_one():
    alpha = torch.rand(4, 9, dtype=torch.float64)
    weights, opacity = weights_from_alpha(alpha)
    torch.testing.assert_close(opacity + (1 - alpha).prod(-1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(-1), opacity)


def test_weights_have_the_right_gradient():
    alpha = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: weights_from_alpha(a)[0], (alpha,))


def test_an_opaque_step_gets_a_finite_gradient():
    alpha = torch.tensor([[0.5, 1.0, 0.5, 1.0]], requires_grad=True)
    (weights_from_alpha(alpha)[0] * torch.arange(4.0)).sum().backward()
    assert torch.isfinite(alpha.grad).all()


def test_importance_samples_follow_the_weights():
    edges = torch.linspace(0, 4, 5)[None]
    drawn = sample_pdf(edges, torch.tensor([[0.0, 3.0, 0.0, 1.0]]), torch.rand(1, 4000))
    assert (drawn.diff(dim=-1) >= 0).all()
    share = torch.histc(drawn, bins=4, min=0, max=4) / 4000
    torch.testing.assert_close(share, torch.tensor([0.0, 0.75, 0.0, 0.25]), atol=2e-3, rtol=0)


def test_importance_samples_of_an_empty_ray_are_even_and_within_the_span():
    drawn = sample_pdf(torch.linspace(1, 2, 6)[None], torch.zeros(1, 5), torch.full((1, 10), 0.5))
    torch.testing.assert_close(drawn, torch.linspace(1.05, 1.95, 10)[None])


def test_merging_orders_every_tensor_of_the_field_alike():
    coarse_t, fine_t = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]])
    order = torch.cat([coarse_t, fine_t], -1).sort(-1)[1]

    def output(t):
        column = t[0, :, None]
        return FieldOutput(sdf=t[0], gradient=column.expand(-1, 3), extras={"uncertainty": column})

    both, sorted_t = merged(output(coarse_t), output(fine_t), order), [1, 2, 3, 4]
    assert both.sdf.tolist() == sorted_t and both.gradient[:, 2].tolist() == sorted_t and both.rgb is None
    assert both.extras["uncertainty"][:, 0].tolist() == sorted_t
