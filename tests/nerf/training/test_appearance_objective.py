"""What the appearance of photographs has to be: which light a patch is looked at again in, what is remembered, what learns."""

import pytest
import torch

from nerf.core.streams import Random
from nerf.core.structs import Batch, Part, RenderSettings, StepPlan, ViewRequest
from nerf.training.appearance_objective import AppearanceLosses, other_photographs
from tests.nerf import wild

WEIGHTS = {"appearance_norm": 1.0, "appearance_match": 1.0, "mode_seeking": 1.0}


def evaluate(objective, model, images=(0, 1), seed=1, **weights):
    """The terms on patches of 6 x 6 rays, each of one photograph."""
    rays = wild.patches(images)
    random = Random(seed)
    settings = RenderSettings("photos", view_dependent=True, random=random)
    part = Part(ViewRequest("photos", random=random), settings, has_targets=True)
    out = model.render(rays, settings)
    return objective(out, Batch(rays, rgb=torch.zeros(len(rays), 3)), part, StepPlan(0, 1.0, (part,), WEIGHTS | weights)).terms


def test_the_first_step_has_no_other_light_and_later_ones_have_one():
    model = wild.model()[0]
    objective = AppearanceLosses(model.appearance, model.recolored)
    assert set(evaluate(objective, model)) == {"appearance_norm"}
    assert set(evaluate(objective, model)) == set(WEIGHTS)


def test_the_last_vectors_are_remembered_and_come_back():
    model = wild.model()[0]
    objective, again = (AppearanceLosses(model.appearance, model.recolored) for _ in range(2))
    evaluate(objective, model, images=(2, 0))
    assert objective.known.tolist() == [True, False, True]
    torch.testing.assert_close(objective.last[[0, 2]], model.appearance.of_photographs(torch.tensor([0, 2])))
    again.load_state_dict({name: value.clone() for name, value in objective.state_dict().items()})
    first, second = (evaluate(one, model) for one in (objective, again))
    assert set(first) == set(WEIGHTS) and all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_step_looks_at_the_same_light():
    model = wild.model(count=5)[0]
    values = []
    for seed in (1, 1, 2):
        objective = AppearanceLosses(model.appearance, model.recolored)
        for images in ((0, 1), (2, 3), (4, 0)):
            terms = evaluate(objective, model, images, seed)
        values.append(float(terms["mode_seeking"].detach()))
    assert values[0] == values[1] != values[2]


def test_another_photograph_than_ones_own_is_drawn_evenly():
    generator = torch.Generator().manual_seed(0)
    known = torch.tensor([True, True, False, True, True])
    drawn = other_photographs(known, torch.full((3000,), 1), generator)
    share = torch.bincount(drawn, minlength=5) / 3000
    torch.testing.assert_close(share, torch.tensor([1 / 3, 0, 0, 1 / 3, 1 / 3]), atol=0.04, rtol=0)
    alone = other_photographs(torch.tensor([False, True]), torch.tensor([1, 1]), generator)
    assert alone.tolist() == [1, 1]


def test_one_known_photograph_looked_at_in_its_own_light_is_finite():
    model = wild.model(count=1)[0]
    objective = AppearanceLosses(model.appearance, model.recolored)
    for _ in range(2):
        terms = evaluate(objective, model, images=(0, 0))
    assert all(value.isfinite() for value in terms.values()) and terms["mode_seeking"] == 0
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("field", ["grid", "sdf"])
def test_another_light_teaches_colour_heads_and_encoder_and_moves_no_geometry(field):
    model = wild.model(field)[0]
    objective = AppearanceLosses(model.appearance, model.recolored)
    evaluate(objective, model)
    terms = evaluate(objective, model, appearance_norm=0.0)
    sum(terms.values()).backward()
    assert model.appearance.encoder.out.weight.grad.any()
    assert (model.field.tint if field == "grid" else model.field.colour.tint).affine.weight.grad.any()
    geometry = [*model.field.encoder.parameters(), *model.field.layers.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in geometry)


def test_learned_vectors_are_not_encoded_again():
    model = wild.model(appearance="embedding")[0]
    objective = AppearanceLosses(model.appearance, model.recolored)
    evaluate(objective, model)
    assert set(evaluate(objective, model)) == {"appearance_norm", "mode_seeking"}


def test_terms_without_weight_are_not_computed():
    model = wild.model()[0]
    objective = AppearanceLosses(model.appearance, lambda *_: pytest.fail("nothing asks for another light"))
    for _ in range(2):
        assert set(evaluate(objective, model, appearance_match=0.0, mode_seeking=0.0)) == {"appearance_norm"}
