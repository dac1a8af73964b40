"""Runs the jobs of a batch on Ray: which worker gets which job, what happens to those that fail, and when it is over."""

import os
import re
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_jobs import state
from batch_jobs.display import Display
from batch_jobs.jobs import Job, as_words
from batch_jobs.scores import Judging
from batch_jobs.state import State
from batch_jobs.worker import Outcome, Worker
from nerf.core.errors import Stopped, UserError
from nerf.core.files import reason_of
from nerf.core.words import counted
from nerf.run.signals import StopRequest

ROOT = Path(__file__).resolve().parent.parent  # which workers import from
POLL_SECONDS = 1.0  # between two looks at how far the jobs are
ANSWER_SECONDS = 10.0  # for a cluster to answer
STOP_SECONDS = 30.0  # for the jobs to save a checkpoint
STORE_BYTES = 96 << 20  # of Ray's object store on this machine: jobs pass words, and files through the disk
PASSED_ON = ("SOMNIA_", "HF_", "TRANSFORMERS_", "XDG_CACHE_HOME")  # variables that workers on other machines get, too
START_ONE = "start a cluster with ray start --head, or leave --address out"
PLACES = "on every machine of a cluster, the project and its Python environment must be where they are on this one"
INSTALL = 'pip install "somnia[batch]" (or "ray[default]==2.60.*")'


@dataclass(frozen=True)
class Resources:
    """What Ray is asked for, and what is done with a job."""

    workers: int | None = None  # processes at a time; None: as many as the cores and GPUs are enough for
    cpus: float = 1.0  # of a job
    gpus: float | None = None  # of a job; None: one where Ray has GPUs
    tries: int = 3  # of a job in a row that save no further checkpoint
    judging: Judging | None = None  # how jobs are judged when they are done


def require_ray() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a batch reports to nobody
    try:
        import ray
    except ImportError as error:
        raise UserError(f"a batch runs on Ray, which is not installed ({error}); {INSTALL}") from None
    return ray


@contextmanager
def connected(address: str | None, dashboard: bool) -> Iterator[str]:
    """Ray in a ``with`` block: on this machine's cores, or a cluster; yields the address of its dashboard, or "".

    Args:
        address: of a cluster, as ``ray.init`` takes it; None: start one on this machine, and end it with the block.
        dashboard: of the one that is started.

    Raises:
        UserError: there is no such cluster, or Ray cannot be started here.
    """
    ray = require_ray()
    _check_address(address)
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
    own = {"include_dashboard": dashboard, "object_store_memory": STORE_BYTES}
    try:
        context = ray.init(**quiet, **(own | {"address": "local"} if address is None else {"address": address}))
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        way_out = "see its log in the temporary folder" if address is None else START_ONE
        what = "Ray cannot be started here" if address is None else f"--address {address}: there is no cluster"
        raise UserError(f"{what} ({reason_of(error)}); {way_out}") from None
    try:
        yield str(context.dashboard_url or "")
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Refuse a cluster that nobody answers for: Ray itself would ask for minutes.

    Raises:
        UserError: there is none at HOST:PORT.
    """
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/]+):(?P<port>\d{1,5})", address or "")
    if found is None:
        return  # auto, or a word that Ray refuses
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: nobody answers there ({reason_of(error)}); {START_ONE}") from None


def workers_for(resources: Resources, have: Mapping[str, float], fixed: bool) -> tuple[int, float]:
    """How many workers there may be, and the GPUs of each.

    Args:
        resources: what was asked for.
        have: "CPU" and "GPU" that Ray has.
        fixed: whether Ray will not have more of them later.

    Raises:
        UserError: not even one job fits, or not as many as were asked for.
    """
    cores, cards = have.get("CPU", 0.0), have.get("GPU", 0.0)
    gpus = (1.0 if cards >= 1 else 0.0) if resources.gpus is None else resources.gpus
    fit = int(cores / resources.cpus + 1e-9)
    if gpus:
        fit = min(fit, int(1 / gpus + 1e-9) * int(cards) if gpus < 1 else int(cards / gpus + 1e-9))
    wanted = resources.workers or 1
    if fit < wanted and fixed:
        needs = f"{wanted * resources.cpus:g} CPUs" + (f" and {wanted * gpus:g} GPUs" if gpus else "")
        raise UserError(
            f"{counted(wanted, 'worker')} of --cpus_per_job {resources.cpus:g}"
            f"{f' and --gpus_per_job {gpus:g}' if gpus else ''} need {needs}, and Ray has {cores:g} CPUs and {cards:g} GPUs; "
            "lower one of them"
        )
    return resources.workers or max(fit, 1), gpus


@dataclass(eq=False)
class _Busy:
    """A worker, and the job that it runs."""

    handle: Any
    recipe: str
    job: Job | None = None
    before: tuple[str, ...] = ()  # checkpoints when the job was given to it


class Engine:
    """Runs jobs to their end, in any order.

    Args:
        out: folder of the batch.
        recipes: job -> what jobs have in common that one process may run (see :func:`batch_jobs.shared_guidance.recipe`).
        resources: what Ray is asked for; it is connected.
        display: shows how far the jobs are.
        fixed: whether Ray will not have more cores and GPUs later, as on one machine.
    """

    def __init__(self, out: Path, recipes: Mapping[Job, str], resources: Resources, display: Display, fixed: bool = True):
        self.ray, self.out, self.resources, self.display = require_ray(), out.absolute(), resources, display
        self.limit, self.gpus = workers_for(resources, self.ray.cluster_resources(), fixed)
        self.recipes = recipes
        self.waiting: dict[str, deque[Job]] = {}
        for job, recipe in recipes.items():
            self.waiting.setdefault(recipe, deque()).append(job)
        self.workers: list[_Busy] = []
        self.running: dict[Any, _Busy] = {}  # reference to the result -> who computes it
        self.failures: dict[str, int] = {}  # name of a job -> tries in a row that got no further
        self.tries: dict[str, int] = {}  # name of a job -> processes that have begun it, in this batch and before

    def run(self) -> None:
        """Return when every job is done, or has failed for good.

        Raises:
            Stopped: a signal came; what runs has saved a checkpoint, unless it is being loaded or writes its results.
        """
        (self.out / state.STOP_FILE).unlink(missing_ok=True)  # of a driver that was killed
        try:
            with StopRequest() as request:
                self._loop(request)
        finally:
            for worker in list(self.workers):
                self._end(worker)
            (self.out / state.STOP_FILE).unlink(missing_ok=True)

    def _loop(self, request: StopRequest) -> None:
        """See :meth:`run`."""
        while any(self.waiting.values()) or self.running:
            if request.number is not None:
                self.display.log("stopping: the jobs that run save a checkpoint first; Ctrl-C ends them at once")
                (self.out / state.STOP_FILE).touch()
                self.ray.wait(list(self.running), num_returns=len(self.running), timeout=STOP_SECONDS)
                raise Stopped(request.number)
            self._give_out()
            ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                self._take_back(reference)
            running = [worker.job for worker in self.workers if worker.job is not None]
            self.display.update({job: state.read(self.out / job.name) for job in running})

    def _give_out(self) -> None:
        """Give each worker without a job the next one of its recipe; end those for which there is none, and start others."""
        for worker in [worker for worker in self.workers if worker.job is None]:
            if self.waiting.get(worker.recipe):
                self._submit(worker)
            else:
                self._end(worker)
        while len(self.workers) < self.limit and any(self.waiting.values()):
            count = {recipe: sum(worker.recipe == recipe for worker in self.workers) for recipe in self.waiting}
            recipe = max(self.waiting, key=lambda one: len(self.waiting[one]) / (1 + count[one]))
            self._submit(self._start(recipe))

    def _start(self, recipe: str) -> _Busy:
        """A new worker."""
        passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        # Idle OpenMP threads sleep rather than spin, as in main.py.
        variables = passed | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])}
        actor = self.ray.remote(Worker).options(
            num_cpus=self.resources.cpus, num_gpus=self.gpus, max_restarts=0, runtime_env={"env_vars": variables}
        )
        handle = actor.remote(os.getcwd())
        self.workers.append(worker := _Busy(handle, recipe))
        return worker

    def _submit(self, worker: _Busy) -> None:
        """Give a worker the next job."""
        job = self.waiting[worker.recipe].popleft()
        folder = self.out / job.name
        old = state.read(folder)
        self.tries[job.name] = tries = self.tries.get(job.name, 0 if old is None else old.tries) + 1
        worker.job, worker.before = job, tuple(state.checkpoints(folder))
        words = as_words(job, folder, max(int(self.resources.cpus), 1))
        given = (str(folder), words, list(job.words), tries, self.resources.judging)
        self.running[worker.handle.run.remote(*given)] = worker

    def _take_back(self, reference: Any) -> None:
        """A try has ended: the job is done, has failed for good, or is put back."""
        worker = self.running.pop(reference)
        job, outcome = worker.job, self._outcome(reference)
        assert job is not None
        folder, worker.job = self.out / job.name, None
        found = state.read(folder)
        if not outcome["final"] and (outcome["error"] or found is None):
            self._end(worker)  # whatever happened may have damaged the process
        judging = self.resources.judging
        judged_in_vain = found is not None and found.state == "done" and not outcome["error"]
        if found is not None and (judged_in_vain or state.is_finished(found, None if judging is None else judging.scorer)):
            self.display.ended(job, found)
            return
        further = tuple(state.checkpoints(folder)) != worker.before
        self.failures[job.name] = failures = 1 if further else self.failures.get(job.name, 0) + 1
        found = found or State("running", list(job.words))
        found.error, found.words = outcome["error"] or "it ended without a result", list(job.words)
        found.tries = self.tries[job.name]
        if outcome["final"] or failures >= self.resources.tries:
            if found.state == "done":
                found.unjudged = found.error
            else:
                found.state = "failed"
            state.write(folder, found, durable=True)
            self.display.ended(job, found)
            return
        self.display.again(job, found)
        self.waiting[worker.recipe].appendleft(job)

    def _outcome(self, reference: Any) -> Outcome:
        """What a worker says of a try, or what is to be said of a worker that is no more."""
        errors = self.ray.exceptions
        try:
            outcome: Outcome = self.ray.get(reference)
            return outcome
        except errors.OutOfMemoryError:
            said = (
                "Ray ended its process because the machine has no memory left; give it more --cpus_per_job, or fewer --workers"
            )
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError) as error:
            if "creation task" in str(error):
                reason = str(error).strip().splitlines()[-1]
                raise UserError(f"a worker cannot begin ({reason}); {PLACES}") from None
            said = "its process was killed (by the system, if its memory ran out)"
        except errors.RayTaskError as error:
            said = f"its process could not begin: {reason_of(error.cause or error)}"
        return Outcome(error=said, final=False, loaded=0)

    def _end(self, worker: _Busy) -> None:
        """End a worker's process."""
        self.workers.remove(worker)
        self.ray.kill(worker.handle)


def _python_path() -> list[str]:
    """The folders of PYTHONPATH."""
    return [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
