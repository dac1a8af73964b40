"""A guided step with the embedded prior on Taichi's kernels, on the native ones and on plain torch: python -m benchmarks.taichi

The trainer of `main.py --text ... -O` is made once for each backend, with the same seed, and they take their steps in turn in
one process. The first steps, in which Taichi compiles its kernels, do not count. Required is at most 1.5 times the time of
the native kernels, aimed at is 1.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import extension
import main as program
from benchmarks import timing
from benchmarks.timing import Timing
from nerf.config.config import parse
from nerf.config.resolve import resolve
from nerf.core.ranges import between
from nerf.core.script import Parser, run
from nerf.run.logger import Report
from nerf.run.workspace import open_workspace
from nerf.utils import Trainer

NATIVE = "native"


def trainer_of(prompt: str, folder: Path, device: str) -> Trainer:
    """The trainer of ``main.py --text PROMPT -O``, writing to a folder."""
    asked = parse(["--text", prompt, "--workspace", str(folder), "-O", "--device", device, "--seed", "0", "--no_save_mesh"])
    plan = resolve(asked, program.read_disk(asked), program.choose_weights)
    inputs = program.make_inputs(plan, device)
    open_workspace(plan)
    return program.make_trainer(plan.pending[0], inputs, device, Report(folder, [], hold=True))


def step_times(
    trainers: dict[str, Trainer], requests: dict[str, str], warm_up: int, rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each trainer's steps, taken in turn, without those of the warm-up."""
    on_gpu = device == "cuda"
    clock = time.process_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(warm_up + rounds):
        for name, trainer in trainers.items():
            with extension.scope(requests[name]):
                start = clock()
                trainer.train_step()
                if on_gpu:
                    torch.cuda.synchronize(device)
                if turn >= warm_up:
                    times[name].append(clock() - start)
    return times


def main() -> None:
    """Run the comparison and print it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a blue house with a red roof", help="one that the embedded prior knows")
    parser.number("--warm_up", int, 17, between(1, 10_000), "steps that do not count, the first update of the grid among them")
    parser.add_argument("--no_torch", action="store_true", help="leave plain torch out, which takes several times as long")
    timing.add_arguments(parser)
    parser.set_defaults(rounds=48)
    arguments = parser.parse_args()
    timing.prepare(arguments)
    requests = {NATIVE: arguments.device, "taichi": "taichi"} | ({} if arguments.no_torch else {"torch": "torch"})
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: trainer_of(arguments.prompt, Path(folder, name), arguments.device) for name in requests}
        times = step_times(trainers, requests, arguments.warm_up, arguments.rounds, arguments.device)
    timings = {name: Timing(name, median(t), min(t), len(t)) for name, t in times.items()}
    title = f"guided step, '{arguments.prompt}', steps {arguments.warm_up} to {arguments.warm_up + arguments.rounds}"
    print(timing.table(title, timings, NATIVE))
    pairs = [taichi / native for taichi, native in zip(times["taichi"], times[NATIVE], strict=True)]
    totals = sum(times["taichi"]) / sum(times[NATIVE])
    print(f"  Taichi against native: step by step {median(pairs):.2f}x in the middle, {totals:.2f}x in all (bar 1.5, aim 1)")
    timing.save(arguments.json, arguments.device, {title: timings})


if __name__ == "__main__":
    sys.exit(run(main))
