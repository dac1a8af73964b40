"""A mesh stage that starts from a mesh file: presets, its place and colours, and painting it across checkpoints."""

import shutil

import numpy as np
import pytest
import torch

import main
from nerf.config.presets import PAINTED, PRESETS
from nerf.config.stages import DMTET, Stage
from nerf.core import cameras
from nerf.core.errors import UserError
from nerf.core.structs import Points, RenderSettings, SceneInfo
from nerf.mesh.source import read_source
from nerf.render.dmtet import DMTetPath, vertex_normals
from nerf.render.triangles import FixedMeshPath
from nerf.renderer import build_model
from nerf.run import checkpoint, mesh_file, mesh_init
from tests.helpers.plans import EMBEDDED, opened, planned
from tests.nerf.mesh.test_surface_colors import FACES, textured
from tests.nerf.run.test_mesh_init import Discs, Elsewhere, nerf_workspace, write_box

TINY = "--text something --seed 3 --grid_levels 4 --grid_log2 8 --grid_finest 32 --hidden 16 --tet_grid_size 16".split()


def stage(folder, path, *flags, **kwargs):
    """The options of a mesh stage that starts from a mesh file."""
    return planned(*TINY, "--workspace", folder, "--dmtet", "--init_with", path, *flags, **kwargs).stages[0].config


def painting(folder, path, *flags, photos=None):
    """A model that paints a mesh file, the line for the log, and the transform of its export."""
    config = stage(folder, path, "--lock_geo", *flags)
    model = build_model(Stage(DMTET, config), SceneInfo())
    return model, *mesh_init.initialize_mesh(model, config, photos)


# ---- presets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, EMBEDDED])
def test_text_refines_a_mesh_file_at_low_noise_and_paints_it_at_all_levels(tmp_path, weights):
    path = write_box(tmp_path / "box.obj")
    refined = stage(tmp_path, path, weights=weights)
    painted = stage(tmp_path, path, "--lock_geo", weights=weights)
    assert refined.guidance.t_range == PRESETS["dmtet mesh file"]["t_range"] and not refined.painted
    assert painted.guidance.t_range == (0.02, 0.98) and painted.painted
    assert painted.loss.lambda_mesh_normal == 0 and painted.schedule.textureless_ratio == 0
    assert stage(tmp_path, path, "--t_range", "0.1", "0.2").guidance.t_range == (0.1, 0.2)


def test_photographs_alone_do_not_refine_at_low_noise_but_paint(tmp_path):
    path = write_box(tmp_path / "box.obj")
    words = ["--data", "photos", "--workspace", tmp_path, "--dmtet", "--init_with", path]
    plain, painted = planned(*words).stages[0].config, planned(*words, "--lock_geo").stages[0].config
    assert plain.loss.lambda_mask == 2 and painted.loss.lambda_mask == painted.loss.lambda_normal == 0
    assert plain.presets == ("photographs", "dmtet", "dmtet photographs") and PAINTED in painted.presets


def test_other_starts_have_neither_preset(tmp_path):
    assert not planned(*TINY, "--workspace", tmp_path, "--dmtet", "--lock_geo").stages[0].config.painted
    assert stage(tmp_path, write_box(tmp_path / "box.obj")).presets[-1] == "dmtet mesh file"


def test_checkpoint_as_a_start_is_a_grid_whose_shape_is_frozen(tmp_path):
    nerf_workspace(tmp_path / "a")
    config = (
        planned(*TINY, "--workspace", tmp_path / "b", "--dmtet", "--lock_geo", "--init_with", tmp_path / "a").stages[0].config
    )
    model = build_model(Stage(DMTET, config), SceneInfo())
    assert not config.painted and isinstance(model.path, DMTetPath) and model.path.param_groups() == []


def test_options_of_the_grid_have_no_effect_on_a_painted_mesh(tmp_path):
    words = [*TINY, "--workspace", tmp_path, "--dmtet", "--init_with", write_box(tmp_path / "box.obj"), "--save_mesh"]
    lines = planned(*words, "--lock_geo", "--decimate_target", "1000").lines
    assert any("--tet_grid_size, --decimate_target have no effect with --lock_geo and a mesh file" in line for line in lines)
    assert not any("have no effect" in line for line in planned(*words, "--decimate_target", "1000").lines)


def trained(folder, path):
    """A workspace whose mesh stage has painted a file, and has a checkpoint."""
    opened(*TINY, "--workspace", folder, "--dmtet", "--lock_geo", "--init_with", path)
    checkpoint.save(folder / "checkpoints" / checkpoint.file_name(4, "dmtet"), {}, {"stage": "dmtet", "step": 4})


def test_resumed_workspace_goes_on_painting_without_the_flags(tmp_path):
    trained(tmp_path / "w", write_box(tmp_path / "box.obj"))
    assert planned(*TINY, "--workspace", tmp_path / "w").stages[0].config.painted
    assert planned("--workspace", tmp_path / "w", "--test").stages[0].config.painted
    over = planned(*TINY, "--workspace", tmp_path / "w", "--dmtet", "--ckpt", "scratch")
    assert not over.stages[0].config.painted
    path = next((tmp_path / "w" / "checkpoints").iterdir())
    other = planned("--text", "something", "--workspace", tmp_path / "v", "--dmtet", "--ckpt", path)
    assert other.stages[0].config.painted


def test_axes_of_the_file_that_come_too_late_are_named(tmp_path):
    trained(tmp_path / "w", write_box(tmp_path / "box.obj"))
    words = [*TINY, "--workspace", tmp_path / "w"]
    late = planned(*words, "--dmtet", "--init_up", "z", "--init_front=-y").lines
    assert any(line.startswith("--init_up z, --init_front -y were for the first step") for line in late)
    assert not any("for the first step" in line for line in planned(*words).lines)


def test_geometry_of_a_painted_workspace_cannot_be_trained_later(tmp_path):
    trained(tmp_path / "w", write_box(tmp_path / "box.obj"))
    with pytest.raises(UserError, match="paints a mesh file, whose geometry cannot be trained; refine its mesh/mesh.glb"):
        planned(*TINY, "--workspace", tmp_path / "w", "--dmtet", "--no_lock_geo")


def test_mesh_stage_of_another_kind_does_not_begin_to_paint(tmp_path):
    opened(*TINY, "--workspace", tmp_path, "--dmtet")
    checkpoint.save(tmp_path / "checkpoints" / checkpoint.file_name(4, "dmtet"), {}, {"stage": "dmtet", "step": 4})
    plan = planned(*TINY, "--workspace", tmp_path, "--dmtet", "--lock_geo", "--init_with", write_box(tmp_path / "box.obj"))
    assert not plan.stages[0].config.painted


# ---- place ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("half", "centre"), [((3e8, 2e8, 4e8), (0, 0, 0)), ((3e-9, 2e-9, 4e-9), (0, 0, 0)), ((3, 2, 4), (5e6, 0, -1e6))]
)
def test_mesh_of_any_size_and_place_is_fitted_into_the_box_and_keeps_its_numbers(tmp_path, half, centre):
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij")).reshape(3, -1).T * half + np.array(centre, float)
    faces = [
        (1, 3, 4),
        (1, 4, 2),
        (5, 6, 8),
        (5, 8, 7),
        (1, 2, 6),
        (1, 6, 5),
        (3, 7, 8),
        (3, 8, 4),
        (1, 5, 7),
        (1, 7, 3),
        (2, 4, 8),
        (2, 8, 6),
    ]
    path = tmp_path / "box.obj"
    path.write_text(
        "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in corners.tolist()) + "".join(f"f {a} {b} {c}\n" for a, b, c in faces)
    )
    model, line, transform = painting(tmp_path, path)
    surface = model.surface()
    np.testing.assert_allclose(surface.vertices.abs().amax(0), np.array([3, 2, 4]) / 4 * 0.8, rtol=1e-6)
    assert np.array_equal(model.path.painted()[0].vertices, corners)
    back = surface.vertices.double().numpy() @ transform[:3, :3].T + transform[:3, 3]
    np.testing.assert_allclose(np.ptp(back, axis=0), 2 * np.array(half), rtol=1e-6)
    assert "12 triangles" in line and "fitted into the box" in line


@pytest.mark.parametrize(("up", "front"), [("y", "z"), ("z", "-y"), ("-y", "z"), ("y", "-z"), ("x", "z")])
def test_axes_of_the_file_are_turned_for_the_training(up, front):
    turn = mesh_file.turn_of(up, front)
    axes = {name: sign * np.eye(3)["xyz".index(axis)] for axis in "xyz" for sign, name in ((1, axis), (-1, f"-{axis}"))}
    assert np.linalg.det(turn[:3, :3]) == 1
    assert (turn[:3, :3] @ axes[up]).tolist() == [0, 1, 0] and (turn[:3, :3] @ axes[front]).tolist() == [0, 0, 1]


@pytest.mark.parametrize("locked", [[], ["--lock_geo"]])
def test_turned_mesh_is_exported_in_the_axes_of_its_file(tmp_path, locked):
    path = write_box(tmp_path / "box.obj", (0.3, 0.2, 0.4), (0, 0.1, 0.3))
    config = stage(tmp_path, path, "--init_up", "z", "--init_front=-y", *locked)
    model = build_model(Stage(DMTET, config), SceneInfo())
    _, transform = mesh_init.initialize_mesh(model, config)
    vertices = model.surface().vertices.detach().double().numpy()
    np.testing.assert_allclose(vertices.max(0), [0.3, 0.7, 0.1], atol=0.03)  # x stays, z is up, -y to the front
    back = vertices @ transform[:3, :3].T + transform[:3, 3]
    np.testing.assert_allclose(back.max(0), [0.3, 0.3, 0.7], atol=0.03)
    assert config.from_mesh_file


def test_axes_that_are_not_perpendicular_are_refused(tmp_path):
    with pytest.raises(UserError, match="--init_up y and --init_front -y are the same axis"):
        stage(tmp_path, write_box(tmp_path / "box.obj"), "--init_front=-y")


def test_open_sheet_is_painted(tmp_path):
    path = tmp_path / "sheet.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0.2\nf 1 2 3\nf 2 4 3\n")
    model, _, _ = painting(tmp_path, path)
    assert len(model.surface().faces) == 2


@pytest.mark.parametrize("frame", ["object", "source"])
def test_with_photographs_the_mesh_lies_where_the_export_would_write_it(tmp_path, frame):
    half = (1.2, 0.8, 1.6) if frame == "object" else (1.2, 1.6, 0.8)
    path = write_box(tmp_path / "box.ply", half, (10, 0, 0))

    class Photos(Elsewhere):
        def __len__(self):
            return 0

    config = stage(tmp_path, path, "--lock_geo", "--data", "photographs", "--export_frame", frame)
    model = build_model(Stage(DMTET, config), SceneInfo())
    matrix, transform = mesh_file.matrix_to_box(read_source(path).vertices, path, 1.0, config, Photos())
    model.path.set_mesh(read_source(path), matrix)
    assert transform is None
    assert torch.allclose(model.surface().vertices.abs().amax(0), torch.tensor([0.3, 0.2, 0.4]), atol=1e-6)


class Placed(Discs):
    """Photographs of a ball whose world is the box."""

    transform = np.eye(4)


@pytest.mark.parametrize(("centre", "warned"), [((0, 0, 0), False), ((0, 0.7, 0), True)])
def test_mesh_beside_the_object_of_the_photographs_gets_a_warning(tmp_path, centre, warned):
    path = write_box(tmp_path / "box.obj", (0.25, 0.25, 0.25), centre)
    _, line, _ = painting(tmp_path, path, "--data", "photographs", photos=Placed())
    assert ("try --export_frame source" in line) == warned


# ---- colours ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locked", [True, False])
def test_training_begins_with_the_colours_of_the_file(tmp_path, locked):
    path = textured(tmp_path)
    if not locked:  # a sheet is no solid: a pyramid under the same texture, seen from above
        sides = "".join(f"f {a}/{a} {b}/{b} 5/5\n" for a, b in ((1, 2), (2, 3), (3, 4), (4, 1)))
        base = path.read_text().replace(FACES, "f 1/1 3/3 2/2\nf 1/1 4/4 3/3\n")
        path.write_text(f"{base}v 0.5 0.5 0.4\nvt 0.5 0.5\n{sides}")
    config = stage(tmp_path, path, "--grid_levels", "8", "--grid_log2", "12", *(["--lock_geo"] if locked else []))
    model = build_model(Stage(DMTET, config), SceneInfo())
    line, _ = mesh_init.initialize_mesh(model, config)
    points = torch.tensor([[0.2, 0.3, 0.0], [0.8, 0.3, 0.0], [0.4, 0.9, 0.0]])
    colors = model.field.query(Points(points), RenderSettings()).albedo
    assert "its colours are where the training begins" in line
    torch.testing.assert_close(colors, torch.cat([points[:, :2], 0 * points[:, :1]], 1), atol=0.06, rtol=0)


def test_colours_of_the_file_can_be_left_out(tmp_path):
    _, line, _ = painting(tmp_path, textured(tmp_path), "--no_init_colors")
    assert "its colours are" not in line


# ---- whole runs -------------------------------------------------------------------------------------------------------------

RUN = (
    "--iters 2 --grid_levels 2 --grid_log2 6 --grid_finest 16 --W 8 --H 8 --w 8 --h 8 --batch_size 2 --dataset_size_test 2 "
    "--seed 1 --texture_size 32 --save_mesh --threads 1 --holdout 0"
).split()


@pytest.fixture
def photographs(tmp_path):
    """A folder with four photographs of a grey square, whose poses see the middle of the world."""
    import json

    from PIL import Image

    folder, frames = tmp_path / "photos", []
    folder.mkdir()
    for i, (c, s) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        picture = Image.new("RGBA", (16, 16))
        picture.paste((200, 40, 40, 255), (5, 5, 11, 11))
        picture.save(folder / f"{i}.png")
        pose = [[c, 0, s, 3 * s], [0, 1, 0, 0], [-s, 0, c, 3 * c], [0, 0, 0, 1]]
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    return folder


def test_run_paints_exports_resumes_without_the_file_and_refuses_another(tmp_path, photographs, capfd):
    path, kept = write_box(tmp_path / "box.obj", (0.3, 0.2, 0.4)), tmp_path / "kept.obj"
    shutil.copy(path, kept)
    workspace = tmp_path / "w"
    common = ["--data", str(photographs), "--workspace", str(workspace), "--dmtet", "--export_frame", "source", *RUN]
    locked = ["--lock_geo", "--init_with", str(path)]
    assert main.main([*common, *locked]) == 0, capfd.readouterr().err
    source, written = read_source(kept), read_source(workspace / "mesh" / "mesh.obj")
    assert written.vertices.tobytes() == source.vertices.tobytes() and np.array_equal(written.faces, source.faces)
    path.write_text(path.read_text().replace("0.3", "0.31"))
    assert main.main([*common, *locked, "--iters", "3"]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"--init_with {path} is another mesh than the one that workspace {workspace} paints" in said
    path.unlink()
    assert main.main([*common, "--iters", "3"]) == 0  # neither --lock_geo nor the file
    assert "of stage" not in capfd.readouterr().err
    assert checkpoint.latest(workspace / "checkpoints", "dmtet").name == checkpoint.file_name(3, "dmtet")
    written = read_source(workspace / "mesh" / "mesh.obj")
    assert written.vertices.tobytes() == source.vertices.tobytes() and np.array_equal(written.faces, source.faces)


def test_mesh_without_triangles_ends_in_a_sentence_and_leaves_no_workspace(tmp_path, photographs, capfd):
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    words = ["--data", str(photographs), "--workspace", str(tmp_path / "w"), "--dmtet", "--lock_geo", *RUN]
    assert main.main([*words, "--init_with", str(tmp_path / "points.obj")]) == 2
    assert "points.obj holds no triangles" in capfd.readouterr().err and not (tmp_path / "w" / "config.json").exists()


def test_painted_workspace_is_no_start_for_a_grid(tmp_path):
    model, _, _ = painting(tmp_path, write_box(tmp_path / "box.obj"))
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"model": model.state_dict(), "ema": {}}, {"stage": "dmtet", "step": 1})
    config = stage(tmp_path / "b", path)
    with pytest.raises(UserError, match="paints a mesh file; give its mesh/mesh.glb"):
        mesh_init.initialize_mesh(build_model(Stage(DMTET, config), SceneInfo()), config)


# ---- the path ---------------------------------------------------------------------------------------------------------------


def flat_field(config):
    """A field of the stage."""
    return build_model(Stage(DMTET, config), SceneInfo()).field


def test_render_is_that_of_the_same_triangles_in_a_grid(tmp_path):
    """The triangles that a tetrahedral grid shows, as a file, give the same picture, depth and normals."""
    import trimesh

    config = stage(tmp_path, write_box(tmp_path / "box.obj"))
    field, grid = flat_field(config), DMTetPath(1.0, 16, 0.01, {"distance": 0.1, "offset": 0.1, "coarse_sdf": 0.1})
    surface = grid.surface()
    normals = torch.nn.functional.normalize(vertex_normals(surface), dim=-1).detach().numpy()
    mesh = trimesh.Trimesh(surface.vertices.detach().numpy(), surface.faces.numpy(), vertex_normals=normals, process=False)
    mesh.export(tmp_path / "ball.ply", vertex_normal=True)
    fixed = FixedMeshPath(1.0, 0.01)
    fixed.set_mesh(read_source(tmp_path / "ball.ply"), np.eye(4))
    rays = cameras.view_rays(cameras.orbit(torch.tensor([70.0, 120.0]), torch.tensor([20.0, 200.0]), 3.0, 30.0, 24, 24))
    settings = RenderSettings(training=False, shading="lambertian", ambient=0.3, need_normals=True)
    with torch.no_grad():
        one, other = (path.render(field, rays, settings) for path in (grid, fixed))
    torch.testing.assert_close(one.opacity, other.opacity, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.depth, other.depth, atol=1e-4, rtol=0)
    torch.testing.assert_close(one.normal, other.normal, atol=0.05, rtol=0)  # between unit vectors here, 15 degrees apart
    torch.testing.assert_close(one.color, other.color, atol=0.05, rtol=0)


@pytest.mark.parametrize("order", ["1 2 3", "1 3 2"])
def test_both_sides_of_a_sheet_face_the_camera(tmp_path, order):
    path = tmp_path / "sheet.obj"
    path.write_text(f"v -0.5 -0.5 0\nv 0.5 -0.5 0\nv 0 0.5 0\nvn 0 0 1\nf {' '.join(f'{i}//1' for i in order.split())}\n")
    fixed = FixedMeshPath(1.0, 0.01)
    fixed.set_mesh(read_source(path), np.eye(4))
    views = cameras.orbit(torch.tensor([90.0, 90.0]), torch.tensor([0.0, 180.0]), 3.0, 30.0, 9, 9)
    with torch.no_grad():
        sums = fixed.render(
            flat_field(stage(tmp_path, path)), cameras.view_rays(views), RenderSettings(training=False, need_normals=True)
        )
    normal = sums.normal.reshape(2, 9, 9, 3)[:, 4, 4]
    torch.testing.assert_close(normal, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]))


def test_gradients_reach_the_colours_and_nothing_of_the_path_is_trained(tmp_path):
    model, _, _ = painting(tmp_path, write_box(tmp_path / "box.obj"))
    assert model.path.param_groups() == [] and list(model.path.parameters()) == []
    rays = cameras.view_rays(cameras.orbit(torch.tensor([70.0]), torch.tensor([20.0]), 3.0, 30.0, 12, 12))
    model.path.render(model.field, rays, RenderSettings(training=True)).color.square().sum().backward()
    assert model.field.head.weight.grad[1:].abs().max() > 0


def test_rays_that_are_no_image_are_refused():
    rays = cameras.view_rays(cameras.orbit(torch.tensor([70.0]), torch.tensor([20.0]), 3.0, 30.0, 4, 4))[:3]
    with pytest.raises(ValueError, match="FixedMeshPath: expected Rays of whole images"):
        FixedMeshPath(1.0, 0.01).render(None, rays, RenderSettings())


def test_state_of_a_painted_mesh_is_all_that_another_path_needs(tmp_path):
    model, _, _ = painting(tmp_path, write_box(tmp_path / "box.ply", (3, 2, 4), (10, 0, 0)))
    state, other = model.path.state_dict(), FixedMeshPath(1.0, 0.01)
    other.make_room(state)
    other.load_state_dict(state)
    one, two = model.path.painted(), other.painted()
    assert all(np.array_equal(value, getattr(two[0], name)) for name, value in vars(one[0]).items())
    assert np.array_equal(one[1], two[1]) and torch.equal(model.surface().vertices, other.surface().vertices)
