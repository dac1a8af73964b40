"""The export pipeline: files that an independent reader renders like the field they were made from."""

import json
import struct
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.config.config import Config
from nerf.config.groups import OutputConfig
from nerf.config.mesh import MeshConfig
from nerf.core.cameras import orbit, view_rays
from nerf.core.errors import ExportError
from nerf.core.structs import FieldOutput, LevelSet, RenderSettings
from nerf.fields.base import DensityField
from nerf.mesh import export
from nerf.mesh.export import export_level_set, export_surface
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.io import Material
from nerf.mesh.mesh import Mesh
from nerf.render.background import ConstantBackground
from nerf.renderer import NeRFRenderer, make_volume_path
from tests.helpers import solids
from tests.helpers.glb_render import (
    SAME_COLOR,
    SAME_SILHOUETTE,
    agreement,
    can_cast_rays,
    color_error,
    load_single,
    render_glb,
    silhouette_iou,
)
from tests.helpers.sound import assert_sound

SIX = (torch.tensor([90.0, 90.0, 90.0, 70.0, 20.0, 160.0]), torch.tensor([0.0, 80.0, 180.0, -35.0, 10.0, 45.0]))


looks = pytest.mark.skipif(not can_cast_rays(), reason="trimesh casts rays with embreex or rtree; neither is installed")


def painted(points):
    """A colour that is different everywhere, smooth, in [0.1, 0.9]."""
    return 0.5 + 0.4 * points.clamp(-1, 1)


BALL = solids.Solid(partial(solids.ball, centre=(0.1, 0.0, 0.0), radius=0.5), painted)


def flags(**changes):
    """Export options as the flags give them."""
    return ExportOptions.from_config(OutputConfig(**changes))


SMALL = flags(mcubes_resolution=32, decimate_target=1500, texture_size=128)


def quick(solid, folder, options=SMALL, **more):
    """Export the density of a solid."""
    return export_level_set(solid.as_density(), solid.albedo, 1.0, folder, options, **more)


@pytest.fixture(scope="module")
def lettered(tmp_path_factory):
    """The lettered block, the report of its export, and the lines that were logged."""
    solid, folder, lines = solids.lettered(), tmp_path_factory.mktemp("mesh"), []
    options = flags(mcubes_resolution=96, decimate_target=12_000, texture_size=512, mesh_ply=True)
    report = quick(solid, folder, options, report=lines.append, metadata={"prompt": "a block", "seed": 3})
    return solid, report, lines


@pytest.fixture(scope="module")
def lettered_views(lettered):
    """The block from six sides: views, the field's own ray cast (colour and mask), and the render of the GLB."""
    views = orbit(*SIX, 2.2, 40.0, 96, 80)
    return views, *solids.ray_cast(lettered[0], views), render_glb(lettered[1].files["glb"], views)


def glb_json(path):
    """The JSON chunk of a GLB, and its binary chunk."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def accessor(tree, binary, index):
    """The float32 accessor of a glTF as an array."""
    a = tree["accessors"][index]
    view = tree["bufferViews"][a["bufferView"]]
    start = view.get("byteOffset", 0) + a.get("byteOffset", 0)
    width = {"VEC2": 2, "VEC3": 3, "VEC4": 4}[a["type"]]
    return np.frombuffer(binary, "<f4", a["count"] * width, start).reshape(-1, width)


@looks
@pytest.mark.parametrize("view", range(6))
def test_glb_has_the_silhouette_of_the_field_from_every_side(lettered_views, view):
    _, _, mask, picture = lettered_views
    assert silhouette_iou(mask[view], picture.mask[view]) >= 0.98


@looks
@pytest.mark.parametrize("view", range(6))
def test_glb_has_the_colours_of_the_field_from_every_side(lettered_views, view):
    _, color, mask, picture = lettered_views
    both = mask[view] & picture.mask[view]
    assert color_error(color[view], picture.color[view], both) <= 0.03


@looks
def test_letter_reads_the_same_in_field_and_glb_and_a_mirror_image_would_be_noticed(lettered_views):
    _, color, _, picture = lettered_views
    front = np.ones(color.shape[1:3], dtype=bool)
    straight = color_error(color[0], picture.color[0], front)
    mirrored = color_error(color[0][:, ::-1], picture.color[0], front)
    assert straight < 0.03 and mirrored > 5 * straight and mirrored > 0.08


def test_front_of_the_glb_is_plus_z_and_its_right_is_plus_x(lettered):
    mesh = load_single(lettered[1].files["glb"])
    letter = mesh.vertices[mesh.vertices[:, 2] > 0.3]
    assert letter[:, 1].max() > 0.3 and mesh.vertices[:, 0].max() == pytest.approx(0.66, abs=0.01)  # the knob
    assert mesh.vertices[:, 2].max() == pytest.approx(0.33, abs=0.01)


class SolidField(DensityField):
    """A solid as a field that the program's own renderer renders."""

    def __init__(self, solid):
        super().__init__()
        self.solid, self.bound = solid, 1.0

    def density(self, positions, max_level=1.0):
        """Density [M]."""
        return self.solid.density(positions)

    def occupancy(self, positions, dt, reach=0.0):
        """Opaque in a solid that is thicker by an occupancy cell, whose own thin parts are found by luck."""
        return (self.solid.distance(positions) < 0.055).float()

    def query(self, points, settings):
        """Density and albedo."""
        return FieldOutput(density=self.density(points.positions), albedo=self.solid.albedo(points.positions))


def own_render(solid, views, cuda_ray, max_steps=512):
    """Colour [B, H, W, 3], mask and depth [B, H, W] of a solid, by the program's own renderer."""
    config = Config()
    steps = replace(config.render, cuda_ray=cuda_ray, max_steps=max_steps, num_steps=96, upsample_steps=48, grid_size=64)
    field = SolidField(solid)
    path = make_volume_path(replace(config, render=steps), field)
    model = NeRFRenderer(field, ConstantBackground(), path)
    model.update_occupancy(torch.Generator().manual_seed(0))
    out = model.render(view_rays(views), RenderSettings(source="eval", training=False, background=torch.ones(3)))
    depth = (out.depth / out.opacity.clamp(min=1e-6)).reshape(out.shape).numpy()
    return (out.as_images(out.image).permute(0, 2, 3, 1).numpy(), out.opacity.reshape(out.shape).numpy() > 0.5, depth)


@looks
@pytest.mark.parametrize("cuda_ray", [False, True], ids=["plain", "accelerated"])
def test_glb_looks_like_the_field_s_own_render(lettered, cuda_ray):
    views = orbit(torch.tensor([80.0, 60.0]), torch.tensor([20.0, 130.0]), 2.2, 40.0, 72, 60)
    own, mask, depth = own_render(lettered[0], views, cuda_ray)
    picture = render_glb(lettered[1].files["glb"], views)
    for iou, error in agreement(own, mask, picture):
        assert iou >= SAME_SILHOUETTE and error <= SAME_COLOR
    assert np.median(np.abs(depth - picture.depth)[mask & picture.mask]) < 0.02


@looks
@pytest.mark.slow
def test_glb_of_thin_parts_and_colour_edges_looks_like_the_field_s_own_render_at_256(tmp_path):
    solid, options = solids.spindly(), flags(mcubes_resolution=256, decimate_target=12_000, texture_size=1024)
    report = quick(solid, tmp_path, options)
    assert_sound(report.files)
    views = orbit(torch.tensor([65.0, 100.0]), torch.tensor([30.0, -75.0]), 2.2, 40.0, 256, 256)
    own, mask, _ = own_render(solid, views, cuda_ray=True, max_steps=1024)
    for iou, error in agreement(own, mask, render_glb(report.files["glb"], views)):
        assert iou >= SAME_SILHOUETTE and error <= SAME_COLOR


@looks
@pytest.mark.parametrize("name", ["obj", "ply"])
def test_other_files_show_the_same_object(lettered, lettered_views, name):
    views, color, mask, _ = lettered_views
    picture = render_glb(lettered[1].files[name], views)
    assert silhouette_iou(mask, picture.mask) >= 0.98
    assert color_error(color, picture.color, mask & picture.mask) <= (0.03 if name == "obj" else 0.06)


@looks
def test_normals_in_the_glb_point_towards_the_camera(lettered_views):
    views, _, _, picture = lettered_views
    away = -np.asarray(views.pose[:, :3, 2])
    towards = (picture.normal * away[:, None, None]).sum(-1)[picture.mask]
    assert (towards < 0.3).mean() > 0.99 and (towards < 0).mean() > 0.95


def test_glb_follows_the_specification(lettered):
    tree, binary = glb_json(lettered[1].files["glb"])
    (primitive,) = tree["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    material = tree["materials"][0]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0 and material["roughnessFactor"] == 1
    assert tree["asset"] == {"version": "2.0", "generator": "Somnia", "extras": {"prompt": "a block", "seed": 3}}
    normals = accessor(tree, binary, primitive["attributes"]["NORMAL"])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-3)


def test_texture_coordinates_of_the_glb_start_at_the_upper_left(lettered):
    report = lettered[1]
    tree, binary = glb_json(report.files["glb"])
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    position, uv = (accessor(tree, binary, attributes[name]) for name in ("POSITION", "TEXCOORD_0"))
    image = np.asarray(Image.open(report.files["albedo"])) / 255.0
    column, row = (np.clip((uv * image.shape[0]).astype(int), 0, image.shape[0] - 1)).T
    expected = lettered[0].albedo(torch.from_numpy(position.copy())).numpy()
    assert np.abs(image[row, column] - expected).mean() < 0.05
    assert np.abs(image[image.shape[0] - 1 - row, column] - expected).mean() > 0.15


def test_everything_that_is_exported_is_closed_manifold_outwards_and_laid_out_without_overlap(lettered):
    reports = assert_sound(lettered[1].files)
    assert set(reports) == {"obj", "glb", "ply"} and reports["glb"].extras["prompt"] == "a block"
    assert {report.faces for report in reports.values()} == {lettered[1].faces}


@pytest.mark.parametrize("name", ["ball", "block", "torus", "pinched"])
def test_hard_decimation_leaves_sound_files(tmp_path, name):
    distance = {
        "ball": BALL.distance,
        "block": solids.lettered().distance,
        "torus": solids.torus,
        "pinched": lambda p: torch.minimum(
            solids.box(p, (0.25, 0.25, 0), (0.25, 0.25, 0.2)), solids.box(p, (-0.25, -0.25, 0), (0.25, 0.25, 0.2))
        ),
    }[name]
    solid = solids.Solid(distance, painted, steepness=300.0)
    report = quick(solid, tmp_path, replace(SMALL, decimate_target=300, ply=True))
    assert report.watertight and report.faces <= 300
    assert_sound(report.files)


@pytest.fixture(scope="module")
def bumpy(tmp_path_factory):
    """A ball with waves, exported with hardly any triangles and a normal map, and the GLB's JSON and binary chunk."""

    def distance(points):
        return solids.ball(points) + 0.01 * torch.sin(25 * points).sum(dim=-1)

    solid = solids.Solid(distance, painted)
    options = flags(mcubes_resolution=64, decimate_target=400, texture_size=256, normal_map=True, roughness=0.5, metallic=0.25)
    report = quick(
        solid,
        tmp_path_factory.mktemp("bumpy"),
        options,
        metadata={"prompt": "waves", "seed": 0, "licence": "weights: CC0"},
        transform=similarity(),
    )
    return report, *glb_json(report.files["glb"])


def test_normal_map_comes_with_the_tangents_it_was_baked_with(bumpy):
    report, tree, binary = bumpy
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "TEXCOORD_0", "TANGENT"}
    tangents, normals = (accessor(tree, binary, attributes[name]) for name in ("TANGENT", "NORMAL"))
    np.testing.assert_allclose(np.linalg.norm(tangents[:, :3], axis=1), 1.0, atol=1e-5)
    assert np.abs((tangents[:, :3] * normals).sum(axis=1)).max() < 1e-5 and set(np.abs(tangents[:, 3])) == {1.0}
    assert "normalTexture" in tree["materials"][0]
    picture = np.asarray(Image.open(report.files["normal"]))
    assert picture.shape == (256, 256, 3) and picture[..., 2].min() >= 127 and picture[..., :2].std() > 5


def test_material_and_licence_are_in_the_files(bumpy):
    report, tree, _ = bumpy
    material = tree["materials"][0]["pbrMetallicRoughness"]
    assert material["roughnessFactor"] == 0.5 and material["metallicFactor"] == 0.25
    assert tree["asset"]["extras"]["licence"] == "weights: CC0"
    lines = report.files["mtl"].read_text().splitlines()
    assert {"Pr 0.5", "Pm 0.25", "Ns 250", "d 1", "norm normal.png"} <= set(lines)
    assert not any(line.startswith("Tr") for line in lines)


def test_decimation_and_its_bound_are_in_the_report(bumpy, tmp_path):
    free = bumpy[0].decimation
    assert free.farthest > free.mean > 0 and free.target == 400
    options = replace(SMALL, decimate_target=60, max_error=0.01)
    report = quick(BALL, tmp_path, options)
    assert 0 < report.decimation.farthest <= 0.01 and report.faces > 60
    assert any("triangles were kept instead of 60" in note for note in report.notes)


def test_target_that_decimation_cannot_reach_is_noted(tmp_path):
    report = quick(BALL, tmp_path, replace(SMALL, decimate_target=1))
    assert report.watertight and any("triangles were kept instead of 1;" in note for note in report.notes)


def test_surface_cut_by_the_wall_is_closed_and_a_hole_elsewhere_is_noted(tmp_path):
    walls = block((0.3, 1.0, 0.2))
    tube = replace(walls, faces=walls.faces[(np.ptp(walls.corners[..., 1], axis=1) > 0)])
    report = export_surface(tube, painted, tmp_path / "tube", SMALL, bound=1.0)
    assert report.watertight and report.cleaning.capped == 2 and report.volume == pytest.approx(8 * 0.3 * 0.2)
    torn = export_surface(replace(block(), faces=block().faces[1:]), painted, tmp_path / "torn", SMALL, bound=1.0)
    assert not torn.watertight and "1 holes away from the walls" in torn.notes[0]


def test_mesh_is_closed_and_has_the_volume_of_the_solid(tmp_path):
    report = quick(BALL, tmp_path)
    assert report.watertight and report.volume == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.02)
    assert load_single(report.files["ply"] if "ply" in report.files else report.files["obj"]).volume > 0
    np.testing.assert_allclose(report.bounds, [[-0.4, -0.5, -0.5], [0.6, 0.5, 0.5]], atol=0.01)


def test_obj_is_closed_for_a_reader_of_positions_alone(lettered):
    lines = lettered[1].files["obj"].read_text().splitlines()
    faces = np.array([[int(c.split("/")[0]) for c in line.split()[1:]] for line in lines if line.startswith("f ")])
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert "Tr" not in lettered[1].files["mtl"].read_text()


def test_folder_holds_the_named_files_and_nothing_temporary(lettered):
    folder = lettered[1].files["obj"].parent
    assert sorted(p.name for p in folder.iterdir()) == ["albedo.png", "mesh.glb", "mesh.mtl", "mesh.obj", "mesh.ply"]


def test_report_is_complete_and_is_json(lettered):
    _, report, lines = lettered
    assert [line.split(":")[0] for line in lines] == ["export"] * 6 and "cells; the density" in lines[0]
    values = json.loads(json.dumps(report.as_dict()))
    assert (
        values["faces"] == report.faces
        and values["level"] == 10.0
        and values["max_density"] > 200
        and set(values["seconds"]) == {"surface", "clean", "unwrap", "bake", "write", "measure"}
    )
    assert "closed" in str(report) and "mesh.glb" in str(report) and report.notes == ()


def similarity(scale=3.0):
    """A turn about x by 90 degrees (+Y up becomes +Z up), a scale and an offset."""
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    matrix[:3, 3] = [10.0, 20.0, 30.0]
    return matrix


def test_object_frame_undoes_scale_and_offset_and_keeps_up(tmp_path):
    block = solids.Solid(lambda p: solids.box(p, (0.1, 0.2, 0.0), (0.2, 0.5, 0.3)), painted)
    report = quick(block, tmp_path, transform=similarity())
    assert np.ptp(report.bounds, axis=0) == pytest.approx([1.2, 3.0, 1.8], rel=0.01)  # tall along +Y
    content = json.loads((tmp_path / "transform.json").read_text())
    middle = np.append(np.mean(report.bounds, axis=0), 1.0)
    source = np.array(content["file_to_source"]) @ middle
    np.testing.assert_allclose(source, similarity() @ [0.1, 0.2, 0.0, 1.0], atol=0.02)
    assert np.linalg.det(np.array(content["file_to_source"])[:3, :3]) == pytest.approx(1.0)


def test_source_frame_writes_the_axes_of_the_source(tmp_path):
    block = solids.Solid(lambda p: solids.box(p, (0.1, 0.2, 0.0), (0.2, 0.5, 0.3)), painted)
    report = quick(block, tmp_path, replace(SMALL, export_frame="source"), transform=similarity())
    np.testing.assert_allclose(np.mean(report.bounds, axis=0), (similarity() @ [0.1, 0.2, 0.0, 1.0])[:3], atol=0.02)
    assert np.ptp(report.bounds, axis=0) == pytest.approx([1.2, 1.8, 3.0], rel=0.01)  # tall along +Z


def test_missing_package_is_named_with_its_pip_command(monkeypatch, tmp_path):
    monkeypatch.setitem(export._PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(ExportError, match="needs no-such-package; run: pip install no-such-package"):
        quick(BALL, tmp_path)


def test_transform_that_mirrors_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="mirrors or flattens"):
        quick(solids.Solid(None), tmp_path, transform=np.diag([1.0, 1, -1, 1]))


def test_every_option_is_taken_from_its_flag():
    changed = flags(
        mcubes_resolution=40, mesh_smooth=1.0, decimate_target=7, decimate_error=0.5, texture_size=64, texture_supersample=2,
        normal_map=True, roughness=0.25, metallic=0.5, mesh_ply=True, export_frame="source",
    )  # fmt: skip
    assert changed == ExportOptions(
        resolution=40, smooth=1.0, decimate_target=7, max_error=0.5, texture_size=64, supersample=2,
        normal_map=True, material=Material(0.25, 0.5), ply=True, stl=False, ground=False, export_frame="source", min_part=0.01,
        fill_hidden=None, denoise=0.0,
    )  # fmt: skip
    assert ExportOptions.from_config(OutputConfig(), MeshConfig(mesh_min_part=0.5)).min_part == 0.5
    assert ExportOptions.from_config(OutputConfig(), MeshConfig(mesh_denoise=0.2)).denoise == 0.2
    further = ExportOptions.from_config(OutputConfig(), MeshConfig(mesh_formats=("ply", "stl"), ground=True))
    assert further.ply and further.stl and further.ground


def block(half=(0.3, 0.4, 0.2)):
    """A box around the origin."""
    return solids.box_mesh(2 * np.array(half), -np.array(half))


def test_given_surface_is_exported_like_an_extracted_one(tmp_path):
    report = export_surface(block(), painted, tmp_path, SMALL, bound=1.0, metadata={"prompt": "a box"})
    assert (
        report.watertight
        and report.volume == pytest.approx(8 * 0.3 * 0.4 * 0.2)
        and report.queries is None
        and report.level is None
    )
    assert set(report.files) == {"obj", "mtl", "albedo", "glb"}
    np.testing.assert_allclose(report.bounds, [[-0.3, -0.4, -0.2], [0.3, 0.4, 0.2]], atol=1e-6)


def test_empty_surface_and_one_that_is_nan_are_refused(tmp_path):
    with pytest.raises(ExportError, match="the surface is empty"):
        export_surface(Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64)), painted, tmp_path, SMALL, bound=1.0)
    with pytest.raises(ExportError, match="8 of 8 vertices are NaN"):
        export_surface(replace(block(), vertices=block().vertices * np.nan), painted, tmp_path, SMALL, bound=1.0)


def test_empty_field_is_an_error_that_gives_the_figures_and_writes_nothing(tmp_path):
    with pytest.raises(ExportError, match=r"highest density is 4, and the surface is where it is 10"):
        flat = LevelSet(lambda p: torch.full((len(p),), 4.0), 10.0)
        export_level_set(flat, painted, 1.0, tmp_path / "mesh", SMALL)
    assert not (tmp_path / "mesh").exists()


def test_floater_is_dropped_and_counted(tmp_path):
    two = solids.Solid(lambda p: torch.minimum(BALL.distance(p), solids.ball(p, (-0.8, 0.8, 0.0), 0.08)), painted)
    report = quick(two, tmp_path)
    assert report.parts_dropped == 1 and report.bounds[0][0] > -0.5


def test_young_field_is_exported_with_a_lower_threshold_on_request_and_a_note(tmp_path):
    def young(points):
        return 8.0 * torch.sigmoid(-60 * BALL.distance(points))

    report = export_level_set(LevelSet(young, None), painted, 1.0, tmp_path, SMALL)
    assert report.level == pytest.approx(4.0, rel=0.01)
    assert report.volume == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.03) and "foggy" in report.notes[0]


def test_object_at_the_wall_is_closed_and_noted(tmp_path):
    slab = solids.Solid(lambda p: solids.box(p, (0.8, 0.0, 0.0), (0.5, 0.4, 0.4)), painted)
    report = quick(slab, tmp_path)
    assert report.watertight and "touches the wall" in report.notes[0]


def test_export_twice_gives_the_same_bytes(tmp_path):
    first, second = (quick(BALL, tmp_path / name) for name in "ab")
    for name in ("obj", "mtl", "albedo", "glb"):
        assert first.files[name].read_bytes() == second.files[name].read_bytes()


@looks
def test_signed_distance_is_exported_like_the_density_of_the_same_solid(tmp_path):
    solid, options = solids.lettered(), replace(SMALL, resolution=96, decimate_target=12_000, texture_size=512)
    report = export_level_set(solid.as_distance(), solid.albedo, 1.0, tmp_path / "distance", options)
    density = quick(solid, tmp_path / "density", options)
    assert_sound(report.files)
    assert report.level == 0.0 and report.max_density is None and report.notes == ()
    assert report.grid_points > 96 and report.volume == pytest.approx(density.volume, rel=0.002)
    views = orbit(*SIX, 2.2, 40.0, 96, 80)
    picture = render_glb(report.files["glb"], views)
    for iou, error in agreement(*solids.ray_cast(solid, views), picture):
        assert iou >= SAME_SILHOUETTE and error <= SAME_COLOR


def test_colour_of_a_signed_distance_is_that_on_the_surface(tmp_path):
    def shells(points):
        return torch.where(BALL.distance(points).abs() < 0.02, 1.0, 0.0)[:, None].expand(-1, 3)

    report = export_level_set(BALL.as_distance(), shells, 1.0, tmp_path, replace(SMALL, decimate_target=0))
    assert (np.asarray(Image.open(report.files["albedo"])) == 255).all()


@pytest.mark.parametrize(
    ("value", "sentence"), [(0.1, "the field is empty: its signed"), (-0.1, "the field is solid: 100.0 %")]
)
def test_signed_distance_of_one_sign_is_an_error_that_writes_nothing(tmp_path, value, sentence):
    flat = LevelSet(lambda p: torch.full((len(p),), value), 0.0, inside="below", logarithmic=False)
    with pytest.raises(ExportError, match=sentence):
        export_level_set(flat, painted, 1.0, tmp_path / "mesh", SMALL)
    assert not (tmp_path / "mesh").exists()


@pytest.mark.parametrize("writer", ["write_glb", "check_file"])
def test_an_export_that_fails_leaves_the_old_mesh_whole(tmp_path, monkeypatch, writer):
    folder = tmp_path / "mesh"
    export_surface(block(), painted, folder, SMALL, bound=1.0)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, writer, fail)
    with pytest.raises(OSError, match="No space"):
        export_surface(block((0.2, 0.2, 0.2)), painted, folder, SMALL, bound=1.0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and len(list(tmp_path.iterdir())) == 1
