"""Judges the mesh of a run: a row of figures. B views on a circle, K captions, V viewpoints, Z fields of view."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance.prior.captions import parse
from guidance.prior.shapes import canonical
from nerf.core.errors import UserError
from nerf.core.structs import Views
from nerf.evaluation import alignment, cameras, geometry, janus, photographs, pictures
from nerf.evaluation.captions import normalised, pool_of
from nerf.evaluation.pictures import Look
from nerf.evaluation.scorers import Scorer
from nerf.evaluation.workspaces import Finished
from nerf.mesh.compare import read_shape
from nerf.run import lpips
from nerf.run.mesh_evaluation import TexturedMesh, read_textured


@dataclass(frozen=True)
class Protocol:
    """How pictures are made and what they are compared with: all that a figure depends on beside the mesh and the model."""

    views: int = 8  # B
    polar: float = cameras.POLAR  # degrees, of the circle
    background: str = "white"
    crop: str = "none"
    fit: str = "auto"
    region: int | None = None  # subdivisions of T3Bench's icosphere; None: its score is left out
    region_fovs: tuple[float, ...] = cameras.ICOSPHERE_FOVS
    captions: tuple[str, ...] = ()  # K; those of the runs themselves are added
    truth: Path | None = None  # the true surface
    points: int = 50_000  # on each of two surfaces
    upper_bound: bool = True  # judge the true shape as well, where the embedded prior knows it
    photographs: bool = True  # compare with held-out photographs, where a run has some
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The protocol as JSON values."""
        return asdict(self) | {"truth": None if self.truth is None else str(self.truth)}


@dataclass
class Row:
    """The figures of one run; a figure that cannot be had is missing."""

    workspace: str
    prompt: str | None
    seed: int | None
    failure: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    taken_for: dict[str, list[str]] = field(default_factory=dict)  # scorer -> the caption that each view was nearest to
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)


class Judge:
    """Judges runs one after the other.

    Args:
        scorers: models that judge pictures; none, and geometry alone is measured.
        protocol: how.

    Raises:
        UserError: the true surface of the protocol is none.
    """

    def __init__(self, scorers: Sequence[Scorer], protocol: Protocol):
        self.scorers, self.protocol = scorers, protocol
        self.perceptual = lpips.find()
        self.truth = None if protocol.truth is None else read_shape(protocol.truth)
        self._true: dict[tuple[str, str], dict[str, float]] = {}  # scorer and prompt -> figures of the true shape
        if protocol.region is not None:
            self.directions, self.neighbours = cameras.icosphere(protocol.region)

    def row(self, run: Finished) -> Row:
        """The figures of a run; of one whose files are damaged those that came before, and the reason."""
        row = Row(str(run.folder), run.prompt, run.seed, run.failure, dict(run.kept))
        if not row.failure:
            try:
                self._measure(row, run)
            except UserError as error:
                row.failure = str(error)
        return row

    def _measure(self, row: Row, run: Finished) -> None:
        """Add the figures of a run that has a mesh to its row.

        Raises:
            UserError: the mesh, or a photograph, is damaged, or a prompt is not for a scorer.
        """
        row.figures |= geometry.report_figures(run.mesh)
        if self.truth is not None:
            row.figures |= geometry.truth_figures(run.mesh, self.truth, self.protocol.points, self.protocol.seed)
        mesh = read_textured(run.mesh)
        if self.protocol.photographs and run.config.data.data is not None:
            row.figures |= photographs.figures(run.mesh, run.config, self.perceptual)
        shown, moved = pictures.placed(mesh, self.protocol.fit)
        if moved:
            row.notes.append(f"the mesh was moved and scaled into a ball of radius {pictures.BALL:g} for the pictures")
        self._views(row, shown)
        for scorer in self.scorers if run.prompt is not None else ():
            assert run.prompt is not None
            captions, true = pool_of(self.protocol.captions, run.prompt)
            found, taken = self._aligned(scorer, shown, captions, true)
            row.figures |= found
            row.taken_for[scorer.name] = taken
            if self.protocol.upper_bound:
                row.figures |= self._bound(scorer, run.prompt, captions, true)
            if self.protocol.region is not None:
                row.figures |= self._region(scorer, mesh, captions, true)

    # ---- parts of a row -------------------------------------------------------------------------------------------------

    def _circle(self, size: int) -> Views:
        return cameras.circle(self.protocol.views, size, self.protocol.polar)

    def _look(self, size: int) -> Look:
        return Look(size, self.protocol.background, self.protocol.crop)

    def _views(self, row: Row, mesh: TexturedMesh) -> None:
        """The drift from view to view that needs no model of texts."""
        size = 64 if self.perceptual is None else 128
        seen = pictures.of_mesh(mesh, self._circle(size), self._look(size))
        row.figures["drift_ssim"] = janus.drift(seen, janus.dissimilarity)
        if self.perceptual is not None:
            row.figures["drift_lpips"] = janus.drift(seen.permute(0, 2, 3, 1), self.perceptual)

    def _aligned(
        self, scorer: Scorer, mesh: TexturedMesh, captions: list[str], true: int
    ) -> tuple[dict[str, float], list[str]]:
        """Agreement with the prompt over the circle, and the caption that each view was nearest to."""
        views = self._circle(scorer.size)
        seen = pictures.of_mesh(mesh, views, self._look(scorer.size))
        return self._judged(scorer, seen, views, captions, true)

    def _judged(
        self, scorer: Scorer, seen: Tensor, views: Views, captions: list[str], true: int
    ) -> tuple[dict[str, float], list[str]]:
        """See :meth:`_aligned`, of pictures [B, 3, S, S]."""
        name, prompt = scorer.name.lower(), captions[true]
        logits = scorer.logits(seen, captions, views)
        posterior = torch.softmax(logits.double(), 1)
        found = {
            f"r_precision_{name}": float(alignment.r_precision(logits, true).mean()),
            f"posterior_{name}": float(posterior[:, true].mean()),
            f"drift_{name}": janus.drift(posterior, janus.total_variation),
            f"janus_{name}": janus.side_mean(scorer.frontness(seen, prompt, views), views.azimuth, 180.0),
            **scorer.figures(seen, prompt, views),
        }
        return found, [captions[i] for i in alignment.chosen(logits)]

    def _bound(self, scorer: Scorer, prompt: str, captions: list[str], true: int) -> dict[str, float]:
        """R-precision and Janus score of the true shape, where the embedded prior has it, and of a guess."""
        caption, name = parse(prompt).caption, scorer.name.lower()
        found = {f"r_precision_{name}_chance": 1 / len(captions)}
        if caption is None:
            return found
        key = (scorer.name, normalised(prompt))
        if key not in self._true:
            views = self._circle(scorer.size)
            seen = pictures.of_shape(canonical(caption), views, self._look(scorer.size))
            judged = self._judged(scorer, seen, views, captions, true)[0]
            self._true[key] = {f"{one}_true": judged[one] for one in (f"r_precision_{name}", f"janus_{name}")}
        return found | self._true[key]

    def _region(self, scorer: Scorer, mesh: TexturedMesh, captions: list[str], true: int) -> dict[str, float]:
        """T3Bench's score of the best region of the icosphere."""
        unit, columns = pictures.unit_ball(mesh), []
        for fovy in self.protocol.region_fovs:
            views = cameras.icosphere_views(self.directions, fovy, scorer.size)
            seen = pictures.of_mesh(unit, views, self._look(scorer.size))
            columns.append(scorer.agreement(seen, captions, true, views))
        region = alignment.best_region(torch.stack(columns, 1), self.neighbours)
        name = scorer.name.lower()
        return {f"region_{name}": region.score, f"region_{name}_single": region.single}


def check(runs: Sequence[Finished], protocol: Protocol, scored: bool) -> None:
    """Refuse what cannot be judged before a model is loaded; ``scored`` says whether there will be one.

    Raises:
        UserError: fewer than two captions for runs with a prompt, or a true surface that is not there.
    """
    if protocol.truth is not None and not protocol.truth.is_file():
        raise UserError(f"there is no true surface {protocol.truth}; give a mesh or a point cloud")
    pool = {normalised(caption) for caption in protocol.captions}
    for run in runs:
        if scored and run.prompt is not None and len(pool | {normalised(run.prompt)}) < 2:
            raise UserError(
                f"the prompt {run.prompt!r} needs others to be told from; give --captions FILE with one on each line"
            )
