"""The surface that is delivered: made before the export, or in it, files are the same."""

from dataclasses import replace

import numpy as np

from nerf.config.groups import OutputConfig
from nerf.config.mesh import MeshConfig
from nerf.mesh import finish as finishing
from nerf.mesh.decimate import Decimation
from nerf.mesh.export import export_surface
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.finish import finish_given
from nerf.mesh.mesh import Mesh
from tests.helpers import solids

OPTIONS = ExportOptions.from_config(OutputConfig(texture_size=64), MeshConfig(mesh_denoise=0.1))


def painted(points):
    """A colour that is different everywhere, smooth."""
    return 0.5 + 0.4 * points.clamp(-1, 1)


def test_surface_that_was_finished_before_is_exported_like_a_given_one(tmp_path):
    block = solids.box_mesh(np.array([0.6, 0.8, 0.4]), np.array([-0.3, -0.4, -0.2]))
    done = replace(finish_given(block, OPTIONS, 1.0, None), seconds=12.5)
    report = export_surface(done, painted, tmp_path / "done", OPTIONS, bound=1.0)
    export_surface(block, painted, tmp_path / "given", OPTIONS, bound=1.0)
    assert report.seconds["clean"] == 12.5  # when it was made, not now
    for file in report.files.values():
        assert file.read_bytes() == (tmp_path / "given" / file.name).read_bytes()


def test_chips_that_decimation_cuts_off_are_dropped(monkeypatch):
    block = solids.box_mesh([0.6, 0.8, 0.4], [-0.3, -0.4, -0.2])
    chip = np.array([[-0.3, -0.4, -0.2], [-0.3, 0.4, -0.2], [-0.31, 0.0, -0.2], [-0.31, 0.0, -0.21]])  # at an edge of the block
    tetrahedron = solids.tetrahedron().faces + len(block.vertices)
    chipped = Mesh(np.concatenate([block.vertices, chip]), np.concatenate([block.faces, tetrahedron]))
    monkeypatch.setattr(finishing, "decimate_within", lambda *_: (chipped, Decimation(16, 0.0, 0.0, 1)))
    finished = finishing.finish(block, OPTIONS, 1.0)
    assert (len(finished.mesh.vertices), len(finished.mesh.faces), finished.dropped) == (8, 12, 0)
