"""The embedded prior as a classifier: true shapes are recognised, and all captions are judged alike."""

import pytest
import torch

from guidance.prior import classifier
from guidance.prior.benchmark import PROMPTS, alike
from guidance.prior.dataset import over
from guidance.prior.references import true_layers
from guidance.prior.shapes import canonical, caption_of
from guidance.prior.vocabulary import KIND_NAMES

PICKED = (1, 8, 13, 17, 24, 28)  # a tree, a chair, a boat, a stack, a bottle, a duck with an orange beak
KINDS = [caption_of(PROMPTS[i]).kind for i in PICKED]


@pytest.fixture(scope="module")
def prior():
    return classifier.load_classifier()


@pytest.fixture(scope="module")
def cameras():
    return {name: value[:2] for name, value in classifier.views().items()}


def pictures(prompt, cameras, size=64):
    """Pictures [B, 3, size, size] of the true shape over white, in soft light."""
    return torch.nn.functional.interpolate(over(true_layers(canonical(prompt), cameras, 128, 0.5), torch.ones(2, 3)), size)


def test_true_shapes_are_recognised_among_others_in_their_colours(prior, cameras):
    for i in PICKED:
        caption = caption_of(PROMPTS[i])
        named = [one.text for one in alike(caption) if one.kind in KINDS]
        found = classifier.scores(prior, pictures(PROMPTS[i], cameras), cameras, named).mean(0)
        assert named[int(found.argmax())] == caption.text


def test_an_object_is_recognised_among_all_kinds_and_not_as_what_it_is_not(prior, cameras):
    dog, images = caption_of("a blue dog"), pictures("a blue dog", cameras)
    kind, lead = classifier.recognise(prior, images, cameras, dog)
    assert kind == "dog" and lead > 0
    kind, lead = classifier.recognise(prior, images, cameras, caption_of("a blue chair"))
    assert kind == "dog" and lead < 0


def test_scores_depend_on_the_caption_alone_and_not_on_its_place(prior, cameras):
    images, named = pictures("a pink car", cameras), ["a pink car", "a pink boat", "a pink car, 4k"]
    found = classifier.scores(prior, images, cameras, named)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found[:, 0], found[:, 2])  # harmless words are not read
    torch.testing.assert_close(classifier.scores(prior, images, cameras, named[::-1]), found.flip(1))
    assert not torch.equal(classifier.scores(prior, images, None, named[:2]), found[:, :2])  # without cameras


def test_larger_pictures_are_reduced_to_the_size_of_the_prior(prior, cameras):
    named = ["a green donut", "a green ball"]
    small, large = (classifier.scores(prior, pictures("a green donut", cameras, size), cameras, named) for size in (64, 128))
    assert (small.argmax(1) == 0).all() and (large.argmax(1) == 0).all()


def test_captions_of_all_kinds_have_the_colours_of_one():
    plain, two = alike(caption_of("a green chair")), alike(caption_of("a blue house with a red roof"))
    assert [one.kind for one in plain] == [one.kind for one in two] == list(KIND_NAMES)
    assert {"a green cone on a green cylinder", "a green duck", "a hamburger"} <= {one.text for one in plain}
    assert {"a blue cone on a red cylinder", "a blue cone", "a blue duck with a red beak"} <= {one.text for one in two}


@pytest.mark.parametrize(
    ("images", "captions", "said"),
    [
        (torch.zeros(2, 3, 8, 9), ["a car"], r"images \[B, 3, H, H\]"),
        (torch.zeros(3, 3, 64, 64), ["a car"], r"polar \[3\]"),
        (torch.zeros(2, 3, 64, 64), [], "at least one caption"),
    ],
)
def test_wrong_shapes_are_refused(prior, cameras, images, captions, said):
    with pytest.raises(ValueError, match=said):
        classifier.scores(prior, images, cameras, captions)
