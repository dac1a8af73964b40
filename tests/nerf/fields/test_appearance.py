"""Appearance of photographs: encoded or learned, heard by colours and never by geometry, and the one that is shown."""

from dataclasses import replace

import pytest
import torch

from nerf.core.errors import UserError
from nerf.core.streams import Random
from nerf.core.structs import AppearanceCodes, RenderSettings
from nerf.fields.appearance import LEAST_SIDE, PictureEncoder, Tint, shown_index
from tests.nerf import wild

KINDS = [(field, kind) for field in ("grid", "vanilla", "sdf") for kind in ("encoder", "embedding")]
SHOWING = RenderSettings(training=False, view_dependent=True)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("background", ["constant", "network", "contracted"])
@pytest.mark.parametrize(("field", "kind"), KINDS)
def test_colours_depend_on_the_appearance_and_geometry_does_not(field, kind, background, scope):
    model = wild.model(field, kind, background, appearance_scope=scope)[0]
    if background != "constant":  # a fog, so that what is behind is seen
        model.field.bound = 1.0
    rays = wild.rays()
    one, other = (model.render(rays, replace(SHOWING, appearance=v)) for v in (torch.zeros(6), torch.ones(6)))
    for name in ("opacity", "depth", "behind_opacity", "behind_depth"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None and b is None) or torch.equal(a, b), name
    seen = one.opacity > 1e-3
    assert seen.any() and (one.image - other.image).abs().max() > 1e-4


@pytest.mark.parametrize("background", ["constant", "contracted"])
@pytest.mark.parametrize("field", ["grid", "sdf"])
def test_no_gradient_goes_from_opacity_to_the_appearance_nor_from_the_appearance_losses_to_geometry(field, background):
    model = wild.model(field, "embedding", background)[0]
    settings = RenderSettings(view_dependent=True, random=Random(3))
    rays = wild.rays()
    out = model.render(rays, settings)
    weight = model.appearance.embedding.weight
    (gradient,) = torch.autograd.grad(out.whole[1].sum() + out.whole[0].sum(), weight, allow_unused=True, retain_graph=True)
    assert gradient is None or not gradient.any()
    codes = AppearanceCodes(torch.ones(1, 6).requires_grad_(True))
    colors = model.recolored(replace(rays, appearance=codes), out, settings)
    colors.square().sum().backward()
    assert codes.vectors.grad.abs().max() > 0
    heads = ("tint", "view_colour", "colour", "heard", "head", "hidden", "out")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            assert any(head in name for head in heads) and "encoder" not in name and "layers" not in name, name
            assert not name.endswith("head.weight") or not parameter.grad[0].any()  # the row of the density


@pytest.mark.parametrize("background", ["constant", "network", "contracted"])
@pytest.mark.parametrize("field", ["grid", "sdf"])
def test_recoloured_rays_are_those_that_are_rendered_in_that_appearance(field, background):
    model = wild.model(field, "embedding", background)[0]
    settings = RenderSettings(view_dependent=True, random=Random(3))
    rays, vector = wild.rays(), torch.linspace(-1, 1, 6)
    out = model.render(rays, settings)
    direct = model.render(rays, replace(settings, appearance=vector)).image
    recoloured = model.recolored(replace(rays, appearance=AppearanceCodes(vector[None])), out, settings)
    torch.testing.assert_close(recoloured, direct, atol=2e-6, rtol=1e-5)
    assert (out.image - direct).abs().max() > 1e-4


def test_training_rays_have_the_appearance_of_their_photographs_and_others_the_shown_one():
    model = wild.model(appearance="embedding", shown_light="2")[0]
    rays = wild.rays()
    codes = model.render(rays, RenderSettings(view_dependent=True, random=Random(3))).appearance
    assert torch.equal(codes.rows(codes.vectors, len(rays)), model.appearance.embedding.weight[rays.image_index])
    shown = model.render(rays, SHOWING).image
    assert torch.equal(shown, model.render(rays, replace(SHOWING, appearance=model.appearance.embedding.weight[2])).image)
    assert not torch.equal(shown, model.render(rays, replace(SHOWING, appearance=model.appearance.embedding.weight[0])).image)


def test_the_shown_light_follows_the_weights():
    model = wild.model()[0]
    before = model.appearance.shown().clone()
    assert torch.equal(before, model.appearance.shown())
    with torch.no_grad():
        model.appearance.encoder.out.bias += 1.0
    torch.testing.assert_close(model.appearance.shown(), before + 1.0)


def test_textures_have_the_shown_light():
    for field in ("grid", "sdf"):
        one, other = (wild.model(field, "embedding", shown_light=name)[0] for name in ("0", "1.png"))
        at = torch.rand(5, 3) - 0.5
        assert not torch.equal(one.albedo(at), other.albedo(at))


def test_pictures_of_all_sizes_are_encoded_and_small_ones_are_padded_by_their_borders():
    encoder = PictureEncoder(5)
    for size in ((1, 1), (1, 40), (7, 3), (LEAST_SIDE, LEAST_SIDE), (33, 21)):
        assert encoder(torch.rand(2, 3, *size)).shape == (2, 5)
    one = torch.full((1, 3, 1, 1), 0.3)
    torch.testing.assert_close(encoder(one), encoder(one.expand(1, 3, LEAST_SIDE, LEAST_SIDE)))


def test_pictures_of_several_sizes_come_back_in_their_order():
    appearance = wild.model(count=5)[0].appearance
    vectors = appearance.of_photographs(torch.tensor([3, 1, 0, 1]))
    each = torch.cat([appearance.encode(appearance.pictures[i][None]) for i in (3, 1, 0, 1)])
    torch.testing.assert_close(vectors, each)
    assert torch.equal(vectors[1], vectors[3]) and not torch.equal(vectors[0], vectors[1])


def test_the_encoder_is_differentiable_in_the_picture():
    encoder, picture = PictureEncoder(3), torch.rand(1, 3, 20, 18, requires_grad=True)
    encoder(picture).sum().backward()
    assert picture.grad.abs().max() > 0 and all(p.grad.abs().max() > 0 for p in encoder.parameters())


def test_a_tint_changes_nothing_before_training_nor_without_an_appearance():
    tint, features, logits = Tint(7, 6, local=True), torch.rand(4, 7), torch.randn(4, 3)
    codes = AppearanceCodes(torch.randn(2, 6), torch.tensor([0, 1, 1, 0]))
    assert torch.equal(tint(features, logits, codes), logits) and tint(features, logits, None) is logits


def test_a_global_tint_is_a_map_of_colours_alone():
    tint, logits = Tint(7, 6), torch.randn(1, 3).expand(4, 3)
    torch.nn.init.normal_(tint.out.weight)
    tinted = tint(torch.rand(4, 7), logits, AppearanceCodes(torch.randn(1, 6)))
    assert torch.equal(tinted, tinted[:1].expand(4, 3)) and (tinted - logits).abs().max() > 0.01


@pytest.mark.parametrize("local", [False, True])
def test_a_tint_gradcheck(local):
    tint = Tint(3, 2, local).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tint.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = [torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (4, 3), (2, 2))]
    index = torch.tensor([0, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda f, x, v: tint(f, x, AppearanceCodes(v, index)), inputs)


def test_indices_that_are_no_training_photographs_are_refused():
    appearance = wild.model(appearance="embedding")[0].appearance
    with pytest.raises(ValueError, match="3 training photographs"):
        appearance.of_photographs(torch.tensor([3]))
    with pytest.raises(ValueError, match="learned"):
        appearance.encode(torch.rand(1, 3, 20, 20))


@pytest.mark.parametrize(("asked", "index"), [("0", 0), ("2", 2), ("b.jpg", 1), ("7", 2)])
def test_the_shown_light_is_an_index_or_a_name(asked, index):
    assert shown_index(asked, ("a.jpg", "b.jpg", "7")) == index


@pytest.mark.parametrize(("asked", "said"), [("3", "there are 3"), ("c.jpg", "no training photograph"), ("-1", "index from 0")])
def test_a_light_that_is_not_there_is_refused(asked, said):
    with pytest.raises(UserError, match=said):
        shown_index(asked, ("a.jpg", "b.jpg", "d"))
