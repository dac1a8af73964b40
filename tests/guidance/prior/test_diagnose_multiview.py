"""The measures of the multi-view prior, and that the shipped weights pass them."""

import pytest
import torch

from guidance.diffusion.multiview import LINKED
from guidance.prior import MULTIVIEW_WEIGHTS, WEIGHTS, diagnose_multiview, multiview_model
from guidance.prior import model as text_model
from guidance.prior.captions import is_held_out, parse
from guidance.prior.diagnose import renders
from guidance.prior.diagnose_multiview import error, held_out, measure


@pytest.fixture(scope="module")
def shipped():
    return text_model.load(WEIGHTS), multiview_model.load(MULTIVIEW_WEIGHTS)


def test_the_four_views_of_a_group_are_of_one_object_and_groups_of_several():
    held = held_out(("snowman",), 2)
    assert held.image.shape == (2 * LINKED, 3, 64, 64) and len(set(held.captions)) == 1
    assert not is_held_out(parse(held.captions[0]).caption)  # in trained colours, as the other priors are measured
    views = held.image.unflatten(0, (2, LINKED))
    same = (views - views[:, :1]).abs().mean((2, 3, 4))  # a round object looks the same from all sides
    assert same.max() < 0.02 < (views[0] - views[1]).abs().mean()


def test_consecutive_renders_have_one_proportion_where_they_show_one_object():
    caption, cameras = parse("a green tree").caption, {name: torch.full((4,), value) for name, value in CAMERA.items()}
    alike = renders(caption, cameras, 3, views=2)
    assert torch.equal(alike[0], alike[1]) and not torch.equal(alike[1], alike[2])
    assert not torch.equal(*renders(caption, {name: value[:2] for name, value in cameras.items()}, 3))


CAMERA = {"polar": 75.0, "azimuth": 30.0, "radius": 3.2, "fovy": 20.0}


@pytest.mark.parametrize(("t", "share"), [(850, 1.0), (950, 0.9)])
def test_that_views_see_each_other_lowers_the_error_of_the_shipped_prior(shipped, t, share):
    row = measure(*shipped, held_out(("chair", "car", "dog", "boat"), 4), t)
    assert row["joined"] < row["separate"] and row["joined"] < share * row["text prior"]
    assert row["joined, no camera"] < row["text prior, no camera"]


def test_the_error_does_not_depend_on_what_was_measured_before(shipped):
    held, prior = held_out(("mug",), 1), shipped[1]
    multiview_model.join(prior.unet, False)
    alone = error(prior, held, 700)
    assert error(prior, held, 700, joined=True) != alone
    assert error(prior, held, 700) == alone


def test_the_shipped_changes_take_at_most_four_megabytes():
    assert sum(path.stat().st_size for path in MULTIVIEW_WEIGHTS.rglob("*") if path.is_file()) <= 4e6


def test_the_lines_are_printed_for_each_timestep(monkeypatch, capsys):
    import json
    import sys

    monkeypatch.setattr(sys, "argv", ["x", "--count", "1", "--kinds", "mug", "--timesteps", "300", "900", "--each"])
    diagnose_multiview.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["t"] for line in lines] == [300, 900] and all(line["kinds"] == "mug" for line in lines)
