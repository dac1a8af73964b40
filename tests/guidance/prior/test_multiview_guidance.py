"""The multi-view prior and view words as guidance, on a tiny random model."""

import pytest
import torch

from guidance.base import Conditions
from guidance.perpneg_utils import PerpNeg
from guidance.prior import multiview_model
from guidance.prior.multiview_guidance import EmbeddedMultiview, WordedPrior, WordOptions
from guidance.prompts import VIEW_WORDS
from nerf.config.config import parse
from nerf.core.errors import UserError
from nerf.core.structs import Control
from tests.guidance.models import PROMPT, embedded_prior, gradient, image_of, views_at
from tests.helpers.parts import part_of

LINKED = (10, 100, 190, 280)


@pytest.fixture
def make(prior_folder, multiview_changes):
    """kind, what it is told -> a prepared model with the tiny weights."""

    def make(kind=WordedPrior, told="words", changes=multiview_changes, **options):
        model = kind(prior_folder, options=WordOptions(7.5, **options), changes=changes, told=told)
        model.prepare(Conditions(PROMPT, ""))
        return model

    return make


def predicted(model, *azimuth, seed=1):
    """Conditional predictions for views at these azimuths."""
    noisy = torch.randn(len(azimuth), *model.codec.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        denoise = model.conditioned(views_at(*azimuth), len(azimuth), model.options).denoiser(("text",))
        return denoise(noisy, torch.full((len(azimuth),), 800))[0]


def test_single_views_told_their_cameras_are_predicted_as_by_the_text_conditioned_prior(prior_folder, make, tmp_path):
    multiview_model.save(multiview_model.build(prior_folder), tmp_path)
    base, model = embedded_prior(prior_folder), make(told="camera", changes=tmp_path)
    noisy, t, views = torch.randn(2, *base.codec.shape), torch.tensor([100, 800]), views_at(0, 100)
    with torch.no_grad():
        pair = [prior.denoiser(views, 2)(noisy, t) for prior in (base, model)]
    torch.testing.assert_close(*pair, rtol=1e-2, atol=2e-3)  # the attention blocks were rounded to half precision


@pytest.mark.parametrize(("told", "left_right", "front_back"), [("words", 0, 1), ("none", 0, 0), ("camera", 1, 1)])
def test_a_view_is_told_by_its_word_its_camera_or_not_at_all(make, told, left_right, front_back):
    model = make(told=told)
    left, right, front, back = (predicted(model, azimuth) for azimuth in (90, -90, 0, 180))
    assert ((left - right).abs().max() > 1e-4) == left_right
    assert ((front - back).abs().max() > 1e-4) == front_back


def test_a_word_stands_between_words_where_the_view_does(make):
    model = make()
    middle = model.tokens("text", views_at(45), 1)
    both = [model.tokens(word, None, 1) for word in ("front", "side")]
    torch.testing.assert_close(middle, (both[0] + both[1]) / 2)
    assert torch.equal(both[0][:, :-1], model.text["text"][:, :-1]) and torch.equal(both[1][0, -1], model.words[1])
    assert torch.equal(model.tokens("unconditional", views_at(45), 1), model.text["unconditional"])


def test_perp_neg_adds_the_negative_words_and_changes_the_gradient(make):
    model, image, views = make(), image_of(2), views_at(180, 30)
    plain = gradient(model, image, views, part_of("guided", seed=3))
    options = WordOptions(7.5, perpneg=PerpNeg(-2.0))
    conditioned = model.conditioned(views, 2, options)
    assert conditioned.words == ("front", "side")
    pushed = gradient(model, image, views, part_of("guided", seed=3), options=options)
    assert (pushed - plain).abs().max() > 1e-3
    without = gradient(model, image, views, part_of("guided", seed=3), options=WordOptions(7.5, perpneg=PerpNeg(0.0)))
    torch.testing.assert_close(without, plain)


def test_angles_of_the_words_are_those_of_the_stage(make):
    model = make()
    options = parse(["--text", PROMPT, "--perpneg", "--negative_w", "-1", "--angle_front", "60"]).guidance.of("SD")
    stage = model.stage_options(options)
    assert stage.perpneg.negative_w == -1 and stage.angles.front == 60 and stage.detail == options.prior_detail
    wide, narrow = (gradient(model, image_of(1), views_at(40), options=o) for o in (WordOptions(7.5), stage))
    assert (wide - narrow).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("told", "flags", "words"),
    [("none", ["--perpneg"], "--perpneg needs view words; give --prior_views words"),
     ("camera", ["--perpneg"], "--perpneg needs view words; give --prior_views words"),
     ("words", ["--debias_prompt", "FOLDER"], "--debias_prompt reads the prompt")],
)  # fmt: skip
def test_what_needs_words_is_refused_without_them(make, told, flags, words):
    with pytest.raises(UserError, match=words):
        make(told=told).stage_options(parse(["--text", PROMPT, *flags]).guidance.of("SD"))


# ---- four views together ----


def test_a_view_depends_on_the_others_of_its_group_alone(make):
    joined, alone = make(EmbeddedMultiview, "camera"), make(told="camera")
    noisy = torch.randn(8, *joined.codec.shape, generator=torch.Generator().manual_seed(0))
    changed = noisy.clone()
    changed[1] += 1
    views, t = views_at(*LINKED, *LINKED), torch.full((8,), 800)
    with torch.no_grad():
        moved = [
            (model.denoiser(views, 8)(changed, t) - model.denoiser(views, 8)(noisy, t)).abs().flatten(2).amax((0, 2))
            for model in (joined, alone)
        ]
    assert (moved[0][:4] > 1e-5).all() and moved[0][4:].max() < 1e-5
    assert (moved[1] > 1e-5).tolist() == [False, True, *[False] * 6]


def test_both_conditions_of_several_groups_are_denoised_as_each_group_by_itself(make):
    model = make(EmbeddedMultiview, "camera")
    noisy = torch.randn(8, *model.codec.shape, generator=torch.Generator().manual_seed(0))
    t, views = torch.tensor([300] * 4 + [800] * 4), views_at(*LINKED, *LINKED)
    with torch.no_grad():
        both = model.denoiser(views, 8)(noisy, t)
        second = model.denoiser(views[torch.arange(4, 8)], 4)(noisy[4:], t[4:])
    torch.testing.assert_close(both[:, 4:], second, rtol=1e-4, atol=1e-5)


def test_the_views_of_a_group_have_one_timestep(make, monkeypatch):
    model, given = make(EmbeddedMultiview, "camera"), []
    unet = model._unet
    monkeypatch.setattr(model, "_unet", lambda noisy, t, *args: given.append(t) or unet(noisy, t, *args))
    gradient(model, image_of(8), views_at(*LINKED, *LINKED))
    times = given[0].view(-1, 4)
    assert (times == times[:, :1]).all() and len(times.unique()) == 2


def test_views_that_are_not_linked_are_refused(make):
    model = make(EmbeddedMultiview, "camera")
    assert model.requirements().linked_views == 4 and make().requirements().linked_views == 1
    for azimuth in ((0, 90, 180), (0, 90, 180, 260)):
        with pytest.raises(UserError, match="multiple of 4|needs linked views"):
            gradient(model, image_of(len(azimuth)), views_at(*azimuth))
    with pytest.raises(UserError, match="needs linked views"):
        model.sample(views_at(0, 1, 2, 3), 4, torch.Generator(), 1, 3.0)


def test_it_draws_four_views_together(make):
    model = make(EmbeddedMultiview, "camera")
    pictures = model.sample(views_at(*LINKED), 4, torch.Generator().manual_seed(0), 2, 3.0)
    assert pictures.shape == (4, 3, 64, 64) and torch.isfinite(pictures).all()


def test_variational_distillation_from_four_views_is_refused(make):
    options = parse(["--text", PROMPT, "--distillation", "vsd"]).guidance.of("MVDream")
    with pytest.raises(UserError, match="trains a LoRA"):
        make(EmbeddedMultiview).stage_options(options)
    assert make().stage_options(options).method == "vsd"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_a_gradient_near_that_of_float32(prior_folder, multiview_changes, dtype):
    grads = []
    for kind in (torch.float32, dtype):
        model = EmbeddedMultiview(prior_folder, dtype=kind, changes=multiview_changes)
        model.prepare(Conditions(PROMPT, ""))
        grads.append(gradient(model, image_of(4), views_at(*LINKED)).flatten())
    assert torch.cosine_similarity(*grads, dim=0) > 0.9


def test_every_word_is_known(make):
    model = make()
    assert all(model.tokens(word, None, 2).shape == (2, 16, 32) for word in VIEW_WORDS)
    with pytest.raises(KeyError):
        model.tokens("above", None, 2)


def test_the_schedule_of_a_step_is_obeyed(make):
    model = make(EmbeddedMultiview, "camera")
    out = model.loss(image_of(4), views_at(*LINKED), part_of("guided"), Control(t_range=(0.5, 0.5)))
    assert float(out.stats["t"]) == pytest.approx(0.5, abs=1e-3)
