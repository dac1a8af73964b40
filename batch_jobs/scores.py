"""Scores of finished jobs, as ``scripts/evaluate.py`` measures them, and keeping the best seed of each job."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from batch_jobs import state
from batch_jobs.jobs import Job
from batch_jobs.state import State
from nerf.core.errors import UserError

if TYPE_CHECKING:
    from nerf.evaluation.judge import Judge

FIGURES = ("r_precision", "posterior", "janus")  # of the scorer, with its name behind
DROPPED = ("checkpoints", "mesh")  # folders of a job whose other seed is kept


@dataclass(frozen=True)
class Judging:
    """How jobs are judged: the captions that each must be told from, and by what model."""

    captions: tuple[str, ...]  # the prompt of a job is added
    clip: str | None = None  # folder or hub id of CLIP; None: the embedded prior

    @property
    def scorer(self) -> str:
        """Its name in the figures."""
        return "prior" if self.clip is None else "clip"


def judging_of(jobs: Sequence[Job], clip: str | None) -> Judging:
    """How the jobs of a batch are judged; nothing is loaded.

    Args:
        jobs: all of them.
        clip: see :class:`Judging`.

    Raises:
        UserError: a job has no text, or one that the embedded prior does not know; there is no such CLIP.
    """
    from guidance import text_weights
    from guidance.prior import replies
    from guidance.prior.captions import BENCHMARK_PROMPTS

    texts: list[str] = []
    for job in jobs:
        if job.prompt is None:
            raise UserError(f"{job.place}: --pick best compares renders with a text, and this job has none; leave --pick out")
        texts.append(job.prompt)
        if clip is None:
            try:
                replies.check(job.prompt, strict=True, further="or judge with --clip, which knows any words")
            except UserError as error:
                raise UserError(f"{job.place}: --pick best: {error}") from None
    if clip is not None:
        text_weights.from_key("clip", clip, "--clip")  # now, and not after the first job
    benchmark = [prompt for prompt, _ in BENCHMARK_PROMPTS]
    return Judging(tuple(dict.fromkeys(benchmark if clip is None else [*texts, *benchmark])), clip)


@cache
def _judge(judging: Judging) -> "Judge":
    """The loaded model with its protocol; it stays loaded."""
    from nerf.evaluation.judge import Judge, Protocol
    from nerf.evaluation.scorers import ClipScorer, Scorer

    scorer: Scorer
    if judging.clip is None:
        from nerf.evaluation.prior_scorer import PriorScorer

        scorer = PriorScorer(judging.captions)
    else:
        scorer = ClipScorer(judging.clip)
    return Judge([scorer], Protocol(captions=judging.captions, upper_bound=False, photographs=False))


def judge(folder: Path, judging: Judging) -> dict[str, float]:
    """The figures of a finished job by which its seeds are compared.

    Raises:
        UserError: it has no mesh, or one that cannot be read.
    """
    from nerf.evaluation.workspaces import read_finished

    finished = read_finished(folder)
    if finished.failure:
        raise UserError(finished.failure)
    row = _judge(judging).row(finished)
    return {name: row.figures[name] for name in (f"{figure}_{judging.scorer}" for figure in FIGURES)}


def rank(scores: dict[str, float], scorer: str) -> tuple[float, float]:
    """What is larger for a better job: R-precision; among equals, the posterior of the prompt less the Janus score."""
    r_precision, posterior, janus = (scores.get(f"{figure}_{scorer}", 0.0) for figure in FIGURES)
    return r_precision, posterior - janus


def keep_best(out: Path, jobs: Sequence[Job], scorer: str) -> list[str]:
    """Keep the best seed of each job, and of the others all but the checkpoints and the mesh.

    Seeds that have no scores are kept, as nothing is known of them.

    Returns:
        The names of the best.

    Raises:
        OSError: something cannot be written or removed.
    """
    groups: dict[str, list[tuple[Job, State]]] = {}
    for job in jobs:
        found = state.read(out / job.name)
        if found is not None and found.state == "dropped":  # by a driver that was killed before it removed all
            _remove(out / job.name)
        elif found is not None and found.state == "done" and state.is_finished(found, scorer):
            groups.setdefault(job.group, []).append((job, found))
    names = []
    for judged in groups.values():
        best = max(judged, key=lambda one: rank(one[1].scores, scorer))
        names.append(best[0].name)
        for job, found in judged:
            found.picked = job is best[0]
            found.state = "done" if found.picked else "dropped"
            state.write(out / job.name, found, durable=True)
            if not found.picked:
                _remove(out / job.name)
    return names


def _remove(folder: Path) -> None:
    """Remove what is not kept of a job whose other seed is."""
    for inside in DROPPED:
        shutil.rmtree(folder / inside, ignore_errors=True)
