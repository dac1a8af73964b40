"""Fair timing of contenders: one process, interleaved rounds, medians, and the machine's state printed beside them.

On one CPU thread the clock is the process's own CPU time, which preemption does not touch (a shared cache still does);
on several threads or on a GPU it is wall time. Every contender gets the same allocator.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from extension import keep_freed_memory
from nerf.core.ranges import between
from nerf.core.script import Parser, refuse


@dataclass(frozen=True)
class Timing:
    """One contender's times, in seconds a call."""

    name: str
    median: float
    fastest: float
    rounds: int


def add_arguments(parser: Parser) -> None:
    """Flags that every benchmark has."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs")
    parser.number("--threads", int, 1, between(1, 1024), "CPU threads; 1 is timed by CPU time, more by wall time")
    parser.number("--rounds", int, 9, between(3, 10_000), "interleaved rounds after one warm-up")
    parser.add_argument(
        "--allocator",
        choices=["kept", "default"],
        default="kept",
        help="kept: freed memory is not given back to the system, so page faults do not drown the arithmetic",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def prepare(arguments: argparse.Namespace) -> None:
    """Set threads and allocator as the flags say and print the machine; call it before anything is allocated."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(refuse("--device cuda: torch sees no CUDA device here; leave the flag out to run on the CPU"))
    torch.set_num_threads(arguments.threads)
    if arguments.allocator == "kept" and not keep_freed_memory():
        arguments.allocator = "default"
    print(machine(arguments.device), f"allocator {arguments.allocator}", sep="\n", flush=True)


def machine(device: str = "cpu") -> str:
    """Processor, load, versions: what a figure depends on, one fact a line."""
    lines = [f"processor {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used"]
    if hasattr(os, "getloadavg"):
        lines.append("load " + " ".join(f"{x:.2f}" for x in os.getloadavg()))
    lines.append(f"python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}")
    if torch.device(device).type == "cuda":
        lines.append(f"GPU {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    return "\n".join(lines)


def compare(
    contenders: dict[str, Callable[[], object]], rounds: int = 9, device: str = "cpu", calls: int = 1
) -> dict[str, Timing]:
    """Time each contender once a round, in turn, after one warm-up round.

    Args:
        contenders: name -> function without arguments that does the whole work; its result is dropped.
        rounds: at least 3.
        device: "cuda" waits for the GPU before and after every measurement.
        calls: calls in one measurement; the time is divided by it.
    """
    if rounds < 3:
        raise ValueError(f"compare: expected at least 3 rounds, got {rounds}")
    on_gpu = torch.device(device).type == "cuda"
    clock = time.process_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            if on_gpu:
                torch.cuda.synchronize(device)
            start = clock()
            for _ in range(calls):
                work()
            if on_gpu:
                torch.cuda.synchronize(device)
            if turn > 0:
                times[name].append((clock() - start) / calls)
    return {name: Timing(name, statistics.median(t), min(t), rounds) for name, t in times.items()}


def table(title: str, timings: dict[str, Timing], ours: str) -> str:
    """The timings in milliseconds, and how many times as long as ``ours`` each takes (by medians)."""
    width = max(map(len, timings))
    lines = [title, f"  {'':{width}}  median ms  fastest ms  ratio to {ours}"]
    for name, timing in timings.items():
        ratio = timing.median / timings[ours].median
        lines.append(f"  {name:{width}}  {1e3 * timing.median:9.3f}  {1e3 * timing.fastest:10.3f}  {ratio:6.2f}x")
    return "\n".join(lines)


def save(path: Path | None, device: str, groups: dict[str, dict[str, Timing]]) -> None:
    """Write figures and machine as JSON, if a path was given."""
    if path is None:
        return
    figures = {title: {name: asdict(t) for name, t in timings.items()} for title, timings in groups.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(device).splitlines(), "figures": figures}, indent=2) + "\n")


def _processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()
