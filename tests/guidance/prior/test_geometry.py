"""The geometry network: it starts from the UNet, and what it says is where the surface of the shape is."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from guidance.base import Guidance
from guidance.prior import UNSHUFFLE, camera, dataset, diagnose_geometry, geometry, geometry_dataset, model
from guidance.prior.benchmark import recolored
from guidance.prior.camera import random_cameras
from guidance.prior.guidance import EmbeddedPrior
from guidance.prior.render import render
from guidance.prior.shapes import BOUND
from nerf.core.cameras import orbit
from nerf.core.errors import UserError
from nerf.core.structs import Control
from tests.guidance.models import PROMPT, T_RANGE, gradient, image_of, views_at
from tests.guidance.models import embedded_prior as make
from tests.helpers.parts import part_of

RADIUS = 0.4


@pytest.fixture(scope="module")
def knowing(knowing_folder):
    """The tiny prior with a geometry network."""
    return make(knowing_folder)


def ball(size):
    """A ball as it is rendered by views of the horizon and from below."""
    views = orbit(torch.tensor([90.0, 120.0]), torch.tensor([0.0, 130.0]), 3.2, 20.0, size, size)
    return views, render("ball", {"radius": torch.full((2,), RADIUS)}, camera.of_views(views), size)


def test_the_network_is_the_unet_with_another_output(prior_folder):
    unet = model.load(prior_folder).unet
    network = geometry.from_unet(unet, UNSHUFFLE)
    assert geometry.fits(network, unet, UNSHUFFLE) and not geometry.fits(unet, unet, UNSHUFFLE)
    theirs, ours = unet.state_dict(), network.state_dict()
    assert theirs.keys() == ours.keys()
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {"conv_out.weight", "conv_out.bias"}


@pytest.mark.parametrize("size", [64, 32, 96])
def test_depth_and_normals_lie_on_the_ball_that_was_rendered(size):
    views, seen = ball(64)
    found = geometry.Geometry(seen.relief, seen.normal.movedim(-1, 1), (seen.normal.norm(dim=-1) > 0).float())
    given = geometry.in_world(found, views, size)
    origin, direction = camera.rays(views.pose, views.fovy, size)
    points = origin[:, None, None] + given.depth[..., None] * direction
    inner = torch.nn.functional.max_pool2d(1 - given.coverage[:, None], 5, 1, 2)[:, 0] < 0.01  # away from the outline
    assert inner.float().mean() > 0.15
    torch.testing.assert_close(points[inner].norm(dim=-1), torch.full((int(inner.sum()),), RADIUS), atol=4e-3, rtol=0)
    outward = torch.nn.functional.normalize(points[inner], dim=-1)
    assert (given.normal.movedim(1, -1)[inner] * outward).sum(-1).min() > 0.99


def test_the_estimate_is_that_of_the_noisy_images_of_distillation(knowing):
    views, image, part = views_at(0, 90), image_of(2), part_of("guided", seed=3)
    control = Control(T_RANGE, 7.5)
    found = knowing.geometry(image, views, part, control)
    x = knowing.distiller.encode(image, part)
    t, noise, _ = knowing.distiller.draw(x, part, control, knowing.options)
    noisy = knowing.distiller.schedule.add_noise(x, noise, t)
    rays, vector = knowing.camera_conditions(views, 2)
    prior = model.load(knowing.folder)
    text = prior.encode_text([PROMPT] * 2)
    with torch.no_grad():
        expected = geometry.predict(prior.geometry, noisy, t, text, vector, rays, UNSHUFFLE)
    torch.testing.assert_close(found.depth, 3.2 - expected.relief, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.coverage, expected.coverage, rtol=1e-4, atol=1e-5)
    assert not found.depth.requires_grad and knowing.geometry_network in knowing.denoisers()


def test_geometry_is_known_with_the_network_and_the_camera_alone(prior_folder, knowing):
    assert knowing.knows_geometry and not make(prior_folder).knows_geometry
    assert not EmbeddedPrior(knowing.folder, told="words").knows_geometry
    with pytest.raises(NotImplementedError, match="guidance SD knows no geometry"):
        Guidance.geometry(make(prior_folder), image_of(1), views_at(0), part_of("guided"), Control(T_RANGE, 7.5))


def test_views_from_further_below_than_the_unet_knows_are_left_to_the_geometry_network(knowing, prior_folder):
    views = orbit(torch.tensor([80.0, 125.0, 110.0]), torch.tensor([0.0, 90.0, 180.0]), 3.2, 20.0, 64, 64)
    image = image_of(3)
    found = gradient(knowing, image, views)
    assert not found[1].any()
    torch.testing.assert_close(found[[0, 2]] * 3 / 2, gradient(knowing, image[[0, 2]], views[torch.tensor([0, 2])]))
    assert not gradient(knowing, image[1:2], views[1]).any() and gradient(make(prior_folder), image, views)[1].any()
    assert knowing.requirements().polar_range == camera.GEOMETRY_POLAR_RANGE
    assert make(prior_folder).requirements().polar_range == camera.POLAR_RANGE


def test_a_network_of_another_shape_is_refused(knowing, tmp_path):
    folder = shutil.copytree(knowing.folder, tmp_path / "other")
    shutil.copytree(folder / "unet", folder / "geometry", dirs_exist_ok=True)
    with pytest.raises(UserError, match="geometry does not fit the UNet; .* 320 channels out"):
        EmbeddedPrior(folder)


def test_the_training_set_gives_the_geometry_of_each_image_and_mirrors_it_with_the_image(shards):
    loader = dataset.Loader(shards, seed=1, geometry=True)
    batch = loader.batch(64)
    relief, normal, coverage = batch.geometry.split([1, 3, 1], 1)
    covered = coverage[:, 0] == 1
    assert (relief.abs() <= BOUND + 0.01).all() and relief[:, 0][covered].std() > 0.05
    assert (normal.movedim(1, -1)[covered].norm(dim=-1) - 1).abs().max() < 0.02
    plain = dataset.Loader(shards, seed=1)
    assert plain.batch(64).geometry is None and "relief" not in plain._pick(2)[0]  # older shards have none
    rows = {"relief": torch.arange(4.0).reshape(1, 2, 2), "normal": torch.zeros(1, 2, 2, 3, dtype=torch.int8)}
    rows["normal"][..., 0] = 127
    flipped = dataset._geometry(rows, torch.ones(1, 4, 4, 4), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    assert flipped[0, 0].tolist() == [[1.0, 0.0], [3.0, 2.0]] and (flipped[0, 1] == -1).all() and (flipped[0, 4] == 1).all()


def test_its_training_set_also_looks_from_below(tmp_path):
    shard = load_file(geometry_dataset.write_shard(3, tmp_path, 4))
    drawn = random_cameras(4, torch.Generator().manual_seed(3), camera.GEOMETRY_POLAR_RANGE)
    assert torch.equal(shard["polar"], drawn["polar"]) and shard["relief"].shape == (4, 64, 64)
    assert camera.GEOMETRY_POLAR_RANGE[1] > camera.POLAR_RANGE[1]


def test_the_errors_of_a_kind_are_those_of_its_network_and_none_for_the_truth(knowing):
    cameras, image, truth = diagnose_geometry.seen_images(recolored("mug", ("blue", "red")), 2)
    assert image.shape == (2, 3, 64, 64) and float(cameras["polar"].max()) <= 130
    assert diagnose_geometry.errors(truth, truth) == pytest.approx({"depth": 0.0, "normal": 0.0, "silhouette": 1.0}, abs=1.0)
    nearer = truth._replace(relief=truth.relief + 0.1)
    assert diagnose_geometry.errors(nearer, truth)["depth"] == pytest.approx(0.1)
    found = diagnose_geometry.kind_errors(model.load(knowing.folder), ["mug"], (100, 500), 2)
    assert list(found["mug"]) == [100, 500] and found["mug"][100]["depth"] > 0.01
    last = diagnose_geometry.table(found).splitlines()[-1]
    assert last.startswith(f"| **mean** | {found['mug'][100]['depth']:.3f} | {found['mug'][500]['depth']:.3f} |")


def test_a_prior_without_the_network_has_no_errors(prior_folder):
    with pytest.raises(UserError, match="no folder geometry/"):
        diagnose_geometry.kind_errors(model.load(prior_folder))
