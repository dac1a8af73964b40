#!/usr/bin/env python3
"""Flags -> run plan -> data, model, guidance -> Trainer. Slow imports come after the flags are read."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nerf.core import interrupt

if __name__ == "__main__":
    interrupt.end_quietly()  # before the other imports, which take a while

from nerf.config import config as options
from nerf.config.checks import gpu_warnings
from nerf.config.config import Config
from nerf.config.kept import StoredRun, needs_masks, needs_start
from nerf.config.resolve import RunPlan, draw_seed, resolve
from nerf.config.stages import Stage
from nerf.core import console, torchrun
from nerf.core.errors import DivergenceError, ExportError, PeerError, Stopped, UserError
from nerf.core.script import FAILURE, INTERRUPTED, refuse

if TYPE_CHECKING:
    from torch import Tensor

    from guidance import BuildGuidance
    from guidance.base import Guidance, ImageCondition
    from guidance.weights import Resolved
    from nerf.data.image_prompt import KnownViews
    from nerf.data.posed_images import Photographs
    from nerf.mesh.export import ExportReport
    from nerf.run.attendant import Attendant
    from nerf.run.logger import Report
    from nerf.utils import Trainer
    from nerf.viewer.front_ends import Show

PROGRAM = "main.py"


@dataclass
class Inputs:
    """What supervises a run, in all of its stages."""

    photos: "Photographs | None" = None  # the photographs to train on
    held_out: "dict[str, Photographs]" = field(default_factory=dict)  # split -> photographs that training does not see
    known: "KnownViews | None" = None  # the views of image prompts
    images: "tuple[ImageCondition, ...]" = ()  # the image prompts
    guidance: "list[Guidance]" = field(default_factory=list)  # prepared models
    notes: dict[str, str] = field(default_factory=dict)  # metadata of exported files
    transform: "Tensor | None" = None  # [4, 4] from the trained box to the data's own world


def read_disk(asked: Config) -> StoredRun:
    """What the options of a run depend on beside its flags: its workspace, and what its first stage starts from.

    Raises:
        UserError: a file that the run needs is missing or broken.
    """
    from nerf.run import workspace

    stored = workspace.read(asked)
    start = workspace.checkpoint_start(asked)
    if start is not None:
        stored = replace(stored, start=start)
    elif needs_start(asked, stored):
        from nerf.run import mesh_init

        stored = replace(stored, start=mesh_init.read_start(asked))
    if asked.trains and needs_masks(asked, stored):
        from nerf.data.probe import shows_object

        stored = replace(stored, masks=shows_object(asked.data))
    return stored


def check_names(config: Config) -> None:
    """Refuse a name that its registry does not have, before anything is read, loaded or downloaded.

    Raises:
        UserError: an unknown guidance, backbone, background or backend.
    """
    import extension
    import guidance
    from nerf import renderer
    from nerf.config.parser import check_choice

    guidance.check_names(config)
    renderer.check_names(config.field)
    check_choice("--backend", config.render.backend, ("auto", *(backend.name for backend in extension.registered_backends())))


def choose_weights(config: Config) -> "Mapping[str, Resolved]":
    """Guidance model -> the weights that it will use in a run with a prompt, for those that have some.

    Raises:
        UserError: unknown guidance, a prompt that it needs is missing, or there are no weights for it on this machine.
    """
    import guidance

    return guidance.choose_weights(config)


def device_name(config: Config) -> str:
    """The device of a run: that of ``--device``, where auto is a GPU if there is one.

    Raises:
        UserError: it is not there.
    """
    from nerf.core.devices import chosen_device

    return chosen_device(config.runtime.device)


def prepare_machine(config: Config) -> str:
    """Set the number of threads and the backend of the kernels; returns the name of the device.

    Raises:
        UserError: the requested device or backend is not available.
    """
    import torch

    import extension
    from nerf.renderer import check_machine

    extension.keep_freed_memory()
    torch.set_num_threads(config.runtime.threads or max((os.cpu_count() or 1) // torchrun.local_world_size(), 1))
    name = device_name(config)
    check_machine(config.field, name)
    if name.startswith("cuda:"):
        torch.cuda.set_device(torch.device(name).index)  # streams and events are made on the current device
    if config.runtime.tf32:
        torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = config.runtime.cudnn_benchmark
    try:
        extension.use(config.render.backend)
        extension.backend(name)
        if config.render.taichi_ray and (reason := extension.unavailable("taichi", name)):
            raise UserError(f"--taichi_ray needs Taichi: {reason}; or leave the flag out")
    except (extension.BackendError, extension.BuildError) as error:
        raise UserError(str(error)) from error
    return name


def make_inputs(plan: "RunPlan[Resolved]", device: str, build: "BuildGuidance | None" = None) -> Inputs:
    """Photographs and prepared guidance, as ``guidance.build`` or ``build`` makes it."""
    import guidance
    from nerf.core.memory import explained

    config, inputs = plan.config, Inputs()
    if config.trains and config.prompt.kinds:
        from nerf.data.image_prompt import KnownViews, image_prompts

        prompts = image_prompts(plan.references)
        inputs.known = KnownViews(prompts, device) if prompts else None
        with explained("loading the guidance model", "add --vram_O, or choose smaller weights with --sd_version"):
            inputs.images = tuple(prompt.condition for prompt in prompts)
            inputs.guidance = (build or guidance.build)(config, device, plan.weights, inputs.images)
    if plan.weights:
        inputs.notes = guidance.notes(plan.weights)
    if config.data.data is not None:
        from nerf.data.posed_images import Photographs

        with explained("reading the photographs", "give a larger --downscale"):
            photos = Photographs.splits_of(config.data.data, config.data, device, config.field.bound, config.wild.wild)
        inputs.photos = photos.pop("train")
        inputs.transform = inputs.photos.transform
        inputs.held_out = photos
    if config.mesh.mesh_crop is not None:
        from nerf.mesh.crop import check_crop

        transform = None if inputs.transform is None else inputs.transform.numpy()
        check_crop(config.mesh.mesh_crop, transform, config.output.export_frame, config.field.bound)
    return inputs


def make_trainer(stage: Stage, inputs: Inputs, device: str, report: "Report") -> "Trainer":
    """Model, evaluator and trainer of a stage: restored from its checkpoint, or initialised with what it starts from."""
    from nerf.core.memory import explained

    report.begin_stage(stage.kind)
    with explained("making the model", f"lower {stage.kind.model_memory}"):
        return _make_trainer(stage, inputs, device, report)


def _make_trainer(stage: Stage, inputs: Inputs, device: str, report: "Report") -> "Trainer":
    """:func:`make_trainer`, with the errors of memory as they come."""
    import torch

    from nerf.core.streams import Random, Stream
    from nerf.core.structs import SceneInfo
    from nerf.provider import SourceInputs, build_sources
    from nerf.renderer import build_model
    from nerf.run import distributed
    from nerf.run.evaluation import Evaluator
    from nerf.run.video_size import with_video_size
    from nerf.training.sources import GuidanceInfo, RunInfo
    from nerf.utils import Trainer

    stage = with_video_size(stage, inputs.photos, device)
    config = stage.config
    torch.manual_seed(config.runtime.seed)
    bound = config.field.bound
    scene = SceneInfo(bound) if inputs.photos is None else inputs.photos.scene(bound)
    guidances = tuple(GuidanceInfo(g.name, g.spaces, g.stage_options(config.guidance.of(g.name))) for g in inputs.guidance)
    run = RunInfo(stage, scene, guidances, inputs.transform, inputs.notes, distributed.shards())
    model = build_model(stage, scene).to(device)
    requirements = tuple(g.requirements() for g in inputs.guidance)
    sources = build_sources(SourceInputs(config, device, requirements, inputs.photos, inputs.known))
    scene_cameras = None if inputs.photos is None else inputs.photos.scene_cameras
    evaluator = Evaluator(stage, model, report, inputs.held_out, inputs.known, scene_cameras)
    trainer = Trainer(run, model, sources, inputs.guidance, evaluator, report)
    restored = trainer.restore()
    if stage.kind.starts_from is None:
        if not restored:
            generator = Random(trainer.info.seed).generator(Stream.SDF_SHAPE)
            trainer.begin(lambda: (model.field.initialize(scene, generator), None))
    else:
        from nerf.run import mesh_file, mesh_init

        if restored:
            mesh_file.check_same(model, config)
        else:
            trainer.begin(lambda: mesh_init.initialize_mesh(model, config, inputs.photos))
    return trainer


def train(trainer: "Trainer", attendant: "Attendant | None" = None) -> None:
    """Drive the loop until it ends; ``--profile`` records some of the steps.

    Args:
        trainer: of the stage.
        attendant: is told of each step; None: a signal stops the loop.

    Raises:
        Stopped: a signal came; the checkpoint is written.
    """
    from nerf.run.attendant import SignalAttendant
    from nerf.run.profiling import profiled
    from nerf.run.signals import StopRequest

    trace = trainer.workspace / "profile" / f"{trainer.stage.kind.run_name(trainer.step)}.json"
    with contextlib.ExitStack() as stack:
        attendant = attendant or SignalAttendant(stack.enter_context(StopRequest()))
        after_step = stack.enter_context(profiled(trace, trainer.config.runtime.profile))
        attendant.begin_stage(trainer)
        for record in trainer.run():
            after_step()
            attendant.after_step(trainer, record)


def finish(trainer: "Trainer", started: float) -> None:
    """Write videos or views, the mesh if it is asked for, and ``result.json``."""
    report = trainer.report
    prompt = trainer.config.prompt
    report.result(prompt=prompt.text, images=list(prompt.image) or None, seed=trainer.config.runtime.seed, steps=trainer.step)
    report.result(weights=trainer.info.notes or None)
    report.result(**{name: value for source in trainer.sources.values() for name, value in source.results().items()})
    report.result(**{name: value for guidance in trainer.guidance for name, value in guidance.results().items()})
    report.result(train_seconds=round(trainer.seconds, 2), **trainer.test())
    if trainer.config.output.save_mesh:
        export(trainer)
    path = report.result(seconds=round(time.monotonic() - started, 2))
    report.log(f"done in {time.monotonic() - started:.0f} s; {path} lists what was written")


def export(trainer: "Trainer") -> "ExportReport | None":
    """Write the mesh, and what is known of it to ``result.json``."""
    mesh = trainer.save_mesh()
    made_by = {"stage": trainer.stage.name, "step": trainer.step}
    trainer.report.result(mesh=None if mesh is None else mesh.as_dict() | made_by)
    return mesh


@dataclass
class Run:
    """A run whose options are decided: makes the trainers of its stages and drives them; a viewer does so on its thread."""

    plan: "RunPlan[Resolved]"
    inputs: Inputs
    device: str
    report: "Report"
    started: float  # on the clock of time.monotonic

    @property
    def config(self) -> Config:
        """The options of the run."""
        return self.plan.config

    def make(self, stage: Stage) -> "Trainer":
        """The trainer of a stage; see :func:`make_trainer`."""
        return make_trainer(stage, self.inputs, self.device, self.report)

    def go_through(self, trainer: "Trainer", attendant: "Attendant | None" = None) -> None:
        """Train all stages from that of ``trainer`` on, and write the results."""
        from nerf.run import workspace

        folder, names = self.config.output.workspace, [stage.name for stage in self.plan.pending]
        try:
            for i in range(names.index(trainer.stage.name) + 1, len(names)):
                train(trainer, attendant)
                trainer = next_trainer(trainer, self.plan.pending[i], self.inputs, self.device, self.report, self.started)
            if self.config.trains:
                train(trainer, attendant)
            self.report.result(stages=workspace.stage_progress(folder))
            if attendant is not None:
                attendant.before_results(trainer)
            finish(trainer, self.started)
        except (DivergenceError, ExportError, MemoryError) as error:
            known = {"steps": trainer.step, "stages": workspace.stage_progress(folder), "error": str(error)}
            self.report.result(prompt=trainer.config.prompt.text, seed=self.config.runtime.seed, **known)
            raise

    # ---- what a viewer asks for; see ``nerf.viewer.session.Job`` -----------------------------------------------------

    def start_over(self, trainer: "Trainer") -> "Trainer":
        """A trainer of the same stage before its first step; its checkpoints and those of later stages are set aside."""
        from nerf.run import workspace

        names = [stage.name for stage in self.plan.stages]
        later = names[names.index(trainer.stage.name) :]
        config = options.with_values(trainer.stage.config, {"ckpt": "scratch"}, "preset")
        fresh = self.make(Stage(trainer.stage.kind, config))
        workspace.set_aside(self.config.output.workspace, later)
        self.report.begin_anew()
        return fresh

    def edit_prompt(self, trainer: "Trainer", text: str, negative: str) -> None:
        """Go on with another prompt, in this stage and in later ones."""
        from nerf.viewer import prompt

        config = prompt.edit(trainer, self.config, text, negative, self.inputs.images)
        stages = tuple(prompt.with_prompt(stage, config) for stage in self.plan.stages)
        self.plan = replace(self.plan, config=config, stages=stages)

    def export(self, trainer: "Trainer") -> "ExportReport | None":
        """Write the mesh; see :func:`export`."""
        from nerf.mesh.export import require_packages

        require_packages()
        return export(trainer)

    def sentence(self, error: BaseException) -> str:
        """What an exception means, for people."""
        from nerf.core import crash

        known = isinstance(error, UserError | DivergenceError)
        return str(error) if known else crash.sentence_of(error, self.config.output.workspace)

    def log(self, line: str) -> None:
        """Write a line to the log."""
        self.report.log(line)


@contextlib.contextmanager
def ready(asked: Config, build: "BuildGuidance | None" = None) -> Iterator[tuple[Run, "Trainer", "Show | None"]]:
    """A run up to its first step, alone in its workspace; leaving the block ends its log and frees the workspace.

    Nothing in the workspace changes before the first stage is ready to train.

    Args:
        asked: what the user asked for.
        build: makes the guidance models in place of ``guidance.build``, as from those that the process has loaded.

    Returns:
        The run, the trainer of its first pending stage, and what shows it, if anything does.

    Raises:
        UserError: the run cannot be made; the message says why.
    """
    from nerf.mesh.export import require_packages
    from nerf.renderer import check_machine
    from nerf.run import distributed, lock, memory, restarts, workspace
    from nerf.run.logger import Report
    from nerf.training import shards

    started = time.monotonic()
    check_names(asked)
    check_machine(asked.field, device := device_name(asked))  # before weights are looked for
    workspace.check_writable(asked.output.workspace)
    with distributed.group(device != "cpu"), lock.hold(asked.output.workspace):
        lines = workspace.recover(asked.output.workspace)
        asked = restarts.with_restart(asked)  # this waits for the first process, which repairs the workspace
        distributed.barrier()
        plan = resolve(asked, read_disk(asked), choose_weights, lambda: distributed.from_first(draw_seed()))
        check_names(plan.config)  # those that the workspace keeps
        shards.check_views(plan.config, distributed.world_size())
        device = prepare_machine(plan.config)
        memory.check_memory(plan.pending, device)
        show = front_end(plan.config)
        if plan.config.output.save_mesh:
            require_packages()  # now, and not after the training
        lines += [*plan.lines, *gpu_warnings(plan.config, device)]
        with Report(plan.config.output.workspace, lines, hold=True) as report:
            run = Run(plan, make_inputs(plan, device, build), device, report, started)
            trainer = run.make(plan.pending[0])
            distributed.barrier()  # all have read what the first process now changes
            workspace.open_workspace(plan)
            restarts.record_start(asked)
            report.open()
            yield run, trainer, show


def run(asked: Config) -> int:
    """One whole run; returns the exit code."""
    with ready(asked) as (found, trainer, show):
        if show is None:
            found.go_through(trainer)
        else:
            from nerf.viewer.session import show_run

            show_run(found, trainer, show)
    return 0


def front_end(config: Config) -> "Show | None":
    """What shows a run in a window or in a browser, after ``--viewer``; None without it.

    Raises:
        UserError: it cannot be opened here; nothing has been read or trained yet.
    """
    if config.gui.viewer == "none":
        return None
    if torchrun.world_size() > 1:
        raise UserError(
            f"--viewer {config.gui.viewer} shows a run of a single process; leave it out, or start without torchrun"
        )
    from nerf.viewer import front_ends

    return front_ends.choose(config)


def next_trainer(trainer: "Trainer", stage: Stage, inputs: Inputs, device: str, report: "Report", started: float) -> "Trainer":
    """The trainer of the stage after that of ``trainer``.

    Raises:
        ExportError: the stage before has nothing that this one could start from; the results of that stage are written.
    """
    try:
        return make_trainer(stage, inputs, device, report)
    except ExportError as error:
        report.log(f"the stage {stage.name} cannot start: {error}; the results of the stage before are written instead")
        report.begin_stage(trainer.stage.kind)
        with contextlib.suppress(ExportError):  # it has no mesh either
            finish(trainer, started)
        raise


def main(argv: list[str] | None = None) -> int:
    """Read the flags, run, and turn an error into one sentence and an exit code."""
    with console.protected():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    """:func:`main` with streams that cannot fail."""
    # Idle OpenMP threads sleep rather than spin: with as many threads as cores, spinning slows everything else down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    asked, program = None, torchrun.program(PROGRAM)
    try:
        asked = options.parse(argv)
        return run(asked)
    except (DivergenceError, ExportError, PeerError) as error:
        return refuse(str(error), program, FAILURE)
    except UserError as error:
        return refuse(str(error), program)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return fail(error, asked)
        from nerf.core import crash

        return refuse(crash.sentence_of_file(error), program)
    except KeyboardInterrupt:
        sentence = interrupt.sentence(None if asked is None else asked.output.workspace)
        return refuse(sentence, program, INTERRUPTED)
    except Stopped as stopped:
        return stopped.exit_code
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # also what a library written in Rust raises, which is no Exception
        return fail(error, asked)


def fail(error: BaseException, asked: Config | None) -> int:
    """Say what an exception means that nothing else explains; returns the exit code."""
    from nerf.core import crash

    sentence = crash.sentence_of(error, None if asked is None else asked.output.workspace)
    return refuse(sentence, torchrun.program(PROGRAM), FAILURE)


if __name__ == "__main__":
    sys.exit(main())
