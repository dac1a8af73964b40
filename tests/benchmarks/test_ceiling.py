"""The table of where shapes are lost, and its measures."""

import numpy as np
import torch

from benchmarks import ceiling, mesh_measure
from guidance.prior.captions import parse
from guidance.prior.shapes import canonical, signed_distance
from nerf.core.structs import LevelSet
from nerf.mesh.isosurface import extract_surface

ROW = {"prompt": "a red mug", "seed": 0, "field": 0.5, "extraction": {"iou": 0.6, "genus": 1, "caves": 0.02},
       "mesh": {"iou": 0.7, "genus": 2, "caves": 0.015}}  # fmt: skip


def test_table_has_both_priors_in_a_line_and_says_what_is_missing():
    prior = {"error 500": 0.1, "error 850": 0.2, "silhouette 850": 0.9}
    results = {
        "a": ROW | {"group": "embedded", "prior": prior},
        "b": ROW | {"group": "perfect", "mesh": {"iou": 0.9, "genus": None, "caves": 0.0}},
        "c": {"prompt": "a bed", "seed": 0, "group": "embedded", "failure": "exit code 1"},
    }
    lines = ceiling.table(results).splitlines()
    assert "| a red mug | 0.10 / 0.20, 0.90 | 0.50 / 0.50 | 0.60 / 0.60 | 0.70 / 0.90 | 2 / open | 1.5 % / 0.0 % |" in lines
    assert "| a bed |  | failed / - | failed / - | failed / - | failed / - | failed / - |" in lines


class Known:
    """A field whose density is that of a captioned shape."""

    def __init__(self, prompt, bound=0.6):
        self.shape, self.bound = canonical(prompt), bound

    def level_set(self, threshold):
        return LevelSet(lambda x: threshold * torch.exp((-100 * signed_distance(self.shape, x)).clamp(-9, 9)), threshold)


def test_a_field_and_a_surface_that_are_the_shape_itself_have_an_iou_of_one():
    prompt, model = "a red mug", Known("a red mug")
    members, truths = mesh_measure.family_voxels(parse(prompt).caption, 4)
    assert ceiling.field_iou(model, 7.0, members, truths) == 1.0
    found = ceiling.surface_measures(extract_surface(model.level_set(7.0), 0.6, 64)[0], members, truths)
    assert found["iou"] > 0.95 and found["genus"] == 1 and found["caves"] < 0.01


def test_estimates_are_listed_worst_first(monkeypatch):
    good, bad = ({f"{name} {t}": value for name in ("error", "silhouette") for t in ceiling.TIMESTEPS} for value in (0.9, 0.2))
    monkeypatch.setattr(ceiling, "prior_measures", lambda prior, text, views: bad if "sofa" in text else good)
    lines = ceiling.estimates_table(None, ["mug", "sofa"]).splitlines()
    assert lines[2:] == ["| sofa | 0.20 | 0.20 | 0.20 | 0.20 |", "| mug | 0.90 | 0.90 | 0.90 | 0.90 |"]


def test_estimates_of_a_prior_that_knows_the_truth_are_measured_as_such(monkeypatch):
    truth = torch.from_numpy(mesh_measure.true_views(canonical("a red car"), mesh_measure.view_angles(2, 70.0))[0])
    picture = truth.float().permute(0, 3, 1, 2) * 2 - 1
    monkeypatch.setattr(ceiling.diagnose, "add_noise", lambda prior, image, t, seed: image)
    monkeypatch.setattr(
        ceiling.diagnose, "estimate", lambda prior, noisy, t, text, cameras: picture if t == 500 else noisy + 0.5
    )

    class Text:
        def encode_text(self, prompts):
            return torch.zeros(1, 16, 64)

    found = ceiling.prior_measures(Text(), "a red car", views=2)
    assert found["error 500"] == 0.0 and found["silhouette 500"] > 0.96
    assert np.isclose(found["error 850"], 0.5 / float((1 - picture).square().mean().sqrt()), rtol=1e-4)
