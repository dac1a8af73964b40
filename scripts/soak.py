#!/usr/bin/env python3
"""Kill tiny runs at random moments and resume them, and start two programs at once in a workspace, for a given time.

An undisturbed run is timed first, phase by phase. A kill then picks a phase (start-up, training, a checkpoint, the export) and
a moment in it, both uniformly, waits for that phase and strikes. Every run ends with the bits of the undisturbed one, and of
two programs one is refused with a sentence, or the script says what happened instead, keeps the folder, and exits with 1. The
last line has the counts.
"""

import collections
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nerf.core import interrupt  # noqa: E402

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from nerf.core.cameras import orbit  # noqa: E402
from nerf.core.console import protected  # noqa: E402
from nerf.core.errors import UserError  # noqa: E402
from nerf.core.files import read_json  # noqa: E402
from nerf.core.ranges import SEED, above, between  # noqa: E402
from nerf.core.script import Parser, run  # noqa: E402
from nerf.run import checkpoint  # noqa: E402

# Both stages and an export in a few seconds; a checkpoint after almost every step, so that many kills hit one.
FLAGS = (
    "--seed 5 --iters 24 --num_rays 64 --max_steps 48 --grid_size 16 --grid_levels 4 --grid_log2 10 --grid_finest 32 "
    "--hidden 16 --holdout 4 --W 8 --H 8 --dataset_size_test 2 --threads 1 --checkpoint_seconds 0.02 --preview_interval 1000 "
    "--ema_decay 0.9 --eval_interval 1000 --device cpu --stages nerf,dmtet --dmtet_iters 16 --tet_grid_size 8 --w 12 --h 12 "
    "--batch_size 2 --mesh_threshold 2 --mcubes_resolution 24 --lambda_mask 1 --blob_density 4 --blob_radius 0.6 --save_mesh "
    "--texture_size 64"
).split()
LIMIT = 300.0  # seconds for one run; a slower one hangs
START_UP, TRAINING, CHECKPOINT, EXPORT = PHASES = ("start-up", "training", "a checkpoint", "the export")
POLL = 0.002  # seconds; a checkpoint of so small a run is written in less than a hundredth
ENOUGH = {"kills": 100, "same bits": 100, "pairs": 20}  # what an hour on two cores should reach


class Failure(Exception):
    """Something was lost or mixed."""


@dataclass
class Soak:
    """Counts, and what every run needs.

    Attributes:
        base: folder of all workspaces.
        choose: random numbers.
        bits: of an undisturbed run.
        seconds: how long each of its phases took.
        counts: what was done, by name.
    """

    base: Path
    choose: random.Random
    bits: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: collections.Counter = field(default_factory=collections.Counter)

    def start(self, workspace: Path, *words: str) -> subprocess.Popen:
        """Start a run in a workspace."""
        command = [sys.executable, "main.py", "--data", str(self.base / "photographs"), "--workspace", str(workspace), *FLAGS]
        with open(self.base / "output.txt", "w") as output:
            return subprocess.Popen([*command, *words], cwd=ROOT, stdout=output, stderr=output)

    def measure(self, workspace: Path) -> None:
        """Make the undisturbed run, and note how long its phases take."""
        watch, process = Watch(workspace), self.start(workspace)
        entered, now = {START_UP: time.monotonic()}, START_UP
        while process.poll() is None and time.monotonic() - entered[START_UP] < LIMIT:
            now = watch.phase()
            entered.setdefault(TRAINING if now == CHECKPOINT else now, time.monotonic())
            time.sleep(POLL)
        self.require(process.poll() == 0 and now == EXPORT, "the undisturbed run failed")
        times = [entered[START_UP], entered[TRAINING], entered[EXPORT], time.monotonic()]
        self.seconds = dict(zip((START_UP, TRAINING, EXPORT), np.diff(times).tolist(), strict=True)) | {CHECKPOINT: 2 * POLL}
        self.bits = digests(workspace)

    def finish(self, workspace: Path) -> None:
        """Run to the end and compare with the undisturbed run."""
        process = self.start(workspace)
        self.require(process.wait(LIMIT) == 0, "a resumed run failed")
        self.compare(workspace)

    def compare(self, workspace: Path) -> None:
        """Compare checkpoints and mesh with those of the undisturbed run, and look for leftovers."""
        found = digests(workspace)
        different = sorted(name for name in self.bits.keys() | found.keys() if self.bits.get(name) != found.get(name))
        self.require(not different, f"other bits than an undisturbed run: {different}")
        left = [path for path in workspace.rglob("*") if path.name.startswith(".") or path.name == "replaced"]
        self.require(not left, f"leftovers: {left}")
        result = read_json(workspace / "result.json", "the run left it so", dict[str, Any])
        self.require("glb" in result.get("mesh", {}).get("files", {}), "result.json names no mesh")
        self.counts["same bits"] += 1

    def require(self, good: bool, what: str) -> None:
        """Raise a failure with the output of the newest run."""
        if not good:
            raise Failure(f"{what}\n{(self.base / 'output.txt').read_text()[-4000:]}")

    def kill_once(self, workspace: Path, *words: str) -> bool:
        """Start a run and kill it in a random phase; returns whether it was still running."""
        phase = self.choose.choice(PHASES)
        wait = self.choose.uniform(0.0, self.seconds[phase])
        watch, process, struck = Watch(workspace), self.start(workspace, *words), None
        began = time.monotonic()
        while process.poll() is None:
            now = watch.phase()
            if struck is None and (now == phase or PHASES.index(now) > PHASES.index(phase)):  # a resumed run may skip a phase
                struck = time.monotonic() + (wait if now == phase else 0.0)
            if struck is not None and time.monotonic() >= struck:
                process.send_signal(signal.SIGKILL)
                break
            self.require(time.monotonic() - began < LIMIT, "a run hangs")
            time.sleep(POLL)
        code = process.wait()
        if code != -signal.SIGKILL:
            self.require(code == 0, "a run failed that was not killed")
            self.counts["missed"] += 1
            return False
        self.counts["kills"] += 1
        self.counts[f"kills in {watch.phase()}"] += 1
        return True

    # ---- the three kinds of rounds --------------------------------------------------------------------------------

    def kills(self, workspace: Path) -> None:
        """Kill a new run once or twice, then let it end."""
        for _ in range(self.choose.randint(1, 2)):
            if not self.kill_once(workspace):
                break
        self.finish(workspace)

    def start_over(self, workspace: Path) -> None:
        """Kill a run that starts over in a finished workspace; the same command without --ckpt ends with the same bits."""
        shutil.copytree(self.base / "straight", workspace)
        self.kill_once(workspace, "--ckpt", "scratch")
        self.require(bool(trained(workspace)), "a run that started over left no checkpoint")
        self.finish(workspace)

    def two_programs(self, workspace: Path) -> None:
        """Start two programs in one workspace; one ends, the other is refused."""
        outputs, processes = [self.base / f"output{i}.txt" for i in range(2)], []
        for path in outputs:
            processes.append(self.start(workspace))
            (self.base / "output.txt").rename(path)
            time.sleep(self.choose.choice([0.0, 0.5]) * self.choose.random())
        codes = [process.wait(LIMIT) for process in processes]
        self.require(sorted(codes) == [0, 2], f"two programs ended with {codes}: {[path.read_text() for path in outputs]}")
        winner, loser = codes.index(0), codes.index(2)
        said = outputs[loser].read_text().strip()
        pattern = rf"main\.py: workspace \S+ is in use by process {processes[winner].pid} on \S+, since [^\n]*"
        self.require(re.fullmatch(pattern, said) is not None, f"the second program said: {said}")
        self.compare(workspace)
        self.counts["pairs"] += 1
        self.counts["sentences"] += 1

    def summary(self) -> str:
        """The counts in one line."""
        counts = self.counts
        where = ", ".join(f"{counts[f'kills in {phase}']} in {phase}" for phase in PHASES)
        return (
            f"{counts['kills']} kills ({where}; {counts['missed']} came too late), {counts['same bits']} runs with the same "
            f"bits, {counts['pairs']} pairs of programs, {counts['sentences']} sentences"
        )

    def shortfall(self) -> str:
        """What is missing of :data:`ENOUGH`, in words; empty if nothing is."""
        return ", ".join(
            f"{self.counts[name]} of {least} {name}" for name, least in ENOUGH.items() if self.counts[name] < least
        )


class Watch:
    """Tells from the files of a workspace what the run that starts there now is doing."""

    def __init__(self, workspace: Path) -> None:
        self.workspace, self.log = workspace, workspace / "log_df.txt"
        self.start = self.log.stat().st_size if self.log.exists() else 0

    def phase(self) -> str:
        """One of :data:`PHASES`."""
        said = ""
        if self.log.exists():
            with open(self.log, "rb") as file:
                file.seek(self.start)
                said = file.read().decode(errors="replace")
        if "/results/df_" in said or "export: " in said:  # the video is written, and the mesh follows
            return EXPORT
        if any((self.workspace / "checkpoints").glob(".*.unfinished.*")):
            return CHECKPOINT
        return TRAINING if said else START_UP


def digests(workspace: Path) -> dict[str, str]:
    """A hash of every tensor of the newest checkpoints, and of every file of the mesh but those with times in them."""
    found = {}
    for stage in ("nerf", "dmtet"):
        loaded = checkpoint.load_latest(workspace / "checkpoints", stage)
        if loaded is None:
            continue
        found[f"{stage} step"] = str(loaded.meta["step"])
        found |= {f"{stage} {name}": digest for name, digest in leaves(loaded.tensors)}
    for path in sorted((workspace / "mesh").glob("*")):
        found[f"mesh {path.name}"] = hashlib.sha1(path.read_bytes()).hexdigest()
    return found


def leaves(tree: dict, prefix: str = "") -> list[tuple[str, str]]:
    """(name, hash or value) of everything in a checkpoint."""
    found = []
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, dict):
            found += leaves(value, name)
        elif isinstance(value, torch.Tensor):
            found.append((name, hashlib.sha1(value.numpy().tobytes()).hexdigest()))
        else:
            found.append((name, str(value)))
    return found


def trained(workspace: Path) -> list[Path]:
    """Whole checkpoints of a workspace, also those that a run which starts over has set aside."""
    places = [workspace / "checkpoints" / name for name in (".", "replaced", ".replacing")]
    return [path for place in places for path in place.glob("df_*.safetensors") if checkpoint.is_whole(path)]


def make_photographs(folder: Path) -> None:
    """Eight tiny pictures of a square from all sides."""
    folder.mkdir()
    views = orbit(torch.full((8,), 70.0), torch.arange(8) * 45.0, 3.0, 40.0, 12, 12)
    frames = []
    for i in range(8):
        picture = np.zeros((12, 12, 4), np.uint8)
        picture[4:8, 4:8] = (200, 30 * i, 20, 255)
        Image.fromarray(picture).save(folder / f"{i}.png")
        frames.append({"file_path": f"{i}.png", "transform_matrix": views.pose[i].tolist()})
    lens = {"fl_x": float(views.fx[0]), "fl_y": float(views.fy[0]), "cx": 6, "cy": 6, "w": 12, "h": 12}
    (folder / "transforms.json").write_text(json.dumps(lens | {"frames": frames}))


def main(argv: list[str] | None = None) -> int:
    """Repeat rounds until the time is over; returns the exit code."""
    parser = Parser(description=__doc__)
    parser.number("--minutes", float, 60.0, above(0, 1e6), "how long")
    parser.number("--rounds", int, 10**9, between(1, 10**9), "end after so many rounds")
    parser.number("--seed", int, 0, SEED, "of the moments")
    options = parser.parse_args(argv)
    soak = Soak(Path(tempfile.mkdtemp(prefix="soak_")), random.Random(options.seed))
    make_photographs(soak.base / "photographs")
    began = time.monotonic()
    number = 0
    try:
        soak.measure(soak.base / "straight")
        timed = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in soak.seconds.items() if name != CHECKPOINT)
        print(f"soak: an undisturbed run: {timed}", flush=True)
        rounds = [soak.kills, soak.two_programs, soak.kills, soak.start_over, soak.kills]
        while number < options.rounds and time.monotonic() - began < 60.0 * options.minutes:
            workspace = soak.base / f"round{number}"
            rounds[number % len(rounds)](workspace)
            shutil.rmtree(workspace)
            number += 1
            print(f"soak: {number} rounds: {soak.summary()}", flush=True)
    except (Failure, UserError, subprocess.TimeoutExpired, OSError, LookupError) as error:
        print(f"soak: round {number} (--seed {options.seed}): {error}\nthe workspaces are in {soak.base}", file=sys.stderr)
        return 1
    shutil.rmtree(soak.base)
    missing = soak.shortfall()
    print(
        f"soak: {(time.monotonic() - began) / 60:.0f} minutes, seed {options.seed}, nothing lost and nothing mixed: "
        f"{soak.summary()}{f'; fewer than asked for: {missing}' if missing else ''}",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    with protected():
        sys.exit(run(main))
