"""An export keeps the parts that were asked for, shows how far it is, and says what to lower where memory runs out."""

from dataclasses import replace

import pytest
import torch

from nerf.core.memory import OutOfMemoryError
from nerf.mesh import export, finish
from nerf.mesh.report import report_file
from tests.helpers import solids
from tests.helpers.tasks import listening
from tests.nerf.mesh.test_export import BALL, SMALL, painted, quick


def test_every_long_loop_of_an_export_shows_its_progress(tmp_path):
    with listening() as tasks:
        quick(BALL, tmp_path, replace(SMALL, normal_map=True))
    names = [task.doing for task in tasks]
    assert {"evaluating the density", "unwrapping", "baking colours", "evaluating colours", "baking normals"} <= set(names)
    assert all(task.done == task.total for task in tasks)


STAGES_OF_EXPORT = {  # function that runs out of memory -> where it is called, and the flag that helps
    "extract_surface": (export, "--mcubes_resolution"),
    "decimate_within": (finish, "--mcubes_resolution"),
    "unwrap": (export, "--decimate_target"),
    "bake": (export, "--texture_size or --texture_supersample"),
    "write_glb": (export, "--decimate_target"),
}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")])
@pytest.mark.parametrize("function", STAGES_OF_EXPORT)
def test_memory_that_runs_out_in_an_export_names_the_flag_to_lower(tmp_path, monkeypatch, function, error):
    def fail(*_, **__):
        raise error

    module, flag = STAGES_OF_EXPORT[function]
    monkeypatch.setattr(module, function, fail)
    with pytest.raises(OutOfMemoryError, match=f"memory ran out while .*lower .*{flag}"):
        quick(BALL, tmp_path)
    assert not list(tmp_path.rglob("mesh.obj"))


@pytest.mark.parametrize(("min_part", "kept"), [(0.01, 2), (0.3, 1), (1.0, 1), (0.0, 3)])
def test_parts_are_kept_by_their_share_of_the_largest(tmp_path, min_part, kept):
    def three(points):  # of radii 0.5, 0.25 and 0.08: volumes 1, 1 / 8 and 1 / 244
        balls = ((-0.3, 0.5), (0.6, 0.25), (0.95, 0.08))
        return torch.stack([solids.ball(points, (x, 0.0, 0.0), radius) for x, radius in balls]).min(0).values

    options = replace(SMALL, min_part=min_part, resolution=64)
    report = export.export_level_set(solids.Solid(three).as_distance(), painted, 1.2, tmp_path, options)
    assert report.parts_dropped == 3 - kept and report.watertight
    assert report_file(report.files["glb"], samples=0).parts == kept
