"""Training of the text-conditioned prior, its detail or geometry network, on one device, against the weights before.

``make gpu-prior MINUTES=8`` runs it on a GPU, from the shipped weights or from where an earlier run stopped. The minutes are
those of everything: renders of the training set where they are missing, on all cores; figures of the old weights; training;
figures of the new ones. What comes out is a folder of weights beside the state, and a report. The shipped weights stay as
they are.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from guidance.prior import WEIGHTS, comparison, geometry_dataset, train, train_detail, train_geometry
from guidance.prior import model as prior_model
from guidance.prior.comparison import Figures
from guidance.prior.dataset import DATA, check_shards, frequency_by_error, usual_frequency, write_shard, write_shards
from guidance.prior.training import Recipe, Setup
from nerf.core.console import protected
from nerf.core.devices import chosen_device
from nerf.core.errors import UserError
from nerf.core.files import check_writable
from nerf.core.ranges import SEED, above, between
from nerf.core.script import Parser, run

OUT = DATA.parent / "gpu"
RENDERING = 0.5  # share of the time that missing renders may take
TRAINING = 0.3  # share of the time that training has in any case
ENDING = 8.0  # seconds that writing the state and the weights may take


@dataclass(frozen=True)
class Part:
    """What can be trained."""

    trainer: type[train.Trainer]
    run: str  # folder of the state, in that of the results
    recipe: Recipe  # on a CPU, with one process
    batch: int  # images of a step on a GPU
    lr: float  # on a GPU, where batches are larger
    data: Path = DATA  # folder of its shards
    write: Callable[[int, Path], Path] = write_shard  # a shard


TEXT, DETAIL, GEOMETRY = "text", "detail", "geometry"
PARTS = {
    TEXT: Part(train.Trainer, "run", Recipe(processes=1), 1024, 1.5e-3),
    DETAIL: Part(train_detail.DetailTrainer, "run_detail", replace(train_detail.RECIPE, processes=1), 512, 2e-3),
    GEOMETRY: Part(
        train_geometry.GeometryTrainer,
        "run_geometry",
        replace(train_geometry.RECIPE, processes=1),
        512,
        1e-3,
        geometry_dataset.DATA,
        geometry_dataset.write_shard,
    ),
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="gpu_prior.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.number("--minutes", float, 8, above(0, 1e7), "wall clock of everything")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--part", choices=list(PARTS), default=TEXT, help=f"what is trained [{TEXT}]")
    start = "what a run without a state starts from, and is compared with: shipped, random or a folder of weights"
    parser.add_argument("--start", default="shipped", metavar="WEIGHTS", help=f"{start} [shipped]")
    frequency = "how often kinds are sampled: usual, or half of the samples by the measured errors"
    parser.add_argument("--frequency", choices=["errors", "usual"], default="errors", help=f"{frequency} [errors]")
    parser.add_argument("--data", type=Path, help=f"folder of the shards [{DATA}; for geometry {geometry_dataset.DATA}]")
    parser.number("--shards", int, 80, between(1, 10_000), "of renders; missing ones are rendered first")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the state, the weights and the report [{OUT}]")
    parser.number("--batch", int, None, between(1, 2**16), "images of a step; 1024 on a GPU (512 for detail and geometry)")
    parser.number("--lr", float, None, above(0, 10), "learning rate")
    parser.number("--workers", int, None, between(0, 1024), "processes that prepare batches; on a GPU all cores but one")
    parser.number("--count", int, 16, between(1, 10_000), "renders of each kind that the weights are measured on")
    parser.number("--seed", int, 0, SEED, "of the random numbers")
    args = parser.parse_args(argv)
    args.data = args.data or PARTS[args.part].data
    return args


def start_of(name: str, part: str) -> Path | None:
    """The folder of weights that training starts from; None: random ones.

    Raises:
        UserError: it is no folder of weights, or lacks what the part needs.
    """
    if name == "random":
        if part != TEXT:
            raise UserError(f"--start random: the {part} network is trained beside a trained prior; give shipped or a folder")
        return None
    folder = WEIGHTS if name == "shipped" else Path(name)
    if not (folder / "unet" / "config.json").is_file():
        raise UserError(
            f"--start must be shipped, random or a folder of weights, got {name!r:.80}, which has no unet/config.json"
        )
    if part == GEOMETRY and not (folder / "geometry").is_dir():
        raise UserError(
            f"--start {name!r:.80} has no geometry network to go on from; copy {WEIGHTS / 'geometry'} into it, or give shipped"
        )
    return folder


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rendered(args: argparse.Namespace) -> dict[str, Any]:
    """Render what is missing of the training set; returns how many shards there are, and the seconds it took."""
    began = time.monotonic()
    print(f"gpu-prior: renders in {args.data}, on {cores()} cores where they are missing", flush=True)
    seconds = RENDERING * 60 * args.minutes
    count = write_shards(range(args.shards), args.data, cores(), seconds, PARTS[args.part].write)
    check_shards(args.data, PARTS[args.part].trainer.writer)
    return {"shards": f"{count} of {args.shards}", "rendering_seconds": round(time.monotonic() - began, 1)}


def measured(folder: Path, device: str, part: str, count: int) -> Figures:
    """The figures of a folder of weights."""
    if part == GEOMETRY:
        return comparison.measure_geometry(prior_model.load(folder), count)
    return comparison.measure(prior_model.load(folder).to(device), part == DETAIL, count)


def placed(args: argparse.Namespace, device: str, before: Figures) -> tuple[Recipe, Setup]:
    """Hyperparameters and setup of the run on a device."""
    part, on_cpu = PARTS[args.part], device == "cpu"
    recipe = part.recipe if on_cpu else replace(part.recipe, batch=part.batch, lr=part.lr)
    recipe = replace(recipe, seed=args.seed, batch=args.batch or recipe.batch, lr=args.lr or recipe.lr)
    workers = args.workers if args.workers is not None else 0 if on_cpu else max(1, cores() - 1)
    frequency = frequency_by_error(before.hardness()) if args.frequency == "errors" else usual_frequency()
    return recipe, Setup(device, workers, start_of(args.start, args.part), frequency, report_every=100 if on_cpu else 500)


def main(argv: list[str] | None = None) -> int:
    """Train within some minutes, and report how the new weights compare with those before."""
    began = time.monotonic()
    args = arguments(argv)
    device, start = chosen_device(args.device), start_of(args.start, args.part)
    check_writable(args.data, "--data")
    check_writable(args.out, "--out")
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name(device)
    torch.backends.cudnn.benchmark = True  # all batches have one size
    facts: dict[str, Any] = {"machine": name, "part": args.part, "start": args.start, **rendered(args)}
    clock = time.monotonic()
    before = measured(start or WEIGHTS, device, args.part, args.count)
    reserved = time.monotonic() - clock + ENDING
    recipe, setup = placed(args, device, before)
    left = 60 * args.minutes - (time.monotonic() - began) - reserved
    minutes = max(left / 60, TRAINING * args.minutes)
    print(f"gpu-prior: trains for {minutes:.1f} minutes on {name}, {setup.workers} processes prepare batches", flush=True)
    part = PARTS[args.part]
    trainer = train.train(recipe, args.data, args.out / part.run, minutes, kind=part.trainer, setup=setup)
    weights = args.out / part.trainer.snapshot
    facts |= trainer.record() | {"images_a_second": round(trainer.progress.samples / trainer.progress.seconds, 1)}
    facts |= {"training_minutes": round(minutes, 2), "weights": str(weights)}
    del trainer  # with the processes that prepare its batches
    after = measured(weights, device, args.part, args.count)
    facts["minutes"] = round((time.monotonic() - began) / 60, 2)
    report = args.out / f"report_{args.part}.md"
    print(comparison.write_report(report, before, after, facts))
    print(f"gpu-prior: weights in {weights}, report in {report}; docs/prior.md says how they are taken over")
    return 0


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
