"""Zero123 as guidance, on tiny random models in each published layout."""

import math
import shutil

import pytest
import torch

from guidance.base import CameraRequirements, Conditions, ImageCondition
from guidance.diffusion import clip_image, zero123_parts
from guidance.distillation import timestep_weight
from guidance.zero123_utils import Options, Zero123, angles_to, reference_weights, relative_cameras, scale_gradient
from nerf.core.cameras import look_at, orbit, pose_from
from nerf.core.errors import UserError
from nerf.core.streams import Stream
from nerf.core.structs import Control
from tests.guidance.camera_models import (
    FOLDERS,
    picture,
    tiny_tensors,
    with_averages,
    write_lightning,
    write_zero123_folder,
)
from tests.guidance.models import T_RANGE, gradient, image_of, replace_denoiser, views_at
from tests.helpers.parts import part_of

LAYOUTS = ("zero123 (a)", "zero123 (b)")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny original checkpoint."""
    path = tmp_path_factory.mktemp("zero123") / "zero123-xl.ckpt"
    return write_lightning(path, with_averages(tiny_tensors("zero123")))


@pytest.fixture(scope="module")
def original(checkpoint):
    """The model of the checkpoint, which takes 256 x 256 pixels."""
    return prepared(Zero123(checkpoint))


@pytest.fixture(scope="module")
def folders(original, tmp_path_factory):
    """The same weights as a folder of each layout."""
    made = {}
    for layout in LAYOUTS:
        made[layout] = tmp_path_factory.mktemp("zero123") / layout
        write_zero123_folder(made[layout], layout, original.parts)
    return made


@pytest.fixture(scope="module")
def small(original, tmp_path_factory):
    """A folder of the same weights for 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("zero123") / "small"
    write_zero123_folder(folder, "zero123 (a)", original.parts, grid=8)
    return folder


@pytest.fixture(scope="module")
def model(small):
    return prepared(Zero123(small))


def prepared(model, *images):
    model.prepare(Conditions(images=images or (picture(),)))
    return model


def rotation_about_y(degrees):
    """A turn of the world about +Y that takes azimuth 0 to azimuth ``degrees``."""
    turn = math.radians(degrees)
    matrix = torch.eye(4)
    matrix[0, 0], matrix[0, 2], matrix[2, 0], matrix[2, 2] = math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)
    return matrix


# ---- layouts ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_gradient(original, folders, layout):
    image, views = image_of(1), views_at(100)
    expected = gradient(original, image, views)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient(prepared(Zero123(folders[layout])), image, views), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_file_lists_are_complete(folders, layout):
    assert zero123_parts.missing(FOLDERS[layout]["files"]) is None
    made = {path.relative_to(folders[layout]).as_posix() for path in folders[layout].rglob("*") if path.is_file()}
    assert made == set(FOLDERS[layout]["files"])


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder", "scheduler", "cc_projection"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(folders, tmp_path, part):
    folder = shutil.copytree(folders["zero123 (b)"], tmp_path / "broken")
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=f"lacks .*{part}"):
        Zero123(folder)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3)}, tmp_path / "sd.ckpt")
    with pytest.raises(UserError, match="lacks the tensor cc_projection.weight; give a folder or file of Zero123"):
        Zero123(tmp_path / "sd.ckpt")


def test_a_projection_of_another_camera_is_refused(tmp_path):
    tensors = tiny_tensors("zero123") | {"cc_projection.weight": torch.zeros(16, 22)}
    torch.save(tensors, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="maps 22 to 16 numbers"):
        Zero123(tmp_path / "other.ckpt")


def test_the_image_encoder_is_kept_only_while_pictures_are_encoded(model):
    import gc

    from transformers import CLIPVisionModelWithProjection

    assert not any(
        isinstance(found, CLIPVisionModelWithProjection) for found in gc.get_objects() if isinstance(found, torch.nn.Module)
    )


# ---- what the denoiser is told ----


def test_camera_is_the_relative_pose_in_radians():
    views = orbit(torch.tensor([60.0, 90.0]), torch.tensor([100.0, -170.0]), torch.tensor([3.0, 3.5]), 20.0, 8, 8)
    cameras = relative_cameras(views, picture(polar=80.0, azimuth=40.0, radius=3.2), absolute=False)
    radians = torch.deg2rad(torch.tensor([[-20.0, 60.0], [10.0, 150.0]]))
    expected = torch.stack([radians[:, 0], radians[:, 1].sin(), radians[:, 1].cos(), torch.tensor([-0.2, 0.3])], -1)
    torch.testing.assert_close(cameras, expected)


def test_stable_zero123_is_told_the_reference_s_own_polar_angle():
    views, reference = views_at(30, 120), picture(polar=80.0)
    relative, absolute = (relative_cameras(views, reference, absolute) for absolute in (False, True))
    assert torch.equal(relative[:, :3], absolute[:, :3])
    torch.testing.assert_close(absolute[:, 3], torch.deg2rad(torch.tensor([80.0, 80.0])))


def blender_camera(position):
    """[polar, azimuth, distance] of a camera as the renders that Zero123 was trained on give it: z up, atan2(y, x)."""
    x, y, z = position
    return torch.stack([torch.atan2(torch.hypot(x, y), z), torch.atan2(y, x), position.norm()])


@pytest.mark.parametrize("mirrored", [False, True])
def test_signs_are_those_of_the_training_renders_and_others_fail(mirrored):
    # Our world turned into Blender's by a rotation, which leaves every picture as it is: +Y up becomes +Z up.
    to_z_up = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    assert torch.det(to_z_up) == 1
    reference = picture(polar=85.0, azimuth=20.0)
    front = orbit(85.0, torch.tensor([20.0]), 3.2, 20.0, 8, 8)
    views = orbit(70.0, torch.tensor([65.0]), 3.0, 20.0, 8, 8)
    there, here = (blender_camera(to_z_up @ v.pose[0, :3, 3]) for v in (views, front))
    d_polar, d_azimuth, d_radius = there - here
    expected = torch.stack([d_polar, d_azimuth.sin(), d_azimuth.cos(), d_radius])
    ours = relative_cameras(views, reference, absolute=False)[0]
    if mirrored:  # the sign of stable-dreamfusion, whose cameras are mirror images
        ours[1] = -ours[1]
    assert torch.allclose(ours, expected, atol=1e-5) != mirrored


def test_a_camera_further_to_its_own_right_has_a_positive_sine():
    start = orbit(90.0, torch.tensor([0.0]), 3.2, 20.0, 8, 8)
    right = look_at(start.pose[:, :3, 3] + 0.3 * start.pose[:, :3, 0])
    moved = torch.rad2deg(torch.atan2(right[0, 0, 3], right[0, 2, 3]))
    views = orbit(90.0, moved[None], 3.2, 20.0, 8, 8)
    assert relative_cameras(views, picture(), absolute=False)[0, 1] > 0.05


def test_only_the_difference_of_azimuths_matters(model):
    image = image_of(1)
    here = gradient(prepared(model, picture(azimuth=0.0)), image, views_at(50))
    there = gradient(prepared(model, picture(azimuth=-130.0)), image, views_at(-80))
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
    prepared(model)


def test_condition_is_the_projected_embedding_and_the_unscaled_latent_mode(model):
    views, reference = views_at(40), picture(seed=3)
    prepared(model, reference)
    tokens, latents = model.condition(views)
    white = clip_image.over(reference.image, 1.0)
    big = torch.nn.functional.interpolate(white, (64, 64), mode="bilinear").clamp(0, 1)
    mean = model.vae.encode(2 * big - 1).latent_dist.mean
    torch.testing.assert_close(latents[0], mean)
    embedding = model.parts.image_encoder()(clip_image.preprocess(big, 28, align_corners=True)).image_embeds
    joined = torch.cat([embedding, relative_cameras(views, reference, False)], 1)
    torch.testing.assert_close(tokens[0, :, 0], model.parts.projection(joined))
    prepared(model)


def test_pictures_are_seen_over_white(model):
    reference = picture()
    hidden = ImageCondition(torch.cat([reference.image[:3] * (reference.image[3:] > 0), reference.image[3:]]))
    tokens = [prepared(model, image).condition(views_at(0))[0] for image in (reference, hidden)]
    assert torch.equal(*tokens)
    prepared(model)


def test_unconditional_prediction_is_given_zeros(model):
    views, noisy, t = views_at(0, 90), torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    with torch.no_grad():
        out = model.denoiser(views)(noisy, t)
        alone = model.unet(
            torch.cat([noisy, torch.zeros_like(noisy)], 1), t, encoder_hidden_states=torch.zeros(2, 1, 16)
        ).sample
    torch.testing.assert_close(out[0], alone, rtol=1e-4, atol=1e-4)
    assert out.shape == (2, 2, 4, 8, 8) and not torch.allclose(out[0], out[1], atol=1e-3)


# ---- the gradient ----


def test_latent_gradient_equals_the_weighted_noise_residual(model):
    part, views, image = part_of("guided", space="latent", seed=5), views_at(30, 100), image_of(2, 8, channels=4)
    t = torch.randint(20, 981, (2,), generator=part.random.generator(Stream.DIFFUSION_TIME))
    noise = torch.randn(2, 4, 8, 8, generator=part.random.generator(Stream.DIFFUSION_NOISE))
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[t].reshape(2, 1, 1, 1)
    noisy = abar.sqrt() * (2 * image - 1) + (1 - abar).sqrt() * noise
    with torch.no_grad():
        unconditional, conditional = model.denoiser(views)(noisy, t)
    angles = angles_to(views, model.references)
    factor = (angles[:, 0] / 180).reshape(2, 1, 1, 1)
    expected = factor * (1 - abar) * (unconditional + 5 * (conditional - unconditional) - noise)  # dx/d image 2, mean over 2
    torch.testing.assert_close(gradient(model, image, views, part), expected, rtol=2e-3, atol=2e-3)


def test_gradient_reaches_every_pixel_through_the_vae(model):
    grad = gradient(model, image_of(1, 48), views_at(90, size=48))
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


def test_same_part_gives_the_same_loss(model):
    first, second = (model.loss(image_of(2), views_at(0, 90), part_of("guided", seed=3), Control(T_RANGE)) for _ in range(2))
    assert torch.equal(first.loss, second.loss)


def test_scale_of_the_step_replaces_that_of_the_options(small, model):
    other = Zero123(small, options=Options(guidance_scale=2.0))
    prepared(other)
    image, views = image_of(1), views_at(90)
    assert torch.equal(gradient(model, image, views, scale=2.0), gradient(other, image, views))
    assert not torch.allclose(gradient(model, image, views), gradient(other, image, views))


def test_scale_one_needs_no_unconditional_prediction(model):
    seen = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    near, exact = (gradient(model, image_of(1), views_at(90), scale=scale) for scale in (1.00001, 1.0))
    hook.remove()
    assert seen == [2, 1]
    torch.testing.assert_close(near, exact, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("grad_scale", "expected"), [("angle", [0.0, 0.5, 1.0]), ("None", [1.0, 1.0, 1.0])])
def test_gradient_grows_with_the_angle_to_the_reference(model, grad_scale, expected):
    views = orbit(90.0, torch.tensor([0.0, 90.0, 180.0]), 3.2, 20.0, 8, 8)
    torch.testing.assert_close(model.view_weights(views, Options(grad_scale=grad_scale)), torch.tensor(expected))


def test_grad_scale_multiplies_the_gradient_and_not_the_image(model, monkeypatch):
    replace_denoiser(monkeypatch, model, lambda x, t: torch.zeros_like(x))
    image, views = image_of(2), orbit(90.0, torch.tensor([60.0, 180.0]), 3.2, 20.0, 64, 64)
    scaled = gradient(model, image, views)
    plain = gradient(model, image, views, options=Options(grad_scale="None"))
    torch.testing.assert_close(scaled, plain * torch.tensor([1 / 3, 1.0]).reshape(2, 1, 1, 1), rtol=1e-4, atol=1e-6)
    assert torch.equal(scale_gradient(image, torch.tensor([0.0, 7.0])), image)


def test_another_grad_scale_is_refused():
    with pytest.raises(ValueError, match="--zero123_grad_scale must be one of angle, None, got 'none'"):
        Options(grad_scale="none")


@pytest.mark.parametrize("weighting", ["uniform", "x0"])
def test_weighting_of_the_options_scales_the_gradient(model, weighting):
    alpha, sigma = model.distiller.schedule.levels(torch.tensor([500]), torch.zeros(1, 1))
    factor = (timestep_weight(weighting, alpha, sigma) / timestep_weight("sds", alpha, sigma)).item()
    pair = [
        gradient(model, image_of(1), views_at(90), t_range=(0.5, 0.5), options=Options(weighting=w)) for w in ("sds", weighting)
    ]
    torch.testing.assert_close(pair[1], factor * pair[0], rtol=1e-3, atol=1e-5)


# ---- several references ----


def test_angles_are_those_between_directions():
    views = orbit(torch.tensor([90.0, 0.0, 60.0]), torch.tensor([0.0, 33.0, 0.0]), 3.2, 20.0, 8, 8)
    angles = angles_to(views, (picture(), picture(azimuth=90.0), picture(azimuth=180.0)))
    expected = torch.tensor([[0.0, 90.0, 180.0], [90.0, 90.0, 90.0], [30.0, 90.0, 150.0]])
    torch.testing.assert_close(angles, expected, atol=1e-3, rtol=0)


def test_near_references_count_more_and_far_ones_not_at_all():
    shares = reference_weights(torch.tensor([[10.0, 20.0, 150.0]]), torch.ones(3))
    torch.testing.assert_close(shares, torch.tensor([[2 / 3, 1 / 3, 0.0]]))


def test_a_view_at_a_reference_takes_that_one_alone():
    assert reference_weights(torch.tensor([[0.0, 90.0]]), torch.ones(2)).tolist() == [[1.0, 0.0]]


def test_own_weights_multiply_and_zero_silences():
    torch.testing.assert_close(
        reference_weights(torch.tensor([[10.0, 10.0]]), torch.tensor([1.0, 0.25])), torch.tensor([[0.8, 0.2]])
    )
    assert reference_weights(torch.tensor([[10.0, 10.0]]), torch.tensor([1.0, 0.05])).tolist() == [[1.0, 0.0]]
    assert reference_weights(torch.tensor([[1.0, 90.0]]), torch.tensor([0.0, 1.0])).tolist() == [[0.0, 1.0]]


def test_weights_of_references_sum_to_one_for_every_view():
    angles = 180 * torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    shares = reference_weights(angles, torch.tensor([1.0, 0.5, 2.0, 0.3]))
    torch.testing.assert_close(shares.sum(-1), torch.ones(50))
    assert (shares >= 0).all()


def test_two_equal_references_are_one(model):
    image, views = image_of(2), views_at(60, 170)
    options = Options(grad_scale="None")
    once = gradient(prepared(model, picture(seed=2)), image, views, options=options)
    twice = gradient(prepared(model, picture(seed=2), picture(seed=2, weight=3.0)), image, views, options=options)
    torch.testing.assert_close(twice, once, rtol=1e-3, atol=1e-3)
    prepared(model)


def test_references_are_evaluated_in_one_batch_and_mixed_by_view(model):
    prepared(model, picture(seed=1), picture(azimuth=180.0, seed=2))
    views, noisy, t = views_at(0, 180), torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    seen = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        out = model.denoiser(views)(noisy, t)
    hook.remove()
    mixed = model.mixer(views, 3.0, Options())(out)
    assert seen == [6] and out.shape[:2] == (3, 2)
    # Each view is at 15 degrees from one reference and 165 from the other, which is less than a tenth.
    for view, reference in ((0, 1), (1, 2)):
        torch.testing.assert_close(mixed[view], out[0, view] + 3 * (out[reference, view] - out[0, view]))
    prepared(model)


# ---- what is refused ----


def test_pictures_are_needed_and_must_be_square(model):
    with pytest.raises(UserError, match="needs a picture; give --image"):
        model.prepare(Conditions("a hamburger"))
    with pytest.raises(UserError, match="takes square pictures, and picture 2 has 40 x 32 pixels"):
        prepared(model, picture(), ImageCondition(torch.rand(4, 32, 40)))
    with pytest.raises(UserError, match="needs a picture"):
        prepared(model, picture(weight=0.0))
    prepared(model)


def test_oblong_images_are_refused(model):
    with pytest.raises(ValueError, match="takes square images"):
        model.loss(torch.rand(1, 3, 16, 32), views_at(0), part_of("guided"), Control(T_RANGE))


def test_loss_before_prepare_is_our_own_mistake(small):
    with pytest.raises(RuntimeError, match="prepare"):
        Zero123(small).loss(image_of(1), views_at(0), part_of("guided"), Control(T_RANGE))


def test_it_asks_for_square_views_alone(model):
    assert model.requirements() == CameraRequirements(square=True)


# ---- further ----


def test_debug_images_show_what_the_model_saw(model):
    debug = model.loss(image_of(2), views_at(0, 90), part_of("guided"), Control(T_RANGE), debug=True).debug
    assert {name: tuple(image.shape) for name, image in debug.items()} == dict.fromkeys(
        ("image", "noisy", "x0"), (2, 3, 64, 64)
    )


def test_samples_are_images_of_the_views(model):
    images = model.sample(views_at(0, 90), 2, torch.Generator().manual_seed(0), steps=2, scale=3.0)
    assert images.shape == (2, 3, 64, 64) and 0 <= images.min() and images.max() <= 1


@pytest.mark.parametrize("vram_O", [False, True])
def test_gradient_is_the_same_on_every_device(small, model, device, vram_O):
    other = prepared(Zero123(small, device, vram_O=vram_O))
    image, views = image_of(1).to(device), views_at(90).to(device)
    torch.testing.assert_close(
        gradient(other, image, views).cpu(), gradient(model, image.cpu(), views.to("cpu")), rtol=1e-2, atol=1e-2
    )


def test_half_precision_weights_give_nearly_the_same_gradient(small, model):
    other = prepared(Zero123(small, dtype=torch.bfloat16))
    pair = [gradient(m, image_of(1), views_at(90)).flatten() for m in (model, other)]
    assert torch.nn.functional.cosine_similarity(*pair, dim=0) > 0.98


def test_a_turn_of_the_whole_world_changes_nothing(model):
    turn = rotation_about_y(40.0)
    pose = turn @ views_at(50).pose
    assert torch.allclose(pose, views_at(90).pose, atol=1e-5)  # the matrix is the turn that azimuths count
    assert torch.allclose(pose_from(pose[:, :3, :3], pose[:, :3, 3]), pose)
