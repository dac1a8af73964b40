"""Training of the geometry network: it learns, the rest of the prior keeps its bits, and a later run looks where it errs."""

import json

import pytest
import torch

from guidance.prior import diagnose_geometry, model, train_geometry
from guidance.prior.captions import KIND_NAMES


@pytest.fixture
def trainer(shards, shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(train_geometry.train, "WEIGHTS", shipped)
    recipe = train_geometry.training.Recipe(batch=8, processes=1, warmup=5, lr=1e-2, t_bias=1.0)
    return train_geometry.GeometryTrainer(recipe, shards, tmp_path / "run")


def test_the_errors_fall_and_only_the_geometry_network_changes(trainer, shipped, tmp_path):
    before = [p.detach().clone() for p in trainer.prior.parameters()]
    losses = [trainer.step(1.0) for _ in range(40)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    trainer.export(tmp_path / "out")
    written, old = model.load(tmp_path / "out"), model.load(shipped)
    assert all(map(torch.equal, before, trainer.prior.parameters()))
    assert all(map(torch.equal, old.parameters(), written.parameters()))
    average = torch.nn.utils.parameters_to_vector(written.geometry.parameters())
    assert (average - trainer.average).abs().max() < 2e-3
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert recipe["seed"] == 7 and [run["step"] for run in recipe["geometry"]] == [40]


def test_what_goes_on_from_a_geometry_network_sees_the_kinds_of_large_errors_more_often(trainer, shards, tmp_path, monkeypatch):
    trainer.step(1.0)
    trainer.export(tmp_path / "out")
    monkeypatch.setattr(train_geometry.train, "WEIGHTS", tmp_path / "out")
    errors = {kind: {300: {"depth": 0.1 if kind == "mug" else 0.01, "normal": 9.0, "silhouette": 0.9}} for kind in KIND_NAMES}
    monkeypatch.setattr(diagnose_geometry, "kind_errors", lambda prior, kinds, timesteps, count: errors)
    again = train_geometry.GeometryTrainer(trainer.recipe, shards, tmp_path / "more")
    assert (again.weights - trainer.average).abs().max() < 2e-3
    seen = again.loader.frequency
    assert seen["mug"] > 3 * max(share for kind, share in seen.items() if kind != "mug")
    assert len(again.about()["geometry"]) == 2 and trainer.setup.frequency is None
