"""An export shows how far it is, and says what to lower where memory runs out."""

from dataclasses import replace

import pytest

from nerf.core.memory import OutOfMemoryError
from nerf.mesh import export
from tests.helpers.tasks import listening
from tests.nerf.mesh.test_export import BALL, SMALL, quick


def test_every_long_loop_of_an_export_shows_its_progress(tmp_path):
    with listening() as tasks:
        quick(BALL, tmp_path, replace(SMALL, normal_map=True))
    names = [task.doing for task in tasks]
    assert {"evaluating the density", "unwrapping", "baking colours", "evaluating colours", "baking normals"} <= set(names)
    assert all(task.done == task.total for task in tasks)


STAGES_OF_EXPORT = {  # function that runs out of memory -> flag that helps
    "extract_surface": "--mcubes_resolution",
    "decimate_within": "--mcubes_resolution",
    "unwrap": "--decimate_target",
    "bake": "--texture_size or --texture_supersample",
    "write_glb": "--decimate_target",
}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")])
@pytest.mark.parametrize(("function", "flag"), STAGES_OF_EXPORT.items(), ids=STAGES_OF_EXPORT)
def test_memory_that_runs_out_in_an_export_names_the_flag_to_lower(tmp_path, monkeypatch, function, flag, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(export, function, fail)
    with pytest.raises(OutOfMemoryError, match=f"memory ran out while .*lower .*{flag}"):
        quick(BALL, tmp_path)
    assert not list(tmp_path.rglob("mesh.obj"))
