"""The embedded prior as a judge: it tells true shapes apart by their captions, and a car with two fronts from a true car."""

import pytest
import torch

from guidance.prior.captions import BENCHMARK_PROMPTS
from guidance.prior.shapes import canonical
from nerf.core.errors import UserError
from nerf.evaluation import pictures
from nerf.evaluation.alignment import chosen, r_precision
from nerf.evaluation.cameras import circle, icosphere, icosphere_views
from nerf.evaluation.janus import side_mean
from nerf.evaluation.pictures import Look
from nerf.evaluation.prior_scorer import PriorScorer, cameras_of
from tests.nerf.evaluation.meshes import mesh_of

CAPTIONS = [prompt for prompt, _ in BENCHMARK_PROMPTS]


@pytest.fixture(scope="module")
def scorer():
    return PriorScorer(CAPTIONS)


@pytest.mark.parametrize("prompt", ["a hamburger", "a pink car", "a red ball on a blue cylinder"])
def test_a_true_shape_is_found_among_sixteen_captions(scorer, prompt):
    views = circle(2, scorer.size)
    logits = scorer.logits(pictures.of_shape(canonical(prompt), views, Look(scorer.size)), CAPTIONS, views)
    assert [CAPTIONS[i] for i in chosen(logits)] == [prompt] * 2
    assert r_precision(logits, CAPTIONS.index(prompt)).mean() == 1


def test_a_car_glued_to_its_mirror_image_is_told_from_a_true_one(scorer):
    car, views = canonical("a pink car"), circle(6, scorer.size)

    def janus(two_fronts):
        seen = pictures.of_mesh(mesh_of(car, two_fronts), views, Look(scorer.size))
        likeness = scorer.frontness(seen, "a pink car", views)
        return side_mean(likeness, views.azimuth, 180.0), side_mean(likeness, views.azimuth, 0.0)

    back, front = janus(two_fronts=False)
    assert back < 0.1 and front < 0.1
    back, front = janus(two_fronts=True)
    assert back > 0.8 and front < 0.3


def test_a_shape_that_is_the_same_from_every_side_scores_about_a_half(scorer):
    views = circle(4, scorer.size)
    seen = pictures.of_shape(canonical("a purple table"), views, Look(scorer.size))
    assert scorer.frontness(seen, "a purple table", views).mean() == pytest.approx(0.5, abs=0.2)


def test_the_same_seed_gives_the_same_figures_and_another_one_others(scorer):
    views = circle(2, scorer.size)
    seen = pictures.of_shape(canonical("a blue dog"), views, Look(scorer.size))
    first, again, other = (one.logits(seen, CAPTIONS[:3], views) for one in (scorer, scorer, PriorScorer(CAPTIONS, seed=1)))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_cameras_beyond_the_training_are_unknown_to_it(scorer):
    assert cameras_of(circle(4, 64)) is not None and cameras_of(circle(4, 64, polar=10.0)) is None
    directions, _ = icosphere(0)
    views = icosphere_views(directions[:2], 45.0, 64)
    assert cameras_of(views) is None
    agreement = scorer.agreement(torch.rand(2, 3, 64, 64), CAPTIONS[:2], 0, views)
    assert agreement.shape == (2,) and ((agreement >= 0) & (agreement <= 1)).all()


def test_a_caption_that_it_does_not_know_is_refused():
    with pytest.raises(UserError, match="--clip"):
        PriorScorer(["a lion that reads"])
