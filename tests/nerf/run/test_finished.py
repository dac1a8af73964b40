"""The last pictures of a mesh stage show the surface that its files have, which is finished once for both."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.core.cameras import orbit, view_rays
from nerf.core.structs import Batch
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.io import read_mesh
from nerf.mesh.mesh import Mesh, vertex_normals, weld
from nerf.render.triangles import SurfacePath
from nerf.renderer import build_model
from nerf.run import finished
from nerf.run.evaluation import Evaluator
from nerf.training.sources import RunInfo
from tests.helpers.plans import opened

FLAGS = (
    "--text x --dmtet --tet_grid_size 16 --mesh_denoise 0.6 --W 48 --H 48 --grid_levels 2 --grid_log2 6 --hidden 8 --seed 1 "
    "--dataset_size_test 2 --texture_size 64 --videos rgb --bg_radius -1"
).split()
BUMPS = 0.35  # cells


class Log:
    """What an evaluator tells its report."""

    def __init__(self):
        self.lines, self.found = [], {}

    def log(self, line):
        """A line."""
        self.lines.append(line)

    def metrics(self, step, found):
        """Figures."""
        self.found |= found


def make(folder, *flags, known=None, path=None):
    """An evaluator of a ball with bumps, or of another path."""
    stage = opened(*FLAGS, *flags, "--workspace", folder).pending[0]
    torch.manual_seed(0)
    run = RunInfo(stage)
    model = build_model(stage, run.scene)
    with torch.no_grad():
        model.path.distance += BUMPS * torch.randn(model.path.distance.shape)
    evaluator = Evaluator(stage, model if path is None else model.with_path(path), Log(), known=known)
    return evaluator, run


def sheet(folder, kind="sheet"):
    """The contact sheet that is in a workspace, [H, W, 3]."""
    return np.asarray(Image.open(next((folder / "results").glob(f"*_{kind}.png")))).astype(float)


def apart(a, b):
    """How far pictures differ in the mean, of 255."""
    return float(np.abs(a - b).mean())


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    """A run that writes its mesh: the evaluator, the workspace, the mesh that it wrote, how often a surface was finished."""
    folder, made = tmp_path_factory.mktemp("delivered"), []
    with pytest.MonkeyPatch.context() as patch:
        own = finished.finish_given
        patch.setattr(finished, "finish_given", lambda *args: made.append(args) or own(*args))
        evaluator, run = make(folder, "--save_mesh")
        evaluator.test(0, run)
        report = evaluator.save_mesh(run)
    written = weld(read_mesh(report.files["glb"]))
    return SimpleNamespace(evaluator=evaluator, run=run, folder=folder, mesh=written, made=made)


def test_pictures_show_the_mesh_that_is_written_and_not_the_one_that_was_trained(delivered, tmp_path):
    mesh = Mesh(delivered.mesh.vertices, delivered.mesh.faces, vertex_normals(delivered.mesh))
    of_file, run = make(tmp_path / "file", path=SurfacePath(1.0, 0.01, mesh, torch.device("cpu")))
    trained, _ = make(tmp_path / "trained")
    of_file.test(0, run)
    trained.test(0, run)
    for kind in ("sheet", "sheet_unlit"):
        shown, file, raw = (sheet(folder, kind) for folder in (delivered.folder, tmp_path / "file", tmp_path / "trained"))
        assert apart(shown, file) < 0.02 * apart(shown, raw)
    assert apart(sheet(delivered.folder), sheet(tmp_path / "trained")) > 2


def test_pictures_and_files_share_one_finished_surface(delivered):
    assert len(delivered.made) == 1


def test_finished_surface_is_remembered_for_as_long_as_what_it_is_made_of_is_the_same(tmp_path):
    evaluator, _ = make(tmp_path, "--mesh_denoise", "0")
    model, finisher = evaluator.model, finished.Finisher()
    options = ExportOptions.from_config(evaluator.config.output, evaluator.config.mesh, evaluator.config.camera)
    first = finisher.surface(model, options, None)
    assert finisher.surface(model, options, None) is first
    others = [finisher.surface(model, replace(options, denoise=0.1), None), finisher.surface(model, options, np.eye(4))]
    with torch.no_grad():
        model.path.distance -= 0.1
    others.append(finisher.surface(model, options, np.eye(4)))
    assert len({id(one) for one in (first, *others)}) == 4
    assert finisher.model(model, options, None).path.surface().faces.shape == others[-1].mesh.faces.shape


def test_what_is_measured_and_previews_are_of_the_surface_that_was_trained(tmp_path):
    class Known:
        """One view of the trained surface."""

        def __len__(self):
            return 1

        def eval_batch(self, i, side):
            """As it was rendered."""
            return Batch(view_rays(views), views, truth.image, truth.opacity, background=truth.background)

    evaluator, run = make(tmp_path, "--save_mesh", known=Known())
    views = orbit(torch.tensor([70.0]), torch.tensor([20.0]), 3.2, 30.0, 32, 32)
    truth = evaluator.render(views)
    before = evaluator.preview(0).read_bytes()
    assert evaluator.test(0, run)["image_psnr"] > 80
    assert evaluator.preview(0).read_bytes() == before


def test_surface_that_cannot_be_written_is_shown_as_it_is(tmp_path):
    evaluator, run = make(tmp_path, "--save_mesh")
    with torch.no_grad():
        evaluator.model.path.distance.fill_(1.0)
    evaluator.test(0, run)
    assert any("as it was trained" in line and "the surface is empty" in line for line in evaluator.report.lines)
    assert (sheet(tmp_path) > 250).all()
