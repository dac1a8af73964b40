"""A written mesh against photographs of the same solid in NeuS's format, whose world is in millimetres and not in the box.

Also that a mesh in the source's frame projects into the masks with the data set's own matrices.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nerf.config.groups import OutputConfig
from nerf.core.cameras import centred_views, look_at, project
from nerf.core.errors import UserError
from nerf.core.structs import Views
from nerf.data.silhouettes import read_silhouettes
from nerf.mesh.export import export_level_set
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.io import read_mesh
from nerf.provider import PhotographSource
from nerf.run import mesh_evaluation
from tests.helpers import solids
from tests.nerf.data.test_neus import projection
from tests.nerf.photo_folders import load

SCALE, CENTRE = 250.0, np.array([-40.0, 30.0, 650.0])
SIDE, FOCAL = 80, 110.0
OPTIONS = ExportOptions.from_config(OutputConfig(mcubes_resolution=96, decimate_target=12_000, texture_size=512))


def cameras(count: int = 6) -> torch.Tensor:
    """Poses [B, 4, 4] all around, some from below, in the unit sphere's frame."""
    angle = torch.arange(count).double() * 2 * torch.pi / count
    away = torch.stack([angle.sin(), torch.tensor([0.4, -0.5, 0.1] * (count // 3)).double(), angle.cos()], -1)
    return look_at(2.6 * away, (0.0, 0.0, 0.0))


def views_of(poses: torch.Tensor) -> Views:
    """Square views with that focal length."""
    fovy = torch.full((len(poses),), float(np.degrees(2 * np.arctan(SIDE / 2 / FOCAL))))
    return centred_views(poses.float(), fovy, SIDE, SIDE)


def write_scene(folder):
    """Photographs of the lettered block and its masks, with NeuS's matrices."""
    solid, poses, supersample = solids.lettered(), cameras(), 3
    camera = torch.tensor([[FOCAL, 0, SIDE / 2 - 0.5], [0, FOCAL, SIDE / 2 - 0.5], [0, 0, 1]], dtype=torch.float64)
    scale = torch.diag(torch.tensor([SCALE, SCALE, SCALE, 1.0], dtype=torch.float64))
    scale[:3, 3] = torch.from_numpy(CENTRE)
    fovy = torch.full((len(poses),), float(np.degrees(2 * np.arctan(SIDE / 2 / FOCAL))))
    fine = centred_views(poses.float(), fovy, SIDE * supersample, SIDE * supersample)
    color, hit = solids.ray_cast(solid, fine)
    blocks = (len(poses), SIDE, supersample, SIDE, supersample)
    coverage = hit.reshape(blocks).mean((2, 4))
    straight = (color * hit[..., None]).reshape(*blocks, 3).sum((2, 4)) / np.maximum(hit.reshape(blocks).sum((2, 4)), 1)[
        ..., None
    ]
    matrices = {}
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    for i, pose in enumerate(poses):
        Image.fromarray(np.round(255 * straight[i]).astype(np.uint8)).save(folder / "image" / f"{i:03d}.png")
        Image.fromarray(np.round(255 * coverage[i]).astype(np.uint8)).save(folder / "mask" / f"{i:03d}.png")
        matrices[f"world_mat_{i}"] = (projection(pose, camera) @ torch.linalg.inv(scale)).numpy()
        matrices[f"scale_mat_{i}"] = scale.numpy()
    np.savez(folder / "cameras_sphere.npz", **matrices)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """The folder, and its photographs in the box."""
    folder = write_scene(tmp_path_factory.mktemp("neus"))
    return folder, load(folder)


def grey(points):
    """The colour of a solid that has none."""
    return torch.full_like(points, 0.5)


@pytest.fixture(scope="module")
def opaque(scene, tmp_path_factory):
    """The folder of the same photographs without their masks."""
    folder = shutil.copytree(scene[0], tmp_path_factory.mktemp("opaque") / "scene")
    shutil.rmtree(folder / "mask")
    return folder


@pytest.fixture(scope="module")
def written(scene, tmp_path_factory):
    """The solid's GLB in the box and in the source's frame, and in one colour; do not change its files."""
    folder, photos = tmp_path_factory.mktemp("written"), scene[1]
    colours = {"object": {}, "source": {"frame": "source"}, "grey": {"albedo": grey}}
    return {name: exported(photos, folder / name, **words) for name, words in colours.items()}


def exported(photos, folder, frame="object", albedo=None, shown=()):
    """The solid, which lives in the unit sphere's frame, written from the box of the photographs.

    ``shown`` gives the photographs that its texture is made from.
    """
    solid = solids.lettered()
    box_to_sphere = torch.linalg.inv(sphere_to_world()) @ torch.as_tensor(photos.transform, dtype=torch.float64)
    scale = float(torch.linalg.det(box_to_sphere[:3, :3]) ** (1 / 3))

    def there(points):
        return points @ box_to_sphere[:3, :3].T.float() + box_to_sphere[:3, 3].float()

    level_set = solids.Solid(lambda points: solid.distance(there(points)) / scale).as_distance()
    paint = albedo or (lambda points: solid.albedo(there(points)))
    return export_level_set(
        level_set,
        paint,
        1.0,
        folder,
        replace(OPTIONS, export_frame=frame),
        transform=np.asarray(photos.transform),
        photos=shown,
    ).files["glb"]


def sphere_to_world() -> torch.Tensor:
    """The scale matrix."""
    matrix = torch.diag(torch.tensor([SCALE, SCALE, SCALE, 1.0], dtype=torch.float64))
    matrix[:3, 3] = torch.from_numpy(CENTRE)
    return matrix


@pytest.mark.parametrize("frame", ["object", "source"])
def test_the_true_mesh_looks_like_its_photographs_in_either_frame(scene, written, tmp_path, frame):
    _, photos = scene
    found = mesh_evaluation.measure(written[frame], photos, [0, 1, 4], 0.01, 1.0, tmp_path / "pictures" / "a")
    assert found["mesh_iou"] > 0.98 and found["mesh_psnr"] > 27 and found["mesh_psnr_inside"] > 22  # edges of colours
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["a_0000.png", "a_0001.png", "a_0004.png"]


def test_another_colour_and_another_place_are_seen(scene, written, tmp_path):
    _, photos = scene
    right, plain = (mesh_evaluation.measure(written[name], photos, [2], 0.01, 1.0) for name in ("object", "grey"))
    assert plain["mesh_iou"] == right["mesh_iou"] and plain["mesh_psnr_inside"] < right["mesh_psnr_inside"] - 8
    glb = shutil.copytree(written["source"].parent, tmp_path / "moved") / written["source"].name
    (glb.parent / "transform.json").unlink()  # so that nothing says that it is not in the box
    assert mesh_evaluation.measure(glb, photos, [2], 0.01, 1.0)["mesh_iou"] < 0.2


def test_a_texture_from_photographs_looks_like_others_that_were_held_out(scene, written, tmp_path):
    _, photos = scene
    shown = PhotographSource(photos).photos()
    held_out, trained = [1, 4], [0, 2, 3, 5]
    plain, true = (mesh_evaluation.measure(written[name], photos, held_out, 0.01, 1.0) for name in ("grey", "object"))
    glb = exported(photos, tmp_path / "b", albedo=grey, shown=[shown[i] for i in trained])
    found = mesh_evaluation.measure(glb, photos, held_out, 0.01, 1.0)
    assert found["mesh_psnr_inside"] > plain["mesh_psnr_inside"] + 6  # four photographs do not see all of it
    assert true["mesh_psnr_inside"] > found["mesh_psnr_inside"]
    assert found["mesh_iou"] == true["mesh_iou"]


def test_opaque_photographs_have_figures_inside_the_mesh_alone(opaque, tmp_path):
    photos = load(opaque)
    found = mesh_evaluation.measure(exported(photos, tmp_path / "mesh"), photos, [0], 0.01, 1.0)
    assert sorted(found) == ["mesh_psnr_inside"] and found["mesh_psnr_inside"] > 20


def test_vertices_in_the_source_frame_project_into_the_masks_by_the_data_s_own_matrices(scene, written):
    folder, photos = scene
    vertices = read_mesh(written["source"]).vertices
    assert np.abs(vertices.mean(axis=0) - CENTRE).max() < 0.3 * SCALE and np.ptp(vertices, axis=0).max() > 0.8 * SCALE
    matrices = np.load(folder / "cameras_sphere.npz")
    for i, seen in enumerate(read_silhouettes(folder)):
        own = vertices @ matrices[f"world_mat_{i}"][:3, :3].T + matrices[f"world_mat_{i}"][:3, 3]
        again = vertices @ seen.projection[:, :3].T + seen.projection[:, 3]
        np.testing.assert_allclose(own[:, :2] / own[:, 2:] + 0.5, again[:, :2] / again[:, 2:], atol=1e-3)
        column, row = np.floor(again[:, :2] / again[:, 2:]).astype(int).T
        grown = np.asarray(Image.fromarray(seen.mask).resize((SIDE, SIDE)))
        wide = np.stack([np.roll(grown, (y, x), (0, 1)) for x in (-1, 0, 1) for y in (-1, 0, 1)]).any(axis=0)
        assert wide[row, column].mean() > 0.995
        shown = np.zeros_like(grown)
        shown[row, column] = True
        assert (shown & grown).sum() > 0.8 * grown.sum()  # they fill it, too


def test_silhouettes_agree_with_the_cameras_of_the_photographs(scene):
    folder, photos = scene
    seen, transform = read_silhouettes(folder), np.asarray(photos.transform)
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (20, 3))
    world = points @ transform[:3, :3].T + transform[:3, 3]
    for i in range(len(photos)):
        image = world @ seen[i].projection[:, :3].T + seen[i].projection[:, 3]
        expected = project(photos.view(i), torch.from_numpy(points).float())[0][0]
        np.testing.assert_allclose(image[:, :2] / image[:, 2:], expected, atol=2e-3)
    assert len(read_silhouettes(folder, "test", 3)) == 2 and seen[0].mask.any() and not seen[0].mask.all()


def test_opaque_photographs_have_no_silhouettes(opaque):
    with pytest.raises(UserError, match="is opaque and has no mask"):
        read_silhouettes(opaque)


def test_iou_of_silhouettes():
    a, b = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    assert mesh_evaluation.silhouette_iou(a, b) == pytest.approx(1 / 3)
    assert mesh_evaluation.silhouette_iou(a & ~a, b & ~b) == 1.0


def test_line_names_the_figures_that_are_known():
    both = mesh_evaluation.line_of({"mesh_psnr": 21.0, "mesh_psnr_inside": 18.0, "mesh_iou": 0.98}, 6, 24.0)
    assert both.startswith("mesh: at 6 held-out cameras PSNR 21.00 dB (the field 24.00 dB), 18.00 dB inside")
    assert "IoU" not in mesh_evaluation.line_of({"mesh_psnr_inside": 18.0}, 6, None)
    unseen = {"mesh_psnr": 21.0, "mesh_psnr_inside": float("nan"), "mesh_iou": 0.0}
    assert mesh_evaluation.line_of(unseen, 6, None).endswith("cameras PSNR 21.00 dB, silhouette IoU 0.0000")
    assert mesh_evaluation.line_of({"mesh_psnr_inside": float("nan")}, 6, None).endswith("cameras no pixel of it is seen")


def test_a_mesh_without_colours_is_a_sentence(tmp_path):
    trimesh.creation.box().export(tmp_path / "mesh.glb")
    with pytest.raises(UserError, match="mesh.glb has neither a texture nor colours of its vertices; export the mesh again"):
        mesh_evaluation.read_textured(tmp_path / "mesh.glb")
