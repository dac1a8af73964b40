"""Of several processes only rank 0 writes: two gloo processes, each with a folder of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

from nerf.run.distributed import is_main, main_only, rank, world_size

ROOT = Path(__file__).resolve().parents[3]
needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch has no gloo backend here"
)
# Everything that a run writes, into a folder named after the rank; argv: rank, folder.
PROCESS = """
import sys, torch
from pathlib import Path
from torch import distributed
rank, root = int(sys.argv[1]), Path(sys.argv[2])
distributed.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
from nerf.config.config import parse
from nerf.config.kept import StoredRun
from nerf.config.resolve import resolve
from nerf.core.structs import SceneInfo
from nerf.renderer import build_model
from nerf.run import checkpoint, distributed as ours, workspace
from nerf.run.evaluation import Evaluator
from nerf.run.logger import Report
from nerf.run.profiling import profiled
from nerf.training.sources import RunInfo
assert (ours.rank(), ours.world_size(), ours.is_main()) == (rank, 2, rank == 0)
folder = root / str(rank)
words = "--text x --W 8 --H 8 --grid_levels 2 --grid_log2 6 --hidden 8 --num_steps 4 --dataset_size_test 2"
words += " --dataset_size_valid 1 --upsample_steps 2"
plan = resolve(parse([*words.split(), "--workspace", str(folder)]), StoredRun())
workspace.open_workspace(plan)
with Report(folder, plan.lines, terminal=True) as report:
    report.scalars(10, {"sds": torch.tensor(1.0)}, total=10)
    report.metrics(10, {"psnr": 1.0})
    report.result(steps=10)
    evaluator = Evaluator(plan.stages[0], build_model(plan.stages[0], SceneInfo()), report)
    run = RunInfo(plan.stages[0])
    evaluator.preview(1), evaluator.validate(1), evaluator.test(1, run)
    evaluator.show_guidance({"x": torch.zeros(1, 3, 8, 8)}, 1)
path = folder / "checkpoints" / checkpoint.file_name(1)
assert checkpoint.save(path, {"x": torch.zeros(1)}, {"stage": "nerf", "step": 1}) == path
with profiled(folder / "profile" / "trace.json", 1) as after_step:
    for _ in range(5):
        after_step()
distributed.barrier()
checkpoint.prune(root / "0" / "checkpoints", keep=0) if rank == 1 else None
distributed.barrier()
distributed.destroy_process_group()
"""
WRITTEN = ("config.json", "log_df.txt", "metrics.jsonl", "result.json", "checkpoints", "profile", "validation", "results",
           "guidance")  # fmt: skip


def test_one_process_is_the_main_one():
    assert (rank(), world_size(), is_main()) == (0, 1, True)


def test_a_function_for_the_main_process_does_nothing_elsewhere(monkeypatch):
    calls = []
    write = main_only(dict)(lambda value: calls.append(value) or {"wrote": value})
    assert write(1) == {"wrote": 1}
    monkeypatch.setattr("nerf.run.distributed.rank", lambda: 1)
    assert write(2) == {} and calls == [1]


@needs_gloo
@pytest.mark.slow
def test_of_two_processes_the_first_writes_everything_and_the_second_nothing(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(i), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for i in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert {path.name for path in (tmp_path / "0").iterdir()} >= set(WRITTEN)
    assert list((tmp_path / "0" / "checkpoints").iterdir()) != []
    assert not (tmp_path / "1").exists()
    assert "typed: --text x" in errors[0] and "\nstep " in errors[0]
    assert "typed:" not in errors[1] and "\nstep " not in errors[1]
