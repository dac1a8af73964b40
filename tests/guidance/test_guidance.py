"""The registry of families, and the guidance of a run with what each stage sets for it."""

import pytest
import torch

import guidance
from guidance import Family
from guidance.base import CameraRequirements, Guidance, GuidanceOutput
from guidance.perpneg_utils import PerpNeg
from guidance.prior.guidance import EmbeddedPrior
from guidance.prompts import ViewAngles
from guidance.sd_utils import StableDiffusion
from nerf.config.config import Config, parse, with_values
from nerf.config.groups import GuidanceConfig
from nerf.config.kept import StoredRun
from nerf.config.parser import iterate
from nerf.config.presets import PRESETS
from nerf.config.resolve import resolve
from nerf.core.errors import UserError
from nerf.core.structs import Control
from tests.guidance.models import gradient, image_of, views_at
from tests.helpers.parts import part_of


class Dummy(Guidance):
    """A family that wants one grey."""

    name = "clip"

    def prepare(self, conditions):
        """Keep the prompt."""
        self.prompt = conditions.text

    def stage_options(self, options):
        """The grey."""
        return options.lambda_guidance

    def loss(self, image, views, part, control, *, debug=False):
        """Mean squared distance to the grey."""
        return GuidanceOutput((image - control.options).square().mean())


class LinkedSquares(Dummy):
    """A family with requirements."""

    def requirements(self):
        """Square images."""
        return CameraRequirements(square=True)


def options(folder, *flags):
    return parse(["--text", "a red car", "--hf_key", str(folder), *flags])


def of_both_stages(folder):
    """The guidance group of the options as the NeRF stage and the mesh stage see it."""
    plan = resolve(options(folder, "--stages", "nerf,dmtet"), StoredRun())
    return [stage.config.guidance.of("SD") for stage in plan.stages]


def build(folder, *flags):
    (model,) = guidance.build(options(folder, *flags), "cpu")
    return model


def with_families(monkeypatch, config, *names, kind=Dummy):
    """The options with ``--guidance names``, of which "clip" is a dummy family."""
    monkeypatch.setitem(guidance.FAMILIES, "clip", Family(lambda config, device, resolved: kind()))
    return with_values(config, {"guidance": names}, "typed")


def test_built_guidance_is_prepared_and_of_the_family_of_its_weights(prior_folder, sd_folder):
    prior, sd = build(prior_folder), build(sd_folder)
    assert isinstance(prior, EmbeddedPrior) and prior.text is not None
    assert isinstance(sd, StableDiffusion) and sd.positive is not None
    assert prior.name == sd.name == "SD"


def test_a_family_is_added_by_one_entry_of_the_registry(monkeypatch, prior_folder):
    config = with_families(monkeypatch, options(prior_folder), "clip")
    (model,) = guidance.build(config, "cpu")
    image = torch.full((1, 3, 8, 8), 0.25, requires_grad=True)
    control = Control(options=model.stage_options(config.guidance.of("clip")))
    output = model.loss(image, views_at(0), part_of("guided"), control)
    output.loss.backward()
    assert model.prompt == "a red car" and output.loss.item() == 0.75**2 and image.grad.abs().min() > 0


@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
def test_the_denoisers_of_every_model_are_compiled_if_asked_for(monkeypatch, prior_folder, mode):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how["mode"])))
    config = with_families(monkeypatch, options(prior_folder), "SD", "clip")
    prior, _ = guidance.build(with_values(config, {"compile_guidance": mode}, "typed"), "cpu")
    assert compiled == ([] if mode == "none" else [(prior.unet, mode), (prior.detail, mode)])


@pytest.mark.parametrize("names", [("SD", "clip"), ("clip", "SD")])
def test_several_models_come_in_the_order_of_the_flag_with_options_of_their_own(monkeypatch, prior_folder, names):
    config = with_families(monkeypatch, options(prior_folder), *names)
    models = guidance.build(config, "cpu")
    assert tuple(model.name for model in models) == names
    records = {model.name: model.stage_options(config.guidance.of(model.name)) for model in models}
    assert records["clip"] == 1.0 and records["SD"].guidance_scale == 100


def test_a_family_named_twice_is_refused(prior_folder):
    config = with_values(options(prior_folder), {"guidance": ("SD", "SD")}, "typed")
    with pytest.raises(UserError, match="names SD twice"):
        guidance.build(config, "cpu")


def test_a_family_that_is_not_in_the_registry_is_refused_by_name(prior_folder):
    with pytest.raises(UserError, match="--guidance must be SD, .* or .*, got 'cliff'"):
        guidance.build(with_values(options(prior_folder), {"guidance": ("cliff",)}, "typed"), "cpu")


NEEDS = {
    "text": Family(lambda *_: Dummy(), requires=("text",)),
    "image": Family(lambda *_: Dummy(), takes=("image",), requires=("image",)),
    "any": Family(lambda *_: Dummy(), takes=("text", "image")),
}


@pytest.mark.parametrize(
    ("prompt", "name", "words"),
    [
        ({"text": "a"}, "text", None),
        ({"text": "a"}, "any", None),
        ({"image": ("a.png",)}, "image", None),
        ({"image": ("a.png",)}, "any", None),
        ({"image": ("a.png",)}, "text", r"give --text.*or choose another --guidance \(image or any\)"),
        ({"text": "a"}, "image", r"give --image.*or choose another --guidance \(text or any\)"),
        ({}, "any", "give --text.*or --image"),
    ],
)
def test_each_family_needs_its_own_kinds_of_prompt(monkeypatch, prompt, name, words):
    monkeypatch.setattr(guidance, "FAMILIES", NEEDS)
    config = with_values(Config(), prompt | {"guidance": (name,)}, "typed")
    if words is None:
        assert guidance.choose_weights(config) == {}
        return
    with pytest.raises(UserError, match=f"--guidance {name} needs a prompt of another kind: {words}"):
        guidance.choose_weights(config)


def test_a_missing_prompt_is_told_before_any_weights_are_looked_for(monkeypatch):
    families = NEEDS | {"first": Family(lambda *_: Dummy(), weights=pytest.fail)}
    monkeypatch.setattr(guidance, "FAMILIES", families)
    with pytest.raises(UserError, match="--guidance image needs"):
        guidance.choose_weights(with_values(Config(), {"text": "a", "guidance": ("first", "image")}, "typed"))


def test_the_choices_of_the_flag_are_the_registered_families():
    (flag,) = [field for _, field in iterate({"guidance": GuidanceConfig}) if field.name == "guidance"]
    assert set(flag.metadata["choices"]) <= set(guidance.FAMILIES)


@pytest.mark.parametrize("dummy", [False, True])
def test_views_that_are_not_square_are_refused_where_a_model_requires_it(monkeypatch, prior_folder, dummy):
    config = options(prior_folder, "--w", "32", "--h", "48")
    config = with_families(monkeypatch, config, "clip", kind=LinkedSquares) if dummy else config
    with pytest.raises(UserError, match="--w and --h must be equal.*32 and 48"):
        guidance.build(config, "cpu")


def test_perpneg_without_view_words_is_refused_when_the_model_is_built(prior_folder):
    with pytest.raises(UserError, match="--perpneg needs view words"):
        build(prior_folder, "--perpneg")


def test_a_missing_weights_folder_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        build(tmp_path / "nowhere")


# ---- options of a stage ----


def test_flags_reach_the_options_of_a_stage(sd_folder):
    flags = ["--perpneg", "--negative_w", "-3", "--side_decay_factor", "5", "--angle_front", "60", "--angle_overhead", "20"]
    config = options(sd_folder, *flags, "--guidance_rescale", "0.7", "--guidance_weighting", "uniform")
    record = build(sd_folder).stage_options(config.guidance.of("SD"))
    assert record.perpneg == PerpNeg(-3.0, 2.0, 5.0) and record.angles == ViewAngles(60.0, 20.0)
    assert (record.rescale, record.weighting) == (0.7, "uniform")


@pytest.mark.parametrize("folder", ["sd_folder", "prior_folder"])
@pytest.mark.parametrize("preset", [{"guidance_rescale": 0.7}, {"guidance_weighting": "uniform"}])
def test_a_preset_of_the_mesh_stage_changes_the_gradient_of_that_stage_alone(monkeypatch, request, folder, preset):
    monkeypatch.setitem(PRESETS, "dmtet", PRESETS["dmtet"] | preset)
    folder = request.getfixturevalue(folder)
    model = build(folder)
    image, views = image_of(2), views_at(0, 100)
    nerf, mesh = (model.stage_options(group) for group in of_both_stages(folder))
    first, second, again = (gradient(model, image, views, part_of(seed=3), options=record) for record in (nerf, mesh, nerf))
    assert torch.equal(first, again) and not torch.allclose(first, second)


@pytest.mark.parametrize("preset", [{"perpneg": True}, {"angle_front": 40.0}])
def test_a_preset_of_the_mesh_stage_for_view_words_changes_the_gradient_of_that_stage(monkeypatch, sd_folder, preset):
    monkeypatch.setitem(PRESETS, "dmtet", PRESETS["dmtet"] | preset)
    model = build(sd_folder)
    records = [model.stage_options(group) for group in of_both_stages(sd_folder)]
    nerf, mesh = (gradient(model, image_of(1), views_at(30), part_of(seed=3), options=record) for record in records)
    assert not torch.allclose(nerf, mesh)
