"""Training of the embedded prior: ``python -m guidance.prior.train --minutes 120`` starts or resumes it.

x_0 prediction with an unweighted squared error in x_0: the error is largest at high noise, so the loss is dominated by the
timesteps where the camera matters; and a narrow network can represent clean images, but not full-rank noise (Li and He 2025,
"Back to basics: let denoising generative models denoise").

B images per process, one thread each. On a GPU there is one process with larger batches, which other processes prepare
(``scripts/gpu_prior.py``).
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from guidance.diffusion import Network
from guidance.prior import WEIGHTS, workers
from guidance.prior import model as prior_model
from guidance.prior.dataset import DATA, GEOMETRY_WRITER, Batch, Loader, check_shards
from guidance.prior.training import HERE, Recipe, Setup, Training
from nerf.core import script
from nerf.core.console import protected
from nerf.core.files import check_writable, read_json
from nerf.core.ranges import SEED, above, between
from nerf.core.script import Parser, run


class Embeddings:
    """Text embeddings by a frozen text encoder, which are kept, because captions repeat."""

    def __init__(self, prior: prior_model.Prior) -> None:
        self.prior = prior
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        """[B, 16, 64] of B captions. Not differentiable."""
        for caption in set(captions) - self.known.keys():
            self.known[caption] = self.prior.encode_text([caption])[0]
        return torch.stack([self.known[caption] for caption in captions])


class Trainer(Training[prior_model.Prior, Batch]):
    """Training of the text-conditioned prior."""

    degraded = False  # whether noise is added to degraded images, see guidance.prior.degrade
    untouched: Network | None = None  # detail network that came with the weights, and is written with them as it was

    def __init__(self, recipe: Recipe, data: Path, run: Path, rank: int = 0, setup: Setup = HERE) -> None:
        super().__init__(recipe, data, run, rank, setup)
        self.prior.text_encoder.set_attn_implementation("eager" if self.device.type == "cpu" else "sdpa")
        self.tokens: dict[str, Tensor] = {}
        self.prepared: Iterator[Batch] | None = None  # by other processes
        if setup.workers > 0:
            self.prepared = workers.batches(self.source, recipe.batch, self.seed, setup.workers, self.device)

    @property
    def base(self) -> Path | None:
        """Folder of the weights that a run without a state starts from; None: random ones."""
        return self.setup.weights

    def build(self) -> prior_model.Prior:
        """The prior with its initial weights, on the device."""
        if self.base is None:
            return prior_model.build(seed=self.recipe.seed).to(self.device)
        prior = prior_model.load(self.base)
        self.untouched, prior.detail = prior.detail, None
        return prior.to(self.device)

    def trained(self, prior: prior_model.Prior) -> list[nn.Parameter]:
        """The parameters of a prior that are trained."""
        return prior.parameters()

    @property
    def source(self) -> Callable[..., Loader]:
        """Makes the source of batches of a seed, here or in another process."""
        geometry = self.writer == GEOMETRY_WRITER
        return partial(Loader, self.data, degraded=self.degraded, frequency=self.setup.frequency, geometry=geometry)

    def open(self, seed: int) -> Loader:
        """The source of batches."""
        return self.source(seed)

    def batch(self) -> Batch:
        """The next batch, on the device."""
        if self.prepared is not None:
            return next(self.prepared)
        return self.loader.batch(self.recipe.batch).to(self.device)

    def write(self, prior: prior_model.Prior, folder: Path) -> None:
        """Write a prior, with the detail network that came with it and ``recipe.json``, to a folder."""
        prior_model.save(replace(prior, detail=prior.detail or self.untouched), folder, self.about())

    def known(self) -> dict[str, Any]:
        """``recipe.json`` of the weights that the run starts from; empty without them."""
        if self.base is None:
            return {}
        found: dict[str, Any] = read_json(self.base / "recipe.json", "restore it from version control", dict[str, Any])
        return found

    def about(self) -> dict[str, Any]:
        """This run's record; behind that of the weights that it starts from, as the last one under the key ``continued``."""
        if self.base is None:
            return self.record()
        known = self.known()
        return {**known, "continued": [*known.get("continued", []), self.record()]}

    def encode_text(self, captions: list[str]) -> Tensor:
        """Text embeddings [B, 16, 64]; token ids are cached, because captions repeat."""
        for caption in set(captions) - self.tokens.keys():
            self.tokens[caption] = self.prior.tokenizer(
                caption, padding="max_length", max_length=prior_model.MAX_TOKENS, truncation=True, return_tensors="pt"
            )["input_ids"][0]
        ids = torch.stack([self.tokens[caption] for caption in captions])
        embeddings: Tensor = self.prior.text_encoder(ids.to(self.device)).last_hidden_state
        return embeddings

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the x_0 prediction, weighted by kind."""
        error, _ = self.error(batch, self.timesteps(len(batch.captions)))
        return (error * batch.weight).mean()

    def error(self, batch: Batch, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error [B] of x_0 at timesteps t [B], conditions dropped at random; and sigma [B]."""
        no_text, keep_camera = self.dropped(len(t))
        captions = ["" if no else text for no, text in zip(no_text.tolist(), batch.captions, strict=True)]
        clean, noisy, sigma = self.noised(batch.image, batch.degraded, t)
        keep_camera = keep_camera.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            text = self.encode_text(captions)
            x0 = self.prior.predict(
                noisy, t, text, batch.camera * keep_camera[:, None], batch.ray * keep_camera[:, None, None, None]
            )
        return (x0.float() - clean).square().mean((1, 2, 3)), sigma


class FrozenPriorTrainer(Trainer):
    """Training of a network beside the shipped prior or beside other weights, whose own parts are frozen."""

    degraded = True

    @property
    def base(self) -> Path:
        """Folder of the prior."""
        return self.setup.weights or WEIGHTS

    def frozen(self) -> prior_model.Prior:
        """The prior, whose UNet and text encoder are not trained."""
        prior = prior_model.load(self.base)
        for part in (prior.unet, prior.text_encoder):
            part.requires_grad_(False)
        return prior


def train(
    recipe: Recipe,
    data: Path,
    run: Path,
    minutes: float,
    rank: int = 0,
    save_every: float = 3.0,
    export_every: float = 20.0,
    kind: type[Training[Any, Any]] = Trainer,
    setup: Setup = HERE,
) -> Training[Any, Any]:
    """Train for some minutes.

    Args:
        recipe: see :class:`Recipe`.
        data: folder of the shards.
        run: folder of the state; weights are exported beside it, to ``kind.snapshot``.
        minutes: wall clock.
        rank: of this process.
        save_every: minutes between two saves of the state.
        export_every: minutes between two exports of the weights.
        kind: what is trained.
        setup: see :class:`Setup`.

    Returns:
        The trainer, after the last step.
    """
    trainer = kind(recipe, data, run, rank, setup)
    start = last = time.monotonic()
    end, saved, exported = start + 60 * minutes, start, start
    losses: list[float] = []
    decay = min(recipe.decay_minutes, minutes / 2) * 60
    decayed = False
    while True:
        now = time.monotonic()
        share = min(1.0, max(0.02, (end - now) / decay)) if now < end else 0.0
        losses.append(trainer.step(share))
        now = time.monotonic()
        trainer.progress.seconds += now - last
        last = now
        if trainer.share == 0:
            break
        if rank != 0:
            continue
        if trainer.share < 1 and not decayed:
            trainer.save("stable.pt")
            decayed = True
        if len(losses) == setup.report_every:
            trainer.report(losses)
            losses.clear()
        if now - saved > 60 * save_every:
            trainer.save()
            saved = now
        if now - exported > 60 * export_every:
            trainer.export()
            exported = now
    if rank == 0:
        trainer.finish(decayed)
    return trainer


def _worker(
    rank: int, kind: type[Training[Any, Any]], recipe: Recipe, data: Path, run: Path, minutes: float, rendezvous: str
) -> None:
    """The main function of one process."""
    torch.set_num_threads(1)
    if recipe.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=recipe.processes)

    def work() -> None:
        train(recipe, data, run, minutes, rank, kind=kind)

    with protected():
        sys.exit(script.run(work))


def main(kind: type[Training[Any, Any]] = Trainer, recipe: Recipe | None = None, run: str = "run", data: Path = DATA) -> None:
    """Train a part of the embedded prior, or resume it; renders must exist (``python -m guidance.prior.dataset``)."""
    recipe = recipe or Recipe()
    parser = Parser(description=main.__doc__)
    parser.number("--minutes", float, 120, between(0, 1e7), "wall clock of this run")
    parser.add_argument("--data", type=Path, default=data, help="folder of the shards")
    parser.add_argument("--run", type=Path, default=data.parent / run, help="folder of the state")
    parser.number("--batch", int, recipe.batch, between(1, 2**16), "images per process and step")
    parser.number("--processes", int, recipe.processes, between(1, 1024), "one thread each")
    parser.number("--lr", float, recipe.lr, above(0, 10), "learning rate")
    parser.number("--seed", int, recipe.seed, SEED, "of the random numbers")
    args = parser.parse_args()
    recipe = replace(recipe, seed=args.seed, batch=args.batch, processes=args.processes, lr=args.lr)
    check_shards(args.data, kind.writer)
    check_writable(args.run, "--run")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        given = (kind, recipe, args.data, args.run, args.minutes, f"{folder}/rendezvous")
        try:
            torch.multiprocessing.spawn(_worker, given, nprocs=recipe.processes)
        except torch.multiprocessing.ProcessExitedException as error:
            if error.exit_code <= 0:  # a signal ended it; else it has said why
                raise
            raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    sys.exit(run(main))
