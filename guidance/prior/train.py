"""Training of the embedded prior: ``python -m guidance.prior.train --minutes 120`` starts or resumes it.

x_0 prediction with an unweighted squared error in x_0: the error is largest at high noise, so the loss is dominated by the
timesteps where the camera matters; and a narrow network can represent clean images, but not full-rank noise (Li and He 2025,
"Back to basics: let denoising generative models denoise"). The learning rate is constant and decays only in the last
minutes, after the state has been saved, so a later run resumes from before the decay.

B images per process; processes average their gradients (gloo), one thread each.
"""

import copy
import json
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from guidance.diffusion import Network
from guidance.prior import UNSHUFFLE
from guidance.prior import model as prior_model
from guidance.prior.dataset import DATA, Batch, Loader, data_hash
from nerf.core.console import protected
from nerf.core.ranges import SEED, above, between
from nerf.core.script import Parser, run

REPORT_EVERY = 100  # steps


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run; written beside the weights."""

    seed: int = 0
    batch: int = 16  # images per process and step
    processes: int = 2
    lr: float = 1.2e-3  # AdamW, constant phase
    warmup: int = 300  # steps
    decay_minutes: float = 22  # linear decay to 2 % at the end of a run
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0  # gradient norm
    drop_text: float = 0.09  # probability of dropping the text alone, the camera alone, both
    drop_camera: float = 0.04
    drop_both: float = 0.03
    t_bias: float = 1.7  # t = 1000 (1 - u^bias), u uniform


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0


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


P = TypeVar("P", bound="Trainable")
B = TypeVar("B")


class Trainable(Protocol):
    """What a prior must have to be trained."""

    unet: Network
    scheduler: Any


class Training(ABC, Generic[P, B]):
    """One process of the training of a prior P on batches B.

    Args:
        recipe: see :class:`Recipe`.
        data: folder of the shards.
        run: folder of the state; training resumes from it if it exists.
        rank: 0 writes the state and sets the learning rate.
    """

    loader: Loader
    snapshot = "snapshot"  # folder of the exports, beside that of the state

    def __init__(self, recipe: Recipe, data: Path, run: Path, rank: int = 0) -> None:
        self.recipe, self.data, self.run_folder, self.rank = recipe, data, run, rank
        self.prior = self.build()
        self.prepare_attention()
        self._flatten()
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.progress = Progress()
        if (run / "state.pt").exists():
            self.load(run / "state.pt")
        seed = recipe.seed + 1000 * rank + 7919 * self.progress.step
        self.loader = self.open(seed)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.alphas_cumprod: Tensor = self.prior.scheduler.alphas_cumprod  # [1000]
        self.share = 1.0  # of the learning rate, at the last step

    @abstractmethod
    def build(self) -> P:
        """The prior with its initial weights."""

    def prepare_attention(self) -> None:
        """Choose the implementation of attention."""
        from diffusers.models.attention_processor import AttnProcessor

        self.prior.unet.set_attn_processor(AttnProcessor())  # fused attention is 4 times slower in bf16 on a CPU

    @abstractmethod
    def trained(self, prior: P) -> list[nn.Parameter]:
        """The parameters of a prior that are trained."""

    def rates(self) -> list[tuple[int, float]]:
        """Factors of the learning rate: (how many numbers, factor), in the order of the trained parameters."""
        return [(self.weights.numel(), 1.0)]

    @abstractmethod
    def open(self, seed: int) -> Loader:
        """The source of batches."""

    @abstractmethod
    def batch(self) -> B:
        """The next batch."""

    @abstractmethod
    def loss(self, batch: B) -> Tensor:
        """What a step reduces; differentiable."""

    @abstractmethod
    def write(self, prior: P, folder: Path) -> None:
        """Write a prior, with ``recipe.json``, to a folder."""

    def about(self) -> dict[str, Any]:
        """The content of ``recipe.json`` for this run."""
        return {
            "recipe": asdict(self.recipe),
            **asdict(self.progress),
            "renders": sum(len(s["kind"]) for s in self.loader.shards.values()),
            "data_sha256": data_hash(self.data),
            "torch": torch.__version__,
        }

    def _flatten(self) -> None:
        """Make all parameters, and all gradients, views of one tensor: one all-reduce, one update, no copies."""
        parameters = self.trained(self.prior)
        self.weights = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self.average = self.weights.detach().clone()
        self.buffer = torch.zeros(self.weights.numel() + 1)  # its last number carries rank 0's share of the learning rate
        self.gradient = self.buffer[:-1]
        self.weights.grad = self.gradient
        sizes = [p.numel() for p in parameters]
        for p, value, grad in zip(parameters, self.weights.detach().split(sizes), self.gradient.split(sizes), strict=True):
            p.data, p.grad = value.view_as(p), grad.view_as(p)

    def _groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: pieces of the one tensor, with the factors of :meth:`rates`."""
        rates = self.rates()
        sizes = [size for size, _ in rates]
        pieces = [nn.Parameter(piece) for piece in self.weights.detach().split(sizes)]
        for piece, gradient in zip(pieces, self.gradient.split(sizes), strict=True):
            piece.grad = gradient
        return [{"params": [piece], "factor": factor} for piece, (_, factor) in zip(pieces, rates, strict=True)]

    def timesteps(self, count: int) -> Tensor:
        """Random timesteps [B]; high ones are more frequent, as the recipe says."""
        u = torch.rand(count, generator=self.generator)
        return (1000 * (1 - u**self.recipe.t_bias)).long().clamp(0, 999)

    def dropped(self, count: int) -> tuple[Tensor, Tensor]:
        """Which of B conditions are dropped at random: text, bool [B]; and 1 where the camera is kept, else 0, [B]."""
        r = self.recipe
        chance = torch.rand(count, generator=self.generator)
        no_text = chance < r.drop_text + r.drop_both
        return no_text, ((chance < r.drop_text) | (chance >= r.drop_text + r.drop_both + r.drop_camera)).float()

    def noised(self, image: Tensor, degraded: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The packed target and the packed noisy image [B, 192, 8, 8] at timesteps t [B], and sigma [B].

        Args:
            image: [B, 3, 64, 64] in [-1, 1], the target.
            degraded: like the image; what noise is added to.
            t: [B] int64.
        """
        clean = torch.nn.functional.pixel_unshuffle(image, UNSHUFFLE)
        abar = self.alphas_cumprod[t][:, None, None, None]
        noise = torch.randn(clean.shape, generator=self.generator)
        noisy = abar.sqrt() * torch.nn.functional.pixel_unshuffle(degraded, UNSHUFFLE) + (1 - abar).sqrt() * noise
        return clean, noisy, (1 - abar).sqrt().flatten()

    def step(self, share: float) -> float:
        """One optimiser step at ``share`` of the learning rate (rank 0's counts); returns the loss of this process."""
        loss = self.loss(self.batch())
        loss.backward()
        if dist.is_initialized():
            self.buffer[-1] = share if self.rank == 0 else 0.0
            dist.all_reduce(self.buffer)
            share = float(self.buffer[-1])
            self.buffer /= dist.get_world_size()
        norm = self.gradient.norm()
        self.gradient.mul_((self.recipe.clip / (norm + 1e-6)).clamp(max=1))
        warm = min(1, (self.progress.step + 1) / self.recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * share * warm * group["factor"]
        if share > 0 and torch.isfinite(norm):
            self.optimizer.step()
        self.buffer.zero_()
        decay = min(self.recipe.ema, (1 + self.progress.step) / (10 + self.progress.step))
        self.average.lerp_(self.weights.detach(), 1 - decay)
        self.progress.step += 1
        self.progress.samples += self.recipe.batch * (dist.get_world_size() if dist.is_initialized() else 1)
        self.share = share
        return float(loss.detach())

    def save(self, name: str = "state.pt") -> None:
        """Write everything a resumed run needs, atomically."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        temporary = self.run_folder / (name + ".tmp")
        state = {
            "weights": self.weights.detach(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        torch.save(state, temporary)
        temporary.rename(self.run_folder / name)

    def load(self, path: Path) -> None:
        """Restore a state that :meth:`save` wrote."""
        state = torch.load(path, weights_only=True)
        self.weights.data.copy_(state["weights"])
        self.average.copy_(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def export(self, folder: Path | None = None) -> None:
        """Write the averaged weights as a diffusers folder in fp16, with ``recipe.json``; by default beside the state."""
        smooth = copy.deepcopy(self.prior)
        torch.nn.utils.vector_to_parameters(self.average.clone(), self.trained(smooth))
        self.write(smooth, folder or self.run_folder.parent / self.snapshot)

    def report(self, losses: list[float]) -> None:
        """Print the progress, with the mean of the losses since the last report, as a line of JSON."""
        report = {
            "step": self.progress.step,
            "samples": self.progress.samples,
            "loss": round(sum(losses) / len(losses), 5),
            "minutes": round(self.progress.seconds / 60, 1),
        }
        print(json.dumps(report), flush=True)

    def finish(self, decayed: bool) -> None:
        """Write what the end leaves: the state and the weights.

        Args:
            decayed: the learning rate has decayed, and ``stable.pt`` holds the state before, from which a later run resumes.
        """
        self.save("final.pt" if decayed else "state.pt")
        if decayed:
            (self.run_folder / "stable.pt").replace(self.run_folder / "state.pt")
        self.export()


class Trainer(Training[prior_model.Prior, Batch]):
    """Training of the text-conditioned prior."""

    degraded = False  # whether noise is added to degraded images, see guidance.prior.degrade

    def __init__(self, recipe: Recipe, data: Path, run: Path, rank: int = 0) -> None:
        super().__init__(recipe, data, run, rank)
        self.prior.text_encoder.set_attn_implementation("eager")
        self.tokens: dict[str, Tensor] = {}

    def build(self) -> prior_model.Prior:
        """The prior with its initial weights."""
        return prior_model.build(seed=self.recipe.seed)

    def trained(self, prior: prior_model.Prior) -> list[nn.Parameter]:
        """The parameters of a prior that are trained."""
        return prior.parameters()

    def open(self, seed: int) -> Loader:
        """The source of batches."""
        return Loader(self.data, seed, degraded=self.degraded)

    def batch(self) -> Batch:
        """The next batch."""
        return self.loader.batch(self.recipe.batch)

    def write(self, prior: prior_model.Prior, folder: Path) -> None:
        """Write a prior, with ``recipe.json``, to a folder."""
        prior_model.save(prior, folder, self.about())

    def encode_text(self, captions: list[str]) -> Tensor:
        """Text embeddings [B, 16, 64]; token ids are cached, because captions repeat."""
        for caption in set(captions) - self.tokens.keys():
            self.tokens[caption] = self.prior.tokenizer(
                caption, padding="max_length", max_length=prior_model.MAX_TOKENS, truncation=True, return_tensors="pt"
            )["input_ids"][0]
        ids = torch.stack([self.tokens[caption] for caption in captions])
        embeddings: Tensor = self.prior.text_encoder(ids).last_hidden_state
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
        with torch.autocast("cpu", torch.bfloat16):
            text = self.encode_text(captions)
            x0 = self.prior.predict(
                noisy, t, text, batch.camera * keep_camera[:, None], batch.ray * keep_camera[:, None, None, None]
            )
        return (x0.float() - clean).square().mean((1, 2, 3)), sigma


def train(
    recipe: Recipe,
    data: Path,
    run: Path,
    minutes: float,
    rank: int = 0,
    save_every: float = 3.0,
    export_every: float = 20.0,
    kind: type[Training[Any, Any]] = Trainer,
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

    Returns:
        The trainer, after the last step.
    """
    trainer = kind(recipe, data, run, rank)
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
        if len(losses) == REPORT_EVERY:
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
    with protected():
        train(recipe, data, run, minutes, rank, kind=kind)


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
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _worker, (kind, recipe, args.data, args.run, args.minutes, f"{folder}/rendezvous"), nprocs=recipe.processes
        )


if __name__ == "__main__":
    sys.exit(run(main))
