"""The training set: shading in closed form, reproducible shards, complete batches."""

import time

import pytest
import torch

from guidance.prior.captions import KIND_NAMES, is_held_out, parse
from guidance.prior.dataset import (
    Loader,
    data_hash,
    frequency_by_error,
    over,
    path_of,
    shaded,
    usual_frequency,
    write_shard,
    write_shards,
)
from guidance.prior.shapes import EMPTY, MATERIALS
from nerf.core.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shard(0, folder, 24)
    return folder


def paint(material, normal, ambient=1.0, background=(1.0, 1.0, 1.0)):
    palettes = torch.zeros(1, MATERIALS, 3)
    palettes[0, 0] = torch.tensor([0.8, 0.4, 0.2])
    light = torch.tensor([[0.0, 0.0, 1.0]])
    return over(shaded(material, normal, palettes, light, torch.tensor([ambient])), torch.tensor([background]))


def test_flat_light_shows_the_colour_itself():
    image = paint(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(1, 2, 2, 3))
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([0.8, 0.4, 0.2]))


def test_a_surface_that_faces_away_gets_the_ambient_share():
    image = paint(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.tensor([[[[0.0, 0.0, -1.0]]]]), ambient=0.5)
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([0.4, 0.2, 0.1]))


def test_a_pixel_half_covered_is_half_background():
    material = torch.tensor([[[0, 0], [EMPTY, EMPTY]]], dtype=torch.uint8)
    image = paint(material, torch.zeros(1, 1, 1, 3), background=(0.0, 0.0, 1.0))
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([0.4, 0.2, 0.6]))


def test_a_shard_depends_on_its_number_alone(shards, tmp_path):
    write_shard(0, tmp_path, 24)
    assert data_hash(tmp_path) == data_hash(shards)


def test_a_batch_is_complete_and_in_range(shards):
    batch = Loader(shards).batch(10)
    assert batch.image.shape == (10, 3, 64, 64) and batch.ray.shape == (10, 13, 8, 8) and len(batch.captions) == 10
    assert batch.image.min() >= -1 and batch.image.max() <= 1.0001 and torch.equal(batch.image, batch.degraded)
    assert torch.isfinite(batch.camera).all()


def test_degraded_images_are_near_the_clean_ones(shards):
    batch = Loader(shards, degraded=True).batch(24)
    distance = (batch.degraded - batch.image).square().mean((1, 2, 3)).sqrt()
    mirrored = (batch.degraded - batch.image.flip(-1)).square().mean((1, 2, 3)).sqrt()
    assert batch.degraded.shape == batch.image.shape and (distance > 0.01).any() and distance.mean() < 0.7 * mirrored.mean()


def test_a_kind_can_be_shown_from_its_ends(shards, monkeypatch):
    monkeypatch.setattr("guidance.prior.dataset.ENDS", dict.fromkeys(KIND_NAMES, 1.0))
    loader = Loader(shards)
    kind = next(kind for kind in KIND_NAMES if 0 < len(loader.ends[kind]) < len(loader.rows[kind]))
    places = [loader._place(kind) for _ in range(40)]
    azimuths = torch.stack([loader.shards[path]["azimuth"][row] for path, row in places])
    assert (torch.deg2rad(azimuths).cos().abs() > 0.64).all()


def test_kinds_are_as_frequent_as_asked(shards):
    one = {kind: float(kind == "house") for kind in KIND_NAMES}
    loader = Loader(shards)
    present = [kind for kind in KIND_NAMES if loader.rows[kind]]
    assert set(Loader(shards, frequency=one | {present[0]: 1.0})._kinds(50)) <= {"house", present[0]}
    assert Loader(shards, frequency=usual_frequency())._kinds(50) == Loader(shards)._kinds(50)


def test_half_of_the_samples_follow_the_squared_errors_and_half_are_as_usual():
    found = frequency_by_error(dict.fromkeys(KIND_NAMES, 0.1) | {"cactus": 0.3})
    usual, count = usual_frequency(), len(KIND_NAMES)
    assert sum(found.values()) == pytest.approx(2)
    assert found["cactus"] - usual["cactus"] / sum(usual.values()) == pytest.approx(9 / (count + 8))
    assert found["house"] > 3 * found["ball"]  # what is sampled often by default stays frequent


def copy_shard(number, folder):
    """Stands for a render of a shard; a function of a module, for other processes."""
    path_of(number, folder).write_bytes(bytes([number]))
    return path_of(number, folder)


def test_missing_shards_are_written_by_several_processes_and_the_others_stay(tmp_path):
    path_of(1, tmp_path).write_bytes(b"old")
    assert write_shards(range(4), tmp_path, 2, 60, copy_shard) == 4
    assert [path_of(number, tmp_path).read_bytes() for number in range(4)] == [b"\0", b"old", b"\2", b"\3"]


def test_no_shard_is_begun_after_the_time(tmp_path):
    assert 1 <= write_shards(range(40), tmp_path, 1, 0, slow_shard) <= 4  # some are handed over before they can be cancelled


def slow_shard(number, folder):
    """The same, which takes a while."""
    time.sleep(0.1)
    return copy_shard(number, folder)


def test_no_batch_holds_a_held_out_combination(shards):
    loader = Loader(shards)
    captions = [parse(text).caption for _ in range(10) for text in loader.batch(16).captions]
    assert len({c.kind for c in captions}) > 5 and not any(is_held_out(c) for c in captions)


def test_new_shards_are_found_while_training(shards, tmp_path):
    write_shard(0, tmp_path, 8)
    loader = Loader(tmp_path, rescan=2)
    write_shard(1, tmp_path, 8)
    loader.batch(8)
    assert len(loader.shards) == 1
    loader.batch(8)
    assert len(loader.shards) == 2


def test_an_empty_folder_is_refused_with_the_command_that_fills_it(tmp_path):
    with pytest.raises(UserError, match="python -m guidance.prior.dataset"):
        Loader(tmp_path)
