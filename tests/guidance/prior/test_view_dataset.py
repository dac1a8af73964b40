"""Pairs of renders of one object: what they share, what differs, and how they are placed."""

import random

import pytest
import torch

from guidance.prior import view_dataset
from guidance.prior.captions import KIND_NAMES, Caption, parse
from guidance.prior.shapes import palette
from guidance.prior.view_dataset import VIEWS, PairLoader, appearance, placed, write_shard


def test_a_shard_depends_on_its_number_alone_and_starts_each_object_near_its_front(view_shards, tmp_path):
    from safetensors.torch import load_file

    first, again = load_file(view_shards / "shard_00000.safetensors"), load_file(write_shard(0, tmp_path, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    near = (first["azimuth"].view(4, VIEWS)[:, : view_dataset.FRONT_VIEWS] + 180) % 360 - 180
    assert near.abs().max() < 4 * view_dataset.FRONT_SPREAD
    assert (first["kind"].view(4, VIEWS) == first["kind"].view(4, VIEWS)[:, :1]).all()


def test_a_reference_is_another_view_of_the_same_object(view_shards):
    loader = PairLoader(view_shards, 1)
    for row in range(4 * VIEWS):
        others = {loader._reference_row(row) for _ in range(300)}
        assert others == set(range(row - row % VIEWS, row - row % VIEWS + VIEWS)) - {row}


def test_both_views_of_a_pair_have_the_same_colours(view_shards, monkeypatch):
    # Flat shading: the colours of the materials themselves appear in both.
    monkeypatch.setattr(
        PairLoader,
        "_lit",
        lambda self, rows, palettes: view_dataset.dataset.shaded(
            rows["material"], rows["normal"].float(), palettes, torch.zeros(len(palettes), 3), torch.ones(len(palettes))
        ),
    )
    monkeypatch.setattr(view_dataset, "ZOOMED_SHARE", 0.0)
    loader = PairLoader(view_shards, 2)
    batch = loader.pairs(12)
    for image, reference in zip(batch.image, batch.reference, strict=True):
        covered = reference[:3, reference[3] > 0.99]
        # The commonest colour of the reference is found in the target, to rounding.
        colour = covered.round(decimals=3).mode(1).values if covered.shape[1] else torch.ones(3)
        distance = (image - colour[:, None, None]).abs().amax(0)
        assert covered.shape[1] > 20 and distance.min() < 0.25


def test_references_are_over_white_and_carry_their_coverage(view_shards):
    reference = PairLoader(view_shards, 3).pairs(8).reference
    clear = reference[:, 3] == -1
    assert clear.any() and (reference[:, :3].movedim(1, -1)[clear] == 1).all()
    assert reference[:, 3].amax((1, 2)).min() == 1


def test_mirroring_negates_both_azimuths_and_round_kinds_have_any(view_shards):
    loader = PairLoader(view_shards, 4)
    given = torch.tensor([[30.0, 50.0], [-60.0, 10.0]])
    seen = set()
    for _ in range(40):
        azimuths, mirrored = loader._augment(given, ["car", "tree"])
        assert torch.equal(azimuths[:, 0], -given[:, 0] if mirrored[0].item() else given[:, 0])
        assert azimuths[0, 1] != azimuths[1, 1]
        seen.add(bool(mirrored[0]))
    assert seen == {True, False}


def test_placing_zooms_about_the_centre_then_moves_up():
    layers = torch.zeros(1, 4, 64, 64)
    layers[:, :, 24:40, 24:40] = 1
    bigger = placed(layers, torch.tensor([1.5]), torch.tensor([0.25]))
    rows, columns = (bigger[0, 3] > 0.5).any(1).nonzero()[:, 0], (bigger[0, 3] > 0.5).any(0).nonzero()[:, 0]
    # 16 pixels become 24, and a quarter of half the height is 8 pixels.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32 - 12 - 8, 31 + 12 - 8, 32 - 12, 31 + 12)


@pytest.mark.parametrize(
    "prompt, named",
    [("a purple mushroom", "a white mushroom with a purple cap"), ("a car", "a red car with a red roof"),
     ("a hamburger", "a hamburger"), ("a chair", "a brown chair"), ("a blue donut", "a blue donut"),
     ("a ball on a cube", "a red ball on a blue cube")],
)  # fmt: skip
def test_one_caption_stands_for_all_that_look_alike(prompt, named):
    caption = parse(prompt).caption
    assert appearance(caption).text == named
    assert torch.equal(palette(appearance(caption)), palette(caption))


def test_every_trained_caption_has_the_look_of_its_appearance():
    rng = random.Random(0)
    for kind in KIND_NAMES:
        caption = view_dataset.dataset.random_caption(kind, rng)
        assert isinstance(appearance(caption), Caption) and torch.equal(palette(appearance(caption)), palette(caption))
