"""A trace of training steps: how many are in it, and that none is written unless it is asked for."""

import json

import pytest
import torch

from nerf.config.limits import PROFILE_WARMUP
from nerf.run.profiling import profiled


def steps_in(path):
    """How many multiplications of the tests' steps a trace has recorded."""
    events = json.loads(path.read_text())["traceEvents"]
    return len([event for event in events if event.get("name") == "aten::mm"])


@pytest.mark.parametrize(("taken", "recorded"), [(PROFILE_WARMUP + 5, 2), (PROFILE_WARMUP + 1, 1)])
def test_a_trace_holds_the_steps_after_the_warm_up(tmp_path, taken, recorded):
    path = tmp_path / "profile" / "trace.json"
    with profiled(path, 2) as after_step:
        for _ in range(taken):
            torch.ones(2, 2) @ torch.ones(2, 2)
            after_step()
    assert steps_in(path) == recorded


def test_nothing_is_written_without_steps(tmp_path):
    with profiled(tmp_path / "profile" / "trace.json", 0) as after_step:
        after_step()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", [0, PROFILE_WARMUP])
def test_a_run_that_is_over_before_the_warm_up_gets_a_warning_and_no_file(tmp_path, taken, caplog):
    with profiled(tmp_path / "profile" / "trace.json", 2) as after_step:
        for _ in range(taken):
            after_step()
    assert "recorded nothing" in caplog.text and list(tmp_path.iterdir()) == []
