"""Trainer: train, train_step, evaluate, test, save_mesh.

A step renders the views of each source, sums the weighted terms of the objectives and takes one optimiser step. The trainer
does not know which field, render path, source or guidance it has. ``run`` yields after every step, so that the command line,
a viewer and a notebook drive the same loop.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidance.base import Guidance
from nerf.config.checks import less_memory
from nerf.config.stages import Failure, Stage
from nerf.core.errors import DivergenceError, PeerError, UserError
from nerf.core.memory import explained
from nerf.core.streams import Stream
from nerf.core.structs import Part, StepPlan
from nerf.mesh.export import ExportReport
from nerf.renderer import NeRFRenderer
from nerf.run import checkpoint, checkpoint_checks, distributed, lock, occluder_masks, workspace
from nerf.run.evaluation import Evaluator
from nerf.run.gradients import GradientSum, state_before
from nerf.run.logger import Report
from nerf.training import objectives, schedule, shards
from nerf.training.divergence import DivergenceMonitor, check_finite
from nerf.training.ema import Ema
from nerf.training.objectives import Objective, ObjectiveInputs, ObjectiveOutput
from nerf.training.optim import amp_dtype, build_optimizer
from nerf.training.sources import RunInfo, Source
from nerf.training.unread import Unread

# On CUDA, reading a loss back stalls the queue: those of so many steps are sent to the host together, and looked at when they
# have arrived. On a CPU each step is looked at.
CUDA_CHECK_INTERVAL = 16
PREVIEW_STEPS = (10, 30, 100)
LOOKS = 20  # times in a run that the field is asked what is wrong with it


@dataclass(frozen=True)
class StepRecord:
    """What the loop yields after each step."""

    step: int  # 0-based number of the step just taken
    total: int
    terms: dict[str, Tensor]  # unweighted loss terms, and what guidance and objectives add for the log


class Trainer:
    """One stage of a run: a model, sources of views, guidance, and a workspace.

    Args:
        run: the stage with its options, and what it is trained on.
        model: renders.
        sources: name -> source of views, in the order of the step's parts.
        guidance: prepared guidance models, empty when photographs alone supervise.
        evaluator: renders and exports the model.
        report: logs.
    """

    def __init__(
        self,
        run: RunInfo,
        model: NeRFRenderer,
        sources: dict[str, Source],
        guidance: list[Guidance],
        evaluator: Evaluator,
        report: Report,
    ):
        self.info, self.model, self.sources, self.guidance = run, model, sources, guidance
        self.stage, self.config = run.stage, run.config
        self.evaluator, self.report = evaluator, report
        self.device = next(model.parameters()).device
        self.workspace = Path(self.config.output.workspace)
        for one in guidance:
            one.begin_stage()
        inputs = ObjectiveInputs(run, model.field, guidance, self.device, model.appearance, model.recolored)
        self.objectives = objectives.build(inputs)
        self.optimizer = self._make_optimizer()
        self.gradient_sum = GradientSum()
        self._before: dict[str, Tensor] = {}  # what a step that is not finished has changed already, as it was
        self.amp_dtype = amp_dtype(self.config.optim, self.device.type)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.ema = Ema(model, self.config.optim.ema_decay)
        self.monitor = DivergenceMonitor()
        self.step = 0
        self.lineage: checkpoint.Lineage | None = None  # of the checkpoints that it writes; set by the first of them
        self.named: Path | None = None  # what --ckpt takes other than the newest to resume; it is never pruned
        self.unread = Unread(self.monitor, self._advice)  # stays empty on a CPU
        self._said: set[str] = set()  # troubles of the field that were logged
        self.seconds = 0.0  # of training, over all the processes that worked on this run
        plans = [self.plan(step) for step in (0, self.config.optim.iters // 2, self.config.optim.iters - 1)]  # weights ramp
        for plan in plans:
            objectives.check(self.objectives.values(), plan)
        for line in objectives.inapplicable_terms(self.objectives.values(), plans[-1], self.stage):
            report.log(f"warning: {line}")

    # ---- one step -------------------------------------------------------------------------------------------------

    def plan(self, step: int) -> StepPlan:
        """The plan of a step."""
        return schedule.plan(step, self.info, self.sources)

    def train_step(self) -> dict[str, Tensor]:
        """Take one optimiser step; returns the unweighted loss terms and what objectives add for the log.

        Raises:
            DivergenceError: a term is not finite; no weight has been changed by this step. On CUDA it may be that of an earlier
                step: terms are looked at when they have arrived on the host, at the latest :data:`CUDA_CHECK_INTERVAL` steps
                after they were sent there, and before every checkpoint.
            PeerError: another process of the run is gone, and the step was not taken.
        """
        plan = self.plan(self.step)
        self._before = state_before(self.model)
        self.model.begin_step(plan.fraction)
        if self.step % self.config.render.update_extra_interval == 0:
            self.model.update_occupancy(plan.random.generator(Stream.OCCUPANCY, self.device))
        self.optimizer.zero_grad(set_to_none=True)
        whole = [name for name, objective in self.objectives.items() if objective.scope == "step"]
        once = {part.shard: set(whole) for part in plan.parts}
        terms, stats, images = (dict[str, Tensor]() for _ in range(3))
        for part in plan.parts:
            found, share = self._evaluate_part(part, plan, once[part.shard])
            self._backward(found.terms, plan, share)
            terms |= {name: terms.get(name, 0.0) + share * value.detach() for name, value in found.terms.items()}
            stats |= found.stats
            images |= found.images
        if self._sends_back():
            self.unread.send()
        self.unread.look()
        terms = self.gradient_sum(self._learned(), terms, plan.weights)
        self._apply_gradients(plan)
        self.ema.update()
        for guidance in self.guidance:
            guidance.after_step()
        if images:
            self.evaluator.show_guidance(images, self.step)
        self.step, self._before = self.step + 1, {}
        return terms | stats

    def _evaluate_part(self, part: Part, plan: StepPlan, once: set[str]) -> tuple[ObjectiveOutput, float]:
        """Render this process's share of a part and evaluate the objectives on it; returns how much of the whole it is, too.

        Args:
            part: as it was planned.
            plan: of the step.
            once: names of the objectives that still have to be evaluated in this step and then no more; those that
                apply to the part are removed.
        """
        source = self.sources[part.source]
        part = shards.affordable(part, self.model.path.affordable_rays)
        part, batch, share = shards.take(part, source.batch(part), source.linked_views)
        part = replace(part, settings=batch.settings(part.settings))
        result = ObjectiveOutput()
        with self._autocast():
            out = self.model.render(batch.rays, part.settings)
            source.observe(part, out)
            for name, objective in self.objectives.items():
                if not objective.applies(part, plan) or (objective.scope == "step" and name not in once):
                    continue
                once.discard(name)
                objective.loss_scale = self._loss_scale() if objective.needs_loss_scale else 1.0
                result.update(objective(out, batch, part, plan))
        self._check(result, out.opacity.detach() if source.frames_object else None)
        return result, share

    def _check(self, result: ObjectiveOutput, opacity: Tensor | None) -> None:
        """Look at the terms of a part, and at the opacity [N] of a render that frames the object; on CUDA, keep them.

        Raises:
            DivergenceError: on a CPU, a term is not finite.
        """
        if self._looks_at_once():
            if opacity is not None:
                self.monitor.update(opacity)
            check_finite(result.terms, self.step, self._advice)
        else:
            opacity = opacity if self._sends_back() else None
            self.unread.add(self.step, result.terms, result.finite, opacity, CUDA_CHECK_INTERVAL)

    def _loss_scale(self) -> Tensor | float:
        """The factor that mixed precision puts on the losses, left on the device."""
        return self.scaler.scale(torch.ones((), device=self.device)) if self.scaler.is_enabled() else 1.0

    def _backward(self, terms: dict[str, Tensor], plan: StepPlan, share: float) -> None:
        """Add the gradients of the weighted sum of the terms of a share."""
        weighted = [plan.weights[name] * share * value for name, value in terms.items()]
        total = sum(weighted[1:], start=weighted[0]) if weighted else None
        if total is not None and total.requires_grad:
            self.scaler.scale(total).backward()

    def _learned(self) -> list[torch.nn.Parameter]:
        """Everything that the optimiser changes."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _apply_gradients(self, plan: StepPlan) -> None:
        if all(parameter.grad is None for parameter in self._learned()):
            return  # no part had a loss; the gradient scaler refuses such a step
        self.scaler.unscale_(self.optimizer)
        if self.config.optim.grad_clip > 0:
            torch.nn.utils.clip_grad_value_(self.model.parameters(), self.config.optim.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * plan.lr_scale
        self.scaler.step(self.optimizer)
        self.scaler.update()

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[StepRecord]:
        """Train to the last step (or the time budget), yielding after each.

        Checkpoints, previews and validations happen in between. Whoever stops iterating loses nothing: call
        :meth:`save` and go. The lock of the workspace is held meanwhile, unless the process holds it already.

        Raises:
            UserError: another program holds the workspace.
        """
        with lock.hold(self.workspace):
            yield from self._run()

    def _run(self) -> Iterator[StepRecord]:
        """:meth:`run` in a workspace that no other program writes to."""
        budget = 60.0 * self.config.runtime.minutes if self.config.runtime.minutes else None
        total = self.config.optim.iters
        distributed.begin_together(self.step, [*self.model.state_dict().values(), *self.ema.average, *self._learned()])
        self.report.after_training = self.evaluator.after_training
        last_saved = time.monotonic()
        while self.step < total and (budget is None or self.seconds < budget):
            began = time.monotonic()
            with explained(
                "taking a training step", lambda: f"{less_memory(self.stage.kind, self.config)}; {self._what_is_left()}"
            ):
                terms = self._with_others(self.train_step)
            done = self.step
            self.seconds = self.agreed(self.seconds + time.monotonic() - began)
            self.report.scalars(done, terms, total=total)
            if done in PREVIEW_STEPS or (done % self.config.output.preview_interval == 0):
                self.preview()
            if done % max(total // LOOKS, 1) == 0:
                self._say_troubles()
            diagnosis = self.monitor.diagnose(self.info.fraction(done), self.stage.kind, self.config)
            if diagnosis is not None:
                self.save()
                raise DivergenceError(f"step {done}: {diagnosis}")
            epoch = self.config.output.dataset_size_train
            if done % (epoch * self.config.output.eval_interval) == 0 and done < total:
                self.evaluate()
            if done % (epoch * self.config.output.test_interval) == 0 and done < total:
                self.test()
            if time.monotonic() - last_saved > self.config.output.checkpoint_seconds:
                self.save()
                last_saved = time.monotonic()
            yield StepRecord(done - 1, total, terms)
        self.report.end_training()
        if self.step < total:
            self.report.log(
                f"the {self.config.runtime.minutes:g} minutes of --minutes are over at step {self.step} of {total}; they count "
                "all the training of a stage, so the same command with more of them goes on"
            )
        self.save()
        distributed.barrier()  # what the first process has written is there for all of them

    def agreed(self, value: float) -> float:
        """The largest of a number in all processes of the run, which all of them act upon; see :meth:`_with_others`."""
        return self._with_others(lambda: distributed.largest(value))

    def _with_others(self, work: Callable[[], Any]) -> Any:
        """Do what all processes do together; if another one is gone, save what the last whole step left.

        Raises:
            PeerError: it is.
        """
        try:
            return work()
        except PeerError as error:
            self.model.load_state_dict(self._before, strict=False)
            self.save()
            raise PeerError(f"step {self.step}: {error}; {self._what_is_left()}") from error

    def _say_troubles(self) -> None:
        """Log what the field finds wrong with itself; the same trouble once."""
        for line in self.model.field.troubles(self.info.fraction(self.step)):
            if (trouble := line.partition(":")[0].partition(",")[0].rstrip("0123456789")) not in self._said:
                self._said.add(trouble)
                self.report.log(f"warning: {line}")

    def train(self) -> None:
        """Run to the end."""
        for _ in self.run():
            pass

    # ---- looking --------------------------------------------------------------------------------------------------

    def preview(self) -> None:
        """Write one small picture of the scene as it is, early and often."""
        with self.ema.applied():
            self.evaluator.preview(self.step)

    def evaluate(self) -> dict[str, float]:
        """Render the validation views and, where photographs were held out, measure them."""
        with self.ema.applied():
            return self.evaluator.validate(self.step)

    def test(self) -> dict[str, float]:
        """Render the turntable video or the six views, and measure held-out photographs."""
        with self.ema.applied():
            if self.config.trains:  # a run that only shows has not loaded what was learned of the photographs alone
                found = occluder_masks.write(self.objectives, self.sources, self.model, self.workspace / "results" / "masks")
                self.report.result(**found)
            return self.evaluator.test(self.step, self.info)

    def save_mesh(self) -> ExportReport | None:
        """Export the textured mesh; returns the export's report, None on other ranks than 0."""
        with self.ema.applied():
            return self.evaluator.save_mesh(self.info, [get for source in self.sources.values() for get in source.photos()])

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of everything that the next step depends on.

        Raises:
            DivergenceError: a term of the last step, or a weight after it, is not finite; nothing is written, and the
                checkpoints before it are untouched.
        """
        self.unread.settle()
        optimizer = self.optimizer.state_dict()["state"]
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": {str(k): v for k, v in optimizer.items()},
            "guidance": {g.name: g.state_dict() for g in self.guidance},
            "objectives": {name: objective.state_dict() for name, objective in self.objectives.items()},
            "sources": {name: source.state_dict() for name, source in self.sources.items()},
            "random": {"torch": torch.get_rng_state()},
        }
        checkpoint_checks.check_finite_state(tensors, self.step, self._advice)
        meta = {
            "stage": self.stage.name,
            "step": self.step,
            "seconds": self.seconds,
            "optimized": len(optimizer),
            "scaler": self.scaler.state_dict(),
            "monitor": self.monitor.__dict__,
            "notes": self.info.notes,
            "transform": None if self.info.transform is None else np.asarray(self.info.transform).tolist(),
        }
        folder, stage = self.workspace / "checkpoints", self.stage.name
        if self.lineage is None:
            self.lineage = checkpoint.lineage_after(folder, stage)
        path = checkpoint.save(folder / checkpoint.file_name(self.step, stage), tensors, meta, self.lineage)
        in_use = () if self.named is None else (self.named,)
        checkpoint.prune(folder, self.config.output.keep_checkpoints, stage, in_use, whole=path)
        workspace.remove_replaced(self.workspace)
        return path

    def _what_is_left(self) -> str:
        """What the same command does after a failure, for messages."""
        return checkpoint.what_is_left(self.workspace / "checkpoints", self.stage.name, self.config.runtime.ckpt)

    def _advice(self) -> str:
        """What is left after a loss or a weight that is not finite, and what to try."""
        half = self.amp_dtype is torch.float16
        return f"{self._what_is_left()}; try {self.stage.kind.advice(Failure.NOT_FINITE, self.config, half)}"

    def restore(self) -> bool:
        """Go on from the checkpoint that ``--ckpt`` means, if there is one; returns whether there was.

        Raises:
            UserError: this run does not train and there is nothing to show, or the checkpoint does not fit.
        """
        ckpt, folder = self.config.runtime.ckpt, self.workspace / "checkpoints"
        found = checkpoint.load_selected(folder, ckpt, self.stage.name)
        if found is not None:
            for line in found.skipped:
                self.report.log(f"warning: {line}; the newest whole checkpoint before it is {found.path}")
            weights_only = ckpt == "latest_model"
            self._load(found.path, found.tensors, found.meta, weights_only)
            self.named = found.path if ckpt not in ("latest", "best") else None
            self.report.log(self._restored(found.path, weights_only))
        elif not self.config.trains:
            raise UserError(
                f"workspace {self.workspace} has no checkpoint of stage {self.stage.name!r} to show; train first: the same "
                "command without --test or --six_views"
            )
        return found is not None

    def _restored(self, path: Path, weights_only: bool) -> str:
        """What a run does with the checkpoint that it has loaded, for the log."""
        if not self.config.trains:
            return f"showing {path}" if weights_only else f"showing {path} (step {self.step})"
        total = self.config.optim.iters
        if weights_only:
            return f"training begins with the weights of {path}, at step 0 of {total}"
        if self.step < total:
            return f"going on from {path} (step {self.step} of {total})"
        more = "" if self.step == total else f", more than the {total} asked for"
        return f"nothing is left to train: {path} has {self.step} steps{more}; give more {self.stage.steps_flag} to go on"

    def begin(self, fill: Callable[[], tuple[str | None, object]]) -> None:
        """Let ``fill`` put something into the model before the first step, and begin the average of the weights there.

        Args:
            fill: returns a line for the log, if there is something to say, and the transform [4, 4] of the export, or None to
                keep that.
        """
        line, transform = fill()
        if line:
            self.report.log(line)
        if transform is not None:
            self.info = replace(self.info, transform=transform)
        self.ema = Ema(self.model, self.config.optim.ema_decay)

    def use_stage(self, stage: Stage) -> None:
        """Go on with other options of the same stage that nothing was made of: the words of its prompt."""
        self.info = replace(self.info, stage=stage)
        self.stage, self.config = stage, stage.config
        self.evaluator.stage, self.evaluator.config = stage, stage.config

    def load(self, path: Path, weights_only: bool = False) -> None:
        """Continue from a checkpoint; with ``weights_only`` take the model alone and start counting at 0.

        All of it is checked before any of it is used.

        Raises:
            UserError: the file is unreadable, of another stage, of a model with other shapes, or was changed.
        """
        self._load(path, *checkpoint.load(path), weights_only)

    def _load(self, path: Path, tensors: dict, meta: dict, weights_only: bool) -> None:
        checkpoint_checks.require_stage(meta, self.stage.name, path)
        checkpoint_checks.check_meta(meta, path)
        checkpoint_checks.require_parts(tensors, ("model",), path)
        own = {name.removeprefix("path."): value for name, value in tensors["model"].items() if name.startswith("path.")}
        self.model.path.make_room(own)
        checkpoint_checks.check_model(self.model, tensors, self.ema.state_dict(), path)
        # A run that only shows needs no optimiser, which may be of another kind.
        resumed = None if weights_only or not self.config.trains else self._check_resumable(path, tensors, meta)
        self.model.load_state_dict(tensors["model"])
        self.ema.load_state_dict(tensors["ema"])
        if self.info.transform is None and meta.get("transform") is not None:
            self.info = replace(self.info, transform=np.asarray(meta["transform"]))
        # A run that only shows has no guidance to ask for its notes.
        self.info = replace(self.info, notes=meta.get("notes", {}) | self.info.notes)
        folder = self.workspace / "checkpoints"
        self.lineage = checkpoint.lineage_after(folder, self.stage.name, None if weights_only else path)
        if not weights_only:
            self.step, self.seconds = meta["step"], meta["seconds"]
        if resumed is None:
            return
        random, state = resumed
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for guidance in self.guidance:
            guidance.load_state_dict(tensors.get("guidance", {}).get(guidance.name, {}))
        for name, objective in self.objectives.items():
            objective.load_state_dict(tensors.get("objectives", {}).get(name, {}))
        for name, source in self.sources.items():
            source.load_state_dict(tensors.get("sources", {}).get(name, {}))
        torch.set_rng_state(random)
        if meta["scaler"]:  # empty in a run without float16, on a CPU for instance; a scale is then found anew
            self.scaler.load_state_dict(meta["scaler"])
        self.monitor = DivergenceMonitor(**meta["monitor"])
        self.unread = Unread(self.monitor, self._advice)

    def _check_resumable(self, path: Path, tensors: dict, meta: dict) -> tuple[Tensor, dict[int, dict]]:
        """Check what a checkpoint holds beside the model; returns the states of the random numbers and of the optimiser."""
        checkpoint_checks.check_learners("guidance", {g.name: g for g in self.guidance}, tensors, path)
        checkpoint_checks.check_learners("objectives", self.objectives, tensors, path)
        checkpoint_checks.check_learners("sources", self.sources, tensors, path)
        random = checkpoint_checks.check_random(tensors.get("random"), path)
        return random, checkpoint_checks.check_optimizer(self.optimizer, tensors.get("optimizer"), meta.get("optimized"), path)

    # ---- making ---------------------------------------------------------------------------------------------------

    def _make_optimizer(self) -> torch.optim.Optimizer:
        optim = self.config.optim
        learners: tuple[Objective | Source, ...] = (*self.objectives.values(), *self.sources.values())
        others = [group for learner in learners for group in learner.param_groups(optim.lr)]
        return build_optimizer(optim, self.model.param_groups, others)

    def _autocast(self):
        """No cache of cast weights: up to torch 2.10 those that a part without gradients casts never learn after it."""
        return torch.autocast(self.device.type, self.amp_dtype, cache_enabled=False) if self.amp_dtype else nullcontext()

    def _looks_at_once(self) -> bool:
        """Whether the terms of a step are looked at in it."""
        return self.device.type == "cpu"

    def _sends_back(self) -> bool:
        """Whether the terms since the last such step are sent to the host after this one."""
        return not self._looks_at_once() and self.step % CUDA_CHECK_INTERVAL == 0
