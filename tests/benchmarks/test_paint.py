"""The benchmark of painting: its renderer, which texels it counts, and that a wrong texture or mesh is noticed."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import inverse_rendering, paint
from nerf.core.errors import UserError
from nerf.mesh.source import read_source

# Two parallel squares, one above the other, each with a half of the texture; the lower faces down.
PLATES = """v -1 0 -1
v 1 0 -1
v 1 0 1
v -1 0 1
v -1 0.5 -1
v 1 0.5 -1
v 1 0.5 1
v -1 0.5 1
vt 0 0
vt 0.5 0
vt 0.5 1
vt 0 1
vt 1 0
vt 1 1
f 1/1 2/2 3/3
f 1/1 3/3 4/4
f 5/2 7/6 6/5
f 5/2 8/3 7/6
"""
ABOVE, BELOW = (
    np.array([[1.0, 0, 0, 0], [0, 0, sign, 6 * sign], [0, -sign, 0, 0], [0, 0, 0, 1]]) for sign in (1.0, -1.0)
)  # cameras that look down and up


@pytest.fixture
def plates(tmp_path):
    """The two squares."""
    path = tmp_path / "plates.obj"
    path.write_text(PLATES)
    return read_source(path)


def halves(left, right, size=32):
    """A texture of two colours."""
    texture = np.zeros((size, size, 3))
    texture[:, : size // 2], texture[:, size // 2 :] = left, right
    return texture


def test_render_shows_the_texture_at_exact_points(plates):
    texture = np.zeros((64, 64, 3))
    texture[..., 0], texture[..., 1] = (np.arange(64) + 0.5) / 64, (63.5 - np.arange(64)[:, None]) / 64
    seen = inverse_rendering.render(
        paint.solid_of(plates), ABOVE, inverse_rendering.square_lens(32), paint.colors_of(plates, texture)
    )
    inside = seen.coverage > 0.99
    y, x = np.nonzero(inside)
    reach = 5.5 * np.tan(np.radians(inverse_rendering.FOV / 2))
    world = np.stack([(x + 0.5) / 32 * 2 - 1, (y + 0.5) / 32 * 2 - 1], 1) * reach  # x, z of the upper square
    far = np.abs(world).max(1) < 0.9
    expected = np.stack([0.5 + (world[:, 0] + 1) / 4, (world[:, 1] + 1) / 2], 1)
    assert inside.sum() > 100
    np.testing.assert_allclose(seen.color[inside][far][:, :2], expected[far], atol=0.01)


def test_only_texels_that_a_camera_shows_count(plates):
    uv, seen = paint.visible_texels(plates, np.stack([ABOVE]), 16)
    assert len(uv) == 256 and np.array_equal(seen, uv[:, 0] > 0.5)
    _, both = paint.visible_texels(plates, np.stack([ABOVE, BELOW]), 16)
    assert both.all()


def test_error_is_that_of_the_visible_half_alone(plates):
    truth = halves([0.2, 0.4, 0.6], [0.5, 0.5, 0.5])
    found = halves([1.0, 1.0, 1.0], [0.6, 0.5, 0.2])
    error = paint.texture_error(plates, found, truth, np.stack([ABOVE]))
    assert error.visible == pytest.approx(0.5)
    inner = 15 / 16  # the columns next to the other half are blends
    assert error.mean == pytest.approx((0.1 + 0.0 + 0.3) / 3, rel=1 - inner)
    assert paint.texture_error(plates, truth, truth, np.stack([ABOVE])).mean == 0


def test_a_moved_vertex_and_a_moved_uv_are_noticed(plates, tmp_path):
    path = tmp_path / "mesh.obj"
    path.write_text(PLATES)
    assert paint.unchanged(plates, path)
    for old, new in (
        ("v 1 0.5 1\n", "v 1 0.5000000000000001 1\n"),
        ("vt 0.5 1", "vt 0.5 1.0000000000000002"),
        ("f 1/1 2/2", "f 2/2 1/1"),
    ):
        path.write_text(PLATES.replace(old, new))
        assert not paint.unchanged(plates, path)


@pytest.mark.parametrize("pictures", ["unlit", "photographs"])
def test_views_are_a_data_set_with_plain_or_shaded_colours(plates, tmp_path, pictures):
    solid = paint.solid_of(plates)
    color_of = paint.colors_of(plates, halves([0, 0, 0], [1.0, 0.2, 0.2]))
    inverse_rendering.write_views(solid, tmp_path, pictures, np.stack([ABOVE, BELOW]), 16, color_of)
    assert len(json.loads((tmp_path / "transforms.json").read_text())["frames"]) == 2
    middle = np.asarray(Image.open(tmp_path / "000.png"))[8, 8]
    shade = 1.0 if pictures == "unlit" else 0.3 + 0.7 * (1 + 0.8 / np.linalg.norm(inverse_rendering.LIGHT)) / 2
    assert middle[3] == 255 and abs(int(middle[0]) - round(255 * shade)) <= 1


def test_sheet_has_a_row_for_each_texture(plates):
    colors = [paint.colors_of(plates, halves([1, 0, 0], [0, 1, 0])), paint.colors_of(plates, halves([0, 0, 1], [0, 0, 1]))]
    sheet = paint.sheet(paint.solid_of(plates), colors, size=16)
    assert sheet.shape[0] >= 32 and sheet.shape[1] >= 16 * len(paint.SHOWN)
    assert (sheet[: len(sheet) // 2, :, 2] == 255).any() and not np.array_equal(
        sheet[: len(sheet) // 2], sheet[len(sheet) // 2 :]
    )


def test_mesh_without_uv_is_refused(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.obj has no uv"):
        paint.main([str(tmp_path / "a.obj"), "--texture", str(tmp_path / "a.png")])
