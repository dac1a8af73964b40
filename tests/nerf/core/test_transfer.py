"""Copies between host and device arrive whole, and nobody waits for them who need not."""

import torch

from nerf.core.structs import move_record
from nerf.core.transfer import Download, counts, indices_of, read_scalars, upload
from tests.nerf.analytic import image_rays


def test_what_is_packed_arrives_with_its_shape_and_type(device):
    sent = [
        torch.arange(5, dtype=torch.uint8),
        torch.randn(3, 4).T,  # not contiguous
        torch.tensor(7),
        torch.zeros(0, 3),
        torch.tensor([True, False, True]),
        torch.randn(2, dtype=torch.float64),
        torch.tensor(0.5, dtype=torch.float16),
    ]
    there = upload(sent, device)
    assert all(t.device.type == device.type for t in there)
    for before, after in zip(sent, there, strict=True):
        assert after.dtype == before.dtype and torch.equal(after.cpu(), before)
    there[0].add_(1)
    assert torch.equal(there[1].cpu(), sent[1])


def test_what_is_there_already_is_not_copied(device):
    here = torch.ones(3, device=device)
    assert upload([here, torch.ones(2)], device)[0] is here


def test_a_gradient_comes_back_through_an_upload(device):
    x = torch.ones(3, requires_grad=True)
    moved, _ = upload([x, torch.ones(2)], device)
    (2 * moved).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 2.0]


def test_a_record_moves_with_all_that_is_in_it(device):
    rays = image_rays(2, 3)
    moved = move_record({"rays": rays, "nothing": None}, device)
    assert moved["nothing"] is None and moved["rays"].shape == rays.shape
    assert torch.equal(moved["rays"].directions.cpu(), rays.directions) and moved["rays"].view_index.device.type == device.type


def test_a_download_brings_the_values_of_its_time(device):
    x = torch.arange(3.0, device=device)
    first = Download(x.clone())
    x += 1
    second = Download(x.clone())
    assert second.result().tolist() == [1.0, 2.0, 3.0]
    assert first.arrived and first.result().tolist() == [0.0, 1.0, 2.0]


def test_scalars_are_read_as_they_are(device):
    given = {"a": torch.tensor(0.1, device=device), "b": 2, "c": torch.tensor(3.0, dtype=torch.float64), "d": torch.tensor(4)}
    assert read_scalars(given) == {"a": float(torch.tensor(0.1)), "b": 2.0, "c": 3.0, "d": 4.0}


def test_the_indices_of_a_mask_are_the_same_with_and_without_their_number(device):
    mask = torch.tensor([True, False, True, True], device=device)
    assert indices_of(mask, None).tolist() == indices_of(mask, 3).tolist() == [0, 2, 3]
    assert indices_of(mask[1:2], 0).tolist() == []
    assert counts(mask, mask[:2]) == ([None, None] if device.type == "cpu" else [3, 1])
