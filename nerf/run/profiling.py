"""``--profile``: a trace of a few training steps, for chrome://tracing or Perfetto."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import profiler

from nerf.run.distributed import is_main

WARMUP_STEPS = 3  # not recorded: they allocate memory, build kernels and fill caches


@contextlib.contextmanager
def profiled(path: str | Path, steps: int) -> Iterator[Callable[[], object]]:
    """Context that records ``steps`` training steps after :data:`WARMUP_STEPS` others.

    Args:
        path: the Chrome JSON file, written once the steps are over, or on leaving the context if fewer came.
        steps: how many steps are recorded; 0 records nothing and writes nothing, as do all ranks but 0.

    Yields:
        A function to call after every training step.
    """
    if steps == 0 or not is_main():
        yield lambda: None
        return
    path = Path(path)

    def write(trace: profiler.profile) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(path))

    activities = [profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(profiler.ProfilerActivity.CUDA)
    schedule = profiler.schedule(wait=0, warmup=WARMUP_STEPS, active=steps, repeat=1)
    with profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as recording:
        yield recording.step
