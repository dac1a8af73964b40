"""``--profile``: a trace of a few training steps, for chrome://tracing or Perfetto."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import profiler

from nerf.config.limits import PROFILE_WARMUP
from nerf.core.words import counted
from nerf.run.distributed import is_main

log = logging.getLogger("somnia.profile")


@contextlib.contextmanager
def profiled(path: str | Path, steps: int) -> Iterator[Callable[[], object]]:
    """Context that records ``steps`` training steps after :data:`PROFILE_WARMUP` others.

    Args:
        path: the Chrome JSON file, written once the steps are over, or on leaving the context if fewer were recorded; without
            any there is no file.
        steps: how many steps are recorded; 0 records nothing and writes nothing, as do all ranks but 0.

    Yields:
        A function to call after every training step.
    """
    if steps == 0 or not is_main():
        yield lambda: None
        return
    path, taken = Path(path), 0

    def step() -> None:
        nonlocal taken
        taken += 1
        recording.step()

    def write(trace: profiler.profile) -> None:
        if taken <= PROFILE_WARMUP:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(path))
        recorded = counted(min(taken - PROFILE_WARMUP, steps), "step")
        log.info("wrote %s, a trace of %s for chrome://tracing or Perfetto", path, recorded)

    activities = [profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(profiler.ProfilerActivity.CUDA)
    schedule = profiler.schedule(wait=0, warmup=PROFILE_WARMUP, active=steps, repeat=1)
    with profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as recording:
        yield step
    if taken <= PROFILE_WARMUP:
        log.warning(
            "--profile %d recorded nothing: %s ran, and the first %d only warm up; train more steps",
            steps,
            counted(taken, "step"),
            PROFILE_WARMUP,
        )
