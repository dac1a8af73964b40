"""The thread that renders the frames of all views, beside the one that trains."""

import threading
import time
from collections.abc import Callable

import torch

from nerf.core import progress
from nerf.viewer import frames
from nerf.viewer.frames import Cancelled, Request
from nerf.viewer.resolution import DynamicResolution
from nerf.viewer.snapshot import Snapshot, Snapshots
from nerf.viewer.view import Task, View

ANSWER_SECONDS = 0.06  # of a frame that answers a change: more than 10 a second, with what the window needs
PROGRESS_SECONDS = 0.3  # of a frame that shows the progress of a training
CHUNK_SECONDS = 0.02  # between two looks at whether a frame is still wanted
LEAST_CHUNK = 512  # rays
PATIENCE = 0.2  # seconds that an answer may take although a newer request has come
IDLE_SECONDS = 5.0  # of sleep where nothing wakes it

Kind = tuple[type, bool]


class FrameRenderer:
    """Renders for any number of views in turn; those whose newest request has no answer come first.

    Args:
        snapshots: what is rendered.
        device: of the model.
        training: whether the weights will soon change.
        want: called where newer weights are wanted.
        sentence: what an exception of a frame means, for people.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        device: torch.device,
        training: Callable[[], bool],
        want: Callable[[], None],
        sentence: Callable[[Exception], str] = str,
    ):
        self.snapshots, self.device = snapshots, device
        self._training, self._want, self._sentence = training, want, sentence
        self._views: list[View] = []
        self._wakes = threading.Condition()
        self._woken, self._ended = False, False
        self._costs: dict[Kind, DynamicResolution] = {}
        self._thread = threading.Thread(target=self._run, name="somnia-frames", daemon=True)

    def start(self) -> None:
        """Begin to render."""
        self._thread.start()

    def open(self, request: Request) -> View:
        """A new view."""
        view = View(request, self.wake)
        with self._wakes:
            self._views.append(view)
        self.wake()
        return view

    def wake(self) -> None:
        """Look for something to render."""
        with self._wakes:
            self._woken = True
            self._wakes.notify_all()

    def end(self) -> None:
        """Cancel what is in the works and wait for the end of the thread."""
        with self._wakes:
            self._ended, views = True, list(self._views)
        for view in views:
            view.close()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def looked_at(self) -> bool:
        """Whether anybody looks at any view."""
        return any(view.live for view in self._views)

    def resolution(self, snapshot: Snapshot, request: Request) -> DynamicResolution:
        """What frames of this kind take: those that need normals, and those of another render path, take longer."""
        kind = (type(snapshot.model.path), request.settings.mode == "image" and request.settings.shading != "albedo")
        return self._costs.setdefault(kind, DynamicResolution())

    # ---- on its thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        with progress.quiet(), torch.no_grad():
            while not self._ended:
                with self._wakes:
                    self._woken = False
                if not self._render_one():
                    self._sleep()

    def _sleep(self) -> None:
        """Until something changes, or a view may show newer weights."""
        due = min((view.next_time() for view in self._views if view.live), default=0.0)
        wait = due - time.monotonic()
        with self._wakes:
            self._wakes.wait_for(lambda: self._woken or self._ended, wait if 0.0 < wait < IDLE_SECONDS else IDLE_SECONDS)

    def _render_one(self) -> bool:
        """Render the most urgent frame; False if there is none."""
        with self._wakes:
            self._views = [view for view in self._views if not view.closed]
            views = sorted(self._views, key=lambda view: (not view.unanswered, view.shown_at))
        now = time.monotonic()
        if any(view.live and (view.unanswered or view.next_time() <= now) for view in views):
            self._want()
        with self.snapshots.use() as snapshot:
            if snapshot is None:
                return False
            for view in views:
                task = view.next_task(snapshot.number, self._training(), lambda request: self._scales(snapshot, request))
                if task is not None:
                    self._render(view, task, snapshot)
                    return True
        return False

    def _scales(self, snapshot: Snapshot, request: Request) -> tuple[float, float]:
        """Scales of a frame that answers a change, and of one that shows the progress of a training."""
        cost, pixels = self.resolution(snapshot, request), request.width * request.height
        return cost.scale(pixels, ANSWER_SECONDS), cost.scale(pixels, PROGRESS_SECONDS)

    def _render(self, view: View, task: Task, snapshot: Snapshot) -> None:
        """Render a frame and show it, or why it could not be."""
        request, model = task.request, snapshot.model
        width, height = request.size_at(task.scale)
        cost = self.resolution(snapshot, request)

        began, done = time.monotonic(), 0

        def go_on(pixels: int) -> bool:
            nonlocal done
            done = pixels
            return not self._ended and self._still_wanted(view, task, time.monotonic() - began)

        try:
            views = frames.shifted(request.camera.views(height, width), task.sample).to(self.device)
            settings = request.settings.render_settings(snapshot.settings, self.device)
            most = model.ray_batch(self.device)
            chunk = cost.chunk(CHUNK_SECONDS, min(LEAST_CHUNK, most), most)
            shown = frames.picture(frames.render(model, views, settings, chunk, go_on), request.settings.mode)
        except Cancelled:
            if done > 0:
                cost.observe(done, time.monotonic() - began)
        except Exception as error:  # of whatever kind: it is shown, and the training goes on
            view.fail(task, self._sentence(error), snapshot.number)
        else:
            seconds = time.monotonic() - began
            cost.observe(width * height, seconds)
            view.publish(task, shown, seconds, snapshot.step, snapshot.number)

    def _still_wanted(self, view: View, task: Task, seconds: float) -> bool:
        """Whether a frame that has taken so long goes on.

        An answer is finished though the camera has moved on, or a view in motion would show nothing; but not one that takes too
        long. Refinements end for any change, and for the answer that another view waits for.
        """
        if not view.live:
            return False
        if task.answers:
            return view.wants(task) or seconds < PATIENCE or not view.dynamic
        return view.wants(task) and not any(other.unanswered for other in self._views)
