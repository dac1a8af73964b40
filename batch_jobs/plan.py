"""Checks the jobs of a batch as ``main.py`` checks its flags, before anything starts, and says which may share a process."""

from collections.abc import Iterable
from pathlib import Path

from batch_jobs import state
from batch_jobs.jobs import Job
from batch_jobs.shared_guidance import recipe
from nerf.core.errors import UserError


def unfinished(jobs: Iterable[Job], out: Path, scorer: str | None = None) -> list[Job]:
    """The jobs that are not done yet, or not judged by ``scorer`` if there is one; what failed is tried again."""
    return [job for job in jobs if not state.is_finished(state.read(out / job.name), scorer)]


def recipes(jobs: Iterable[Job], out: Path, judged: bool = False, here: bool = True) -> dict[Job, str]:
    """Job -> what it has in common with others that one process may run, in their order.

    Every option is decided as at the start of a run: presets, weights, the words of the prompt, what the workspace keeps.
    Nothing is loaded or written.

    Args:
        jobs: those that are not finished.
        out: folder of the batch.
        judged: whether their meshes are to be judged.
        here: whether they will run on this machine, whose devices are known.

    Raises:
        UserError: a job that would be refused, or writes no mesh and is to be judged, with its line.
    """
    import main
    from nerf.config import config as options
    from nerf.config.resolve import resolve

    found = {}
    for job in jobs:
        try:
            asked = options.parse([*job.words, f"--workspace={out.absolute() / job.name}"])
            main.check_names(asked)
            plan = resolve(asked, main.read_disk(asked), main.choose_weights)
            main.check_names(plan.config)
            if here:
                main.device_name(plan.config)
            if judged and not plan.config.output.save_mesh:
                raise UserError("--pick best judges meshes, and this job writes none; add -O or --save_mesh")
        except UserError as error:
            raise UserError(f"{job.place}: {error}") from None
        found[job] = recipe(plan.config, plan.weights)
    return found
