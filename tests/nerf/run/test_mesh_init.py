"""Initialisation of the mesh stage: from level sets, silhouettes, meshes and checkpoints; and messages for unusable sources."""

import json

import numpy as np
import pytest
import torch

from nerf.config.config import Config
from nerf.config.presets import PRESETS
from nerf.config.stages import DMTET, Stage
from nerf.core.cameras import orbit
from nerf.core.errors import UserError
from nerf.core.structs import LevelSet, SceneInfo
from nerf.mesh.mesh import Mesh, signed_volume
from nerf.renderer import build_model
from nerf.run import checkpoint, mesh_init
from tests.helpers import solids
from tests.helpers.plans import EMBEDDED, opened, planned

TINY = "--text something --seed 3 --grid_levels 4 --grid_log2 8 --grid_finest 32 --hidden 16 --tet_grid_size 24".split()
BALL = 4 / 3 * np.pi


def options(folder, *flags):
    return planned(*TINY, "--workspace", folder, "--dmtet", *flags).stages[0].config


def built(config):
    """The model of the mesh stage."""
    return build_model(Stage(DMTET, config), SceneInfo())


def volume(path):
    """Volume of the surface of a mesh path."""
    surface = path.surface()
    return signed_volume(Mesh(surface.vertices.detach().double().numpy(), surface.faces.numpy()))


def initialized(tmp_path, level_set, *flags):
    """A model whose mesh is initialised from a level set."""
    made = options(tmp_path, "--mcubes_resolution", "64", *flags)
    model = built(made)
    mesh_init._init_from_level_set(model, made, level_set)
    return model


def level_set(distance, kind):
    """The zero of a signed distance: as it is, or as a level of a density."""
    solid = solids.Solid(distance, steepness=20.0)
    return solid.as_density() if kind == "density" else solid.as_distance()


both_kinds = pytest.mark.parametrize("kind", ["density", "distance"])


def test_hollow_that_opens_downwards_is_filled_on_request(tmp_path):
    def bowl(x):
        return torch.maximum(solids.box(x, half=(0.4, 0.3, 0.4)), -solids.box(x, (0.0, -0.3, 0.0), (0.15, 0.4, 0.15)))

    solid = 0.8 * 0.6 * 0.8
    found = [volume(initialized(tmp_path, level_set(bowl, "density"), *flags).path) for flags in ((), ("--fill_hidden",))]
    assert found[0] == pytest.approx(solid - 0.3 * 0.3 * 0.4, rel=0.05)
    assert found[1] == pytest.approx(solid, rel=0.03) and found[1] > 1.07 * found[0]


@both_kinds
@pytest.mark.parametrize("smooth", ["0", "0.7"])
def test_mesh_is_initialised_where_the_field_crosses_its_level(tmp_path, kind, smooth):
    ball = level_set(lambda x: solids.ball(x, radius=0.4), kind)
    model = initialized(tmp_path, ball, "--mesh_smooth", smooth)
    assert volume(model.path) == pytest.approx(BALL * 0.4**3, rel=0.03)
    assert model.path.extent.max() < 0.5  # the grid fills the object's own box


def test_density_and_signed_distance_initialise_the_same_mesh(tmp_path):
    first, second = (initialized(tmp_path, level_set(solids.torus, kind)).path for kind in ("density", "distance"))
    torch.testing.assert_close(first.extent, second.extent)
    assert torch.equal(first.distance < 0, second.distance < 0)
    assert volume(first) == pytest.approx(volume(second), rel=0.01)


@both_kinds
def test_floaters_and_cavities_are_dropped(tmp_path, kind):
    def distance(x):
        shell = (x.norm(dim=-1) - 0.4).abs() - 0.12
        floater = (x - 0.85).norm(dim=-1) - 0.06
        return torch.minimum(shell, floater)

    model = initialized(tmp_path, level_set(distance, kind))
    assert volume(model.path) == pytest.approx(BALL * 0.52**3, rel=0.06)


def constant(value, kind):
    """A field with one value everywhere."""
    if kind == "density":
        return LevelSet(lambda x: torch.full((len(x),), value), 10.0)
    return LevelSet(lambda x: torch.full((len(x),), value), 0.0, inside="below", logarithmic=False)


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        (1.0, "density", "empty: its highest density is 1"),
        (50.0, "density", "its density is nowhere below 10"),
        (
            0.3,
            "distance",
            "the NeRF is empty: its signed distance is nowhere on the inner side of 0 .it lies between 0.3 and 0.3",
        ),
        (-0.3, "distance", "its signed distance is nowhere above 0"),
    ],
)
def test_field_without_a_surface_is_refused(tmp_path, value, kind, sentence):
    with pytest.raises(UserError, match=sentence):
        initialized(tmp_path, constant(value, kind))


def test_object_that_falls_through_the_grid_is_refused(tmp_path, monkeypatch):
    def thin(model, *_):
        model.path.set_distance(torch.full_like(model.path.distance, 0.1))
        return "the mesh is initialised from a needle", None

    monkeypatch.setattr(mesh_init, "_init_from_mesh", thin)
    made = options(tmp_path, "--init_with", str(write_box(tmp_path / "needle.obj")))
    with pytest.raises(UserError, match="from a needle; but the object is too thin for a grid of 24 layers"):
        mesh_init.initialize_mesh(built(made), made)


class Discs:
    """Photographs of a ball of radius 0.5 at the origin, with masks."""

    def __init__(self, shown=True):
        polar = torch.tensor([20.0, 60.0, 60.0, 60.0, 90.0, 90.0, 90.0, 120.0, 120.0, 120.0])
        azimuth = torch.tensor([0.0, 0.0, 120.0, 240.0, 60.0, 180.0, 300.0, 30.0, 150.0, 270.0])
        self.views = orbit(polar, azimuth, 3.0, 30.0, 96, 96)
        self.shown = shown

    def __len__(self):
        return len(self.views)

    def view(self, i):
        """One camera."""
        return self.views[i]

    def alpha(self, i):
        """A disc of the size that a ball of radius 0.5 shows."""
        y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
        radius = float(self.views.fy[0]) * 0.5 / (9 - 0.25) ** 0.5
        return (((x - 48) ** 2 + (y - 48) ** 2).sqrt() < radius).float() * self.shown

    def valid_mask(self, i):
        """All of it."""


def test_silhouettes_carve_the_grid(tmp_path):
    model = built(options(tmp_path))
    line, transform = mesh_init.initialize_mesh(model, options(tmp_path), Discs())
    assert "10 silhouettes" in line and transform is None
    assert BALL * 0.5**3 < volume(model.path) < 1.25 * BALL * 0.5**3


def test_empty_visual_hull_leaves_a_ball(tmp_path):
    model = built(options(tmp_path))
    assert "initialised as a ball" in mesh_init.initialize_mesh(model, options(tmp_path), Discs(shown=False))[0]
    assert volume(model.path) == pytest.approx(BALL * 0.5**3, rel=0.05)


def nerf_workspace(folder, *flags):
    """A workspace with a checkpoint of a NeRF, as the trainer writes it."""
    made = opened(*TINY, "--workspace", folder, "--blob_density", "40", *flags).config
    model = built(made)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()} | {"updates": torch.tensor(3)}
    path = folder / "checkpoints" / checkpoint.file_name(7)
    checkpoint.save(path, {"model": model.state_dict(), "ema": ema}, {"stage": "nerf", "step": 7})
    return path, model


@pytest.mark.parametrize("named", ["folder", "file"])
def test_workspace_gives_its_weights_and_its_options(tmp_path, named):
    path, nerf = nerf_workspace(tmp_path / "a", "--hidden", "24", "--mesh_threshold", "5")
    start = str(path if named == "file" else tmp_path / "a")
    words = "--text something --dmtet --tet_grid_size 16 --mcubes_resolution 48 --init_with".split()
    made = planned(*words, start, "--workspace", tmp_path / "b").stages[0].config
    assert made.field.hidden == 24 and made.output.mesh_threshold == 5
    model = built(made)
    line, _ = mesh_init.initialize_mesh(model, made)
    assert "density is 5" in line
    assert all(torch.equal(a, b) for a, b in zip(model.field.parameters(), nerf.field.parameters(), strict=True))
    assert volume(model.path) > 0.01


def test_another_field_than_the_weights_were_made_for_is_refused(tmp_path):
    nerf_workspace(tmp_path / "a")
    with pytest.raises(UserError, match="--bound 1, this run asks for --bound 2"):
        options(tmp_path / "b", "--init_with", tmp_path / "a", "--bound", "2")


def test_nerf_of_the_same_workspace_is_the_default_source(tmp_path):
    path, _ = nerf_workspace(tmp_path)
    assert mesh_init.find_source(options(tmp_path)) == mesh_init.InitSource("checkpoint", path, newest=True)


def test_the_whole_nerf_before_a_damaged_one_is_taken(tmp_path):
    path, _ = nerf_workspace(tmp_path, "--mesh_threshold", "5")
    path.with_name(checkpoint.file_name(9)).write_bytes(path.read_bytes()[:-1] + b"x")
    made = options(tmp_path)
    line, _ = mesh_init.initialize_mesh(built(made), made)
    assert f"initialised from {path}, where its density is 5" in line


def write_box(path, half=(0.3, 0.2, 0.4), centre=(0.0, 0.0, 0.0)):
    """A mesh file with a box."""
    import trimesh

    box = trimesh.creation.box(2 * np.array(half))
    box.apply_translation(centre)
    box.export(path)
    return path


def test_mesh_in_the_box_keeps_its_place(tmp_path):
    made = options(tmp_path, "--init_with", str(write_box(tmp_path / "box.obj")))
    model = built(made)
    _, transform = mesh_init.initialize_mesh(model, made)
    assert transform is None and volume(model.path) == pytest.approx(8 * 0.3 * 0.2 * 0.4, rel=0.05)


def test_mesh_outside_the_box_is_fitted_and_the_inverse_transform_is_kept(tmp_path):
    made = options(tmp_path, "--init_with", str(write_box(tmp_path / "box.ply", (3, 2, 4), (10, 0, 0))))
    model = built(made)
    line, transform = mesh_init.initialize_mesh(model, made)
    surface = model.path.surface().vertices.detach().double().numpy()
    back = surface @ transform[:3, :3].T + transform[:3, 3]
    assert "fitted" in line
    assert np.allclose(back.max(0), [13, 2, 4], atol=0.2) and np.allclose(back.min(0), [7, -2, -4], atol=0.2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing.obj", "no such file"),
        ("notes.txt", "expected a workspace or a file that ends in"),
        ("empty", "has no checkpoints"),
    ],
)
def test_unusable_source_is_refused_with_a_sentence(tmp_path, name, sentence):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        options(tmp_path / "w", "--init_with", tmp_path / name)


class Elsewhere:
    """Photographs of a world that is our box four times as large, round x = 10, and lying on its side."""

    transform = np.array([[4.0, 0, 0, 10], [0, 0, -4, 0], [0, 4, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("frame", "half", "centre"), [("object", (1.2, 0.8, 1.6), (10, 0, 0)), ("source", (1.2, 1.6, 0.8), (10, 0, 0))]
)
def test_with_photographs_a_mesh_lies_where_the_export_would_write_it(tmp_path, frame, half, centre):
    path = write_box(tmp_path / "box.ply", half, centre)
    made = options(tmp_path, "--init_with", str(path), "--data", "photographs", "--export_frame", frame)
    model = built(made)
    _, transform = mesh_init.initialize_mesh(model, made, Elsewhere())
    surface = model.path.surface().vertices.detach()
    assert transform is None
    assert torch.allclose(surface.abs().amax(0), torch.tensor([0.3, 0.2, 0.4]), atol=0.03)


def test_with_photographs_a_mesh_outside_their_box_is_refused(tmp_path):
    made = options(tmp_path, "--init_with", str(write_box(tmp_path / "box.ply")), "--data", "photographs")
    with pytest.raises(UserError, match="reaches 2.58 from the middle, and the box ends at 1"):
        mesh_init.initialize_mesh(built(made), made, Elsewhere())


def test_stage_with_a_checkpoint_does_not_need_its_source(tmp_path):
    opened(*TINY, "--workspace", tmp_path, "--dmtet")
    checkpoint.save(tmp_path / "checkpoints" / checkpoint.file_name(4, "dmtet"), {}, {"stage": "dmtet", "step": 4})
    assert options(tmp_path, "--init_with", "gone").dmtet.init_with == "gone"
    with pytest.raises(UserError, match="gone: no such file"):
        options(tmp_path, "--init_with", "gone", "--ckpt", "scratch")


def test_source_that_starting_over_would_remove_is_refused(tmp_path):
    path = tmp_path / "checkpoints" / checkpoint.file_name(4, "dmtet")
    checkpoint.save(path, {}, {"stage": "dmtet", "step": 4})
    for start in (path, tmp_path):
        with pytest.raises(UserError, match="scratch would remove that checkpoint"):
            options(tmp_path, "--ckpt", "scratch", "--init_with", start)
    options(tmp_path, "--ckpt", "scratch")


def test_options_of_the_source_win_over_later_presets(tmp_path):
    nerf_workspace(tmp_path / "a")
    words = [*TINY, "--workspace", tmp_path / "b", "--dmtet", "--init_with", tmp_path / "a"]
    made = planned(*words, weights=EMBEDDED).config
    assert made.field.bound == Config().field.bound != PRESETS["embedded"]["bound"]


def test_another_nerf_than_that_of_the_workspace_is_refused_where_their_fields_differ(tmp_path):
    nerf_workspace(tmp_path / "a", "--bound", "2")
    nerf_workspace(tmp_path / "b")
    with pytest.raises(UserError, match="--bound 2, and workspace .* holds a NeRF with --bound 1; choose another"):
        options(tmp_path / "b", "--init_with", tmp_path / "a")


def test_mesh_of_another_workspace_determines_the_grid(tmp_path):
    folder = tmp_path / "a"
    opened(*TINY, "--workspace", folder, "--dmtet", "--coarse_sdf_grids", "2")
    checkpoint.save(folder / "checkpoints" / checkpoint.file_name(4, "dmtet"), {}, {"stage": "dmtet", "step": 4})
    mesh = planned("--text", "something", "--workspace", tmp_path / "b", "--dmtet", "--init_with", folder).config.dmtet
    assert mesh.tet_grid_size == 24 and mesh.coarse_sdf_grids == 2


def test_mesh_of_a_checkpoint_keeps_the_transform_of_its_fit(tmp_path):
    model, path, back = built(options(tmp_path)), tmp_path / "x.safetensors", np.diag([2.0, 2.0, 2.0, 1.0])
    weights = {"model": model.state_dict(), "ema": {}}
    checkpoint.save(path, weights, {"stage": "dmtet", "step": 1, "transform": back.tolist()})
    _, transform = mesh_init.initialize_mesh(model, options(tmp_path, "--init_with", str(path)))
    assert np.array_equal(transform, back)


def test_open_sheet_is_refused_with_its_file_name(tmp_path):
    path = tmp_path / "sheet.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0.2\nf 1 2 3\nf 2 4 3\n")
    made = options(tmp_path, "--init_with", str(path))
    with pytest.raises(UserError, match=r"sheet\.obj: the mesh is open"):
        mesh_init.initialize_mesh(built(made), made)


def test_checkpoint_of_another_stage_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"model": {}, "ema": {}}, {"stage": "known", "step": 1})
    made = options(tmp_path, "--init_with", str(path))
    with pytest.raises(UserError, match="is of stage 'known'"):
        mesh_init.initialize_mesh(built(made), made)


def test_photographs_without_a_mask_do_not_constrain_the_visual_hull():
    class SomeMasked(Discs):
        def mask(self, i):
            return None if i == 3 else super().mask(i)

    points = torch.rand(200, 3) * 2 - 1
    assert (mesh_init.visual_hull(SomeMasked(), points) <= mesh_init.visual_hull(Discs(), points)).all()


def test_missing_weight_is_named(tmp_path):
    path, model = nerf_workspace(tmp_path / "a")
    tensors, meta = checkpoint.load(path)
    tensors["model"].pop("field.head.bias")
    tensors["ema"].pop("field.head.bias")
    checkpoint.save(path, tensors, meta)
    made = options(tmp_path / "b", "--init_with", str(path), "--blob_density", "40")
    with pytest.raises(UserError, match="lacks head.bias"):
        mesh_init.initialize_mesh(built(made), made)


def test_the_stages_are_in_config_json(tmp_path):
    opened(*TINY, "--workspace", tmp_path, "--stages", "nerf,dmtet")
    assert json.loads((tmp_path / "config.json").read_text())["stages"] == ["nerf", "dmtet"]


def test_slope_is_measured_per_scene_unit():
    implicit = np.broadcast_to(3.0 * (np.arange(10) * 0.1 - 0.45), (10, 10, 10))
    assert mesh_init._slope(implicit, 0.1) == pytest.approx(3.0)
