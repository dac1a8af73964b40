"""Groups of four linked renders: their cameras, what they share, and that each picture is that of its camera."""

import pytest
import torch

from guidance.diffusion.multiview import LINKED, check_linked
from guidance.prior import multiview_dataset
from guidance.prior.camera import condition, look_at
from guidance.prior.captions import KIND_NAMES
from guidance.prior.multiview_dataset import LinkedLoader, linked_cameras, write_shard
from nerf.core.cameras import orbit


def test_the_cameras_of_a_group_are_linked():
    cameras = linked_cameras(3, torch.Generator().manual_seed(0))
    check_linked(orbit(*(cameras[name] for name in ("polar", "azimuth", "radius", "fovy")), 8, 8), "MVDream")
    assert len(cameras["azimuth"].unique()) == 12 and (cameras["azimuth"] < 360).all()


def test_a_shard_depends_on_its_number_alone_and_holds_four_views_of_each_object(linked_shards, tmp_path):
    from safetensors.torch import load_file

    first, again = load_file(linked_shards / "shard_00000.safetensors"), load_file(write_shard(0, tmp_path, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("kind", "polar", "radius", "fovy"):
        assert (first[name].view(5, LINKED) == first[name].view(5, LINKED)[:, :1]).all()


@pytest.fixture
def shadeless(monkeypatch):
    """Batches whose images show the coverage alone: white on black."""
    monkeypatch.setattr(LinkedLoader, "_lit", lambda self, rows, palettes, linked=1: _covered(rows["material"]))
    monkeypatch.setattr(LinkedLoader, "_linked_backgrounds", lambda self, size: torch.zeros(LINKED * size, 3))


def _covered(material):
    covered = (material != 15).float()[:, None]
    return covered.expand(-1, 4, -1, -1)


def test_every_picture_of_a_batch_is_taken_by_its_camera(linked_shards, shadeless, monkeypatch):
    from safetensors.torch import load_file

    from guidance.prior.shapes import EMPTY, KINDS

    assert EMPTY == 15
    loader = LinkedLoader(linked_shards, 0)
    stored = load_file(linked_shards / "shard_00000.safetensors")
    oriented = [i for i, kind in enumerate(stored["kind"].tolist()) if KINDS[KIND_NAMES[kind]].symmetry != "round"]
    assert oriented
    plain = {float(stored["azimuth"][i]): stored["material"][i] != EMPTY for i in oriented}
    seen = set()
    for _ in range(12):
        batch = loader.groups(6)
        for image, azimuth in zip(batch.image, batch.azimuth.tolist(), strict=True):
            for turn, mirrored in ((azimuth, False), (-azimuth, True)):
                near = [a for a in plain if abs((a - turn + 180) % 360 - 180) < 1e-3]
                if not near:
                    continue
                mask = torch.nn.functional.avg_pool2d(plain[near[0]].float()[None], 2)[0]
                expected = (mask.flip(-1) if mirrored else mask) * 2 - 1
                torch.testing.assert_close(image[0], expected)
                seen.add(mirrored)
    assert seen == {False, True}


def test_conditions_are_those_of_the_linked_cameras(linked_shards):
    batch = LinkedLoader(linked_shards, 1).groups(3)
    step = (batch.azimuth.view(3, LINKED).diff(dim=1) + 180) % 360 - 180
    assert torch.allclose(step.abs(), torch.tensor(90.0), atol=1e-3) and (step == step[:, :1]).all(1).sum() >= 0
    assert torch.allclose(batch.camera[:, 0], 2 * torch.deg2rad(batch.azimuth).sin(), atol=1e-5)
    expected = condition(batch.polar, batch.azimuth, 3.2, 20.0)
    torch.testing.assert_close(batch.camera[:, :6], expected[:, :6])
    pose = look_at(batch.polar, batch.azimuth, torch.full_like(batch.polar, 3.2))
    middle = batch.ray[:, 9:12, 3:5, 3:5].mean((2, 3))
    torch.testing.assert_close(torch.nn.functional.normalize(middle, dim=1), -pose[:, :, 2], rtol=0, atol=1e-3)


def test_a_group_has_one_ambient_light_and_one_background_or_four(linked_shards, monkeypatch):
    given = []
    shaded = multiview_dataset.dataset.shaded

    def record(material, normal, palettes, light, ambient):
        given.append((palettes, ambient))
        return shaded(material, normal, palettes, light, ambient)

    monkeypatch.setattr(multiview_dataset.dataset, "shaded", record)
    loader = LinkedLoader(linked_shards, 2)
    batch = loader.groups(40)
    palettes, ambient = (value.unflatten(0, (40, LINKED)) for value in given[0])
    assert (ambient == ambient[:, :1]).all() and (palettes == palettes[:, :1]).all() and len(ambient.unique()) > 5
    corner = batch.image[:, :, 0, 0].unflatten(0, (40, LINKED))
    one = (corner == corner[:, :1]).flatten(1).all(1)
    assert 8 < int(one.sum()) < 36
