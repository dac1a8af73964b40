#!/usr/bin/env python3
"""Flags -> options -> data, model, guidance -> Trainer. What takes time to import is imported after the flags are read."""

import errno
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nerf.config import config as options
from nerf.config.config import Config
from nerf.core.errors import DivergenceError, Stopped, UserError

if TYPE_CHECKING:
    from guidance.weights import Resolved
    from nerf.run.logger import Report
    from nerf.utils import Trainer

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Inputs:
    """What supervises a run, in all of its stages."""

    photos: object = None  # the photographs trained on
    held_out: dict = field(default_factory=dict)  # split -> photographs that training does not see
    guidance: list = field(default_factory=list)  # prepared models
    notes: dict = field(default_factory=dict)  # on what made an exported file
    transform: object = None  # [4, 4] from the trained box to the data's own world, or None


def prepare_machine(config: Config) -> str:
    """Set threads and the rung of the kernels; returns the name of the device.

    Raises:
        UserError: the device asked for is not there.
    """
    import torch

    import extension

    extension.keep_freed_memory()
    torch.set_num_threads(config.runtime.threads or os.cpu_count() or 1)
    name = config.runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no CUDA device here; leave the flag out to run on the CPU")
    if name.startswith("cuda:"):
        index, count = torch.device(name).index, torch.cuda.device_count()
        if index >= count:
            raise UserError(f"--device {name}: torch sees {count} CUDA devices here; give cuda:0 to cuda:{count - 1}")
        torch.cuda.set_device(index)  # streams and events are made on the current device
    try:
        extension.use(config.render.backend)
        extension.backend(name)
    except (extension.BackendError, extension.BuildError) as error:
        raise UserError(str(error)) from error
    return name


def settle(config: Config) -> tuple[Config, "Resolved | None"]:
    """Options in their final form: kept ones from the workspace, the preset of the weights that will be used."""
    from nerf.run import workspace

    config = workspace.adopt(config)
    if "dmtet" in config.stages and "nerf" not in config.stages:
        from nerf.run import mesh_init

        config = mesh_init.adopt(config)
    resolved = None
    if config.prompt.text is not None and config.trains:
        from guidance import weights

        resolved = weights.resolve(config.guidance.sd_version, config.guidance.hf_key, config.prompt.text)
        if resolved.kind == "embedded":
            config = options.with_preset(config, "embedded")
    return workspace.open_workspace(config), resolved


def make_inputs(config: Config, resolved: "Resolved | None", device: str) -> Inputs:
    """Photographs and prepared guidance."""
    inputs = Inputs()
    if resolved is not None:
        import guidance

        inputs.guidance = guidance.build(config, device, resolved)
        name = "the embedded prior" if resolved.kind == "embedded" else "Stable Diffusion"
        inputs.notes = {"guidance": name, "licence of the weights": resolved.licence}
    if config.data.data is not None:
        from nerf.data.posed_images import Photographs

        photos = Photographs.splits_of(config.data.data, config.data, device, config.field.bound)
        inputs.photos = photos.pop("train")
        inputs.transform = inputs.photos.transform
        inputs.held_out = photos
    return inputs


def make_trainer(config: Config, name: str, inputs: Inputs, device: str, report: "Report") -> "Trainer":
    """Model, evaluator and trainer of a stage, as its checkpoint left them, or as what it starts from is."""
    import torch

    from nerf.config.stages import make_stage
    from nerf.core.structs import SceneInfo
    from nerf.provider import PhotographSource, RandomCameras
    from nerf.renderer import build_model
    from nerf.run.evaluation import Evaluator
    from nerf.training.sources import GuidanceInfo, RunInfo, Source
    from nerf.utils import Trainer

    stage = make_stage(config, name)
    config = stage.config
    report.begin_stage(name)
    torch.manual_seed(config.runtime.seed)
    bound = config.field.bound
    scene = SceneInfo(bound) if inputs.photos is None else inputs.photos.scene(bound)
    guidances = tuple(GuidanceInfo(g.name, g.spaces, g.stage_options(config.guidance)) for g in inputs.guidance)
    run = RunInfo(stage, scene, guidances, inputs.transform, inputs.notes)
    model = build_model(stage, scene).to(device)
    sources: list[Source] = []
    if inputs.guidance:
        sources.append(RandomCameras(config, device, requirements=[g.requirements() for g in inputs.guidance]))
    if inputs.photos is not None:
        sources.append(PhotographSource(inputs.photos))
    evaluator = Evaluator(stage, model, report, inputs.held_out)
    trainer = Trainer(run, model, {source.name: source for source in sources}, inputs.guidance, evaluator, report)
    began = trainer.restore()
    if stage.kind.starts_from is not None and not began:
        from nerf.run import mesh_init

        trainer.begin(lambda: mesh_init.begin(model, config, inputs.photos))
    elif began and config.dmtet.init_with:
        report.log(f"--init_with {config.dmtet.init_with} was for the first step; --dmtet --ckpt scratch begins anew with it")
    return trainer


def train(trainer: "Trainer") -> None:
    """Drive the loop until it ends, or until a signal asks it to stop.

    Raises:
        Stopped: a signal came; the checkpoint is written.
    """
    from nerf.run.signals import StopRequest

    with StopRequest() as request:
        for _ in trainer.run():
            if request.number is not None:
                path = trainer.save()
                trainer.report.log(f"stopped after step {trainer.step}, saved {path}; the same command goes on from there")
                raise Stopped(request.number)


def finish(trainer: "Trainer", began: float) -> None:
    """Write videos or views, the mesh if it is asked for, and ``result.json``."""
    report = trainer.report
    report.result(prompt=trainer.config.prompt.text, seed=trainer.config.runtime.seed, steps=trainer.step)
    report.result(train_seconds=round(trainer.seconds, 2), **trainer.test())
    if trainer.config.output.save_mesh:
        report.result(mesh=trainer.save_mesh().as_dict())
    path = report.result(seconds=round(time.monotonic() - began, 2))
    report.log(f"done in {time.monotonic() - began:.0f} s; {path} says what was written")


def run(config: Config) -> int:
    """One whole run; returns the exit code."""
    from nerf.run import workspace
    from nerf.run.logger import Report

    began = time.monotonic()
    device = prepare_machine(config)
    config, resolved = settle(config)
    with Report(config.output.workspace, config) as report:
        inputs = make_inputs(config, resolved, device)
        for stage in workspace.pending_stages(config):
            trainer = make_trainer(config, stage, inputs, device, report)
            if config.trains:
                train(trainer)
            # A checkpoint that --ckpt names is one of the first of these stages; those after it begin with what it made.
            config = options.with_values(config, {"ckpt": "scratch"}, "preset")
        report.result(stages=workspace.stages_had(config.output.workspace))
        finish(trainer, began)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Read the flags, run, and turn what went wrong into one sentence and an exit code."""
    # Idle OpenMP threads sleep rather than spin: with as many threads as cores, spinning slows everything else down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return run(options.parse(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        way_out = "; make room, or choose another --workspace, and start again" if error.errno in NO_ROOM else ""
        what = f"{error.filename or 'a file'} could not be read or written: {error.strerror or error}"
        print(f"main.py: {what}{way_out}", file=sys.stderr)
        return EXIT_USAGE
    except (DivergenceError, MemoryError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Stopped as stopped:
        return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())
