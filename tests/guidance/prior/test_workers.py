"""Batches that other processes prepare: the same for the same seed, from each process in turn, whole on the device."""

from functools import partial

import pytest
import torch

from guidance.prior import workers
from guidance.prior.dataset import Batch, Loader

CPU = torch.device("cpu")


def equal(one, other):
    return torch.equal(one.image, other.image) and torch.equal(one.ray, other.ray) and one.captions == other.captions


@pytest.fixture(scope="module")
def two_runs(shards):
    """The first three batches of 5 images of two processes, twice."""
    found = []
    for _ in range(2):
        source = workers.batches(partial(Loader, shards), 5, 3, 2, CPU)
        found.append([next(source) for _ in range(3)])
        source.close()
    return found


def test_the_same_seed_gives_the_same_batches(two_runs):
    assert all(map(equal, *two_runs)) and not equal(two_runs[0][0], two_runs[0][1])


def test_each_process_has_a_loader_of_its_own_seed_and_they_take_turns(two_runs, shards):
    first, second = (Loader(shards, seed) for seed in (3, 3 + workers.STRIDE))
    assert all(map(equal, two_runs[0], [first.batch(5), second.batch(5), first.batch(5)]))


def test_what_other_processes_send_is_degraded_where_it_should_be(two_runs, shards):
    assert two_runs[0][0].degraded is two_runs[0][0].image
    worn = next(workers.batches(partial(Loader, shards, degraded=True), 8, 3, 0, CPU))
    assert not torch.equal(worn.degraded, worn.image)


def test_a_large_batch_is_joined_of_pieces_that_follow_each_other(shards, monkeypatch):
    monkeypatch.setattr(workers, "PIECE", 3)
    monkeypatch.setattr(workers, "AT_ONCE", 2)
    batch = next(workers.batches(partial(Loader, shards, degraded=True), 7, 3, 0, CPU))
    loader = Loader(shards, 3, degraded=True)
    pieces = [loader.batch(count) for count in (2, 1) * 3]
    assert batch.captions == [caption for piece in pieces for caption in piece.captions][:7]
    for name in ("image", "degraded", "camera", "ray", "weight"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(piece, name) for piece in pieces])[:7])


def test_an_image_that_is_its_own_degraded_one_stays_one_tensor(shards):
    batch = Batch.joined([Loader(shards).batch(2), Loader(shards).batch(2)], 3).to(CPU)
    assert batch.degraded is batch.image and len(batch.image) == len(batch.captions) == 3
