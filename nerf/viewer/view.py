"""One view of the scene: what a window or a browser asks for, and the newest frame that answers it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nerf.viewer.camera import OrbitCamera
from nerf.viewer.frames import Frame, Request
from nerf.viewer.settings import ViewSettings

REFRESH_SHARE = 0.25  # of the time that a view which nobody moves spends on showing the progress of a training
REFRESH_SECONDS = 0.5  # between two such frames, at least
REFINE = 2.0  # factor of the render scale from one frame of a view that stands still to the next


@dataclass(frozen=True)
class Task:
    """A frame to be rendered."""

    request: Request
    version: int
    scale: float
    sample: int  # which of the samples of its pixels
    answers: bool  # it is the first frame of its request


class View:
    """What one onlooker sees. ``show`` and ``frame`` may be used from any thread; the rest is for the renderer.

    Args:
        request: what is shown first.
        wake: called when there is something to render.
    """

    def __init__(self, request: Request, wake: Callable[[], None]):
        self._wake = wake
        self._changed = threading.Condition()
        self._request, self._version = request, 1
        self._frame: Frame | None = None
        self._error: str | None = None
        self._dynamic, self._hidden, self._closed = True, False, False
        # Of the renderer: what the newest frame is, and the sum of its samples.
        self._done = 0  # version
        self._scale, self._samples, self._snapshot = 0.0, 0, 0
        self._sum: Tensor | None = None
        self._refresh_at = self.shown_at = 0.0  # when newer weights may be shown, and when the newest frame was

    # ---- for the window ---------------------------------------------------------------------------------------------

    @property
    def request(self) -> Request:
        """What it wants to see."""
        return self._request

    @property
    def frame(self) -> Frame | None:
        """The newest frame; None before the first one."""
        return self._frame

    @property
    def error(self) -> str | None:
        """Why the newest frame could not be rendered; None if it could."""
        return self._error

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def dynamic(self) -> bool:
        """Whether the first answer to a change may be smaller than the window, so that it comes in time."""
        return self._dynamic

    def show(
        self,
        camera: OrbitCamera | None = None,
        settings: ViewSettings | None = None,
        size: tuple[int, int] | None = None,
        dynamic: bool | None = None,
        hidden: bool | None = None,
    ) -> int:
        """Ask for another picture; what is not given stays. A frame in the works for an older request is cancelled.

        Args:
            camera: where from.
            settings: how.
            size: (width, height) of the window's picture, pixels.
            dynamic: see :attr:`dynamic`.
            hidden: nobody sees it (a minimised window), so that nothing is rendered.

        Returns:
            The version of the request, which the frames that answer it carry.
        """
        with self._changed:
            old = self._request
            width, height = (old.width, old.height) if size is None else size
            new = Request(camera or old.camera, settings or old.settings, width, height)
            self._dynamic = self._dynamic if dynamic is None else dynamic
            self._hidden = self._hidden if hidden is None else hidden
            if new != old:
                self._request, self._version = new, self._version + 1
            version = self._version
        self._wake()
        return version

    def wait(self, after: int = 0, timeout: float | None = None) -> Frame | None:
        """Wait for a frame with a number above ``after``; None if the time is over or the view was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._number > after, timeout)
            return self._frame if self._number > after and not self._closed else None

    def close(self) -> None:
        """End it: its frame in the works is cancelled, and nothing more is rendered for it. May be called twice."""
        with self._changed:
            self._closed, self._sum = True, None
            self._changed.notify_all()
        self._wake()

    # ---- for the renderer -------------------------------------------------------------------------------------------

    @property
    def _number(self) -> int:
        return 0 if self._frame is None else self._frame.number

    @property
    def live(self) -> bool:
        """Whether anybody looks at it."""
        return not (self._closed or self._hidden)

    @property
    def unanswered(self) -> bool:
        """Whether its newest request has no frame yet."""
        return self.live and self._done != self._version

    @property
    def samples_missing(self) -> bool:
        """Whether a picture that stands still lacks some of its samples per pixel."""
        return self._samples < self._request.settings.max_spp

    def next_task(self, snapshot: int, training: bool, scales: Callable[[Request], tuple[float, float]]) -> Task | None:
        """The next frame of this view, None if there is nothing to do now.

        A change is answered at the scale that the time allows; then the picture is refined to full size, and its samples are
        accumulated. While the training changes the scene, a picture that stands still is rendered anew for a share of the time,
        and only as large as lets it show the progress about once a second.

        Args:
            snapshot: number of the newest weights.
            training: whether they will soon change again.
            scales: what a first answer can afford, and what a picture in training can.
        """
        with self._changed:
            request, version = self._request, self._version
        if not self.live:
            return None
        answer, limit = scales(request) if self._dynamic else (1.0, 1.0)
        if version != self._done:
            return Task(request, version, answer, 0, True)
        if self._error is not None and snapshot == self._snapshot:
            return None  # it would fail again
        limit = limit if training else 1.0
        if self._scale < (1.0 if limit == 1.0 else limit / REFINE**0.5):
            finer = self._scale * REFINE
            return Task(request, version, finer if finer < limit / REFINE**0.5 else limit, 0, False)
        if snapshot != self._snapshot:
            return Task(request, version, limit, 0, False) if time.monotonic() >= self._refresh_at else None
        if not training and self.samples_missing:
            return Task(request, version, 1.0, self._samples, False)
        return None

    def next_time(self) -> float:
        """When newer weights may be shown at the earliest, on the clock of ``time.monotonic``."""
        return self._refresh_at

    def wants(self, task: Task) -> bool:
        """Whether the frame of a task is still wanted."""
        return self.live and self._version == task.version

    def publish(self, task: Task, shown: Tensor, seconds: float, step: int, snapshot: int) -> None:
        """Show the rendered picture [h, w, 3] of a task, averaged with the samples before it."""
        fresh = task.sample == 0 or self._sum is None or self._sum.shape != shown.shape
        total = shown if fresh or self._sum is None else self._sum + shown
        count = 1 if fresh else task.sample + 1
        pixels = (total / count).numpy()
        pixels.flags.writeable = False
        now = time.monotonic()
        with self._changed:
            if self._closed:
                return
            self._sum = total if task.scale == 1.0 and task.request.settings.max_spp > 1 else None
            self._done, self._scale, self._samples, self._snapshot = task.version, task.scale, count, snapshot
            self._error, self.shown_at = None, now
            self._refresh_at = now + max(REFRESH_SECONDS, seconds * (1.0 / REFRESH_SHARE - 1.0))
            number = self._number + 1
            self._frame = Frame(pixels, task.request, task.version, number, task.scale, count, seconds, step, snapshot)
            self._changed.notify_all()

    def fail(self, task: Task, message: str, snapshot: int) -> None:
        """Say why the picture of a task could not be rendered; it is tried again with another request or newer weights."""
        with self._changed:
            self._done, self._snapshot, self._error, self._sum = task.version, snapshot, message, None
            self.shown_at = time.monotonic()
            self._changed.notify_all()
