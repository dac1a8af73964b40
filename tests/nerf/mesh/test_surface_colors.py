"""The colours that a mesh file has: textures, vertices, materials, and files that say none."""

import numpy as np
import pytest
from PIL import Image

from nerf.mesh.surface_colors import lookup, sample_colors, to_linear, to_srgb

QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACES = "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"


def textured(tmp_path):
    """A square whose red grows with x and whose green grows with y."""
    ramp = np.zeros((64, 64, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(64) * 4
    ramp[..., 1] = np.arange(64)[::-1, None] * 4
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd ramp.png\n")
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\nusemtl m\n{QUAD}{FACES}")
    return tmp_path / "a.obj"


def test_texture_is_read_at_the_points(tmp_path):
    points, colors = sample_colors(textured(tmp_path), 500)
    inside = (points[:, :2] > 0.02).all(1) & (points[:, :2] < 0.98).all(1)  # beyond it the texture repeats
    assert np.abs(colors - np.concatenate([points[:, :2], 0 * points[:, :1]], 1))[inside].max() < 0.02


def test_points_are_spread_evenly_over_the_area(tmp_path):
    points, _ = sample_colors(textured(tmp_path), 4000)
    np.testing.assert_allclose(np.histogram2d(points[:, 0], points[:, 1], 2)[0], 1000, rtol=0.15)


def test_colours_of_vertices_are_interpolated(tmp_path):
    import trimesh

    colors = [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]]
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], vertex_colors=colors, process=False)
    mesh.export(tmp_path / "a.ply")
    points, found = sample_colors(tmp_path / "a.ply", 100)
    expected = np.stack([1 - points[:, 0] - points[:, 1], points[:, 0], points[:, 1]], 1)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_colour_of_a_material_without_a_texture(tmp_path):
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 1 0 0.2\n")
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\nusemtl m\n{QUAD}{FACES}")
    np.testing.assert_allclose(sample_colors(tmp_path / "a.obj", 5)[1], [[1, 0, 0.2]] * 5, atol=0.01)


@pytest.mark.parametrize("kind", ["uv", "bare", "glb", "ply"])
def test_file_without_colours_has_none(tmp_path, kind):
    import trimesh

    if kind in ("glb", "ply"):
        trimesh.creation.box().export(tmp_path / f"a.{kind}")
        path = tmp_path / f"a.{kind}"
    else:
        path = tmp_path / "a.obj"
        path.write_text(QUAD + (FACES if kind == "uv" else "f 1 2 3\n"))
    assert sample_colors(path, 5) is None


def tinted(path, vertex=None, factor=None, texture=None):
    """A GLB of one triangle with linear vertex colours, a factor of its material and a texture of one sRGB colour."""
    import trimesh

    solid = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    if texture is not None:
        picture = Image.fromarray(np.full((8, 8, 3), texture, dtype=np.uint8))
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
        solid.visual = trimesh.visual.TextureVisuals(uv=np.full((3, 2), 0.5), material=material)
    elif vertex is not None:
        solid.visual = trimesh.visual.ColorVisuals(solid, vertex_colors=np.full((3, 4), [*vertex, 255], dtype=np.uint8))

    def stamp(tree):
        if factor is None:
            return
        tree.setdefault("materials", [{}])
        tree["materials"][0].setdefault("pbrMetallicRoughness", {})["baseColorFactor"] = [*factor, 1]
        tree["meshes"][0]["primitives"][0]["material"] = 0

    path.write_bytes(trimesh.exchange.gltf.export_glb(trimesh.Scene(solid), tree_postprocessor=stamp))
    return path


@pytest.mark.parametrize(
    ("given", "linear"),
    [
        ({"factor": (0.2, 0.5, 1.0)}, (0.2, 0.5, 1.0)),
        ({"vertex": (51, 102, 204)}, (0.2, 0.4, 0.8)),
        ({"vertex": (51, 102, 204), "factor": (1, 1, 1)}, (0.2, 0.4, 0.8)),  # as Blender writes them, beside a material
        ({"vertex": (51, 102, 204), "factor": (0.5, 1, 0.25)}, (0.1, 0.4, 0.2)),
        ({"texture": (255, 255, 188), "factor": (0.2, 1, 1)}, (0.2, 1.0, 0.503)),
    ],
)
def test_colours_of_a_gltf_are_multiplied_in_linear_light(tmp_path, given, linear):
    found = sample_colors(tinted(tmp_path / "a.glb", **given), 5)[1]
    np.testing.assert_allclose(to_linear(found), [linear] * 5, atol=0.004)


def test_white_vertices_are_no_colour(tmp_path):
    assert sample_colors(tinted(tmp_path / "a.glb", vertex=(255, 255, 255), factor=(1, 1, 1)), 5) is None


def test_linear_light_and_srgb_are_inverses():
    values = np.linspace(0, 1, 101)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=1e-7)
    assert to_linear(np.array(0.5)) == pytest.approx(0.2140, abs=1e-4)


def test_lookup_is_bilinear_and_repeats():
    texture = np.array([[[0.0], [1.0]], [[2.0], [3.0]]])
    uv = np.array([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5], [1.25, -0.25], [0.0, 0.75]])
    np.testing.assert_allclose(lookup(texture, uv)[:, 0], [0, 3, 1.5, 0, 0.5])
