"""The multi-view prior as guidance, and what the embedded prior is told of a view, on a tiny random model."""

import pytest
import torch

from guidance.base import Conditions
from guidance.perpneg_utils import PerpNeg
from guidance.prior import multiview_model
from guidance.prior.guidance import EmbeddedPrior, Options
from guidance.prior.multiview_guidance import EmbeddedMultiview
from nerf.config.config import parse
from nerf.core.errors import UserError
from nerf.core.structs import Control
from tests.guidance.models import PROMPT, gradient, image_of, views_at
from tests.helpers.parts import part_of

LINKED = (10, 100, 190, 280)


@pytest.fixture
def make(prior_folder, multiview_changes):
    """kind, what it is told -> a prepared model with the tiny weights."""

    def make(kind=EmbeddedPrior, told="camera", **options):
        further = {"changes": multiview_changes} if kind is EmbeddedMultiview else {}
        model = kind(prior_folder, options=Options(7.5, **options), told=told, **further)
        model.prepare(Conditions(PROMPT, ""))
        return model

    return make


# ---- what is told of a view ----


def given(model, monkeypatch, *azimuth, names=("unconditional", "text"), **changes):
    """Cameras [K, B, D] that the network is given under some conditions."""
    seen = []
    monkeypatch.setattr(model, "_unet", lambda noisy, t, text, rays, vector, refine: seen.append((rays, vector)) or noisy)
    count = len(azimuth)
    denoise = model.conditioned(views_at(*azimuth), count, Options(7.5, **changes)).denoiser(names)
    denoise(torch.zeros(count, *model.codec.shape), torch.zeros(count, dtype=torch.long))
    ((rays, vector),) = seen
    assert ((rays != 0).flatten(1).any(1) == (vector != 0).any(1)).all()
    return vector.unflatten(0, (len(names), count))


def test_without_being_told_no_condition_knows_the_camera(make, monkeypatch):
    model = make(told="none")
    assert not given(model, monkeypatch, 0, 90).any() and not model.told_camera
    known = given(make(told="camera"), monkeypatch, 0, 90)
    assert known.any(-1).all() and torch.equal(known[0], known[1])


def test_words_tell_a_camera_that_they_describe_and_are_dropped_with_the_prompt(make, monkeypatch):
    model = make(told="words")
    unconditional, text = given(model, monkeypatch, *[0] * 40, *[180] * 40)
    assert not unconditional.any() and text.any(-1).all()
    assert (text[:40, 1] > -1e-3).all() and (text[40:, 1] < 1e-3).all()  # twice the cosine of the azimuth
    assert text[:40, 1].std() > 0.1
    front = given(model, monkeypatch, *[180] * 40, names=("front",))[0]
    assert (front[:, 1] > -1e-3).all()
    torch.testing.assert_close(front[:, 5:], text[:40, 5:])  # polar angle and size are those of the view


def test_the_azimuths_of_words_are_those_of_the_step(make):
    model, image, views = make(told="words"), image_of(2), views_at(20, 100)
    one, same, other = (gradient(model, image, views, part_of("guided", seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_perp_neg_adds_the_negative_words_and_changes_the_gradient(make):
    model, image, views = make(told="words"), image_of(2), views_at(180, 30)
    assert model.conditioned(views, 2, Options(7.5, perpneg=PerpNeg(-2.0))).words == ("front", "side")
    plain, pushed, without = (
        gradient(model, image, views, part_of("guided", seed=3), options=Options(7.5, perpneg=perpneg))
        for perpneg in (None, PerpNeg(-2.0), PerpNeg(0.0))
    )
    assert (pushed - plain).abs().max() > 1e-3
    torch.testing.assert_close(without, plain)


def test_perp_neg_and_the_angles_of_the_words_are_those_of_the_stage(make, monkeypatch):
    flags = ["--text", PROMPT, "--perpneg", "--negative_w", "-1", "--angle_front", "60"]
    stage = make(told="words").stage_options(parse(flags).guidance.of("SD"))
    assert stage.perpneg.negative_w == -1 and stage.angles.front == 60
    model = make(told="words")
    gradient(model, image_of(1), views_at(0), options=stage)
    assert model.words.angles == stage.angles


@pytest.mark.parametrize(
    ("told", "flags", "words"),
    [("none", ["--perpneg"], "--perpneg needs view words, .* give --prior_views words"),
     ("camera", ["--perpneg"], "--perpneg needs view words, .* give --prior_views words"),
     ("words", ["--debias_prompt", "FOLDER"], "--debias_prompt needs view words")],
)  # fmt: skip
def test_what_needs_words_is_refused_without_them(make, told, flags, words):
    with pytest.raises(UserError, match=words):
        make(told=told).stage_options(parse(["--text", PROMPT, *flags]).guidance.of("SD"))


# ---- four views together ----


def test_a_view_depends_on_the_others_of_its_group_alone(make):
    joined, alone = make(EmbeddedMultiview), make()
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
    model = make(EmbeddedMultiview)
    noisy = torch.randn(8, *model.codec.shape, generator=torch.Generator().manual_seed(0))
    t, views = torch.tensor([300] * 4 + [800] * 4), views_at(*LINKED, *LINKED)
    with torch.no_grad():
        both = model.denoiser(views, 8)(noisy, t)
        second = model.denoiser(views[torch.arange(4, 8)], 4)(noisy[4:], t[4:])
    torch.testing.assert_close(both[:, 4:], second, rtol=1e-4, atol=1e-5)


def test_the_views_of_a_group_have_one_timestep(make, monkeypatch):
    model, given = make(EmbeddedMultiview), []
    unet = model._unet
    monkeypatch.setattr(model, "_unet", lambda noisy, t, *args: given.append(t) or unet(noisy, t, *args))
    gradient(model, image_of(8), views_at(*LINKED, *LINKED))
    times = given[0].view(-1, 4)
    assert (times == times[:, :1]).all() and len(times.unique()) == 2


def test_views_that_are_not_linked_are_refused(make):
    model = make(EmbeddedMultiview)
    assert model.requirements().linked_views == 4 and make().requirements().linked_views == 1
    for azimuth in ((0, 90, 180), (0, 90, 180, 260)):
        with pytest.raises(UserError, match="multiple of 4|needs linked views"):
            gradient(model, image_of(len(azimuth)), views_at(*azimuth))
    with pytest.raises(UserError, match="needs linked views"):
        model.sample(views_at(0, 1, 2, 3), 4, torch.Generator(), 1, 3.0)


def test_it_draws_four_views_together(make):
    model = make(EmbeddedMultiview)
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


def test_the_schedule_of_a_step_is_obeyed(make):
    model = make(EmbeddedMultiview)
    out = model.loss(image_of(4), views_at(*LINKED), part_of("guided"), Control(t_range=(0.5, 0.5)))
    assert float(out.stats["t"]) == pytest.approx(0.5, abs=1e-3)


def test_untrained_attention_on_single_views_is_that_of_the_text_conditioned_prior(prior_folder, make, tmp_path):
    multiview_model.save(multiview_model.build(prior_folder), tmp_path)
    base, model = make(), EmbeddedMultiview(prior_folder, changes=tmp_path)
    model.prepare(Conditions(PROMPT, ""))
    multiview_model.join(model.unet, False)
    noisy, t, views = torch.randn(2, *base.codec.shape), torch.tensor([100, 800]), views_at(0, 100)
    with torch.no_grad():
        pair = [prior.denoiser(views, 2)(noisy, t) for prior in (base, model)]
    torch.testing.assert_close(*pair, rtol=1e-2, atol=2e-3)  # the attention blocks were rounded to half precision


def test_linked_views_may_be_told_by_words_or_not_at_all(make):
    image, views = image_of(4), views_at(*LINKED)
    grads = [gradient(make(EmbeddedMultiview, told), image, views) for told in ("camera", "words", "none")]
    assert all(torch.isfinite(grad).all() for grad in grads) and make(EmbeddedMultiview, "none").told_camera
    assert all((grads[i] - grads[i - 1]).abs().max() > 1e-3 for i in range(3))
