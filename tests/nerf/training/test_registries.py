"""A source and an objective are added by registering them: the trainer trains with both, and nothing else changes."""

import pytest
import torch

from nerf import provider
from nerf.config.config import Config, with_values
from nerf.config.stages import NERF, Stage
from nerf.core.cameras import orbit, view_rays
from nerf.core.structs import Batch, Part, RenderSettings, SceneInfo, ViewRequest
from nerf.provider import SourceInputs, build_sources
from nerf.renderer import build_model
from nerf.run.evaluation import Evaluator
from nerf.run.logger import Report
from nerf.training import objectives, schedule
from nerf.training.objectives import Objective, ObjectiveOutput
from nerf.training.sources import RunInfo, Source
from nerf.utils import Trainer

SMALL = {
    "seed": 1,
    "iters": 4,
    "grid_levels": 4,
    "grid_log2": 8,
    "grid_finest": 32,
    "hidden": 16,
    "num_steps": 8,
    "upsample_steps": 4,
    "lambda_wd": 1.0,
    "lambda_entropy": 0.0,
    "lambda_orient": 0.0,
    "optim": "adam",
}


class GreenWall(Source):
    """A source of one view that shows green, every other step."""

    name = "wall"

    def plan_part(self, step, run, random):
        """Nothing on odd steps."""
        if step % 2:
            return None
        request = ViewRequest(self.name, height=6, width=6, random=random)
        return Part(request, RenderSettings(self.name, random=random), has_targets=True)

    def batch(self, part):
        """The view with its colour."""
        views = orbit(90.0, torch.zeros(1), 3.0, 30.0, part.request.height, part.request.width)
        rays = view_rays(views)
        return Batch(rays, views, rgb=torch.tensor([[0.0, 1.0, 0.0]]).expand(len(rays), 3))


class Brightness(Objective):
    """Wants the image as bright as a number that it learns."""

    terms = ("brightness",)

    def __init__(self):
        self.target = torch.nn.Parameter(torch.zeros(()))

    def __call__(self, out, batch, part, plan):
        """Squared difference of the means."""
        return ObjectiveOutput({"brightness": (out.image.mean() - self.target).square()}, {"target": self.target.detach()})

    def param_groups(self, lr):
        """The number."""
        return [{"params": [self.target], "lr": lr, "name": "brightness"}]

    def state_dict(self):
        """The number."""
        return {"target": self.target.detach()}

    def load_state_dict(self, state):
        """The number."""
        with torch.no_grad():
            self.target.copy_(state["target"])


@pytest.fixture
def registered(monkeypatch):
    """The source, a second one of the same kind, and the objective in their registries."""
    monkeypatch.setitem(provider.SOURCES, "wall", lambda inputs: GreenWall())
    monkeypatch.setitem(objectives.OBJECTIVES, "brightness", lambda inputs: Brightness())
    monkeypatch.setitem(schedule.TERM_WEIGHTS, "brightness", lambda fraction, config: 0.1)


def make(folder, **options):
    config = with_values(Config(), SMALL | {"workspace": str(folder)} | options, "typed")
    stage = Stage(NERF, config)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    model, report = build_model(stage, SceneInfo()), Report(folder, terminal=False)
    sources = build_sources(SourceInputs(config, "cpu"))
    return Trainer(RunInfo(stage), model, sources, [], Evaluator(stage, model, report), report)


def test_a_registered_source_and_objective_train(tmp_path, registered):
    trainer = make(tmp_path)
    target = trainer.objectives["brightness"].target
    terms = trainer.train_step()
    assert {"rgb", "brightness", "weight_decay", "target"} <= set(terms) and target != 0


def test_a_step_without_any_part_changes_no_weight(tmp_path, registered):
    trainer = make(tmp_path, lambda_wd=0.0)
    trainer.train_step()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)  # refuses to step without gradients
    trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_the_state_of_an_objective_is_in_the_checkpoint(tmp_path, registered):
    trainer = make(tmp_path)
    trainer.train_step()
    path = trainer.save()
    again = make(tmp_path)
    again.load(path)
    assert torch.equal(again.objectives["brightness"].target, trainer.objectives["brightness"].target)


class SecondWall(GreenWall):
    """Another source, so that a step has two parts."""

    name = "second"


def test_a_regulariser_of_the_model_counts_once_in_a_step_of_two_parts(tmp_path, registered, monkeypatch):
    one = make(tmp_path / "one")
    monkeypatch.setitem(provider.SOURCES, "second", lambda inputs: SecondWall())
    two = make(tmp_path / "two")
    calls = []
    for trainer in (one, two):
        count, original = [], trainer.model.field.weight_decay
        monkeypatch.setattr(trainer.model.field, "weight_decay", lambda c=count, f=original: c.append(1) or f())
        trainer.train_step()
        calls.append(len(count))
    assert calls == [1, 1]


def test_what_a_source_draws_depends_on_its_name_and_not_on_its_place(tmp_path, registered, monkeypatch):
    alone = make(tmp_path / "alone").plan(0).parts
    monkeypatch.setattr(provider, "SOURCES", {"second": lambda inputs: SecondWall(), **provider.SOURCES})
    both = {part.source: part for part in make(tmp_path / "both").plan(0).parts}
    assert both["wall"].random == alone[0].random != both["second"].random
