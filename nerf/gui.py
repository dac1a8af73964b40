"""The window of the viewer (DearPyGui): the scene on the left, everything that can be set on the right.

It shows a :class:`nerf.viewer.session.Session`, which trains and renders on threads of its own; the window only draws what is
there and passes on what the user does. ``nerf/gui_panels.py`` builds the widgets.
"""

import importlib.util
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nerf.config.config import Config
from nerf.core.errors import UserError
from nerf.gui_panels import PANEL_WIDTH, STATUS_HEIGHT, Panels, make_look
from nerf.viewer import display
from nerf.viewer.frames import Frame
from nerf.viewer.session import Session
from nerf.viewer.view import View

TITLE = "Somnia"
WIDTH, HEIGHT = 1280, 860  # of the window at first
LEAST_WIDTH, LEAST_HEIGHT = 640, 420
LARGEST_TEXTURE = 16384 - 2  # pixels of a side; DearPyGui fails on wider ones
TEXTURE_STEP = 256  # pixels by which a texture grows, so that a window that is resized does not make one for each size
ACTIVE_SECONDS, IDLE_SECONDS, MINIMISED_SECONDS = 1 / 40, 1 / 20, 1 / 2  # from one drawing of the window to the next
ACTIVE_FOR = 1.0  # seconds after an input or a frame
STATUS_SECONDS, PLOT_SECONDS = 0.2, 1.0


def check(config: Config) -> None:
    """Check that the window can be opened here.

    Raises:
        UserError: DearPyGui is missing, or there is no display.
    """
    if importlib.util.find_spec("dearpygui") is None:
        raise UserError("the window of the viewer needs dearpygui; run: pip install dearpygui, or use --viewer web")
    problem = display.problem()
    if problem is not None:
        raise UserError(display.WITHOUT_DISPLAY.format(problem))


def show(session: Session, config: Config, stopped: Callable[[], bool]) -> None:
    """Open the window; returns when it is closed or ``stopped`` says so. On the main thread."""
    window = Window(session)
    try:
        while window.step() and not stopped():
            pass
    finally:
        window.close()


class Picture:
    """The newest frame as a texture, in the part of it that the frame needs; drawn over the whole view.

    Float RGBA, as not every system draws float RGB. The frame has a border of one pixel, a copy of its edge, so that a small
    frame is enlarged smoothly and without a seam. What is written to the buffer is drawn one drawing later than what is
    configured, so the corners of a frame wait for the next one.
    """

    def __init__(self) -> None:
        import dearpygui.dearpygui as dpg

        self.dpg = dpg
        self.registry = dpg.add_texture_registry()
        self.canvas = ""
        self.texture: int | str = 0
        self.image: int | str = 0
        self.buffer = np.zeros((0, 0, 4), np.float32)
        self.corners: dict[str, tuple[float, float]] | None = None  # of the frame that the next drawing shows
        self.uploads = 0

    def make_room(self, width: int, height: int) -> None:
        """A texture for frames of up to that size, drawn in a view of exactly that size."""
        dpg = self.dpg
        wide, high = (min(-(-(side + 2) // TEXTURE_STEP) * TEXTURE_STEP, LARGEST_TEXTURE) for side in (width, height))
        if wide > self.buffer.shape[1] or high > self.buffer.shape[0]:
            old_texture = self.texture
            self.buffer = np.zeros((high, wide, 4), np.float32)
            self.buffer[..., 3] = 1.0
            self.texture = dpg.add_raw_texture(wide, high, self.buffer, format=dpg.mvFormat_Float_rgba, parent=self.registry)
            if self.image:
                dpg.delete_item(self.image)
            self.image = dpg.draw_image(self.texture, (0, 0), (width, height), parent=self.canvas, show=False)
            if old_texture:
                dpg.delete_item(old_texture)
        dpg.configure_item(self.image, pmax=(width, height))

    def align(self) -> bool:
        """Before each drawing: take the corners of the frame that was uploaded before the last one, if there was one."""
        if self.corners is None:
            return False
        self.dpg.configure_item(self.image, show=True, **self.corners)
        self.corners = None
        return True

    def upload(self, pixels: np.ndarray) -> None:
        """Show a frame [h, w, 3], from the next drawing but one on."""
        h, w = pixels.shape[:2]
        high, wide = self.buffer.shape[:2]
        if h + 2 > high or w + 2 > wide:
            return  # it is of a window that has become smaller
        self.buffer[: h + 2, : w + 2, :3] = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
        self.corners = {"uv_min": (1 / wide, 1 / high), "uv_max": ((w + 1) / wide, (h + 1) / high)}
        self.uploads += 1


class Window:
    """The window; one at a time. DearPyGui's order: context, viewport, setup, and only then textures.

    Args:
        session: what it shows; begun.
    """

    def __init__(self, session: Session):
        import dearpygui.dearpygui as dpg

        self.dpg, self.session = dpg, session
        dpg.create_context()
        dpg.configure_app(manual_callback_management=True)  # callbacks run in ``step``, on this thread
        make_look(dpg)
        title = f"{TITLE} - {Path(session.status.workspace).name}"
        dpg.create_viewport(title=title, width=WIDTH, height=HEIGHT, min_width=LEAST_WIDTH, min_height=LEAST_HEIGHT)
        dpg.setup_dearpygui()
        self.picture = Picture()
        self.view: View = session.open_view()
        self.panels = Panels(dpg, session, self.view)
        self.panels.build(f"{title} ({os.getpid()})")
        self.picture.canvas = self.panels.canvas
        self.size = (0, 0)
        self._fit()
        self._handlers()
        dpg.show_viewport()
        self.watch = display.WindowWatch(title)
        self.shown = 0  # number of the newest frame that was uploaded
        self.drawn = 0  # version of the request that the window shows an answer to
        self.minimised = False
        self._uploaded: Frame | None = None
        self._held: tuple[int, tuple[float, float]] | None = None  # mouse button that drags the view, and where it was
        self._next = self._active_until = self._status_at = self._plot_at = 0.0

    # ---- drawing ----------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Draw the window once, when it is time to, and carry out what the user did; False once it is closed."""
        dpg = self.dpg
        if not dpg.is_dearpygui_running():
            return False
        now = time.monotonic()
        if now < self._next:
            number = self.shown
            self.view.wait(number, self._next - now) if now < self._active_until else time.sleep(self._next - now)
        self._update(time.monotonic())
        dpg.render_dearpygui_frame()  # which also notices input
        dpg.run_callbacks(dpg.get_callback_queue())
        now = time.monotonic()
        pause = ACTIVE_SECONDS if now < self._active_until else IDLE_SECONDS
        waits = 0.0 if self.picture.corners is not None else pause  # a frame that was uploaded is drawn at once
        self._next = now + (MINIMISED_SECONDS if self.minimised else waits)
        return True

    def close(self) -> None:
        """Close the window and what belongs to it."""
        self.view.close()
        self.watch.close()
        self.dpg.destroy_context()

    def _update(self, now: float) -> None:
        """Show what is new."""
        self._notice_minimising()
        if self.minimised:
            return
        self._fit()
        if self.picture.align() and self._uploaded is not None:
            self.drawn = self._uploaded.version
        frame = self.view.frame
        if frame is not None and frame.number > self.shown:
            self._uploaded = frame
            self.picture.upload(frame.pixels)
            self.shown = frame.number
            self._stay_active(now)
        if now >= self._status_at:
            self.panels.show_status(frame)
            self._status_at = now + STATUS_SECONDS
        if now >= self._plot_at:
            self.panels.show_losses()
            self._plot_at = now + PLOT_SECONDS

    def _stay_active(self, now: float) -> None:
        self._active_until = now + ACTIVE_FOR

    def _notice_minimising(self) -> None:
        """A window that nobody sees renders and uploads nothing: its memory would grow."""
        minimised = self.dpg.get_viewport_client_width() <= 0 or self.watch.minimised
        if minimised != self.minimised:
            self.minimised = minimised
            self.view.show(hidden=minimised)

    def _fit(self) -> None:
        """Let the view fill what the panel and the status line leave of the window."""
        dpg = self.dpg
        wide = max(dpg.get_viewport_client_width() - PANEL_WIDTH, 64)
        high = max(dpg.get_viewport_client_height() - STATUS_HEIGHT, 64)
        size = min(wide, LARGEST_TEXTURE), min(high, LARGEST_TEXTURE)
        if size != self.size:
            self.size = size
            self.panels.resize(*size)
            self.picture.make_room(*size)
            self.view.show(size=size)

    # ---- the mouse --------------------------------------------------------------------------------------------------

    def _handlers(self) -> None:
        dpg = self.dpg
        with dpg.handler_registry():
            dpg.add_mouse_click_handler(callback=lambda _, button: self.press(button, tuple(dpg.get_mouse_pos(local=False))))
            dpg.add_mouse_move_handler(callback=lambda _, place: self.move((place[0], place[1])))
            dpg.add_mouse_release_handler(callback=lambda _, button: self.release(button))
            dpg.add_mouse_wheel_handler(callback=lambda _, notches: self.wheel(notches))
            dpg.add_mouse_double_click_handler(callback=lambda _, button: self.double_click(button))

    def inside(self) -> bool:
        """Whether the mouse is over the scene."""
        return bool(self.dpg.is_item_hovered(self.panels.canvas))

    def press(self, button: int, place: tuple[float, float]) -> None:
        """A button went down: over the scene it begins to drag it."""
        if self.inside():
            self._held = (button, place)

    def move(self, place: tuple[float, float]) -> None:
        """The mouse moved: with the left button it turns the scene, with another one it shifts it."""
        if self._held is None or not all(map(math.isfinite, place)):
            return
        button, before = self._held
        dx, dy = place[0] - before[0], place[1] - before[1]
        if dx == 0 and dy == 0:
            return
        camera = self.view.request.camera
        self._held = (button, place)
        turning = button == self.dpg.mvMouseButton_Left and not self.dpg.is_key_down(self.dpg.mvKey_LShift)
        self._stay_active(time.monotonic())
        self.view.show(camera=camera.orbit(dx, dy) if turning else camera.pan(dx, dy, self.size[1]))

    def release(self, button: int) -> None:
        """A button went up."""
        if self._held is not None and self._held[0] == button:
            self._held = None

    def wheel(self, notches: float) -> None:
        """The wheel turned: over the scene it moves the camera nearer or farther."""
        if self.inside():
            self._stay_active(time.monotonic())
            self.view.show(camera=self.view.request.camera.zoom(notches))

    def double_click(self, button: int) -> None:
        """A double click on the scene brings the first camera back."""
        if self.inside() and button == self.dpg.mvMouseButton_Left:
            self.panels.first_camera()
