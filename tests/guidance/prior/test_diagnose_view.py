"""The measures of the view-conditioned prior, and that the shipped weights pass them."""

import pytest
import torch

from guidance.prior import VIEW_WEIGHTS, diagnose_view, view_model
from guidance.prior.references import REFERENCES


@pytest.fixture(scope="module")
def shipped():
    return view_model.load(VIEW_WEIGHTS)


@pytest.fixture(scope="module")
def tiny():
    return view_model.build(tiny=True)


def test_an_untrained_prior_ignores_the_pose_and_the_reference(tiny):
    row = diagnose_view.measure_kind(tiny, "chair", count=4)
    assert row["plus90"] == pytest.approx(1, abs=0.1) and row["other"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["chair", "car", "mug", "dog"])
def test_the_shipped_prior_depends_on_pose_and_reference(shipped, kind):
    row = diagnose_view.measure_kind(shipped, kind, count=8)
    assert row["plus90"] > 2 and row["plus180"] > 1.3 and row["other"] > 2 and row["near"] >= 0.75


def test_a_round_kind_looks_the_same_from_all_sides(shipped):
    row = diagnose_view.measure_kind(shipped, "mushroom", count=4)
    assert row["plus90"] == pytest.approx(1, abs=0.1) and row["near"] == 1


def test_the_shipped_folder_takes_at_most_twelve_megabytes():
    assert sum(path.stat().st_size for path in VIEW_WEIGHTS.rglob("*") if path.is_file()) <= 12e6


def test_measured_objects_are_in_trained_colours_and_other_proportions_than_any_shard():
    shapes, captions = diagnose_view.objects("chair", 3, 1)
    assert len({caption for caption in captions}) > 1 and shapes[0].proportions != shapes[1].proportions
    again, _ = diagnose_view.objects("chair", 3, 1)
    assert [s.proportions for s in shapes] == [s.proportions for s in again]


def test_the_sheet_shows_the_reference_beside_samples_and_the_true_views(tiny):
    sheet = diagnose_view.sheet(tiny, REFERENCES[6:7], steps=2)
    assert sheet.shape == (128, 64 * 9, 3) and sheet.dtype == torch.uint8
    assert torch.equal(sheet[:64, :64], sheet[64:, 64:128])  # the first true view is the reference's
