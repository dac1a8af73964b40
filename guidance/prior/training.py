"""What the training of every embedded prior has in common: noise, the optimiser step, and state and weights on the disk.

The learning rate is constant and decays only in the last minutes, after the state has been saved, so a later run resumes from
before the decay. B images per process; processes average their gradients (gloo).
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from guidance.diffusion import Network
from guidance.prior import UNSHUFFLE
from guidance.prior.dataset import Loader, data_hash, usual_frequency
from nerf.core.errors import UserError
from nerf.core.files import reading


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


@dataclass(frozen=True)
class Setup:
    """What a run has beside its hyperparameters: the machine, and what it starts from."""

    device: str = "cpu"
    workers: int = 0  # processes that prepare batches; 0: the training process itself
    weights: Path | None = None  # folder of what a run without a state starts from; None: random, or the shipped weights below
    # Of the kinds, see guidance.prior.dataset.Loader; None: usual, or by the errors of the geometry network that goes on.
    frequency: Mapping[str, float] | None = None
    report_every: int = 100  # steps


HERE = Setup()


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0


P = TypeVar("P", bound="Trainable")
B = TypeVar("B")


def on_cpu(value: Any) -> Any:
    """A value with every tensor in its dictionaries, whatever their depth, on the CPU."""
    if isinstance(value, dict):
        return {key: on_cpu(inner) for key, inner in value.items()}
    return value.detach().cpu() if isinstance(value, Tensor) else value


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
        setup: see :class:`Setup`; only the text-conditioned prior, its detail and its geometry network are trained on another
            device than the CPU.
    """

    loader: Loader
    snapshot = "snapshot"  # folder of the exports, beside that of the state
    writer = "dataset"  # module that writes its renders

    def __init__(self, recipe: Recipe, data: Path, run: Path, rank: int = 0, setup: Setup = HERE) -> None:
        self.recipe, self.data, self.run_folder, self.rank = recipe, data, run, rank
        self.setup, self.device = setup, torch.device(setup.device)
        self.prior = self.build()
        self.prepare_attention()
        self._flatten()
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.progress = Progress()
        if (run / "state.pt").exists():
            self.load(run / "state.pt")
        self.seed = recipe.seed + 1000 * rank + 7919 * self.progress.step
        self.loader = self.open(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed + 1)
        # Noise is drawn where it is wanted; the rest is drawn on the CPU, which has to know it.
        on_cpu = self.device.type == "cpu"
        self.noise_generator = self.generator if on_cpu else torch.Generator(self.device).manual_seed(self.seed + 2)
        self.alphas_cumprod: Tensor = self.prior.scheduler.alphas_cumprod.to(self.device)  # [1000]
        self.share = 1.0  # of the learning rate, at the last step

    @abstractmethod
    def build(self) -> P:
        """The prior with its initial weights, on the device."""

    def prepare_attention(self) -> None:
        """Choose the implementation of attention."""
        self.prior.unet.set_attn_processor(self.attention())

    def attention(self) -> Any:
        """The implementation of attention: plain on a CPU, where the fused one is 4 times slower in bf16."""
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        return AttnProcessor() if self.device.type == "cpu" else AttnProcessor2_0()

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
        """The content of ``recipe.json``."""
        return self.record()

    def record(self) -> dict[str, Any]:
        """What ``recipe.json`` says of this run."""
        return {
            "recipe": asdict(self.recipe),
            **asdict(self.progress),
            "renders": sum(len(s["kind"]) for s in self.loader.shards.values()),
            "data_sha256": data_hash(self.data),
            "device": self.setup.device,
            "frequency": "usual" if self.setup.frequency in (None, usual_frequency()) else dict(self.setup.frequency),
            "torch": torch.__version__,
        }

    def _flatten(self) -> None:
        """Make all parameters, and all gradients, views of one tensor: one all-reduce, one update, no copies."""
        parameters = self.trained(self.prior)
        self.weights = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self.average = self.weights.detach().clone()
        # Its last number carries rank 0's share of the learning rate.
        self.buffer = torch.zeros(self.weights.numel() + 1, device=self.weights.device)
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
        return (1000 * (1 - u**self.recipe.t_bias)).long().clamp(0, 999).to(self.device)

    def dropped(self, count: int) -> tuple[Tensor, Tensor]:
        """Which of B conditions are dropped at random: text, bool [B]; and 1 where the camera is kept, else 0, [B].

        Both are on the CPU.
        """
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
        noise = torch.randn(clean.shape, generator=self.noise_generator, device=self.device)
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
        torch.save(on_cpu(state), temporary)
        temporary.rename(self.run_folder / name)

    def load(self, path: Path) -> None:
        """Restore a state that :meth:`save` wrote.

        Raises:
            UserError: it is damaged, or that of another network.
        """
        hint = "delete it to begin anew, or choose another folder for the state"
        with reading(f"training: {path}", hint, problem="cannot be read as the state of a training"):
            state = torch.load(path, weights_only=True)
            there, here = len(state["weights"]), len(self.weights)
        if there != here:
            raise UserError(f"training: {path} has {there} weights, and this network has {here}; {hint}")
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
