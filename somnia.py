"""The Python interface, for notebooks and other programs: options, and a run with its model, guidance and trainer.

::

    import somnia

    config = somnia.configure(text="a blue ball", workspace="trial", O=True, iters=300)
    with somnia.open_run(config) as run:
        run.train(steps=100)
        picture = run.picture(azimuth=30)
        run.train()
        mesh = run.export()

It is the same run as that of ``main.py`` with these flags: the same workspace, resumed where it stopped. Importing this module
imports no torch.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nerf.config.config import Config
from nerf.config.keywords import configure
from nerf.core.errors import Stopped, UserError

if TYPE_CHECKING:
    import numpy as np

    from guidance.base import Guidance
    from nerf.core.structs import Shading
    from nerf.mesh.export import ExportReport
    from nerf.renderer import NeRFRenderer
    from nerf.utils import StepRecord, Trainer

AMBIENT = 0.2  # share of the light of a shaded picture that comes from everywhere; the rest comes from the camera

__all__ = ["Run", "configure", "open_run"]


def open_run(config: Config | None = None, **flags: object) -> "Run":
    """Load everything of a run: photographs, guidance, model and trainer, restored from the workspace's newest checkpoint.

    The run holds its workspace until :meth:`Run.close`, or to the end of a ``with`` block.

    Args:
        config: the options, as :func:`configure` makes them.
        flags: the same in place, as ``open_run(text="a lion", workspace="lion", O=True)``.

    Raises:
        UserError: the run cannot be made: the message says why, and what to do.
    """
    if (config is None) == (not flags) or not isinstance(config, Config | None):
        raise UserError("open_run: expected either options made by configure(...) or flags as keywords")
    return Run(configure(**flags) if config is None else config)


class Run:
    """A run that is ready to train, or to show what was trained; see :func:`open_run`."""

    def __init__(self, asked: Config):
        import main
        from nerf.run import lock

        if asked.gui.viewer != "none":
            raise UserError("--viewer and --gui are for main.py; here run.picture() shows the scene")
        if lock.is_held(asked.output.workspace):
            raise UserError(
                f"workspace {asked.output.workspace} is open in this program already; close() that run, or choose another one"
            )
        with contextlib.ExitStack() as stack:
            self._run, trainer, _ = stack.enter_context(main.ready(asked))
            self._open = stack.pop_all()
        self.trainer: Trainer = trainer  # of the present stage; its ``run()`` yields after every step
        self._closed = False

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the log and free the workspace for other programs. What was trained since the last checkpoint is not saved."""
        self._closed = True
        self._open.close()

    def _require_open(self) -> None:
        """The workspace and the log are still this run's.

        Raises:
            UserError: they are not.
        """
        if self._closed:
            raise UserError(f"this run of workspace {self.config.output.workspace} is closed; open it again with open_run(...)")

    # ---- what it consists of --------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The options of the present stage, with the values that presets and the workspace gave."""
        return self.trainer.config

    @property
    def stage(self) -> str:
        """Name of the present stage."""
        return self.trainer.stage.name

    @property
    def model(self) -> "NeRFRenderer":
        """Field, background and render path: a torch module."""
        return self.trainer.model

    @property
    def guidance(self) -> "list[Guidance]":
        """The prepared guidance models, none for photographs."""
        return self.trainer.guidance

    # ---- what it does ---------------------------------------------------------------------------------------------------

    def steps(self, count: int | None = None) -> "Iterator[StepRecord]":
        """Train, yielding after every step; whoever leaves the loop loses nothing, and a later call goes on.

        Args:
            count: of steps at most; None: to the end of the stage, where a checkpoint is saved.

        Raises:
            UserError: the count is no number of steps, or the run is closed or does not train.
        """
        self._require_open()
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
            raise UserError(f"expected a number of steps, 0 or more, or None for all that are left, got {count!r}")
        if not self.config.trains:
            raise UserError("this run only shows, as test=True or six_views=True was asked for; open it without")
        for taken, record in enumerate(self.trainer.run() if count is None or count > 0 else (), start=1):
            yield record
            if taken == count:
                return

    def train(self, steps: int | None = None) -> dict[str, float]:
        """Train, and save a checkpoint; so does Ctrl-C, or the stop button of a notebook, after the step that is under way.

        Args:
            steps: at most; None: to the end of the stage.

        Returns:
            The unweighted terms of the last step; nothing if there was none left.

        Raises:
            KeyboardInterrupt: it was interrupted; nothing is lost.
        """
        from nerf.run.signals import StopRequest

        last = None
        handled = threading.current_thread() is threading.main_thread()  # elsewhere Python delivers no signals
        with StopRequest() if handled else contextlib.nullcontext() as request:
            for record in self.steps(steps):
                last = record
                if request is not None and request.number is not None:
                    self.trainer.save()
                    raise KeyboardInterrupt if request.number == signal.SIGINT else Stopped(request.number)
        if last is None:
            return {}
        if self.trainer.step < last.total:
            self.trainer.save()
        return {name: float(value) for name, value in last.terms.items()}

    def next_stage(self) -> bool:
        """Go on to the next stage (``stages=("nerf", "dmtet")``), which starts from this one; returns whether there is one.

        Raises:
            ExportError: this stage has nothing that the next one could start from.
        """
        self._require_open()
        pending = self._run.plan.pending
        later = pending[[stage.name for stage in pending].index(self.stage) + 1 :]
        if later:
            self.trainer = self._run.make(later[0])
        return bool(later)

    def picture(
        self,
        azimuth: float | None = None,
        polar: float | None = None,
        radius: float | None = None,
        fovy: float | None = None,
        size: int = 256,
        shading: "Shading" = "albedo",
    ) -> "np.ndarray":
        """The scene as it is, from a camera around the origin that looks at it; training does not notice.

        Args:
            azimuth, polar: degrees; azimuth 0 is the front and 90 the side of +X, polar 0 above and 90 the horizon. None: those
                of the options ``default_azimuth`` and so on, as the next two.
            radius: distance in scene units.
            fovy: vertical field of view, degrees.
            size: pixels of a side.
            shading: "albedo", "lambertian", "textureless" or "normal".

        Returns:
            [size, size, 3] uint8 sRGB.

        Raises:
            UserError: a number is out of its range, or the shading is unknown.
        """
        from dataclasses import replace

        import torch

        from nerf.core.cameras import orbit
        from nerf.core.images import to_uint8
        from nerf.core.structs import SHADINGS

        if shading not in SHADINGS:
            raise UserError(f"picture: expected shading as one of {', '.join(SHADINGS)}, got {shading!r}")
        default, evaluator = self.config.camera, self.trainer.evaluator
        given = {"azimuth": azimuth, "polar": polar, "radius": radius, "fovy": fovy}
        camera = {name: getattr(default, f"default_{name}") if value is None else value for name, value in given.items()}
        try:
            views = orbit(**{name: torch.tensor([float(value)]) for name, value in camera.items()}, height=size, width=size)
            if not bool(views.pose.isfinite().all()):
                raise ValueError(f"expected finite numbers, got {camera}")
        except (TypeError, ValueError) as error:
            raise UserError(f"picture: {error}") from None
        own = evaluator.settings()
        coloured = own.view_dependent and shading == "albedo"  # the diffuse colours alone are shaded
        settings = replace(own, shading=shading, ambient=AMBIENT, view_dependent=coloured)
        with self.trainer.ema.applied():
            out = evaluator.render(views, settings)
        return to_uint8(out.as_images(out.image)[0].permute(1, 2, 0))

    def export(self) -> "ExportReport | None":
        """Write the textured mesh to ``mesh/`` in the workspace, with its entry in ``result.json``; None on other ranks than 0.

        Raises:
            ExportError: the scene has no surface yet.
        """
        self._require_open()
        return self._run.export(self.trainer)
