"""What the render paths share: records of tensors, masked gradients, lights and colours of samples."""

import pytest
import torch

from nerf.core.errors import UserError
from nerf.core.structs import FieldOutput, RenderSettings, Samples, Trace, join_records, tensors_of
from nerf.render.base import lights, mask_gradients, sample_colours, sample_values, split_values
from tests.nerf.analytic import image_rays


def output(m, **arrays):
    return FieldOutput(**({"density": torch.rand(m), "albedo": torch.rand(m, 3)} | arrays))


def trace(m):
    index = torch.zeros(m, dtype=torch.int64)
    samples = Samples(torch.rand(m, 3), torch.rand(m), torch.rand(m), index, index[:1], index[:1] + m)
    weights = torch.rand(m, requires_grad=True)
    return Trace(samples=samples, weights=weights, field=output(m, extras={"x": torch.rand(m, 1, requires_grad=True)}))


def test_records_are_joined_with_their_nested_records_and_dictionaries():
    one, other = trace(2), trace(3)
    joined = join_records([one, other], torch.cat)
    assert len(joined.samples) == 5 and torch.equal(joined.weights, torch.cat([one.weights, other.weights]))
    assert torch.equal(joined.field.extras["x"][2:], other.field.extras["x"]) and joined.field.rgb is None


def test_an_array_that_one_record_lacks_is_missing_in_the_joined_one():
    assert join_records([output(2, rgb=torch.rand(2, 3)), output(2)], torch.cat).rgb is None


@pytest.mark.parametrize("keep", [True, False])
def test_masked_records_have_the_same_values_and_their_gradients_only_if_kept(keep):
    made = trace(4)
    masked = mask_gradients(made, torch.tensor(keep))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(made), tensors_of(masked), strict=True))
    (masked.weights.sum() + masked.field.extras["x"].square().sum()).backward()
    for leaf in (made.weights, made.field.extras["x"]):
        assert (leaf.grad != 0).all() if keep else (leaf.grad == 0).all()


def test_a_masked_gradient_is_zero_even_where_it_is_nan():
    made = trace(3)
    (mask_gradients(made, torch.tensor(False)).weights * torch.nan).sum().backward()
    assert (made.weights.grad == 0).all()


@pytest.mark.parametrize("normals", [True, False])
def test_composited_values_are_taken_apart_as_they_were_put_together(normals):
    rays, settings = image_rays(2, 2), RenderSettings()
    extras = {"a": torch.rand(4, 2), "b": torch.rand(4, 1)}
    made = output(4, normal=torch.rand(4, 3) if normals else None, extras=extras)
    color, normal, found = split_values(sample_values(made, rays, settings, torch.arange(4)), made)
    assert torch.equal(color, made.albedo) and list(found) == ["a", "b"]
    assert all(torch.equal(found[name], extras[name]) for name in extras)
    assert torch.equal(normal, made.normal) if normals else normal is None


def test_lambertian_colours_need_normals():
    with pytest.raises(ValueError, match="normals"):
        sample_colours(output(4), image_rays(2, 2), RenderSettings(shading="lambertian"), torch.arange(4))


def test_view_dependent_colours_need_the_field_s_rgb_and_plain_albedo_shading():
    rays, index = image_rays(2, 2), torch.arange(4)
    with pytest.raises(ValueError, match="rgb"):
        sample_colours(output(4), rays, RenderSettings(view_dependent=True, training=False), index)
    with pytest.raises(UserError, match="albedo"):
        sample_colours(output(4), rays, RenderSettings(view_dependent=True, shading="normal"), index)


def test_fewer_lights_than_views_are_refused():
    rays, light = image_rays(2, 2, views=3), torch.eye(3)[:2]
    with pytest.raises(ValueError, match="light for each of 3 views, got 2"):
        lights(rays, RenderSettings(light=light))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_rays_that_show_their_diffuse_colour_is_that_of_the_settings(share):
    rays = image_rays(50, 50)
    settings = RenderSettings(view_dependent=True, diffuse_share=share)
    albedo, rgb = torch.zeros(len(rays), 3), torch.ones(len(rays), 3)
    colours = sample_colours(output(len(rays), albedo=albedo, rgb=rgb), rays, settings, torch.arange(len(rays)))
    assert abs(float((colours == 0).float().mean()) - share) < 0.03
