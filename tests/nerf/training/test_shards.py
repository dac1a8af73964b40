"""The shares of a step: together they are the whole, no view is cut, and the step of all shares is that of the whole batch."""

from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch

from guidance.base import GuidanceOutput
from nerf.config.config import parse
from nerf.core.cameras import orbit, view_rays
from nerf.core.errors import UserError
from nerf.core.streams import Random, Stream
from nerf.core.structs import Batch, Part, Rays, RenderSettings, Shard, ViewRequest
from nerf.training import shards
from tests.nerf.test_utils import Colour, make

SIDE = 4


def views_batch(count, background="views"):
    """Whole views with everything that a batch may know of their rays."""
    views = orbit(70.0, torch.arange(count) * 30.0, 3.0, 20.0, SIDE, SIDE)
    rays = view_rays(views)
    n, draw = len(rays), torch.Generator().manual_seed(0)
    behind = {"views": (count, 3), "rays": (n, 3), "one": (3,)}[background]
    known = {"rgb": (n, 3), "mask": (n,), "depth": (n,), "normal": (n, 3), "light": (count, 3), "background": behind}
    return Batch(rays, views, **{name: torch.rand(shape, generator=draw) for name, shape in known.items()})


def rays_batch(count, patch=0):
    """Random rays, or patches of them."""
    draw = torch.Generator().manual_seed(1)
    rays = Rays(
        torch.rand(count, 3, generator=draw),
        torch.rand(count, 3, generator=draw),
        torch.zeros(count, dtype=torch.int64),
        (count // patch**2, patch, patch) if patch else None,
        image_index=torch.arange(count),
        uv=torch.rand(count, 2, generator=draw),
        patch_images=tuple(range(count // patch**2)) if patch else None,
    )
    per_ray = {name: torch.rand(count, generator=draw) for name in ("mask", "depth_map", "depth_cosine")}
    return Batch(rays, rgb=torch.rand(count, 3, generator=draw), valid=torch.rand(count, generator=draw) > 0.5, **per_ray)


def part_of(batch, layout, shard, patch=0):
    """The part that a source would have planned."""
    count = 0 if layout == "image" else len(batch.rays)
    request = ViewRequest(
        "x", layout, num_views=len(batch.views or ()), height=SIDE, width=SIDE, num_rays=count, patch_size=patch
    )
    return Part(request, RenderSettings("x", background=batch.background), shard=shard)


def shares(batch, layout, count, linked=1, patch=0):
    """What every shard takes."""
    return [shards.take(part_of(batch, layout, Shard(i, count), patch), batch, linked) for i in range(count)]


def joined(found, name):
    """A field of all shares, one behind the other."""
    return torch.cat([getattr(batch, name) for _, batch, _ in found])


@pytest.mark.parametrize("background", ["views", "rays", "one"])
@pytest.mark.parametrize("count, linked", [(2, 1), (3, 1), (2, 3)])
def test_the_shares_of_whole_views_are_the_whole(count, linked, background):
    whole = views_batch(6, background)
    found = shares(whole, "image", count, linked)
    for name in ("rgb", "mask", "depth", "normal", "light"):
        assert torch.equal(joined(found, name), getattr(whole, name)), name
    assert sum(share for *_, share in found) == pytest.approx(1)
    for part, batch, share in found:
        assert len(batch.views) == part.request.num_views == 6 // count and share == pytest.approx(1 / count)
        assert batch.rays.shape == (6 // count, SIDE, SIDE) and len(batch.rays.views) == len(batch.views)
        assert batch.rays.view_index.unique().tolist() == list(range(6 // count))
        assert torch.equal(batch.rays.origins, view_rays(batch.views).origins)
        assert len(batch.background) == {"views": 6 // count, "rays": len(batch.rays), "one": 3}[background]
        assert torch.equal(part.settings.background, batch.background)


def test_views_that_do_not_divide_are_weighted_by_their_number():
    found = shares(views_batch(5), "image", 2)
    assert [len(batch.views) for _, batch, _ in found] == [2, 3] and [share for *_, share in found] == [0.4, 0.6]


@pytest.mark.parametrize("patch", [0, 2])
def test_the_shares_of_rays_and_patches_are_the_whole(patch):
    whole = rays_batch(28, patch)
    found = shares(whole, "patches" if patch else "rays", 3, patch=patch)
    for name in ("rgb", "mask", "depth_map", "depth_cosine", "valid"):
        assert torch.equal(joined(found, name), getattr(whole, name)), name
    assert torch.cat([batch.rays.image_index for _, batch, _ in found]).tolist() == list(range(28))
    if patch:
        assert all(batch.rays.shape[0] == len(batch.rays) // 4 == len(batch.rays.patch_images) for _, batch, _ in found)
        assert sum((batch.rays.patch_images for _, batch, _ in found), ()) == tuple(range(7))


def test_every_field_of_a_batch_is_divided():
    known = {"rays", "views", "background", "light", "depth_relative", *shards.OF_RAYS}
    assert {field.name for field in fields(Batch)} == known


def test_a_view_of_an_image_prompt_is_rendered_by_every_process_if_there_are_no_more():
    batch = views_batch(2)
    part = replace(part_of(batch, "image", Shard(1, 3)), known_view=True)
    assert shards.take(part, batch) == (part, batch, 1 / 3)


@pytest.mark.parametrize(("words", "refused"), [(["--text", "a car"], True), (["--data", "photographs"], False)])
def test_a_run_with_fewer_views_than_processes_is_refused_before_it_begins(words, refused):
    asked = parse([*words, "--workspace", "w", "--batch_size", "2"])
    shards.check_views(asked, 2)
    with pytest.raises(UserError, match="3 processes share the 2 views of a step") if refused else nullcontext():
        shards.check_views(asked, 3)


def test_a_single_shard_is_the_part_itself():
    batch = views_batch(2)
    part = part_of(batch, "image", Shard())
    assert shards.take(part, batch) == (part, batch, 1.0)


def test_every_shard_draws_from_a_stream_of_its_own():
    batch = views_batch(4)
    seeds = {part.random.seed for part, *_ in shares(batch, "image", 2)} | {
        part.random.seed for part, *_ in shares(batch, "image", 4)
    }
    assert len(seeds) == 6 and Random().seed not in seeds
    draws = [torch.rand(3, generator=Random(seed).generator(Stream.MARCH_OFFSET)) for seed in sorted(seeds)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 6


@pytest.mark.parametrize(
    "batch, layout, linked, said",
    [
        (views_batch(2), "image", 1, "the 2 views of a step.*--batch_size of at least 3"),
        (views_batch(4), "image", 2, "the 2 groups of 2 views.*--batch_size of at least 6"),
        (rays_batch(2), "rays", 1, "the 2 rays of a step; give a larger --num_rays"),
    ],
)
def test_too_few_views_for_all_processes_are_a_sentence(batch, layout, linked, said):
    with pytest.raises(UserError, match=said):
        shards.take(part_of(batch, layout, Shard(0, 3)), batch, linked)


def test_processes_have_room_for_as_many_rays_as_all_of_them_together():
    part = part_of(rays_batch(30), "rays", Shard(1, 3))
    assert shards.affordable(part, lambda rays: min(rays, 4)).request.num_rays == 12
    assert shards.affordable(part, lambda rays: rays).request.num_rays == 30


class Grey(Colour):
    """Wants grey, and draws nothing."""

    def loss(self, image, views, part, control, *, debug=False):
        """Mean squared distance."""
        return GuidanceOutput((image - 0.5).square().mean())


class MiddleOfSteps:
    """torch, but what places the samples in their steps puts all of them in the middle."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def rand(self, *size, generator=None, **kind):
        """Halves."""
        return torch.full(size, 0.5, **kind)


def test_the_step_of_all_shares_is_that_of_the_whole_batch(tmp_path, monkeypatch):
    """Where nothing is drawn within a share: samples in the middle of their steps, and guidance without noise."""
    monkeypatch.setattr("nerf.render.accelerated.torch", MiddleOfSteps())
    flags = ["--cuda_ray", "--batch_size", "4", "--lambda_tv", "0", "--lambda_opacity", "0.1", "--bg_radius", "-1"]
    gradients = {}
    for count in (1, 2, 4):
        trainer = make(tmp_path / str(count), *flags, guidance=Grey(), shards=tuple(Shard(i, count) for i in range(count)))
        monkeypatch.setattr(trainer, "_apply_gradients", lambda plan: None)
        terms = trainer.train_step()
        gradients[count] = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        gradients[count]["term"] = terms["sds/colour"]
    for count in (2, 4):
        assert gradients[count].keys() == gradients[1].keys()
        for name, whole in gradients[1].items():  # sums in another order
            torch.testing.assert_close(gradients[count][name], whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))
