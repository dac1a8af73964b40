"""Pictures, depth and normal maps as training reads them: formats, sizes, conventions, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.config.config import parse
from nerf.config.references import references
from nerf.core.errors import UserError
from nerf.data import image_prompt
from nerf.data.image_prompt import encode_normal, image_conditions, image_prompts


def prompts(path, *words):
    return image_prompts(references(parse(["--image", str(path), *words])))


def disc(height=24, width=24, radius=8):
    """RGBA uint8 of an orange disc in the middle."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(rows - height / 2, columns - width / 2) < radius
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[inside] = (240, 120, 40, 255)
    return rgba


def saved(folder, array, name="x_rgba.png", mode=None):
    Image.fromarray(array, mode).save(folder / name)
    return folder / name


def test_a_picture_keeps_its_pixels_and_camera(tmp_path):
    path = saved(tmp_path, disc())
    (one,) = prompts(path, "--ref_azimuths", "30", "--ref_radii", "2")
    condition = one.condition
    assert condition.image.shape == (4, 24, 24) and (condition.azimuth, condition.radius, condition.polar) == (30, 2, 90)
    torch.testing.assert_close(condition.image[:, 12, 12], torch.tensor([240.0, 120, 40, 255]) / 255)
    assert condition.image[:, 0, 0].tolist() == [0, 0, 0, 0] and one.depth is None and one.normal is None
    assert torch.equal(image_conditions(references(parse(["--image", str(path)])))[0].image, condition.image)


@pytest.mark.parametrize(("height", "width"), [(16, 40), (41, 18)])
def test_a_picture_that_is_not_square_is_padded_around_its_middle(tmp_path, height, width):
    (one,) = prompts(saved(tmp_path, disc(height, width, 6)))
    side = max(height, width)
    alpha = one.condition.image[3]
    rows, columns = (torch.arange(side) + 0.5,) * 2
    assert alpha.shape == (side, side)
    for centre in ((alpha.sum(1) * rows).sum() / alpha.sum(), (alpha.sum(0) * columns).sum() / alpha.sum()):
        assert abs(centre - side / 2) <= 0.5  # padding by an odd number of pixels is half a pixel off


def test_a_large_picture_is_scaled_without_its_hidden_colours(tmp_path, monkeypatch):
    monkeypatch.setattr(image_prompt, "MAX_SIDE", 12)
    array = disc(48, 48, 16)
    array[array[..., 3] == 0] = (0, 255, 0, 0)  # green that no one sees
    (one,) = prompts(saved(tmp_path, array))
    image = one.condition.image
    assert image.shape == (4, 12, 12) and 0 < float(image[3].max()) <= 1
    seen = image[:3, image[3] > 0.01]
    torch.testing.assert_close(seen, (torch.tensor([240.0, 120, 40]) / 255)[:, None].expand_as(seen), atol=1e-4, rtol=0)


@pytest.mark.parametrize("bits", [8, 16])
def test_depth_of_8_and_16_bits_means_the_same_and_16_keeps_its_levels(tmp_path, bits):
    path = saved(tmp_path, disc())
    ramp = np.linspace(0, 1, 24 * 24).reshape(24, 24)
    levels = np.uint16(np.round(ramp * 65535)) if bits == 16 else np.uint8(np.round(ramp * 255))
    saved(tmp_path, levels, "x_depth.png")
    (one,) = prompts(path)
    inside = one.condition.image[3] > 0.5
    error = (one.depth - torch.tensor(ramp, dtype=torch.float32))[inside].abs().max()
    assert error < (2e-5 if bits == 16 else 3e-3) and float(one.depth[0, 0]) == 0


def test_normals_are_read_in_camera_axes_and_written_as_they_are_read(tmp_path):
    normal = torch.nn.functional.normalize(torch.randn(3, 24, 24, generator=torch.manual_seed(0)), dim=0)
    array = (encode_normal(normal) * 255).round().byte().permute(1, 2, 0).numpy()
    path = saved(tmp_path, np.full((24, 24, 4), 255, np.uint8) * disc(radius=10).astype(bool))
    saved(tmp_path, array, "x_normal.png")
    (one,) = prompts(path)
    inside = one.condition.image[3] > 0.5
    assert ((one.normal * normal).sum(0)[inside] > 0.999).all()
    assert (one.normal[:, ~inside] == 0).all()


def test_the_normals_of_stable_dreamfusion_face_the_camera_and_follow_the_shape(test_data):
    """On its pictures: towards the camera on the whole, to the right on the right, up at the top."""
    for name in ("hamburger", "teddy", "cactus"):
        (one,) = prompts(test_data / "image_prompts" / f"{name}_rgba.png")
        inside = one.condition.image[3] > 0.9
        rows, columns = inside.nonzero(as_tuple=True)
        normal = one.normal[:, inside]
        assert normal[2].mean() > 0.6
        for axis, place in ((0, columns), (1, -rows)):
            slope = torch.corrcoef(torch.stack([normal[axis], place.float()]))[0, 1]
            assert slope > (0.2 if (name, axis) == ("teddy", 0) else 0.25), (name, axis)


def test_depth_of_stable_dreamfusion_is_larger_where_it_is_farther(test_data):
    """The cactus is round: its outline is farther than its middle."""
    (one,) = prompts(test_data / "image_prompts" / "cactus_rgba.png")
    assert one.depth[220, 128] < one.depth[220, 112]


def broken(folder, case):
    """A picture, or files beside it, that cannot be used."""
    array = disc()
    if case == "transparent":
        array[..., 3] = 0
    if case == "opaque":
        array[..., 3] = 255
    path = saved(folder, array)
    if case == "no picture":
        path.write_text("hello")
    if case == "cut":
        path.write_bytes(path.read_bytes()[:60])
    if case == "depth size":
        saved(folder, np.zeros((20, 24), np.uint8), "x_depth.png")
    if case == "normal":
        (folder / "x_normal.png").write_bytes(b"\x89PNG")
    return path


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("transparent", "is transparent everywhere.*python preprocess_image.py"),
        ("opaque", "has no transparent background.*python preprocess_image.py"),
        ("no picture", "not a picture in one of the formats"),
        ("cut", "cannot be read"),
        ("depth size", "x_depth.png must have the size of its picture, 24x24 pixels, got 24x20"),
        ("normal", "x_normal.png cannot be read"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_with_what_to_do(tmp_path, case, sentence):
    with pytest.raises(UserError, match=sentence):
        prompts(broken(tmp_path, case))


@pytest.mark.parametrize("mode", ["P", "LA"])
def test_palettes_and_grey_with_alpha_are_read(tmp_path, mode):
    path = tmp_path / "x_rgba.png"
    Image.fromarray(disc()).convert(mode).save(path)
    (one,) = prompts(path)
    assert abs(float((one.condition.image[3] > 0.5).float().sum()) - (disc()[..., 3] > 0).sum()) < 5


def test_the_pictures_of_stable_dreamfusion_are_read(test_data, tmp_path):
    shutil.copy(test_data / "image_prompts" / "hamburger_rgba.png", tmp_path / "hamburger_rgba.png")
    (alone,) = prompts(tmp_path / "hamburger_rgba.png")
    (whole,) = prompts(test_data / "image_prompts" / "hamburger_rgba.png")
    assert alone.depth is None and whole.depth.shape == (256, 256) and whole.normal.shape == (3, 256, 256)
    assert torch.equal(alone.condition.image, whole.condition.image)
